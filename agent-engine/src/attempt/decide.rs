//! From the end of a TCP attempt and the drop joined to it to its outcome: one total function.

use std::time::Duration;

use super::table::ANSWER;
use super::{JoinedDrop, Outcome};
use crate::observation::{AttemptEnd, DropClass, QueuedError};
use crate::time::Time;

const ENETUNREACH: i32 = 101;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;
const EHOSTDOWN: i32 = 112;
const EHOSTUNREACH: i32 = 113;
const ENETDOWN: i32 = 100;
const EACCES: i32 = 13;
const ECONNRESET: i32 = 104;

/// What answered a SYN in place of a SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An RST: the destination, or a rule in its place.
    Reset,
    /// "Administratively prohibited": only a rule says so.
    Prohibited,
    /// "Port unreachable" to a TCP SYN: a TCP stack answers RST, so this is a rule's.
    PortUnreachable,
    /// `ECONNREFUSED` over IPv6 without a known RST: port unreachable, or an RST that was not seen.
    Refused,
    /// No route, no host.
    Unreachable,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Established { at: Time },
    Answered { at: Time, answer: Answer, icmp: Option<(u8, u8)>, error: i32 },
    GaveUp { at: Time, error: i32, hasty: bool },
}

impl Ending {
    /// `age` is `None` where the start was not seen.
    pub(super) fn new(e: &AttemptEnd, age: Option<Duration>, retransmits: u32) -> Self {
        let at = e.at;
        if e.established {
            return Self::Established { at };
        }
        let icmp = e.queued.map(|q| (q.kind, q.code));
        // The kernel gives up with ETIMEDOUT and leaves what it heard on the way in the soft error.
        let error = if matches!(e.error, 0 | ETIMEDOUT) && e.soft_error != 0 { e.soft_error } else { e.error };
        let answered = |answer| Self::Answered { at, answer, icmp, error };
        let young = age.is_none_or(|a| a < Duration::from_secs(1));
        if e.reset {
            return answered(Answer::Reset);
        }
        // A peer that is silent for long has not answered, whatever ended it; of an early end nothing can be said.
        if e.cause_unknown {
            return Self::GaveUp { at, error: 0, hasty: retransmits == 0 && young };
        }
        if let Some(answer) = e.queued.and_then(icmp_answer) {
            return answered(answer);
        }
        match error {
            ECONNREFUSED if e.tuple.source.is_ipv4() => answered(Answer::Reset),
            ECONNREFUSED => answered(Answer::Refused),
            ECONNRESET => answered(Answer::Reset),
            EACCES => answered(Answer::Prohibited),
            EHOSTUNREACH | ENETUNREACH | ENETDOWN | EHOSTDOWN => answered(Answer::Unreachable),
            _ => Self::GaveUp { at, error, hasty: error != ETIMEDOUT && retransmits == 0 && young },
        }
    }

    pub(super) fn at(&self) -> Time {
        match self {
            Self::Established { at } | Self::Answered { at, .. } | Self::GaveUp { at, .. } => *at,
        }
    }

    pub(super) fn error(&self) -> i32 {
        match self {
            Self::Established { .. } => 0,
            Self::Answered { error, .. } | Self::GaveUp { error, .. } => *error,
        }
    }

    pub(super) fn icmp(&self) -> Option<(u8, u8)> {
        match self {
            Self::Answered { icmp, .. } => *icmp,
            Self::Established { .. } | Self::GaveUp { .. } => None,
        }
    }

    /// Nothing answered, for long enough that a SYN was lost.
    pub(super) fn may_have_been_dropped(&self) -> bool {
        matches!(self, Self::GaveUp { hasty: false, .. })
    }
}

/// The outcome of an ended attempt. `full`: its destination's listeners were seen to have no room.
pub(super) fn decide(ending: &Ending, dropped: Option<&JoinedDrop>, full: bool) -> Outcome {
    let by_policy = |at: &Time| dropped.is_some_and(|d| d.class.is_policy_capable() && d.at.distance(*at) <= ANSWER);
    let by_route = |at: &Time| dropped.is_some_and(|d| d.class == DropClass::Route && d.at.distance(*at) <= ANSWER);
    match ending {
        Ending::Established { .. } => Outcome::Established,
        Ending::Answered { at, .. } if by_policy(at) => Outcome::Rejected,
        // A prohibit route answers "administratively prohibited" as a rule does (net/ipv4/route.c `ip_error`).
        Ending::Answered { at, answer: Answer::Prohibited, .. } if by_route(at) => Outcome::Unreachable,
        Ending::Answered { answer: Answer::Prohibited | Answer::PortUnreachable, .. } => Outcome::Rejected,
        Ending::Answered { answer: Answer::Reset | Answer::Refused, .. } => Outcome::Refused,
        Ending::Answered { answer: Answer::Unreachable, .. } => Outcome::Unreachable,
        Ending::GaveUp { hasty, .. } => match dropped.map(|d| (d.class, d.reason.as_deref())) {
            Some((DropClass::Route | DropClass::Neighbour, _)) => Outcome::Unreachable,
            Some((DropClass::Resource, Some("TCP_LISTEN_OVERFLOW"))) => Outcome::BacklogFull,
            Some(_) => Outcome::Dropped,
            None if *hasty => Outcome::Cancelled,
            None if full => Outcome::BacklogFull,
            None => Outcome::TimedOut,
        },
    }
}

/// ICMP and ICMPv6 "destination unreachable" by code (RFC 792, 1812, 4443); anything else ends no connection attempt.
fn icmp_answer(q: QueuedError) -> Option<Answer> {
    match (q.origin, q.kind, q.code) {
        (2, 3, 9 | 10 | 13) | (3, 1, 1 | 5) => Some(Answer::Prohibited),
        (2, 3, 3 | 2) | (3, 1, 4) => Some(Answer::PortUnreachable),
        (2, 3, _) | (3, 1, _) => Some(Answer::Unreachable),
        _ => None,
    }
}
