//! What can go wrong with a request to the API server, as far as it makes a difference for what to do next.

use std::time::Duration;

use super::super::change::State;

/// Why a request or a watch ended without what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No connection, or it broke.
    #[error("the API server can't be reached: {0}")]
    Unreachable(String),
    /// Nothing came for too long.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// 401
    #[error("the API server does not accept the credentials (401): {0}")]
    Unauthorized(String),
    /// 403
    #[error("access is forbidden (403), check the ClusterRole: {0}")]
    Forbidden(String),
    /// 404
    #[error("the API server does not serve this (404)")]
    NotFound,
    /// 410, in the status or in a watch: the version is too old.
    #[error("the version is too old (410)")]
    Gone,
    /// 400 or 422: a parameter is not understood.
    #[error("the API server does not take the request ({0}): {1}")]
    Invalid(u16, String),
    /// 429
    #[error("the API server asks to slow down (429)")]
    Throttled,
    /// Any other status.
    #[error("the API server answers {0}: {1}")]
    Status(u16, String),
    /// The answer is not what the API promises.
    #[error("the answer can't be read: {0}")]
    Unreadable(String),
}

impl Fault {
    /// From an error status and its message.
    #[must_use]
    pub fn from_status(code: u16, message: &str) -> Self {
        // A message may be a proxy's whole page, or hold what someone put into an object.
        let message: String = message.trim().chars().filter(|c| !c.is_control()).take(200).collect();
        match code {
            400 | 422 => Self::Invalid(code, message),
            401 => Self::Unauthorized(message),
            403 => Self::Forbidden(message),
            404 => Self::NotFound,
            410 => Self::Gone,
            429 => Self::Throttled,
            _ => Self::Status(code, message),
        }
    }

    /// The state of a watch that ended like this.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Self::Unauthorized(_) | Self::Forbidden(_) => State::Refused,
            Self::Unreachable(_)
            | Self::Silent(_)
            | Self::NotFound
            | Self::Gone
            | Self::Invalid(..)
            | Self::Throttled
            | Self::Status(..)
            | Self::Unreadable(_) => State::Stale,
        }
    }
}

/// A [`Fault`] and how long the API server asked to wait before the next try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub fault: Fault,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self { fault, retry_after: None }
    }
}
