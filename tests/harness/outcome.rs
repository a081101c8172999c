//! What came of a connection attempt or query, as the dialling program sees it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;
use serde::Serialize;

use crate::fixture::Protocol;

/// What the dialling program was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// TCP: connected.
    Established,
    /// UDP: an answer came.
    Replied,
    /// ECONNREFUSED: a reset while connecting, or ICMP port unreachable.
    Refused,
    /// ECONNRESET: a reset after the connection stood.
    Reset,
    /// EHOSTUNREACH or ENETUNREACH: ICMP unreachable, no route, dead neighbour.
    Unreachable(Errno),
    /// ETIMEDOUT: the kernel gave up.
    TimedOut,
    /// TCP: the program gave up; nothing had come until then.
    GaveUp,
    /// UDP: no answer until the program gave up.
    NoReply,
    /// Any other error (EPERM: dropped on its way out; EACCES: ICMP prohibited).
    Failed(Errno),
}

/// One driven flow.
#[derive(Debug, Clone, Serialize)]
pub struct FlowResult {
    /// The flow's id.
    pub id: String,
    /// Transport.
    pub protocol: Protocol,
    /// Local address and port of the attempt; none if it failed before it had one.
    pub source: Option<SocketAddr>,
    /// The address that was dialled: the service's, where the flow goes through one.
    pub dialled: SocketAddr,
    /// The address the flow is meant to reach after service translation.
    pub destination: SocketAddr,
    /// What came of it.
    pub outcome: Outcome,
    /// Which host answered, as its server said: `namespace/pod`, `node NAME`, `outside`, or an address that several
    /// nodes have.
    pub reached: Option<String>,
    /// Time from connect() or send() to the outcome.
    pub elapsed: Duration,
}

impl Outcome {
    /// Whether packets went both ways.
    pub fn reachable(self) -> bool {
        matches!(self, Self::Established | Self::Replied | Self::Reset)
    }

    /// The outcome that an errno of connect(), send() or recv() stands for.
    pub(crate) fn of_errno(errno: Errno) -> Self {
        match errno {
            Errno::ECONNREFUSED => Self::Refused,
            Errno::ECONNRESET => Self::Reset,
            Errno::EHOSTUNREACH | Errno::ENETUNREACH => Self::Unreachable(errno),
            Errno::ETIMEDOUT => Self::TimedOut,
            other => Self::Failed(other),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Established => f.write_str("established"),
            Self::Replied => f.write_str("replied"),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Unreachable(errno) => write!(f, "unreachable ({errno:?})"),
            Self::TimedOut => f.write_str("timed-out"),
            Self::GaveUp => f.write_str("gave-up"),
            Self::NoReply => f.write_str("no-reply"),
            Self::Failed(errno) => write!(f, "failed ({errno:?})"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
