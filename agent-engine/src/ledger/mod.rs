//! The state of every pair: decisions, evidence, ageing, transitions.
//!
//! A decision changes only with objects, evidence only with attempts; a state follows from both and from time. Nothing is ever
//! concluded from what was seen before the decision it is held against.

mod counters;
mod entry;
mod judged;
mod line;
mod slot;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use counters::{Counters, NO_FLOW};
pub use entry::{Conditions, Entry, Instance};
pub use judged::{Judged, MAX_POLICIES};
pub use line::{end_view, endpoint, evidence_line};
pub use slot::{Seen, Slot, evidence_of};

use crate::attempt::Attempt;
use crate::cluster::{Cluster, Kind};
use crate::policy::{Endpoint, Policies, Side};
use crate::requirement::{End, Pair, PairKey};
use crate::snapshot::{Edit, Transition};
use crate::time::Time;
use crate::verdict::State;
use crate::words::{Name, Protocol, Workload};

/// Stages that lose nothing but what explains an attempt: the rate limit on new kinds of drops, runs of the probe on
/// `kfree_skb` that the kernel skipped, and the probes that only tell more of what others show.
pub const DROP_STAGES: [&str; 7] = [
    "drop-rate-limit",
    "drop-recursion",
    "error-rate-limit",
    "answer-rate-limit",
    "recursion-socket-error",
    "recursion-icmp-sent",
    "recursion-answer-retransmit",
];
/// Transitions kept for the snapshot.
const RECENT: usize = 100;

/// What changed since the pairs were last judged.
#[derive(Clone, Debug, Default)]
pub struct Dirty {
    /// Pairs may have appeared or gone.
    pub topology: bool,
    /// Every pair has to be judged again.
    pub all: bool,
    /// Pairs with an end in these namespaces have to be.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Pairs with these workloads have to be.
    pub workloads: BTreeSet<Workload>,
    /// The edits, oldest first.
    pub edits: Vec<Edit>,
}

impl Dirty {
    /// Nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.topology && !self.all && self.namespaces.is_empty() && self.workloads.is_empty()
    }

    fn touches(&self, key: &PairKey) -> bool {
        let end = |end: &End| match end {
            End::Workload(w) => self.namespaces.contains(&w.namespace) || self.workloads.contains(w),
            End::ApiServer | End::Kubelet | End::Node | End::External | End::NodeLocalDns => false,
        };
        self.all || end(&key.source) || end(&key.destination)
    }
}

/// How long things count.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    /// Evidence.
    pub window: Duration,
    /// Lag after a change.
    pub grace: Duration,
    /// See [`Settings::wall_offset_ns`](crate::engine::Settings::wall_offset_ns).
    pub wall_offset_ns: i64,
}

/// Every pair and its state.
#[derive(Clone, Debug)]
pub struct Ledger {
    spans: Spans,
    max_pairs: usize,
    max_transitions: usize,
    entries: BTreeMap<PairKey, Entry>,
    index: BTreeMap<(End, End, Protocol, u16), Vec<PairKey>>,
    lost_at: Option<Time>,
    drops_lost_at: Option<Time>,
    /// No drop can be seen on this node.
    pub drops_unseen: bool,
    synced: bool,
    overflow: u64,
    waiting: VecDeque<Transition>,
    recent: VecDeque<Transition>,
    lost_transitions: u64,
    /// What is counted.
    pub counters: Counters,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(spans: Spans, max_pairs: usize, max_transitions: usize) -> Self {
        Self {
            spans,
            max_pairs,
            max_transitions,
            entries: BTreeMap::new(),
            index: BTreeMap::new(),
            lost_at: None,
            drops_lost_at: None,
            drops_unseen: false,
            synced: false,
            overflow: 0,
            waiting: VecDeque::new(),
            recent: VecDeque::new(),
            lost_transitions: 0,
            counters: Counters::default(),
        }
    }

    /// Every pair.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The pairs between two ends on a port.
    #[must_use]
    pub fn pairs(&self, source: &End, destination: &End, protocol: Protocol, port: u16) -> Vec<PairKey> {
        let key = (source.clone(), destination.clone(), protocol, port);
        self.index.get(&key).cloned().unwrap_or_default()
    }

    /// Whether a pair is in this state.
    #[must_use]
    pub fn is_in(&self, key: &PairKey, state: State) -> bool {
        self.entries.get(key).is_some_and(|e| e.state == state)
    }

    /// Pairs left out because there were too many.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Transitions that nobody fetched in time.
    #[must_use]
    pub fn lost_transitions(&self) -> u64 {
        self.lost_transitions
    }

    /// The newest transitions, newest last.
    pub fn recent(&self) -> impl Iterator<Item = &Transition> {
        self.recent.iter()
    }

    /// The next transition.
    pub fn poll_transition(&mut self) -> Option<Transition> {
        self.waiting.pop_front()
    }

    /// The wall clock was set.
    pub fn wall_clock(&mut self, offset_ns: i64) {
        self.spans.wall_offset_ns = offset_ns;
    }

    /// All initial objects are in: from here on a change is an edit.
    pub fn synced(&mut self) {
        self.synced = true;
    }

    /// Events were lost. Where only drops can have been, what says that there was no attempt still holds.
    pub fn lost(&mut self, stage: &str, count: u64, now: Time) {
        if count > 0 {
            self.counters.lost(stage, count, now);
            let at = if DROP_STAGES.contains(&stage) { &mut self.drops_lost_at } else { &mut self.lost_at };
            *at = Some(now);
        }
    }

    /// Takes over the pairs that exist now and judges those that a change touches, by the policies and by the candidates.
    /// `observable` says whether attempts of a pair can be seen here.
    #[expect(clippy::too_many_arguments, reason = "what changed and what judges it")]
    pub fn update(
        &mut self,
        now: Time,
        cluster: &Cluster,
        policies: &Policies,
        candidates: Option<&Policies>,
        pairs: Option<BTreeMap<PairKey, Pair>>,
        dirty: &Dirty,
        observable: impl Fn(&Pair) -> Result<(), String>,
    ) {
        let edited = dirty.edits.last().map_or(now, |e| e.at);
        let mut old = std::mem::take(&mut self.entries);
        let pairs = pairs.unwrap_or_else(|| old.iter().map(|(k, e)| (k.clone(), e.pair.clone())).collect());
        self.overflow = u64::try_from(pairs.len().saturating_sub(self.max_pairs)).unwrap_or(u64::MAX);
        let tried = |pair: &Pair| candidates.and_then(|policies| Judged::new(cluster, policies, pair));
        for (key, pair) in pairs.into_iter().take(self.max_pairs) {
            let entry = match old.remove(&key) {
                Some(entry) if entry.pair == pair && !dirty.touches(&key) => Some(entry),
                Some(mut entry) => Judged::new(cluster, policies, &pair).map(|judged| {
                    entry.observable = observable(&pair);
                    entry.candidate = tried(&pair);
                    entry.pair = pair;
                    if self.synced && judged.admission != entry.judged.admission {
                        entry.since_edit = edit_of(&dirty.edits, &entry.judged, &judged);
                    }
                    entry.judge_again(cluster, policies, judged, edited, self.spans.grace);
                    entry
                }),
                None => Judged::new(cluster, policies, &pair).map(|judged| {
                    let observable = observable(&pair);
                    let candidate = tried(&pair);
                    let mut entry = Entry::new(pair, judged, observable, now);
                    entry.candidate = candidate;
                    entry
                }),
            };
            if let Some(entry) = entry {
                self.entries.insert(key, entry);
            }
        }
        for entry in old.into_values() {
            self.gone(now, &entry);
        }
        self.index.clear();
        for key in self.entries.keys() {
            let ends = (key.source.clone(), key.destination.clone(), key.protocol, key.port);
            self.index.entry(ends).or_default().push(key.clone());
        }
        self.tick(now);
    }

    /// An attempt of a pair.
    #[expect(clippy::too_many_arguments, reason = "an attempt, where it belongs and what judges it")]
    pub fn record(
        &mut self,
        now: Time,
        cluster: &Cluster,
        policies: &Policies,
        key: &PairKey,
        instance: Instance,
        candidates: Vec<Endpoint>,
        attempt: &Arc<Attempt>,
        settled: Time,
    ) {
        let conditions = self.conditions(now);
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.record(cluster, policies, instance, candidates, attempt, settled);
        if let Some(transition) = turn(entry, &conditions, self.spans.wall_offset_ns) {
            self.push(transition);
        }
    }

    /// The pairs from one end on a port, whatever their destination.
    pub fn pairs_from<'a>(&'a self, source: &'a End, protocol: Protocol, port: u16) -> impl Iterator<Item = &'a Entry> {
        let nowhere = Workload { namespace: "".into(), kind: "".into(), name: "".into() };
        let first = (source.clone(), End::Workload(nowhere), Protocol::default(), 0);
        let from_here = self.index.range(first..).take_while(move |((s, ..), _)| s == source);
        let on_port = from_here.filter(move |((_, _, p, n), _)| *p == protocol && *n == port);
        on_port.flat_map(|(_, keys)| keys).filter_map(|key| self.entries.get(key))
    }

    /// An attempt by this source on this port went to an address that no object explains.
    pub fn unattributed(&mut self, now: Time, source: &End, protocol: Protocol, port: u16) {
        let keys: Vec<PairKey> = self.pairs_from(source, protocol, port).map(|e| e.pair.key.clone()).collect();
        for key in keys {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.unattributed = Some(now);
            }
        }
    }

    /// Brings every state up to date.
    pub fn tick(&mut self, now: Time) {
        let conditions = self.conditions(now);
        let wall_offset = self.spans.wall_offset_ns;
        let turned: Vec<Transition> =
            self.entries.values_mut().filter_map(|entry| turn(entry, &conditions, wall_offset)).collect();
        for transition in turned {
            self.push(transition);
        }
    }

    /// What all pairs are judged under.
    #[must_use]
    pub fn conditions(&self, now: Time) -> Conditions {
        Conditions {
            now,
            window: self.spans.window,
            lost_at: self.lost_at,
            drops_lost_at: self.drops_lost_at,
            drops_unseen: self.drops_unseen,
            synced: self.synced,
        }
    }

    fn push(&mut self, transition: Transition) {
        self.recent.push_back(transition.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        self.waiting.push_back(transition);
        if self.waiting.len() > self.max_transitions {
            self.waiting.pop_front();
            self.lost_transitions += 1;
        }
    }

    fn gone(&mut self, now: Time, entry: &Entry) {
        if !matches!(entry.state, State::Silent | State::Unknown | State::Verified) {
            let transition =
                transition(entry, now, Some(entry.state), None, "the pair is gone", self.spans.wall_offset_ns);
            self.push(transition);
        }
    }
}

/// Brings one pair's state up to date; its transition if it changed.
fn turn(entry: &mut Entry, conditions: &Conditions, wall_offset_ns: i64) -> Option<Transition> {
    let (state, seen) = entry.judge(conditions);
    if state == entry.state {
        return None;
    }
    let why = evidence_line(entry, conditions, state, seen);
    let from = std::mem::replace(&mut entry.state, state);
    let is_new = entry.since == conditions.now && from == State::Unknown;
    entry.since = conditions.now;
    // A pair that begins with nothing to say is no news.
    if is_new && matches!(state, State::Silent) {
        return None;
    }
    let from = if is_new { None } else { Some(from) };
    Some(transition(entry, conditions.now, from, Some(state), &why, wall_offset_ns))
}

fn transition(
    entry: &Entry,
    at: Time,
    from: Option<State>,
    to: Option<State>,
    why: &str,
    wall_offset_ns: i64,
) -> Transition {
    let key = &entry.pair.key;
    Transition {
        at,
        at_unix_ns: unix_ns(at, wall_offset_ns),
        flow: key.flow.clone(),
        severity: entry.pair.requirement.severity,
        source: end_view(&key.source),
        destination: end_view(&key.destination),
        protocol: key.protocol,
        port: key.port,
        from,
        to,
        why: why.to_owned(),
        policies: entry.judged.policies().0.clone(),
        since_edit: entry.since_edit.clone(),
    }
}

/// Nanoseconds since the Unix epoch; 0 where the offset is not known.
#[must_use]
pub fn unix_ns(at: Time, wall_offset_ns: i64) -> i64 {
    if wall_offset_ns == 0 { 0 } else { i64::try_from(at.0).unwrap_or(i64::MAX).saturating_add(wall_offset_ns) }
}

/// The edit that flipped a decision: the newest one of a policy that had or has a say in it, else the newest of any policy,
/// else the newest of what policies select by.
fn edit_of(edits: &[Edit], before: &Judged, after: &Judged) -> Option<Edit> {
    let sides = [&before.decision.egress, &before.decision.ingress, &after.decision.egress, &after.decision.ingress];
    let with_a_say: HashSet<&Name> = sides.into_iter().flat_map(Side::selecting).collect();
    let has_a_say = |name: &Name| with_a_say.contains(name);
    let newest = |fits: &dyn Fn(&Edit) -> bool| edits.iter().rev().find(|e| fits(e)).cloned();
    newest(&|e| is_policy(e.object.kind) && has_a_say(&e.object.name))
        .or_else(|| newest(&|e| is_policy(e.object.kind)))
        .or_else(|| newest(&|e| e.object.kind == Kind::Namespace))
        .or_else(|| newest(&|_| true))
}

/// Kinds that say what is admitted.
#[must_use]
pub fn is_policy(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NetworkPolicy | Kind::AdminNetworkPolicy | Kind::BaselineAdminNetworkPolicy | Kind::ClusterNetworkPolicy
    )
}
