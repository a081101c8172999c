//! The nine states of a pair.

use std::fmt;

use serde::{Deserialize, Serialize};

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
