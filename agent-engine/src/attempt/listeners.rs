//! Full listeners: a SYN for which a listener has no room is freed without a word (net/ipv4/tcp_input.c `tcp_conn_request`),
//! and looks like one that was dropped where nobody looks.
//!
//! The kernel counts it in its network namespace (`ListenDrops` of `/proc/net/netstat`). That counter is asked for while an
//! attempt hangs: once as a basis, and again when it was sent once more or has ended. If it rose in between, the listeners of
//! that namespace had no room when they were asked, and nothing else is known to have happened to the SYN.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::open::{Id, Open};
use crate::time::Time;

/// How long the end of an attempt waits for the counter.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// How long a destination that did not answer is asked about from the start of an attempt on.
const SUSPECT: Duration = Duration::from_secs(60);

/// Address and port as dialled.
pub(super) type Destination = (IpAddr, u16);

/// Whose counters are wanted, and for which attempts.
#[derive(Clone, Debug, Default)]
pub(super) struct Listeners {
    questions: BTreeSet<Destination>,
    waiting: BTreeMap<Destination, BTreeSet<Id>>,
    /// Destinations that did not answer lately.
    suspects: BTreeMap<Destination, Time>,
}

/// What was heard of a destination's counter during an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing yet.
    #[default]
    Unknown,
    /// So many SYNs had been turned away when the counter was read first.
    Basis(u64),
    /// There were more later.
    Full,
}

impl Room {
    /// The counter was read.
    pub fn heard(&mut self, drops: u64) {
        *self = match *self {
            Self::Unknown => Self::Basis(drops),
            Self::Basis(before) if drops > before => Self::Full,
            same => same,
        };
    }
}

impl Listeners {
    pub fn ask(&mut self, id: Id, open: &Open) {
        if open.room == Room::Full || open.dropped.is_some() {
            return;
        }
        let destination = destination(open);
        self.questions.insert(destination);
        self.waiting.entry(destination).or_default().insert(id);
    }

    /// As [`ask`](Self::ask), if the destination did not answer lately.
    pub fn ask_suspect(&mut self, id: Id, open: &Open) {
        if self.suspects.get(&destination(open)).is_some_and(|at| at.plus(SUSPECT) >= id.0) {
            self.ask(id, open);
        }
    }

    pub fn poll(&mut self) -> Option<Destination> {
        self.questions.pop_first()
    }

    /// The attempts that waited for this counter.
    pub fn take(&mut self, destination: Destination) -> BTreeSet<Id> {
        self.waiting.remove(&destination).unwrap_or_default()
    }

    /// An attempt is over.
    pub fn forget(&mut self, id: &Id, open: &Open) {
        let destination = destination(open);
        if let Some(ids) = self.waiting.get_mut(&destination) {
            ids.remove(id);
            if ids.is_empty() {
                self.waiting.remove(&destination);
                self.questions.remove(&destination);
            }
        }
    }

    /// A destination did not answer; at most `max` are remembered.
    pub fn suspect(&mut self, open: &Open, at: Time, max: usize) {
        if self.suspects.len() >= max {
            self.suspects.retain(|_, seen| seen.plus(SUSPECT) >= at);
        }
        if self.suspects.len() < max {
            self.suspects.insert(destination(open), at);
        }
    }
}

fn destination(open: &Open) -> Destination {
    (open.tuple.destination, open.tuple.destination_port)
}
