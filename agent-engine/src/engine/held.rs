//! Attempts that wait until it is known who their ends are: not every object is known where peers are looked up by address.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use super::Engine;
use super::attribute::{Attribution, World};
use crate::attempt::{Attempt, Outcome};
use crate::identity::Peer;
use crate::time::Time;
use crate::verdict::State;

/// How long an attempt waits. Without an answer by then, what is known has to do.
const PATIENCE: Duration = Duration::from_secs(2);
/// How old an answer may be that a new finding rests on: the address may be another pod's by then.
const FRESH: Duration = Duration::from_secs(5);
/// Attempts held at most, and questions not yet fetched.
const MAX_HELD: usize = 4_096;

/// An attempt on its way to its pairs.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub attempt: Attempt,
    /// Until when it may be held; none if it never was.
    pub until: Option<Time>,
}

/// Attempts that wait for lookups, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    attempts: VecDeque<(IpAddr, Waiting)>,
    questions: VecDeque<IpAddr>,
}

impl Held {
    pub fn poll_question(&mut self) -> Option<IpAddr> {
        self.questions.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        self.attempts.iter().filter_map(|(_, w)| w.until).min()
    }

    /// Attempts that have waited long enough.
    pub fn handle_timeout(&mut self, now: Time) -> Vec<Waiting> {
        self.release(|_, waiting| waiting.until.is_none_or(|until| until <= now))
    }

    /// Attempts that waited for this answer.
    pub fn answered(&mut self, address: IpAddr) -> Vec<Waiting> {
        self.release(|about, _| about == address)
    }

    fn release(&mut self, due: impl Fn(IpAddr, &Waiting) -> bool) -> Vec<Waiting> {
        if self.attempts.is_empty() {
            return Vec::new();
        }
        let (released, kept) =
            std::mem::take(&mut self.attempts).into_iter().partition::<VecDeque<_>, _>(|(about, w)| due(*about, w));
        self.attempts = kept;
        released.into_iter().map(|(_, waiting)| waiting).collect()
    }

    fn hold(&mut self, about: IpAddr, waiting: Waiting) {
        if self.questions.len() < MAX_HELD && !self.questions.contains(&about) {
            self.questions.push_back(about);
        }
        self.attempts.push_back((about, waiting));
    }
}

impl Engine {
    /// Gives an attempt back that can be judged now; holds others until their end has been looked up.
    pub(super) fn hold(&mut self, now: Time, mut waiting: Waiting) -> Option<Waiting> {
        let expired = waiting.until.is_some_and(|until| until <= now);
        if !self.settings.lookups || expired || self.held.attempts.len() >= MAX_HELD {
            return Some(waiting);
        }
        let Some(about) = self.question(now, &waiting.attempt) else { return Some(waiting) };
        waiting.until = waiting.until.or(Some(now.plus(PATIENCE)));
        self.held.hold(about, waiting);
        None
    }

    /// Which end of an attempt has to be looked up first.
    fn question(&self, now: Time, attempt: &Attempt) -> Option<IpAddr> {
        let stale = |at: Time| at.plus(FRESH) < now;
        let dialled = attempt.dialled;
        let destination = attempt.translated.as_ref().map_or(dialled.destination, |t| t.destination);
        let ends = [dialled.source, destination];
        let answers = ends.map(|address| (address, self.identity.answered_at(address)));
        let peers = [
            self.identity.dialler(&self.cluster, attempt),
            self.identity.peer(&self.cluster, destination, attempt.started),
        ];
        // Between two unknown ends nothing is ours to tell: on a node, one end is always one of its own pods.
        let is_unknown = |peer: &Peer| matches!(peer, Peer::Unknown { .. });
        if peers.iter().all(is_unknown) {
            return None;
        }
        let unknown = answers.iter().zip(&peers).find(|((_, at), peer)| is_unknown(peer) && at.is_none_or(stale));
        if let Some(((address, _), _)) = unknown {
            return Some(*address);
        }
        if !matches!(attempt.outcome, Outcome::Dropped | Outcome::Rejected) {
            return None;
        }
        let (old, _) = answers.into_iter().find(|(_, at)| at.is_some_and(stale))?;
        let world = World { cluster: &self.cluster, identity: &self.identity, ledger: &self.ledger };
        let is_new = match world.attribute(attempt) {
            Attribution::Pairs(targets) => targets.iter().any(|t| !self.ledger.is_in(&t.key, State::Denied)),
            Attribution::NoPair { .. } => true,
            Attribution::Local | Attribution::Unknown { .. } => false,
        };
        is_new.then_some(old)
    }
}
