//! Open attempts: joins start, retransmits, drops, reset and end into one [`Attempt`].
//!
//! An attempt is keyed by its socket and start, never by its tuple: the source port is not chosen yet when it begins. Drops are
//! joined exactly where the packet still had its socket, else by addresses and destination port, with the source port once it
//! is known and close to a transmission (50 ms) before that. What has to be joined can arrive in either order (an RST overtakes
//! the drop that caused it; a listener accepts after the client is established), so an end waits a moment before it is final.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::decide::{Answer, Ending, decide};
use super::listeners::{self, Destination, Listeners, Room};
use super::memory::Memory;
use super::open::{FlowKey, Id, Open, key};
use super::{Attempt, JoinedDrop, Outcome};
use crate::observation::{
    Accepted, AnswerRetransmit, AttemptEnd, AttemptStart, DropClass, IcmpSent, Observation, PacketDrop, Retransmit,
    SocketError, Tuple, UdpEnd,
};
use crate::time::Time;
use crate::words::Protocol;

/// How close to a transmission a drop must be to belong to it, as long as the source port is not known.
pub(super) const JOIN: Duration = Duration::from_millis(50);
/// How close to an RST or ICMP answer the drop of the same packet is. They are next to each other in the kernel's code, but a
/// processor can be taken away in between; SYNs are a second or more apart (RFC 6298), so it is no other SYN's drop.
pub(super) const ANSWER: Duration = Duration::from_millis(500);
/// How long an end waits for what may overtake it: [`JOIN`] and the way through the ring buffer.
pub(super) const HOLD: Duration = Duration::from_millis(100);
/// "Prohibited" without a drop of this machine accuses a rule elsewhere. A route may have said it here, whose drop comes next.
const HOLD_PROHIBITED: Duration = Duration::from_millis(750);
/// A SYN that nobody answered for this long is reported, end or not.
pub(super) const SILENT: Duration = Duration::from_secs(3);
/// An attempt whose end never came: longer than `tcp_syn_retries` 6 (127 s) allows.
pub(super) const EXPIRE: Duration = Duration::from_secs(150);

/// A UDP socket that lived shorter than this without an answer was not waiting for one.
const ASKED_FOR_A_ROUTE: Duration = Duration::from_millis(200);

/// All open attempts, bounded.
#[derive(Clone, Debug)]
pub struct Attempts {
    pub(super) max: usize,
    pub(super) open: BTreeMap<Id, Open>,
    /// The newest attempt of a socket.
    pub(super) sockets: BTreeMap<u64, Time>,
    pub(super) flows: BTreeMap<FlowKey, BTreeSet<Id>>,
    pub(super) timers: BTreeSet<(Time, Id)>,
    /// Established attempts that wait for their listener, by source and port.
    pub(super) established: BTreeMap<(IpAddr, u16), Id>,
    memory: Memory,
    pub(super) listeners: Listeners,
    ready: VecDeque<Attempt>,
    pub(super) evicted: u64,
}

impl Attempts {
    /// A table that keeps at most `max` open attempts.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            open: BTreeMap::new(),
            sockets: BTreeMap::new(),
            flows: BTreeMap::new(),
            timers: BTreeSet::new(),
            established: BTreeMap::new(),
            memory: Memory::default(),
            listeners: Listeners::default(),
            ready: VecDeque::new(),
            evicted: 0,
        }
    }

    /// The next attempt about which something can be said.
    pub fn poll(&mut self) -> Option<Attempt> {
        self.ready.pop_front()
    }

    /// Attempts that are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// No attempt is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Attempts thrown out because there were too many, or whose end never came.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// A TCP socket went CLOSE → SYN_SENT.
    pub fn start(&mut self, e: &AttemptStart) {
        // A socket's memory is used again at once: the attempt before has ended, even if its end still waits for what it may
        // have overtaken, or its end was lost.
        let before = self.sockets.get(&e.socket).map(|started| (*started, e.socket));
        if let Some(id) = before.filter(|id| self.open.get(id).is_some_and(|open| open.ending.is_none())) {
            self.close(&id);
            self.evicted += 1;
        }
        // Process 0 is the idle task: nobody, or a probe that cannot tell who.
        let owner = Some(e.owner.clone()).filter(|owner| owner.pid != 0);
        let id = self.insert((e.at, e.socket), Open::new(e.tuple, e.at, e.netns, owner));
        if let Some(open) = self.open.get(&id) {
            self.listeners.ask_suspect(id, open);
        }
    }

    /// A SYN was sent again.
    pub fn retransmit(&mut self, e: &Retransmit) {
        let id = self.known(e.socket, e.started, e.at, &e.tuple, e.netns);
        let Some(open) = self.open.get_mut(&id) else { return };
        open.last_sent = open.last_sent.max(e.at);
        open.retransmits = open.retransmits.max(e.count);
        self.listeners.ask(id, open);
        if open.retransmits >= 2 && !open.silence_reported && open.dropped.is_none() {
            open.silence_reported = true;
            let report = open.attempt(&id, open.silent_outcome(), e.at, true);
            self.ready.push_back(report);
        }
        self.reschedule(&id);
    }

    /// A TCP socket left SYN_SENT.
    pub fn end(&mut self, now: Time, e: &AttemptEnd) {
        let id = self.known(e.socket, e.started, e.at, &e.tuple, e.netns);
        let Some(open) = self.open.get_mut(&id) else { return };
        open.retransmits = open.retransmits.max(u32::from(e.retransmits));
        let ending = Ending::new(e, open.start_seen.then(|| e.at.since(id.0)), open.retransmits);
        let certain = match &ending {
            // Its listener, if it is on this machine, still has to say where translation led.
            Ending::Established { .. } => false,
            // A policy's rule may have answered, and its drop come later.
            Ending::Answered { .. } => {
                open.dropped.as_ref().is_some_and(|d| d.class.is_policy_capable() && d.at.distance(e.at) <= ANSWER)
            }
            // Its SYN may have found a listener without room.
            Ending::GaveUp { .. } => {
                open.dropped.is_some() || !ending.may_have_been_dropped() || !matches!(open.room, Room::Basis(_))
            }
        };
        if matches!(ending, Ending::Established { .. }) {
            self.established.insert((open.tuple.source, open.tuple.source_port), id);
        }
        let unsure = matches!(ending, Ending::Answered { answer: Answer::Prohibited, .. }) && open.dropped.is_none();
        let hold = match &ending {
            _ if unsure => HOLD_PROHIBITED,
            Ending::GaveUp { .. } => listeners::PATIENCE,
            Ending::Answered { .. } | Ending::Established { .. } => HOLD,
        };
        if matches!(ending, Ending::GaveUp { .. }) && !certain {
            self.listeners.ask(id, open);
        }
        open.ending = Some((ending, now.plus(hold)));
        if certain { self.finish(&id) } else { self.reschedule(&id) }
    }

    /// A listener of this machine completed a handshake: tells where a client's connection was translated to, or is an attempt
    /// from elsewhere.
    pub fn accepted(&mut self, e: &Accepted) {
        let from_here = self.established.remove(&(e.tuple.source, e.tuple.source_port));
        if let Some(id) = from_here {
            if let Some(open) = self.open.get_mut(&id) {
                open.translate(&e.tuple);
                open.accepted = true;
            }
            self.finish(&id);
        } else {
            self.ready.push_back(Attempt { accepted: true, ..Attempt::seen(e.at, e.tuple, Outcome::Established) });
        }
    }

    /// The kernel dropped a packet.
    pub fn dropped(&mut self, now: Time, e: &PacketDrop) {
        let class = e.class();
        // FIN and data of connections that are long established say nothing about an attempt.
        let carries_syn = e.tuple.protocol != Protocol::Tcp || e.tcp_flags & 0x02 != 0;
        // An answer over UDP that finds no socket came after its client had gone: the way is open.
        let late = e.reply && e.tuple.protocol == Protocol::Udp && class == DropClass::NoSocket;
        if class == DropClass::Normal || !carries_syn || late {
            return;
        }
        let drop = JoinedDrop {
            at: e.at,
            class,
            reason: e.reason.clone(),
            location: e.location.clone(),
            stack: e.stack.clone(),
            reply: e.reply,
            netns: e.netns,
        };
        let dialled = e.original.unwrap_or(e.tuple);
        let translated = (dialled != e.tuple).then_some(e.tuple);
        if class.is_policy_capable() && !e.reply {
            self.memory.drops.insert(key(&dialled), (drop.clone(), translated));
        }
        if let Some(id) = self.attempt_of(e, &dialled) {
            self.join(now, &id, drop, &dialled, translated.as_ref());
            return;
        }
        // A closed TCP port answers by itself, and the client's end tells; from elsewhere it is all that is seen.
        let outcome = match class {
            DropClass::NoSocket => Outcome::Refused,
            DropClass::Route | DropClass::Neighbour => Outcome::Unreachable,
            DropClass::Resource if e.reason.as_deref() == Some("TCP_LISTEN_OVERFLOW") => Outcome::BacklogFull,
            _ if class.is_policy_capable() && self.memory.was_answered(e) => Outcome::Rejected,
            _ => Outcome::Dropped,
        };
        let again = self.memory.seen.insert((key(&dialled), dialled.source_port), e.at).is_some();
        self.ready.push_back(Attempt {
            translated,
            provisional: again,
            dropped: Some(drop),
            ..Attempt::seen(e.at, dialled, outcome)
        });
    }

    /// Takes in whatever a probe saw.
    pub fn observe(&mut self, now: Time, observation: &Observation) {
        match observation {
            Observation::AttemptStart(o) => self.start(o),
            Observation::Retransmit(o) => self.retransmit(o),
            Observation::AttemptEnd(o) => self.end(now, o),
            Observation::Accepted(o) => self.accepted(o),
            Observation::Drop(o) => self.dropped(now, o),
            Observation::UdpEnd(o) => self.udp_end(o),
            Observation::SocketError(o) => self.socket_error(o),
            Observation::IcmpSent(o) => self.icmp_sent(o),
            Observation::AnswerRetransmit(o) => self.answer_retransmit(o),
        }
    }

    /// The next destination, as dialled, of which `ListenDrops` of its network namespace would tell something, if it is a pod of
    /// this machine. May be left unanswered.
    pub fn poll_listener(&mut self) -> Option<Destination> {
        self.listeners.poll()
    }

    /// `ListenDrops` of the network namespace that a destination leads to.
    pub fn listen_drops(&mut self, destination: Destination, drops: u64) {
        for id in self.listeners.take(destination) {
            let Some(open) = self.open.get_mut(&id) else { continue };
            open.room.heard(drops);
            if matches!(open.ending, Some((Ending::GaveUp { .. }, _))) {
                self.finish(&id);
            }
        }
    }

    /// An error reached a connected UDP socket: told at its end, when a drop that caused it has come too. A TCP socket's end
    /// carries the same error by itself.
    pub fn socket_error(&mut self, e: &SocketError) {
        if e.tuple.protocol == Protocol::Udp && e.error != 0 {
            self.memory.errors.insert(e.socket, (e.at, e.error));
        }
    }

    /// This machine answered a packet with "destination unreachable"; a rule that does so drops the packet next.
    pub fn icmp_sent(&mut self, e: &IcmpSent) {
        self.memory.unreachable.insert((key(&e.tuple), e.tuple.source_port), e.at);
    }

    /// A listener on this machine answered an attempt again: its SYN was not dropped.
    pub fn answer_retransmit(&mut self, e: &AnswerRetransmit) {
        let Some(ids) = self.flows.get(&key(&e.tuple)) else { return };
        for id in ids {
            if let Some(open) = self.open.get_mut(id)
                && open.tuple.source_port == e.tuple.source_port
            {
                open.arrived = true;
            }
        }
    }

    /// A connected UDP socket was released.
    pub fn udp_end(&mut self, e: &UdpEnd) {
        let flow = key(&e.tuple);
        // Of an earlier socket at the same address, if it is older than this one.
        let read =
            self.memory.errors.remove(&e.socket).filter(|(at, _)| *at >= e.created).map_or(0, |(_, error)| error);
        let error = if e.error == 0 { read } else { e.error };
        let dropped_alone = self.memory.seen.contains_key(&(flow, e.tuple.source_port));
        let known = self.memory.drops.get(&flow).filter(|(d, _)| e.at.since(d.at) <= Duration::from_secs(30));
        let outcome = match (e.replied, error, known) {
            (true, _, _) => Outcome::Established,
            (false, 111 | 13 | 113 | 101, Some(_)) => Outcome::Rejected,
            (false, 111, None) => Outcome::Refused,
            (false, 13, None) => Outcome::Rejected,
            (false, 113 | 101, None) => Outcome::Unreachable,
            (false, _, Some(_)) => Outcome::Dropped,
            // Resolvers connect a socket to be asked for a route, and release it at once.
            (false, 0, None) if e.created != Time(0) && e.at.since(e.created) < ASKED_FOR_A_ROUTE => Outcome::Cancelled,
            (false, _, None) => Outcome::NoReply,
        };
        let joined = known.filter(|_| !e.replied).cloned();
        let started = if e.created == Time(0) { e.at } else { e.created };
        let at = joined.as_ref().map_or(e.at, |(d, _)| d.at);
        let (dropped, translated) = joined.map_or((None, None), |(d, t)| (Some(d), t));
        self.ready.push_back(Attempt {
            started,
            last_sent: started,
            translated,
            // Its drop was counted when it was seen.
            provisional: dropped_alone && !e.replied,
            dropped,
            error,
            owner: Some(e.owner.clone()),
            netns: e.netns,
            ..Attempt::seen(at, e.tuple, outcome)
        });
    }

    /// Time went by.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((due, id)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, id));
            let Some(open) = self.open.get_mut(&id) else { continue };
            if open.ending.is_some() {
                self.finish(&id);
            } else if open.report_drop_at.is_some_and(|at| at <= now) {
                open.report_drop_at = None;
                let outcome = open.drop_outcome();
                let at = open.dropped.as_ref().map_or(open.last_sent, |d| d.at);
                let report = open.attempt(&id, outcome, at, true);
                self.ready.push_back(report);
                self.reschedule(&id);
            } else if !open.silence_reported && id.0.plus(SILENT) <= now {
                open.silence_reported = true;
                if open.dropped.is_none() {
                    let report = open.attempt(&id, open.silent_outcome(), now, true);
                    self.ready.push_back(report);
                }
                self.reschedule(&id);
            } else {
                self.close(&id);
                self.evicted += 1;
            }
        }
        self.memory.forget(now, self.max);
    }

    fn attempt_of(&self, e: &PacketDrop, dialled: &Tuple) -> Option<Id> {
        if let Some(id) = e.socket.and_then(|s| self.find(s, Time(0))) {
            return Some(id);
        }
        let ids = self.flows.get(&key(dialled)).or_else(|| self.flows.get(&key(&e.tuple)))?;
        let ids = || ids.iter().filter_map(|id| Some((*id, self.open.get(id)?)));
        let port = dialled.source_port;
        let by_port = ids().filter(|(_, o)| port != 0 && o.tuple.source_port == port).map(|(id, _)| id).next_back();
        by_port.or_else(|| {
            // The port is not known yet: the oldest attempt that waits for its drop and has just sent.
            let close = |id: &Id, o: &Open| {
                e.at >= id.0 && (e.reply || e.at.distance(o.last_sent) <= JOIN || e.at.distance(id.0) <= JOIN)
            };
            let unknown = ids().filter(|(id, o)| o.tuple.source_port == 0 && close(id, o));
            unknown.clone().find(|(_, o)| o.dropped.is_none()).or_else(|| unknown.clone().next()).map(|(id, _)| id)
        })
    }

    fn join(&mut self, now: Time, id: &Id, drop: JoinedDrop, dialled: &Tuple, translated: Option<&Tuple>) {
        let Some(open) = self.open.get_mut(id) else { return };
        if drop.class == DropClass::NoSocket {
            return; // The RST that follows says it.
        }
        if open.tuple.source_port == 0 && !drop.reply {
            open.tuple.source_port = dialled.source_port;
        }
        if let Some(translated) = translated {
            open.translate(translated);
        }
        open.last_sent = open.last_sent.max(if drop.reply { open.last_sent } else { drop.at });
        // What answered is known with it: a rule, or a route that says "prohibited".
        let explained = match &open.ending {
            Some((Ending::Answered { at, answer, .. }, _)) if at.distance(drop.at) <= ANSWER => {
                drop.class.is_policy_capable() || drop.class == DropClass::Route && *answer == Answer::Prohibited
            }
            _ => false,
        };
        // A verdict of a policy-capable class is worth more than what else became of the packet.
        let better =
            open.dropped.as_ref().is_none_or(|d| !d.class.is_policy_capable() || drop.class.is_policy_capable());
        if better {
            open.dropped = Some(drop);
        }
        if explained {
            self.finish(id);
            return;
        }
        open.report_drop_at = open.report_drop_at.or(Some(now.plus(JOIN)));
        self.reschedule(id);
    }

    fn finish(&mut self, id: &Id) {
        let Some(mut open) = self.close(id) else { return };
        let Some((ending, _)) = open.ending.take() else { return };
        if open.dropped.is_none() && !open.arrived && ending.may_have_been_dropped() {
            // The probes report a flood of equal drops by powers of two: one of the same flow during this attempt is as good.
            let same = self
                .memory
                .drops
                .get(&key(&open.tuple))
                .filter(|(d, _)| d.at.plus(JOIN) >= id.0 && d.at <= ending.at().plus(JOIN));
            if let Some((drop, translated)) = same.cloned() {
                if let Some(translated) = &translated {
                    open.translate(translated);
                }
                open.dropped = Some(drop);
            }
        }
        let outcome = decide(&ending, open.dropped.as_ref(), open.room == Room::Full);
        if matches!(outcome, Outcome::TimedOut | Outcome::BacklogFull) {
            self.listeners.suspect(&open, ending.at(), self.max);
        }
        let mut attempt = open.attempt(id, outcome, ending.at(), false);
        attempt.icmp = ending.icmp();
        attempt.error = ending.error();
        if outcome == Outcome::Established {
            attempt.latency = open.start_seen.then(|| ending.at().since(id.0));
            attempt.dropped = None;
        }
        self.ready.push_back(attempt);
    }
}
