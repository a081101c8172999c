//! One connection attempt as `weir watch` shows it, and the way to ask for them.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_engine::attempt::{Attempt, JoinedDrop, Outcome};
use weir_engine::observation::{DropClass, Hook, Owner, Tuple};
use weir_engine::policy::Admission;
use weir_engine::snapshot::EndView;

/// Lines that wait for one reader at most; a reader that is slower than that loses lines.
pub const QUEUE: usize = 1_024;

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Live {
    /// Something became of an attempt.
    Attempt(Arc<Line>),
    /// So many lines were left out here, because the reader was too slow.
    Skipped(u64),
}

/// A required flow by its two names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowName {
    /// The catalogue's id.
    pub id: Arc<str>,
    /// The catalogue's code.
    pub code: Arc<str>,
}

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, nanoseconds since the Unix epoch.
    pub at_unix_ns: i64,
    /// What became of it.
    pub outcome: Outcome,
    /// The socket still tries: another line may follow.
    pub provisional: bool,
    /// Required flows that it belongs to.
    pub flows: Vec<FlowName>,
    /// Who connects.
    pub source: EndView,
    /// To whom.
    pub destination: EndView,
    /// As the client dialled it.
    pub dialled: Tuple,
    /// As it left service translation, where that was seen.
    pub translated: Option<Tuple>,
    /// Class of the drop.
    pub class: Option<DropClass>,
    /// Reason of the drop, by name.
    pub reason: Option<String>,
    /// Function of the drop.
    pub location: Option<String>,
    /// At which hook of netfilter it was, where the kernel's stack shows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// The answer was dropped, not the request.
    pub reply: bool,
    /// Retransmits of the SYN.
    pub retransmits: u32,
    /// Time to ESTABLISHED, nanoseconds.
    pub latency_ns: Option<u64>,
    /// Who connected, where that is this machine's.
    pub owner: Option<Owner>,
    /// What the policies say; undecidable where an end is not known.
    pub admission: Admission,
    /// Policies that select the ends on the sides that do not admit. None of them alone denies.
    pub policies: Vec<String>,
    /// How many more there are at least: of thousands, the first are told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policies_left_out: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Line {
    /// An attempt between two ends, of which the policies are not asked yet.
    #[must_use]
    pub fn new(attempt: &Attempt, [source, destination]: [EndView; 2], wall_offset_ns: i64) -> Self {
        let dropped = attempt.dropped.as_ref();
        Self {
            at_unix_ns: i64::try_from(attempt.at.0).unwrap_or(i64::MAX).saturating_add(wall_offset_ns),
            outcome: attempt.outcome,
            provisional: attempt.provisional,
            flows: Vec::new(),
            source,
            destination,
            dialled: attempt.dialled,
            translated: attempt.translated.filter(|t| *t != attempt.dialled),
            class: dropped.map(|d| d.class),
            reason: dropped.and_then(|d| d.reason.clone()),
            location: dropped.and_then(|d| d.location.clone()),
            hook: dropped.and_then(JoinedDrop::hook),
            reply: dropped.is_some_and(|d| d.reply),
            retransmits: attempt.retransmits,
            latency_ns: attempt.latency.map(|l| u64::try_from(l.as_nanos()).unwrap_or(u64::MAX)),
            owner: attempt.owner.clone(),
            admission: Admission::Undecidable,
            policies: Vec::new(),
            policies_left_out: 0,
        }
    }

    /// An attempt of which nothing is known but its addresses.
    #[must_use]
    pub fn between_addresses(attempt: &Attempt, wall_offset_ns: i64) -> Self {
        let end = |address: IpAddr| EndView {
            kind: "address".to_owned(),
            namespace: "".into(),
            workload: address.to_string().into(),
            workload_kind: "".into(),
        };
        Self::new(attempt, [attempt.dialled.source, attempt.judged().destination].map(end), wall_offset_ns)
    }

    /// A policy has, or may have, to do with its failing.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        let dropped = self.outcome == Outcome::Dropped && self.class.is_some_and(DropClass::is_policy_capable);
        dropped || self.outcome == Outcome::Rejected || self.admission == Admission::NotAdmitted
    }
}
