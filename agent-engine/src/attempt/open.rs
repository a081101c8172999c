//! One attempt that has not ended, or whose end is not final yet.

use std::net::IpAddr;

use super::decide::Ending;
use super::listeners::Room;
use super::table::SILENT;
use super::{Attempt, JoinedDrop, Outcome};
use crate::observation::{DropClass, Owner, Tuple};
use crate::time::Time;
use crate::words::Protocol;

/// Socket address and start.
pub(super) type Id = (Time, u64);
/// Source, destination, destination port, protocol: a connection without its source port.
pub(super) type FlowKey = (IpAddr, IpAddr, u16, Protocol);

#[derive(Clone, Debug)]
pub(super) struct Open {
    pub tuple: Tuple,
    /// Under which it is indexed.
    pub flow: FlowKey,
    /// The start was seen, so the age and the owner are known.
    pub start_seen: bool,
    pub last_sent: Time,
    pub retransmits: u32,
    pub owner: Option<Owner>,
    pub netns: u32,
    pub dropped: Option<JoinedDrop>,
    pub translated: Option<Tuple>,
    /// A drop waits to be reported.
    pub report_drop_at: Option<Time>,
    pub silence_reported: bool,
    /// A listener of this machine accepted it.
    pub accepted: bool,
    /// A listener of this machine answered its SYN more than once: no rule dropped it.
    pub arrived: bool,
    /// Whether its destination's listeners have room.
    pub room: Room,
    pub ending: Option<(Ending, Time)>,
    pub due: Time,
}

impl Open {
    pub fn new(tuple: Tuple, started: Time, netns: u32, owner: Option<Owner>) -> Self {
        Self {
            flow: key(&tuple),
            tuple,
            start_seen: true,
            last_sent: started,
            retransmits: 0,
            owner,
            netns,
            dropped: None,
            translated: None,
            report_drop_at: None,
            silence_reported: false,
            accepted: false,
            arrived: false,
            room: Room::default(),
            ending: None,
            due: started.plus(SILENT),
        }
    }

    pub fn translate(&mut self, to: &Tuple) {
        if to.destination != self.tuple.destination || to.destination_port != self.tuple.destination_port {
            self.translated = Some(*to);
        }
    }

    pub fn drop_outcome(&self) -> Outcome {
        match self.dropped.as_ref().map(|d| d.class) {
            Some(DropClass::Route | DropClass::Neighbour) => Outcome::Unreachable,
            _ => Outcome::Dropped,
        }
    }

    /// What is said while it hangs.
    pub fn silent_outcome(&self) -> Outcome {
        if self.room == Room::Full { Outcome::BacklogFull } else { Outcome::TimedOut }
    }

    pub fn attempt(&self, id: &Id, outcome: Outcome, at: Time, provisional: bool) -> Attempt {
        Attempt {
            started: id.0,
            last_sent: self.last_sent,
            translated: self.translated,
            provisional,
            dropped: self.dropped.clone(),
            retransmits: self.retransmits,
            owner: self.owner.clone(),
            netns: self.netns,
            accepted: self.accepted,
            ..Attempt::seen(at, self.tuple, outcome)
        }
    }
}

pub(super) fn key(t: &Tuple) -> FlowKey {
    (t.source, t.destination, t.destination_port, t.protocol)
}
