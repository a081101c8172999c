//! The engine: wiring only. Inputs with their time in, transitions and snapshots out.

mod attribute;
#[cfg(test)]
mod attribute_tests;
#[cfg(test)]
mod candidate_tests;
mod candidates;
mod credit;
#[cfg(test)]
mod every_flow;
mod held;
#[cfg(test)]
mod hook_tests;
mod input;
mod listeners;
#[cfg(test)]
mod listeners_tests;
#[cfg(test)]
mod lookup_tests;
mod settings;
#[cfg(test)]
mod tests;
mod traffic;
#[cfg(test)]
mod unseen_tests;
mod view;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use candidates::Candidates;
pub use candidates::{Candidate, REPLACES};
use held::{Held, Waiting};
pub use input::Input;
use listeners::Listeners;
pub use settings::{Settings, Unseen, WATCHED_PORTS};
use traffic::Traffic;

use crate::attempt::{Attempt, Attempts};
use crate::cluster::{Change, Cluster, Key, Kind, Object, ObjectError, Origin};
use crate::identity::Identity;
use crate::ledger::{Dirty, Ledger, Spans, is_policy};
use crate::observation::Observation;
use crate::policy::{Admission, Decision, Endpoint, Flow, Policies};
use crate::requirement::{Catalogue, Pair, PairKey, Resolver};
use crate::snapshot::Edit;
pub use crate::snapshot::{Snapshot, Transition};
pub use crate::time::Time;
use crate::words::{Name, Protocol};

/// Changes of objects are taken together: judging once for all of them.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// So much longer for each policy of a namespace beyond [`FEW_POLICIES`]: judging looks at all of them, and must not take up all
/// of the time while more of them come.
const DEBOUNCE_PER_POLICY: Duration = Duration::from_micros(20);
const FEW_POLICIES: usize = 5_000;
const MAX_DEBOUNCE: Duration = Duration::from_secs(3);
/// How often ageing is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Edits remembered between two judgements.
const MAX_EDITS: usize = 4_096;
/// Decided attempts that are remembered for who asks about a connection.
const MAX_RECENT: usize = 1_024;

/// The pure core's state. One task owns it.
#[derive(Clone, Debug)]
pub struct Engine {
    settings: Settings,
    cluster: Cluster,
    policies: Policies,
    candidates: Candidates,
    traffic: Traffic,
    identity: Identity,
    resolver: Resolver,
    attempts: Attempts,
    ledger: Ledger,
    dirty: Dirty,
    /// NetworkPolicies written or deleted since they were last looked at: thousands of one namespace cost little more than one
    /// when they are taken in together.
    unread: BTreeSet<Name>,
    /// When what is dirty is judged.
    judge_at: Option<Time>,
    tick_at: Option<Time>,
    /// Attempts that wait until what is dirty has been judged.
    queue: VecDeque<Waiting>,
    /// Attempts that wait for a lookup.
    held: Held,
    /// Addresses whose listeners are asked about.
    listeners: Listeners,
    queue_overflow: u64,
    /// The newest attempts that were decided, newest last.
    recent: VecDeque<Attempt>,
    synced: bool,
    /// Ports that the probes have to watch.
    watched: BTreeSet<u16>,
}

impl Engine {
    /// An engine with the built-in catalogue and the settings' flows that knows no object yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut catalogue = Catalogue::built_in();
        for text in &settings.flows {
            // Checked at the edge, where there is somebody to tell.
            drop(catalogue.add(text));
        }
        Self::with_catalogue(settings, catalogue)
    }

    /// An engine with another catalogue.
    #[must_use]
    pub fn with_catalogue(settings: Settings, catalogue: Catalogue) -> Self {
        let spans = Spans { window: settings.window, grace: settings.grace, wall_offset_ns: settings.wall_offset_ns };
        let mut ledger = Ledger::new(spans, settings.max_pairs, settings.max_transitions);
        ledger.drops_unseen = settings.unseen.drops;
        Self {
            cluster: Cluster::default(),
            policies: Policies::new(settings.profile),
            candidates: Candidates::default(),
            traffic: Traffic::new(settings.max_learnt),
            identity: if settings.lookups { Identity::with_lookups() } else { Identity::default() },
            resolver: Resolver::new(catalogue, settings.max_learnt, &settings.nodes),
            attempts: Attempts::new(settings.max_attempts),
            ledger,
            dirty: Dirty::default(),
            unread: BTreeSet::new(),
            judge_at: None,
            tick_at: None,
            queue: VecDeque::new(),
            held: Held::default(),
            listeners: Listeners::default(),
            queue_overflow: 0,
            recent: VecDeque::new(),
            synced: false,
            watched: settings.watched_ports.iter().copied().collect(),
            settings,
        }
    }

    /// Takes in one input.
    ///
    /// # Errors
    /// [`ObjectError`] when an applied value is not an object that Weir reads; nothing has changed then.
    pub fn input(&mut self, now: Time, input: Input) -> Result<(), ObjectError> {
        match input {
            Input::Apply { object, origin } => self.apply(now, Object::from_value(object)?, origin),
            Input::Delete { key } => self.delete(now, &key),
            Input::Candidates { source, policies } => {
                let read = policies.into_iter().map(Candidate::from_value).collect::<Result<_, _>>()?;
                self.candidates(now, &source, read);
            }
            Input::Observe(observation) => self.observe(now, &observation),
            Input::Answered { address, somebody } => self.answered(now, address, somebody),
            Input::ListenDrops { address, count } => self.listen_drops(now, address, count),
            Input::Lost { stage, count } => self.lost(now, &stage, count),
            Input::Unseen(unseen) => self.unseen(now, unseen),
            Input::WallClock { offset_ns } => self.wall_clock(offset_ns),
            Input::Synced => self.synced(now),
            Input::Timeout => self.handle_timeout(now),
        }
        Ok(())
    }

    /// Adds or replaces an object; the same as [`Input::Apply`].
    pub fn apply(&mut self, now: Time, object: Object, origin: Origin) {
        self.handle_timeout(now);
        let key = object.key();
        let pod = self.cluster.shared_pod(&key.name).filter(|_| key.kind == Kind::Pod).cloned();
        let policy =
            self.cluster.policy(&key.name).filter(|_| key.kind == Kind::NetworkPolicy).map(|p| p.object.clone());
        let change = self.cluster.apply(object, origin.clone());
        // An object that says the same as before, as resyncs and re-read files have them, is no edit.
        let same_pod = pod.as_deref().is_some_and(|old| self.cluster.pod(&key.name) == Some(old));
        let same_policy = policy.is_some_and(|old| self.cluster.policy(&key.name).is_some_and(|p| p.object == old));
        if same_pod || same_policy {
            return;
        }
        if let Some(old) = pod {
            self.dirty.workloads.insert(old.workload.clone());
        }
        self.follow(now, &change, &key, origin);
    }

    /// Removes an object; the same as [`Input::Delete`].
    pub fn delete(&mut self, now: Time, key: &Key) {
        self.handle_timeout(now);
        let origin = self.cluster.policy(&key.name).map(|p| p.origin.clone()).filter(|_| is_policy(key.kind));
        if let Some(pod) = self.cluster.pod(&key.name).filter(|_| key.kind == Kind::Pod) {
            self.dirty.workloads.insert(pod.workload.clone());
        }
        let change = self.cluster.delete(key);
        self.follow(now, &change, key, origin.unwrap_or_default());
    }

    /// Takes over all candidates of one source: policies that are not enforced, and by which everything is judged a second time.
    /// The same as [`Input::Candidates`].
    pub fn candidates(&mut self, now: Time, source: &str, policies: Vec<Candidate>) {
        self.handle_timeout(now);
        self.settle();
        if self.candidates.set(&self.cluster, self.settings.profile, source, policies) {
            self.dirty.all = true;
            self.judge_at = self.judge_at.or(Some(now.plus(DEBOUNCE)));
        }
    }

    /// What the policies say of a flow, and what they would say with the candidates in force; none without candidates.
    #[must_use]
    pub fn decide_twice(&self, flow: &Flow) -> Option<(Admission, Decision)> {
        let candidates = self.candidates.policies()?;
        Some((self.policies.admits(&self.cluster, flow), candidates.decide(&self.cluster, flow)))
    }

    /// Takes in what the kernel did; the same as [`Input::Observe`].
    pub fn observe(&mut self, now: Time, observation: &Observation) {
        self.handle_timeout(now);
        if let Observation::Drop(o) = observation {
            self.ledger.counters.dropped(o, self.settings.max_drop_series);
        }
        self.attempts.observe(now, observation);
        self.drain(now);
    }

    /// Who has an address was looked up; the same as [`Input::Answered`].
    pub fn answered(&mut self, now: Time, address: IpAddr, somebody: bool) {
        self.handle_timeout(now);
        self.identity.answered(address, somebody, now);
        self.queue.extend(self.held.answered(address));
        self.drain(now);
    }

    /// The next address that has to be looked up before attempts of it can be judged: who has it is unknown, or a finding
    /// rests on an answer that may be out of date by now. Only with [`Settings::lookups`].
    pub fn poll_question(&mut self) -> Option<IpAddr> {
        self.held.poll_question()
    }

    /// Events were lost; the same as [`Input::Lost`].
    pub fn lost(&mut self, now: Time, stage: &str, count: u64) {
        self.ledger.lost(stage, count, now);
        self.handle_timeout(now);
        self.ledger.tick(now);
    }

    /// Something cannot be seen on this node; the same as [`Input::Unseen`].
    pub fn unseen(&mut self, now: Time, unseen: Unseen) {
        self.settings.unseen = unseen;
        self.ledger.drops_unseen = unseen.drops;
        (self.dirty.topology, self.dirty.all) = (true, true);
        self.judge_at = self.judge_at.or(Some(now));
        self.handle_timeout(now);
    }

    /// The wall clock was set; the same as [`Input::WallClock`]. Nothing is judged by it.
    pub fn wall_clock(&mut self, offset_ns: i64) {
        self.settings.wall_offset_ns = offset_ns;
        self.ledger.wall_clock(offset_ns);
    }

    /// All initial objects are in; the same as [`Input::Synced`]. From here on pairs have states.
    pub fn synced(&mut self, now: Time) {
        if !self.synced {
            self.synced = true;
            self.dirty.topology = true;
            self.dirty.all = true;
            self.dirty.edits.clear();
            self.ledger.synced();
            self.judge(now);
            self.tick_at = Some(now.plus(TICK));
        }
        self.handle_timeout(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let judge_at = self.judge_at.filter(|_| self.synced);
        [self.attempts.poll_timeout(), self.held.poll_timeout(), judge_at, self.tick_at].into_iter().flatten().min()
    }

    /// Time went by; the same as [`Input::Timeout`].
    pub fn handle_timeout(&mut self, now: Time) {
        self.attempts.handle_timeout(now);
        self.queue.extend(self.held.handle_timeout(now));
        self.drain(now);
        if self.synced && self.judge_at.is_some_and(|at| at <= now) {
            self.judge(now);
        }
        if self.tick_at.is_some_and(|at| at <= now) {
            self.identity.expire(now);
            self.traffic.expire(now, self.settings.learnt_for);
            if self.resolver.expire(now, self.settings.learnt_for) {
                self.dirty.topology = true;
                self.judge_at = self.judge_at.or(Some(now));
            }
            self.ledger.tick(now);
            self.tick_at = Some(now.plus(TICK));
        }
    }

    /// The next change of a pair's state.
    pub fn poll_transition(&mut self) -> Option<Transition> {
        self.ledger.poll_transition()
    }

    /// The objects known.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The policies known, as of the last judgement or [`settle`](Self::settle).
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The catalogue, the pods' roles, and what was learnt.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The ports that the probes have to watch, as of the last judgement: those of the settings, of all pairs, and those on
    /// which applications of the mesh are served. Never shrinks: what is watched once costs little.
    #[must_use]
    pub fn watched_ports(&self) -> &BTreeSet<u16> {
        &self.watched
    }

    /// Whose an address is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The pairs, as last judged.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.ledger.entries().map(|e| &e.pair)
    }

    /// The newest attempts that were decided, newest last, whoever they belong to; bounded.
    pub fn recent(&self) -> impl Iterator<Item = &Attempt> {
        self.recent.iter()
    }

    /// All initial objects are in.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The candidates, by where each came from.
    pub fn candidate_sources(&self) -> impl Iterator<Item = (&str, &[Candidate])> {
        self.candidates.sources()
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn follow(&mut self, now: Time, change: &Change, key: &Key, origin: Origin) {
        let deleted = match change {
            Change::None => return,
            Change::Applied(_) => false,
            Change::Deleted(_) => true,
        };
        if key.kind == Kind::NetworkPolicy {
            self.unread.insert(key.name.clone());
        } else {
            self.policies.update(&self.cluster, change);
            self.candidates.update(&self.cluster, change);
        }
        self.identity.update(&self.cluster, change, now);
        self.dirty.topology |= self.resolver.update(&self.cluster, change);
        match key.kind {
            Kind::NetworkPolicy => drop(self.dirty.namespaces.insert(key.name.namespace.clone())),
            Kind::Pod => {
                if let Some(pod) = self.cluster.pod(&key.name) {
                    self.dirty.workloads.insert(pod.workload.clone());
                }
            }
            Kind::Namespace | Kind::Node => self.dirty.all = true,
            kind if is_policy(kind) => self.dirty.all = true,
            _ => {}
        }
        if self.synced && self.dirty.edits.len() < MAX_EDITS {
            let at_unix_ns = crate::ledger::unix_ns(now, self.settings.wall_offset_ns);
            self.dirty.edits.push(Edit { object: key.clone(), deleted, origin, at: now, at_unix_ns });
        }
        if !self.dirty.is_empty() {
            let many = self.policies.count_in(&key.name.namespace).saturating_sub(FEW_POLICIES);
            let longer = DEBOUNCE_PER_POLICY.saturating_mul(u32::try_from(many).unwrap_or(u32::MAX)).min(MAX_DEBOUNCE);
            self.judge_at = self.judge_at.or(Some(now.plus(DEBOUNCE + longer)));
        }
    }

    /// Takes in the policies that were changed since the pairs were last judged, so that [`policies`](Self::policies) are those
    /// of [`cluster`](Self::cluster).
    pub fn settle(&mut self) {
        let unread = std::mem::take(&mut self.unread);
        if !unread.is_empty() {
            self.policies.update_policies(&self.cluster, &unread);
            self.candidates.update_policies(&self.cluster, &unread);
        }
    }

    /// Resolves and judges what is dirty, then attributes what waited for it.
    fn judge(&mut self, now: Time) {
        self.settle();
        let dirty = std::mem::take(&mut self.dirty);
        self.judge_at = None;
        let (cluster, settings) = (&self.cluster, &self.settings);
        let pairs = dirty.topology.then(|| self.resolver.resolve(cluster, &self.identity));
        if let Some(pairs) = &pairs {
            let wanted = pairs.keys().map(|key| key.port).chain(self.resolver.application_ports().iter().copied());
            for port in wanted {
                if self.watched.len() < settings.max_watched_ports {
                    self.watched.insert(port);
                }
            }
        }
        let (watched, unseen) = (&self.watched, settings.unseen);
        let candidates = self.candidates.policies();
        self.ledger.update(now, cluster, &self.policies, candidates, pairs, &dirty, |pair| {
            observable(cluster, watched, unseen, pair)
        });
        self.drain(now);
    }

    /// Attributes attempts, unless objects have changed that may say whose they are: then they wait for these to be judged.
    fn drain(&mut self, now: Time) {
        while let Some(attempt) = self.attempts.poll() {
            self.queue.push_back(Waiting { attempt, until: None });
            if self.queue.len() > self.settings.max_attempts {
                self.queue.pop_front();
                self.queue_overflow += 1;
            }
        }
        while self.synced && self.dirty.is_empty() {
            let Some(waiting) = self.queue.pop_front() else { break };
            self.attribute(now, waiting);
        }
    }
}

/// Whether attempts of a pair can be seen and told apart here.
fn observable(cluster: &Cluster, watched: &BTreeSet<u16>, unseen: Unseen, pair: &Pair) -> Result<(), String> {
    let PairKey { port, protocol, .. } = pair.key;
    let blind = match protocol {
        Protocol::Tcp => unseen.tcp,
        Protocol::Udp => unseen.udp,
        // None looks at it.
        Protocol::Sctp => true,
    };
    if blind {
        return Err(format!("no probe of this node sees {protocol} attempts; `weir doctor` says why"));
    }
    if !watched.contains(&port) {
        return Err(format!("port {port} is not watched"));
    }
    let on_host = |e: &Endpoint| match e {
        Endpoint::Pod { name, .. } => cluster.pod(name).is_some_and(|p| p.host_network),
        Endpoint::Node { .. } | Endpoint::Address(_) | Endpoint::External => false,
    };
    if !pair.sources.is_empty() && pair.sources.iter().all(on_host) {
        return Err("the source shares its node's address with other processes".to_owned());
    }
    Ok(())
}
