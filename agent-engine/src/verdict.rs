//! The nine states of a pair: one total function of what the policies say and what was seen.
//!
//! | model | newest evidence | state |
//! |---|---|---|
//! | does not admit | policy-class drop or reject | `denied` |
//! | does not admit | failed, or only the answer was dropped | `predicted` |
//! | does not admit | none | `at-risk` (`unknown` after a loss) |
//! | does not admit | established after the grace window | `unenforced` |
//! | admits | policy-class drop or reject, after the grace window | `unexplained` |
//! | admits | failed, after the grace window | `failing` (`unknown` after a loss, be it of drops alone, or where drops cannot be seen: a drop may be the cause) |
//! | admits | none | `silent` (`unknown` after a loss, or where nothing could be seen) |
//! | admits | established | `verified` |
//! | cannot be decided | anything | `unknown` |
//!
//! Agreement needs no grace: a drop that the policies explain is `denied` at once, a connection that they admit `verified`. A
//! disagreement within the grace window after a policy change or a pod's start is put down to lag and counts as no evidence.
//! A loss makes the absence of evidence prove nothing; what was seen stays seen. A loss of drops alone leaves the absence of
//! attempts as it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::Admission;

/// What was seen of a pair's traffic, at its newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// Nothing that counts.
    None,
    /// A connection was established.
    Established,
    /// A policy-class drop of a request, or a reject.
    Denied,
    /// A policy-class drop of an answer: the request got through.
    AnswerDropped,
    /// Failed in any other way.
    Failed,
}

impl Evidence {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::None, Self::Established, Self::Denied, Self::AnswerDropped, Self::Failed];
}

/// Everything that a verdict stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What the policies say.
    pub admission: Admission,
    /// What was seen.
    pub evidence: Evidence,
    /// The evidence is from the grace window.
    pub in_grace: bool,
    /// Events were lost when they could have told something else.
    pub lost: bool,
    /// The same of drops alone, or no drop can be seen here: every attempt was seen.
    pub drops_lost: bool,
    /// Attempts of this pair can be seen: its port is watched, and no attempt was seen that could not be attributed.
    pub observable: bool,
}

/// The state of a pair, or of one of its instances.
#[must_use]
pub fn verdict(facts: &Facts) -> State {
    let blind = facts.lost || !facts.observable;
    match (facts.admission, facts.evidence) {
        (Admission::Undecidable, _) => State::Unknown,
        (Admission::NotAdmitted, Evidence::Denied) => State::Denied,
        (Admission::NotAdmitted, Evidence::Failed | Evidence::AnswerDropped) => State::Predicted,
        (Admission::NotAdmitted, Evidence::Established) if !facts.in_grace => State::Unenforced,
        (Admission::NotAdmitted, Evidence::None | Evidence::Established) if facts.lost => State::Unknown,
        (Admission::NotAdmitted, Evidence::None | Evidence::Established) => State::AtRisk,
        (Admission::Admitted, Evidence::Established) => State::Verified,
        (Admission::Admitted, Evidence::Denied | Evidence::AnswerDropped) if !facts.in_grace => State::Unexplained,
        (Admission::Admitted, Evidence::Failed) if !facts.in_grace && (facts.lost || facts.drops_lost) => {
            State::Unknown
        }
        (Admission::Admitted, Evidence::Failed) if !facts.in_grace => State::Failing,
        (Admission::Admitted, _) if blind => State::Unknown,
        (Admission::Admitted, Evidence::None | Evidence::Denied | Evidence::AnswerDropped | Evidence::Failed) => {
            State::Silent
        }
    }
}

/// What a pair's policies and its traffic say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not admitted, and a policy-class drop or reject was seen.
    Denied,
    /// Not admitted; attempts fail, the drop itself was not seen from here.
    Predicted,
    /// Not admitted; no attempt yet.
    AtRisk,
    /// Not admitted, and established all the same.
    Unenforced,
    /// Admitted, and a policy-class drop or reject was seen.
    Unexplained,
    /// Admitted, and fails for another reason.
    Failing,
    /// Cannot be decided, or evidence was lost.
    Unknown,
    /// Admitted; no attempt within the window.
    Silent,
    /// Admitted, and established within the window.
    Verified,
}

impl State {
    /// Every state, the one that needs attention most first.
    pub const ALL: [Self; 9] = [
        Self::Denied,
        Self::Predicted,
        Self::AtRisk,
        Self::Unenforced,
        Self::Unexplained,
        Self::Failing,
        Self::Unknown,
        Self::Silent,
        Self::Verified,
    ];

    /// The word of the documentation and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Predicted => "predicted",
            Self::AtRisk => "at-risk",
            Self::Unenforced => "unenforced",
            Self::Unexplained => "unexplained",
            Self::Failing => "failing",
            Self::Unknown => "unknown",
            Self::Silent => "silent",
            Self::Verified => "verified",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::{Evidence, Facts, State, verdict};
    use crate::policy::Admission;
    use Admission::{Admitted, NotAdmitted, Undecidable};

    /// The truth table: every combination, by hand. Columns: settled, in grace, settled and lost, in grace and lost.
    const TABLE: [(Admission, Evidence, [State; 4]); 15] = {
        use State::{AtRisk, Denied, Failing, Predicted, Silent, Unenforced, Unexplained, Unknown, Verified};
        [
            (NotAdmitted, Evidence::None, [AtRisk, AtRisk, Unknown, Unknown]),
            (NotAdmitted, Evidence::Established, [Unenforced, AtRisk, Unenforced, Unknown]),
            (NotAdmitted, Evidence::Denied, [Denied, Denied, Denied, Denied]),
            (NotAdmitted, Evidence::AnswerDropped, [Predicted, Predicted, Predicted, Predicted]),
            (NotAdmitted, Evidence::Failed, [Predicted, Predicted, Predicted, Predicted]),
            (Admitted, Evidence::None, [Silent, Silent, Unknown, Unknown]),
            (Admitted, Evidence::Established, [Verified, Verified, Verified, Verified]),
            (Admitted, Evidence::Denied, [Unexplained, Silent, Unexplained, Unknown]),
            (Admitted, Evidence::AnswerDropped, [Unexplained, Silent, Unexplained, Unknown]),
            (Admitted, Evidence::Failed, [Failing, Silent, Unknown, Unknown]),
            (Undecidable, Evidence::None, [Unknown, Unknown, Unknown, Unknown]),
            (Undecidable, Evidence::Established, [Unknown, Unknown, Unknown, Unknown]),
            (Undecidable, Evidence::Denied, [Unknown, Unknown, Unknown, Unknown]),
            (Undecidable, Evidence::AnswerDropped, [Unknown, Unknown, Unknown, Unknown]),
            (Undecidable, Evidence::Failed, [Unknown, Unknown, Unknown, Unknown]),
        ]
    };

    #[test]
    fn truth_table() {
        for (admission, evidence, expected) in TABLE {
            for (n, state) in expected.into_iter().enumerate() {
                let facts = Facts {
                    admission,
                    evidence,
                    in_grace: n & 1 == 1,
                    lost: n & 2 == 2,
                    drops_lost: false,
                    observable: true,
                };
                assert_eq!(verdict(&facts), state, "{facts:?}");
            }
        }
    }

    #[test]
    fn the_table_is_total() {
        for admission in [Admitted, NotAdmitted, Undecidable] {
            for evidence in Evidence::ALL {
                assert_eq!(TABLE.iter().filter(|(a, e, _)| (*a, *e) == (admission, evidence)).count(), 1);
            }
        }
    }

    #[test]
    fn lost_drops_weaken_only_what_stands_on_the_absence_of_a_drop() {
        for (admission, evidence, [settled, grace, ..]) in TABLE {
            for (in_grace, before) in [(false, settled), (true, grace)] {
                let facts = Facts { admission, evidence, in_grace, lost: false, drops_lost: true, observable: true };
                let expected = if before == State::Failing { State::Unknown } else { before };
                assert_eq!(verdict(&facts), expected, "{facts:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_seen_is_not_silent() {
        for (admission, evidence, [settled, ..]) in TABLE {
            let facts =
                Facts { admission, evidence, in_grace: false, lost: false, drops_lost: false, observable: false };
            let expected = if settled == State::Silent { State::Unknown } else { settled };
            assert_eq!(verdict(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn loss_and_grace_never_make_an_accusation_or_a_proof() {
        for (_, evidence, [settled, grace, lost, both]) in TABLE {
            for weaker in [grace, lost, both] {
                let strong = matches!(weaker, State::Denied | State::Verified | State::Unenforced | State::Unexplained);
                assert!(!strong || weaker == settled, "{evidence:?}: {settled} became {weaker}");
            }
        }
    }
}
