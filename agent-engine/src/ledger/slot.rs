//! What was seen of one instance of a pair, and what it is worth now.

use std::sync::Arc;
use std::time::Duration;

use crate::attempt::{Attempt, Outcome};
use crate::policy::{Admission, Endpoint};
use crate::time::Time;
use crate::verdict::Evidence;

/// How much later than the network plugin an agent may hear of a policy. Until then what speaks against the policies may as well
/// be the first sign of a change.
const HEARSAY: Duration = Duration::from_secs(1);

/// An attempt as evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// When what it proves happened: the SYN that was answered, the packet that was dropped.
    pub at: Time,
    /// All of it.
    pub attempt: Arc<Attempt>,
}

/// The newest evidence of each kind, of one source and one destination.
#[derive(Clone, Debug)]
pub struct Slot {
    /// What the policies say of this instance.
    pub admission: Admission,
    /// Since when they say so; what was seen earlier proves nothing.
    pub valid_from: Time,
    /// A disagreement seen before this is put down to lag.
    pub settled: Time,
    /// Where it may have led: one destination, or the backends of a Service whose translation was not seen.
    pub candidates: Vec<Endpoint>,
    /// Since when what is seen speaks against the policies, without a break.
    against: Option<Time>,
    established: Option<Seen>,
    denied: Option<Seen>,
    answer_dropped: Option<Seen>,
    failed: Option<Seen>,
}

/// How an attempt counts, and as of when; `None` for one that says nothing.
#[must_use]
pub fn evidence_of(attempt: &Attempt) -> Option<(Evidence, Time)> {
    let dropped_at = attempt.dropped.as_ref().map_or(attempt.last_sent, |d| d.at);
    let by_policy = attempt.dropped.as_ref().filter(|d| d.class.is_policy_capable());
    match attempt.outcome {
        Outcome::Established => Some((Evidence::Established, attempt.last_sent)),
        Outcome::Rejected => Some((Evidence::Denied, dropped_at)),
        Outcome::Dropped => match by_policy {
            Some(drop) if drop.reply => Some((Evidence::AnswerDropped, drop.at)),
            Some(drop) => Some((Evidence::Denied, drop.at)),
            None => Some((Evidence::Failed, dropped_at)),
        },
        Outcome::Refused | Outcome::TimedOut | Outcome::Unreachable | Outcome::BacklogFull | Outcome::NoReply => {
            Some((Evidence::Failed, attempt.started))
        }
        Outcome::Cancelled => None,
    }
}

impl Slot {
    /// A slot without evidence.
    #[must_use]
    pub fn new(admission: Admission, valid_from: Time, settled: Time, candidates: Vec<Endpoint>) -> Self {
        Self {
            admission,
            valid_from,
            settled,
            candidates,
            against: None,
            established: None,
            denied: None,
            answer_dropped: None,
            failed: None,
        }
    }

    /// The policies say something else from `edited` on; `settled` as in the field.
    pub fn judge_again(&mut self, admission: Admission, edited: Time, settled: Time) {
        self.admission = admission;
        self.valid_from = edited;
        self.settled = settled;
        self.against = None;
    }

    /// Takes in an attempt.
    pub fn record(&mut self, evidence: Evidence, at: Time, attempt: Arc<Attempt>) {
        let place = match evidence {
            Evidence::None => return,
            Evidence::Established => &mut self.established,
            Evidence::Denied => &mut self.denied,
            Evidence::AnswerDropped => &mut self.answer_dropped,
            Evidence::Failed => &mut self.failed,
        };
        if place.as_ref().is_none_or(|old| old.at <= at) {
            *place = Some(Seen { at, attempt });
        }
        match (self.admission, evidence) {
            _ if at < self.valid_from => {}
            (Admission::NotAdmitted, Evidence::Established)
            | (Admission::Admitted, Evidence::Denied | Evidence::AnswerDropped) => {
                self.against.get_or_insert(at);
            }
            (Admission::NotAdmitted, Evidence::Denied) | (Admission::Admitted, Evidence::Established) => {
                self.against = None;
            }
            _ => {}
        }
    }

    /// When something was last seen.
    #[must_use]
    pub fn last(&self) -> Time {
        let all = [&self.established, &self.denied, &self.answer_dropped, &self.failed];
        all.into_iter().flatten().map(|s| s.at).max().unwrap_or_default()
    }

    /// What counts at `now` of all that was seen since `oldest`, and whether it is put down to lag.
    #[must_use]
    pub fn evidence(&self, now: Time, oldest: Time) -> (Evidence, Option<&Seen>, bool) {
        let all = [
            (Evidence::Established, &self.established),
            (Evidence::Denied, &self.denied),
            (Evidence::AnswerDropped, &self.answer_dropped),
            (Evidence::Failed, &self.failed),
        ];
        let counts = |s: &&Seen| s.at >= self.valid_from && s.at >= oldest;
        let all = all.map(|(kind, seen)| (kind, seen.as_ref().filter(counts)));
        let hearsay = self.against.is_some_and(|since| now < since.plus(HEARSAY));
        let is_lag = |kind: Evidence, seen: &Seen| match (self.admission, kind) {
            (Admission::NotAdmitted, Evidence::Established)
            | (Admission::Admitted, Evidence::Denied | Evidence::AnswerDropped) => seen.at < self.settled || hearsay,
            (Admission::Admitted, Evidence::Failed) => seen.at < self.settled,
            _ => false,
        };
        let settled = all.map(|(kind, seen)| (kind, seen.filter(|s| !is_lag(kind, s))));
        match weigh(settled) {
            (Evidence::None, _) => {
                let (kind, seen) = weigh(all);
                (kind, seen, kind != Evidence::None)
            }
            (kind, seen) => (kind, seen, false),
        }
    }
}

/// The newest counts, but a failure without a known cause does not outweigh a drop that was seen: probes report a flood of
/// equal drops only now and then, and the failure most likely is one of them.
fn weigh(all: [(Evidence, Option<&Seen>); 4]) -> (Evidence, Option<&Seen>) {
    let [(_, established), (_, denied), (_, answer), (_, failed)] = all;
    let since = established.map(|s| s.at);
    let newer = |s: &&Seen| since.is_none_or(|e| s.at > e);
    if let Some(seen) = denied.filter(newer) {
        return (Evidence::Denied, Some(seen));
    }
    if let Some(seen) = answer.filter(newer) {
        return (Evidence::AnswerDropped, Some(seen));
    }
    if let Some(seen) = failed.filter(newer) {
        return (Evidence::Failed, Some(seen));
    }
    established.map_or((Evidence::None, None), |seen| (Evidence::Established, Some(seen)))
}
