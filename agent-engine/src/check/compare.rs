//! Two reports side by side: which required flows close, which open.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::report::{PairReport, Report, Verdict};
use crate::snapshot::EndView;
use crate::words::Protocol;

/// What changes between two reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Required flows, or some of their instances, that were not denied and are now: the worst first.
    pub closed: Vec<Changed>,
    /// Required flows that could be told and cannot any longer.
    pub unsure: Vec<Changed>,
    /// Required flows that were denied, in all or in part, and are less so now.
    pub opened: Vec<Changed>,
    /// Required flows that are the same on both sides.
    pub unchanged: usize,
}

/// A required flow that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// What was said of it; `None` where it was not there.
    pub before: Option<Verdict>,
    /// Instances that were denied.
    pub denied_before: usize,
    /// Instances that are denied now.
    pub denied_now: usize,
    /// As it is now; as it was where it is not there any longer.
    pub pair: PairReport,
}

type Key<'a> = (&'a str, &'a EndView, &'a EndView, Protocol, u16);

/// Compares by flow, ends and port. A flow that is new and denied counts as closed; one that is gone does not count.
#[must_use]
pub fn compare(old: &Report, new: &Report) -> Comparison {
    let before: BTreeMap<Key<'_>, &PairReport> = old.pairs.iter().map(|p| (key(p), p)).collect();
    let mut out = Comparison::default();
    for pair in &new.pairs {
        let was = before.get(&key(pair)).copied();
        let changed = |was: Option<&PairReport>| Changed {
            before: was.map(|p| p.verdict),
            denied_before: was.map_or(0, PairReport::denied),
            denied_now: pair.denied(),
            pair: pair.clone(),
        };
        let (denied, unsure) = (pair.denied(), pair.verdict == Verdict::Undecidable);
        let (was_denied, was_unsure) = was.map_or((0, false), |p| (p.denied(), p.verdict == Verdict::Undecidable));
        if denied > was_denied {
            out.closed.push(changed(was));
        } else if unsure && !was_unsure && was_denied == 0 {
            out.unsure.push(changed(was));
        } else if denied < was_denied {
            out.opened.push(changed(was));
        } else {
            out.unchanged += 1;
        }
    }
    out
}

fn key(pair: &PairReport) -> Key<'_> {
    (&pair.flow, &pair.source, &pair.destination, pair.protocol, pair.port)
}
