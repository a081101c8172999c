//! One connection attempt, joined from everything that was seen of it.

mod decide;
mod index;
mod listeners;
mod memory;
mod open;
mod outcome;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use outcome::Outcome;
use serde::{Deserialize, Serialize};
pub use table::Attempts;

use crate::observation::{DropClass, Hook, Owner, Stack, Tuple};
use crate::time::Time;

/// A drop that was joined to an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedDrop {
    /// When.
    pub at: Time,
    /// Which part of the kernel.
    pub class: DropClass,
    /// Name of the reason.
    pub reason: Option<String>,
    /// Function of the drop.
    pub location: Option<String>,
    /// How the kernel came there; empty where that is not known.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub stack: Stack,
    /// The answer was dropped, not the request.
    pub reply: bool,
    /// Network namespace of the drop; 0 where unknown.
    pub netns: u32,
}

impl JoinedDrop {
    /// At which hook netfilter dropped it, where the stack shows that.
    #[must_use]
    pub fn hook(&self) -> Option<Hook> {
        matches!(self.class, DropClass::Netfilter | DropClass::Nfqueue).then(|| Hook::of(&self.stack)).flatten()
    }
}

/// One connection attempt: a TCP connect or a UDP exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it began; for an attempt known only by its drop or its acceptance, when that was seen.
    pub started: Time,
    /// When the last SYN is known to have been sent.
    pub last_sent: Time,
    /// When the outcome was decided by what the kernel did.
    pub at: Time,
    /// As the client dialled it.
    pub dialled: Tuple,
    /// As it left translation, where conntrack or a drop told.
    pub translated: Option<Tuple>,
    /// What became of it.
    pub outcome: Outcome,
    /// The outcome is not final: the socket still tries.
    pub provisional: bool,
    /// The drop that explains the outcome.
    pub dropped: Option<JoinedDrop>,
    /// The ICMP answer, as `(type, code)`.
    pub icmp: Option<(u8, u8)>,
    /// `sk_err` at the end; 0 where the probe cannot read it.
    pub error: i32,
    /// Retransmits of the SYN.
    pub retransmits: u32,
    /// Who connected; not known for attempts from elsewhere.
    pub owner: Option<Owner>,
    /// Network namespace of the client's socket; 0 where there was none.
    pub netns: u32,
    /// Time to ESTABLISHED.
    pub latency: Option<Duration>,
    /// The destination's listener was seen to accept it.
    pub accepted: bool,
}

impl Attempt {
    /// What a single event tells of one: when, where to, and what became of it.
    pub(crate) fn seen(at: Time, dialled: Tuple, outcome: Outcome) -> Self {
        Self {
            started: at,
            last_sent: at,
            at,
            dialled,
            translated: None,
            outcome,
            provisional: false,
            dropped: None,
            icmp: None,
            error: 0,
            retransmits: 0,
            owner: None,
            netns: 0,
            latency: None,
            accepted: false,
        }
    }

    /// The tuple that policies judge: after translation where that is known.
    #[must_use]
    pub fn judged(&self) -> &Tuple {
        self.translated.as_ref().unwrap_or(&self.dialled)
    }
}
