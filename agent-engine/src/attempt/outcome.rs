//! What became of an attempt.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The handshake completed, or a datagram was answered.
    Established,
    /// The destination answered that nobody listens.
    Refused,
    /// A rule answered in the destination's place (RST or ICMP).
    Rejected,
    /// The kernel was seen to drop it.
    Dropped,
    /// No answer, and no drop seen from here.
    TimedOut,
    /// No route or no neighbour.
    Unreachable,
    /// The listener's queue was full.
    BacklogFull,
    /// It ended before anything could be said: the application gave up, or the probe cannot know why.
    Cancelled,
    /// A datagram without an answer.
    NoReply,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 9] = [
        Self::Established,
        Self::Refused,
        Self::Rejected,
        Self::Dropped,
        Self::TimedOut,
        Self::Unreachable,
        Self::BacklogFull,
        Self::Cancelled,
        Self::NoReply,
    ];

    /// The word of the documentation and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Dropped => "dropped",
            Self::TimedOut => "timed-out",
            Self::Unreachable => "unreachable",
            Self::BacklogFull => "backlog-full",
            Self::Cancelled => "cancelled",
            Self::NoReply => "no-reply",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
