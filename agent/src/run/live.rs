//! Attempts as they are decided, for whoever watches: joined a second time beside the engine, and only while somebody does.
//!
//! A reader that is too slow loses lines and is told how many; the engine's task never waits for one.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use weir_engine::attempt::{Attempt, Attempts};
use weir_engine::engine::Engine;
use weir_engine::identity::{Identity, Peer};
use weir_engine::ledger::MAX_POLICIES;
use weir_engine::observation::Observation;
use weir_engine::policy::{Admission, Decision, Endpoint, Flow};
use weir_engine::snapshot::EndView;
use weir_engine::time::Time;

use crate::outputs::live::{FlowName, Line, Live};

/// Open attempts followed at most.
const MAX_ATTEMPTS: usize = 16_384;
/// Backends of a Service that are judged at most: one answer for all of them takes judging each.
const MAX_BACKENDS: usize = 64;
/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// Lines made in a second at most, for all who watch together: naming one costs, and the engine's task has more to do.
const MAX_LINES: u32 = 2_000;

#[derive(Debug)]
struct Watcher {
    lines: mpsc::Sender<Live>,
    skipped: u64,
}

/// Everybody who watches, and what is open meanwhile.
#[derive(Debug)]
pub struct Watchers {
    attempts: Attempts,
    watchers: Vec<Watcher>,
    /// Second and lines made in it.
    made: (u64, u32),
}

impl Default for Watchers {
    fn default() -> Self {
        Self { attempts: Attempts::new(MAX_ATTEMPTS), watchers: Vec::new(), made: (0, 0) }
    }
}

impl Watchers {
    /// One more. Attempts that began earlier are told without their beginning.
    pub fn add(&mut self, lines: mpsc::Sender<Live>) {
        self.watchers.push(Watcher { lines, skipped: 0 });
    }

    /// Takes in what the kernel did.
    pub fn observe(&mut self, now: Time, observation: &Observation) {
        if self.watchers.is_empty() {
            return;
        }
        self.attempts.observe(now, observation);
    }

    /// Time went by: tells what has been decided.
    pub fn tell(&mut self, now: Time, engine: &mut Engine) {
        if self.watchers.is_empty() {
            return;
        }
        self.attempts.handle_timeout(now);
        while let Some(attempt) = self.attempts.poll() {
            let second = now.0 / SECOND;
            self.made = if self.made.0 == second { (second, self.made.1 + 1) } else { (second, 1) };
            if self.made.1 > MAX_LINES || self.watchers.iter().all(|w| w.lines.capacity() == 0) {
                self.watchers.iter_mut().for_each(|watcher| watcher.skipped += 1);
                continue;
            }
            engine.settle();
            let line = Arc::new(named(engine, &attempt));
            self.watchers.iter_mut().for_each(|watcher| watcher.tell(&line));
        }
        self.watchers.retain(|w| !w.lines.is_closed());
        if self.watchers.is_empty() {
            self.attempts = Attempts::new(MAX_ATTEMPTS);
        }
    }

    /// When [`tell`](Self::tell) wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.attempts.poll_timeout()
    }
}

impl Watcher {
    fn tell(&mut self, line: &Arc<Line>) {
        // First how many are missing: a gap is told where it is.
        if self.skipped > 0 && self.lines.try_send(Live::Skipped(self.skipped)).is_ok() {
            self.skipped = 0;
        }
        if self.skipped > 0 || self.lines.try_send(Live::Attempt(line.clone())).is_err() {
            self.skipped += 1;
        }
    }
}

/// An attempt with the names of the objects and what the policies say of it.
fn named(engine: &Engine, attempt: &Attempt) -> Line {
    let cluster = engine.cluster();
    let who = |address| engine.identity().peer(cluster, address, attempt.started);
    let tuple = attempt.judged();
    let (source, destination) = (who(attempt.dialled.source), who(tuple.destination));
    let ends = [end(&source, attempt.dialled.source), end(&destination, tuple.destination)];
    let mut line = Line::new(attempt, ends, engine.settings().wall_offset_ns);
    let Some(from) = endpoint(&source, attempt.dialled.source) else { return line };
    // A Service's address that was not seen translated may have led to any of its backends.
    let targets: Vec<(IpAddr, u16)> = match &destination {
        Peer::Service { .. } => Identity::translate(cluster, tuple.destination, tuple.protocol, tuple.destination_port),
        _ => vec![(tuple.destination, tuple.destination_port)],
    };
    let targets: Vec<(Endpoint, u16)> =
        targets.iter().filter_map(|(address, port)| Some((endpoint(&who(*address), *address)?, *port))).collect();
    let (protocol, port) = (tuple.protocol, tuple.destination_port);
    for pair in engine.pairs().filter(|p| p.key.protocol == protocol && targets.iter().any(|t| t.1 == p.key.port)) {
        if targets.iter().any(|(to, port)| *port == pair.key.port && pair.has(&from, to)) {
            let name = FlowName { id: pair.key.flow.clone(), code: pair.requirement.code.clone() };
            if !line.flows.contains(&name) {
                line.flows.push(name);
            }
        }
    }
    if targets.is_empty() || targets.len() > MAX_BACKENDS {
        return line;
    }
    let dialled = matches!(destination, Peer::Service { .. }).then_some((tuple.destination, port));
    let decide = |(to, port): (Endpoint, u16)| {
        let flow = Flow { source: from.clone(), destination: to, protocol, port, dialled };
        engine.policies().decide(cluster, &flow)
    };
    let decisions: Vec<Decision> = targets.into_iter().map(decide).collect();
    let admission = decisions[0].admission();
    // Where backends fare differently nobody can tell which one it was.
    line.admission =
        if decisions.iter().all(|d| d.admission() == admission) { admission } else { Admission::Undecidable };
    if line.admission == Admission::NotAdmitted {
        for decision in &decisions {
            let (names, left_out) = decision.some_denying(MAX_POLICIES);
            line.policies.extend(names);
            line.policies_left_out = line.policies_left_out.max(left_out);
        }
        line.policies.sort();
        line.policies.dedup();
    }
    line
}

fn end(peer: &Peer, address: IpAddr) -> EndView {
    let (kind, namespace, name, workload_kind): (_, Arc<str>, Arc<str>, Arc<str>) = match peer {
        Peer::Pod { workload: w, .. } | Peer::GonePod { workload: w, .. } => {
            ("workload", w.namespace.clone(), w.name.clone(), w.kind.clone())
        }
        Peer::Node { name, .. } => ("node", "".into(), name.clone(), "".into()),
        Peer::Service { name } => ("service", name.namespace.clone(), name.name.clone(), "".into()),
        Peer::ApiServer { .. } => ("api-server", "".into(), "api-server".into(), "".into()),
        Peer::Kubelet => ("kubelet", "".into(), "kubelet".into(), "".into()),
        Peer::NodeLocalDns => ("node-local-dns", "".into(), "node-local-dns".into(), "".into()),
        Peer::Loopback => ("loopback", "".into(), "loopback".into(), "".into()),
        Peer::External { .. } => ("external", "".into(), address.to_string().into(), "".into()),
        Peer::Unknown { .. } => ("unknown", "".into(), address.to_string().into(), "".into()),
    };
    EndView { kind: kind.to_owned(), namespace, workload: name, workload_kind }
}

/// What policies can judge; nothing that is gone, unknown, or never leaves its network namespace.
fn endpoint(peer: &Peer, address: IpAddr) -> Option<Endpoint> {
    match peer {
        Peer::Pod { name, .. } => Some(Endpoint::Pod { name: name.clone(), address: Some(address) }),
        Peer::Node { name, .. } => Some(Endpoint::Node { name: name.clone(), address: Some(address) }),
        Peer::ApiServer { .. } | Peer::NodeLocalDns | Peer::External { .. } => Some(Endpoint::Address(address)),
        Peer::Kubelet | Peer::Service { .. } | Peer::Loopback | Peer::GonePod { .. } | Peer::Unknown { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;
    use weir_engine::attempt::Attempts;
    use weir_engine::engine::{Engine, Settings};
    use weir_engine::observation::{AttemptEnd, AttemptStart, Observation, Owner, Tuple};
    use weir_engine::time::Time;
    use weir_engine::words::Protocol;

    use super::{Watchers, named};
    use crate::outputs::live::Live;

    fn refused(at: u64) -> [Observation; 2] {
        let tuple = Tuple {
            source: [192, 0, 2, 1].into(),
            source_port: 40_000,
            destination: [192, 0, 2, 2].into(),
            destination_port: 443,
            protocol: Protocol::Tcp,
        };
        let (socket, netns) = (at, 1);
        let start = AttemptStart { at: Time(at), tuple, socket, netns, owner: Owner::default() };
        let end = AttemptEnd {
            at: Time(at + 1_000),
            tuple,
            socket,
            started: Time(at),
            established: false,
            reset: true,
            cause_unknown: false,
            error: 111,
            soft_error: 0,
            queued: None,
            retransmits: 0,
            netns,
        };
        [Observation::AttemptStart(start), Observation::AttemptEnd(end)]
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed_and_holds_nobody_up() {
        let mut engine = Engine::new(Settings::default());
        let mut watchers = Watchers::default();
        let (slow, mut slow_lines) = mpsc::channel(2);
        let (quick, mut quick_lines) = mpsc::channel(100);
        watchers.add(slow);
        watchers.add(quick);
        let second = super::SECOND;
        let mut now = Time(second);
        let mut connect = |watchers: &mut Watchers, times: u64| {
            for _ in 0..times {
                now = Time(now.0 + second);
                refused(now.0).iter().for_each(|o| watchers.observe(now, o));
                now = Time(now.0 + 10 * second);
                watchers.tell(now, &mut engine);
            }
        };
        connect(&mut watchers, 5);
        let is_line = |l: Option<Live>| matches!(l, Some(Live::Attempt(_)));
        assert!(is_line(slow_lines.try_recv().ok()) && is_line(slow_lines.try_recv().ok()));
        assert!(slow_lines.try_recv().is_err(), "two fit");
        connect(&mut watchers, 1);
        assert!(matches!(slow_lines.try_recv(), Ok(Live::Skipped(3))));
        assert!(is_line(slow_lines.try_recv().ok()));
        assert_eq!(std::iter::from_fn(|| quick_lines.try_recv().ok()).count(), 6);

        drop((slow_lines, quick_lines));
        connect(&mut watchers, 1);
        assert!(watchers.watchers.is_empty() && watchers.attempts.is_empty());
    }

    #[test]
    fn strangers_keep_their_addresses() {
        let mut attempts = Attempts::new(10);
        let now = Time(5_000_000_000);
        refused(now.0).iter().for_each(|o| attempts.observe(now, o));
        attempts.handle_timeout(Time(60_000_000_000));
        let line = named(&Engine::new(Settings::default()), &attempts.poll().unwrap());
        assert_eq!((&*line.source.workload, &*line.destination.workload), ("192.0.2.1", "192.0.2.2"));
        assert!(line.flows.is_empty() && line.policies.is_empty());
        let _ = Arc::new(line);
    }
}
