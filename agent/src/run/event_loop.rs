//! The one task that owns the engine. Everything reaches it here, one input at a time: probes, cluster objects, time, readers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use weir_engine::check::Model;
use weir_engine::cluster::{Kind, Pod};
use weir_engine::engine::{Candidate, Engine, Input, Unseen};
use weir_engine::observation::Observation;
use weir_engine::snapshot::EndView;
use weir_engine::time::Time;
use weir_engine::verdict::State;
use weir_engine::words::Name;

use super::listeners::Listeners;
use super::live::Watchers;
use super::tap::Taps;
use super::{Clock, Recorder, maybe};
use crate::cluster::candidates;
use crate::cluster::change::{Candidates, Change, Health, Reading, State as Part, to_value};
use crate::cluster::manifests::Problem;
use crate::cluster::watch::Lookups;
use crate::outputs::events::Events;
use crate::outputs::{AgentView, Known, PartView, ProbeView, Request, View, log};

/// Readers that come shortly after one another get the same view.
const VIEW_AGE: Duration = Duration::from_millis(100);
/// Timers of the engine that are due so shortly after one another go off together.
const TOGETHER: Duration = Duration::from_millis(20);
/// Changes of objects taken in at a time: observations come between.
const CHANGES: usize = 256;
/// How old an answer may be that an attempt waits for.
const ANSWER_AGE: Duration = Duration::from_secs(5);
/// Problems logged for one update; all of them are in the snapshot.
const MAX_LOGGED: usize = 50;

/// What watches the kernel.
pub trait Observer: Send + 'static {
    /// Waits for observations and appends them. Dropping the future loses none.
    fn next(&mut self, batch: &mut Vec<Observation>) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Appends what is there already, without waiting.
    fn drain(&mut self, batch: &mut Vec<Observation>);

    /// Which probes there are.
    fn probes(&self) -> Vec<ProbeView>;

    /// Watches these destination ports from now on, whatever it watched before.
    ///
    /// # Errors
    /// When the kernel refuses; attempts would be missed then.
    fn watch(&mut self, ports: &BTreeSet<u16>) -> anyhow::Result<()>;

    /// Events lost since the start, by stage.
    fn lost(&mut self) -> Vec<(&'static str, u64)>;

    /// Drops told without their stack since the start, because of its rate limit.
    fn suppressed_stacks(&self) -> u64;
}

/// The engine and what feeds it.
#[derive(Debug)]
pub struct EventLoop<O> {
    engine: Engine,
    clock: Clock,
    observer: O,
    recorder: Option<Recorder>,
    /// Up to when the engine was told what happened.
    reached: Time,
    lost: Vec<(&'static str, u64)>,
    lookups: Option<Lookups>,
    listeners: Listeners,
    events: Option<Events>,
    /// What was wrong with manifests, and with each source of candidates, when they were last read.
    problems: BTreeMap<Arc<str>, Vec<Problem>>,
    /// How many ports are watched; they only ever become more.
    watched: usize,
    agent: AgentView,
    health: BTreeMap<Arc<str>, Health>,
    started: std::time::Instant,
    latest: Option<(Instant, Arc<View>)>,
    watchers: Watchers,
    taps: Taps,
}

impl<O: Observer> EventLoop<O> {
    /// A loop that has seen nothing yet.
    #[must_use]
    pub fn new(
        engine: Engine,
        clock: Clock,
        observer: O,
        recorder: Option<Recorder>,
        lookups: Option<Lookups>,
        listeners: Listeners,
        events: Option<Events>,
    ) -> Self {
        let agent = AgentView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            probes: observer.probes(),
            ..AgentView::default()
        };
        let watched = engine.watched_ports().len();
        Self {
            engine,
            clock,
            observer,
            recorder,
            reached: Time(0),
            lost: Vec::new(),
            lookups,
            listeners,
            events,
            problems: BTreeMap::new(),
            watched,
            agent,
            health: BTreeMap::new(),
            started: std::time::Instant::now(),
            latest: None,
            watchers: Watchers::default(),
            taps: Taps::default(),
        }
    }

    /// Serves until `stop` is done.
    ///
    /// # Errors
    /// When the observer fails for good.
    pub async fn run(
        mut self,
        changes: &mut mpsc::Receiver<Change>,
        mut candidates: Option<mpsc::Receiver<Change>>,
        mut requests: mpsc::Receiver<Request>,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        self.reached = self.clock.now();
        self.look_at_probes();
        let mut batch = Vec::new();
        let mut changed = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tokio::pin!(stop);
        loop {
            let engine = self.engine.poll_timeout().map(|due| due.max(self.reached.plus(TOGETHER)));
            let due = [engine, self.watchers.poll_timeout()].into_iter().flatten().min();
            let timeout = due.map(|time| sleep_until(self.clock.instant(time)));
            tokio::select! {
                () = &mut stop => break,
                seen = self.observer.next(&mut batch) => seen.map(|()| self.catch_up(&mut batch))?,
                1.. = changes.recv_many(&mut changed, CHANGES) => {
                    self.catch_up(&mut batch);
                    changed.drain(..).for_each(|c| self.change(c));
                }
                Some(change) = received(&mut candidates) => {
                    self.catch_up(&mut batch);
                    self.change(change);
                }
                Some((address, count)) = self.listeners.answer() => {
                    self.catch_up(&mut batch);
                    self.note(self.reached, || Input::ListenDrops { address, count });
                    self.engine.listen_drops(self.reached, address, count);
                }
                Some(request) = requests.recv() => match request {
                    // A reader that has gone away needs nothing.
                    Request::Alive(reader) => drop(reader.send(())),
                    Request::View(reader) => self.show(reader),
                    Request::Watch(lines) => self.watchers.add(lines),
                    Request::Known(reader) => drop(reader.send(self.known())),
                    Request::Record(reader) => self.taps.add(self.reached, &self.engine, reader),
                },
                () = maybe(timeout) => self.catch_up(&mut batch),
                _ = tick.tick() => {
                    self.count_lost();
                    self.catch_up(&mut batch);
                    self.look_at_wall_clock();
                    self.flush();
                }
            }
            self.questions();
            self.transitions();
            self.watchers.tell(self.reached, &mut self.engine);
            self.watch()?;
        }
        self.flush();
        Ok(())
    }

    /// Pairs on ports that nobody watched yet may have become known.
    fn watch(&mut self) -> anyhow::Result<()> {
        let ports = self.engine.watched_ports();
        if ports.len() != self.watched {
            debug!(ports = ports.len(), "more ports are watched");
            self.watched = ports.len();
            self.observer.watch(ports)?;
        }
        Ok(())
    }

    /// Tells the engine what happened until now, each event at its own time, and then what time it is. An agent that was not
    /// scheduled for a while would otherwise decide, by a clock that has gone on, that something did not come which waits in
    /// the buffer: a route's drop after its "prohibited", and a rule would be accused.
    fn catch_up(&mut self, batch: &mut Vec<Observation>) {
        let now = self.clock.now();
        self.observer.drain(batch);
        if !batch.is_empty() {
            // Loss first: what follows it must not be believed more than it deserves.
            self.count_lost();
        }
        for observation in batch.drain(..) {
            let at = observation.at().min(now).max(self.reached);
            self.reached = at;
            self.note(at, || Input::Observe(observation.clone()));
            self.meet(&observation);
            self.engine.observe(at, &observation);
            self.watchers.observe(at, &observation);
        }
        self.reached = self.reached.max(now);
        if self.engine.poll_timeout().is_some_and(|due| due <= self.reached) {
            self.note(self.reached, || Input::Timeout);
            self.engine.handle_timeout(self.reached);
        }
    }

    fn change(&mut self, change: Change) {
        // Not the clock's time: nobody has looked since what the kernel did.
        let now = self.reached;
        match change {
            Change::Apply { object, origin } => {
                if self.is_recorded() {
                    match to_value(&object) {
                        Ok(object) => self.note(now, || Input::Apply { object, origin: origin.clone() }),
                        Err(error) => self.unrecorded(&error),
                    }
                }
                let flows = object.key().kind == Kind::ConfigMap;
                let candidates = candidates::of_config_map(&object);
                self.engine.apply(now, object, origin);
                if flows {
                    for (name, error) in self.engine.refused_flows() {
                        warn!(config_map = %name, %error, "flows of a ConfigMap are left out: it is no catalogue");
                    }
                }
                if let Some(candidates) = candidates {
                    self.candidates(now, candidates);
                }
            }
            Change::Delete(key) => {
                self.note(now, || Input::Delete { key: key.clone() });
                self.engine.delete(now, &key);
                if let Some(nothing) = candidates::without(&key) {
                    self.candidates(now, nothing);
                }
            }
            Change::Candidates(candidates) => self.candidates(now, candidates),
            Change::Answered { address, somebody } => {
                self.note(now, || Input::Answered { address, somebody });
                self.engine.answered(now, address, somebody);
            }
            Change::Synced => {
                self.note(now, || Input::Synced);
                self.engine.synced(now);
                let objects: u64 = self.engine.objects().iter().map(|o| o.count).sum();
                let ignored: usize = self.agent.ignored.values().sum();
                info!(objects, files = self.agent.files, ignored, "cluster objects loaded");
            }
            Change::Health(health) => self.health(health),
            Change::Read(Reading { problems, ignored, files }) => {
                self.problems("manifests".into(), problems);
                self.agent.ignored = ignored;
                self.agent.files = files;
            }
        }
        self.latest = None;
    }

    /// Policies that are not enforced.
    fn candidates(&mut self, now: Time, Candidates { source, policies, problems }: Candidates) {
        self.problems(source.clone(), problems);
        if self.is_recorded() {
            let values: Result<Vec<_>, _> = policies.iter().map(serde_json::to_value).collect();
            match values {
                Ok(policies) => self.note(now, || Input::Candidates { source: source.to_string(), policies }),
                Err(error) => self.unrecorded(&error),
            }
        }
        let policies = policies.into_iter().map(Candidate::new).collect();
        self.engine.candidates(now, &source, policies);
    }

    /// What one source of objects is wrong with now.
    fn problems(&mut self, source: Arc<str>, problems: Vec<Problem>) {
        let before = self.problems.insert(source, problems.clone()).unwrap_or_default();
        report(&before, &problems);
        self.problems.retain(|_, problems| !problems.is_empty());
        self.agent.problems = self.problems.values().flatten().cloned().collect();
    }

    /// The source itself logs what goes wrong; here is said that it is over.
    fn health(&mut self, health: Health) {
        let bad = |state: Part| matches!(state, Part::Stale | Part::Refused);
        let before = self.health.get(&health.part).map(|h| h.state);
        if before.is_some_and(bad) && health.state == Part::Current {
            info!(part = &*health.part, "the view of the cluster is current again");
        }
        self.health.insert(health.part.clone(), health);
    }

    /// Asks who the other end of one that is known is, before anything is made of it.
    fn meet(&self, observation: &Observation) {
        let Some(lookups) = &self.lookups else { return };
        let cluster = self.engine.cluster();
        let is_known = |a: IpAddr| cluster.pod_by_address(a).is_some() || cluster.node_by_address(a).is_some();
        let tuple = observation.tuple();
        let ends = [tuple.source, tuple.destination];
        if ends.into_iter().any(is_known) {
            ends.into_iter().for_each(|address| lookups.meet(cluster, address));
        }
    }

    fn questions(&mut self) {
        while let Some(address) = self.engine.poll_question() {
            if let Some(lookups) = &self.lookups {
                lookups.ask(address, ANSWER_AGE);
            }
        }
        while let Some(address) = self.engine.poll_listener() {
            self.listeners.ask(address);
        }
    }

    /// What the kernel does not show is told once, before anything is made of its absence.
    fn look_at_probes(&mut self) {
        let unseen = unseen(&self.agent.probes);
        if unseen != Unseen::default() {
            let now = self.reached;
            self.note(now, || Input::Unseen(unseen));
            self.engine.unseen(now, unseen);
        }
    }

    fn look_at_wall_clock(&mut self) {
        if let Some(offset_ns) = self.clock.wall_clock_set() {
            info!("the wall clock was set; times are shown by it from now on");
            self.note(self.reached, || Input::WallClock { offset_ns });
            self.engine.wall_clock(offset_ns);
            self.latest = None;
        }
    }

    fn count_lost(&mut self) {
        let now = self.clock.now();
        let lost = self.observer.lost();
        for (stage, total) in &lost {
            let before = self.lost.iter().find(|(s, _)| s == stage).map_or(0, |(_, n)| *n);
            let count = total.saturating_sub(before);
            if count > 0 {
                warn!(stage, count, "events were lost; what they would have proven stays unknown");
                self.note(now, || Input::Lost { stage: (*stage).to_owned(), count });
                self.engine.lost(now, stage, count);
                self.reached = now;
            }
        }
        self.lost = lost;
    }

    fn show(&mut self, reader: oneshot::Sender<Arc<View>>) {
        let fresh = self.latest.as_ref().filter(|(at, _)| at.elapsed() < VIEW_AGE).map(|(_, view)| view.clone());
        let view = fresh.unwrap_or_else(|| {
            self.agent.probes = self.observer.probes();
            self.agent.suppressed_stacks = self.observer.suppressed_stacks();
            let now = std::time::Instant::now();
            self.agent.parts = self.health.values().map(|h| PartView::of(h, self.started, now)).collect();
            let view = Arc::new(View { snapshot: self.engine.snapshot(self.clock.now()), agent: self.agent.clone() });
            self.latest = Some((Instant::now(), view.clone()));
            view
        });
        // A reader that has gone away needs no view.
        let _ = reader.send(view);
    }

    /// A copy of all that decisions are made from: questions about it take long, and the engine's task must not.
    fn known(&mut self) -> Box<Known> {
        self.engine.settle();
        let engine = &self.engine;
        let objects = engine.objects();
        let model = Model {
            cluster: engine.cluster().clone(),
            identity: engine.identity().clone(),
            resolver: engine.resolver().clone(),
            policies: engine.policies().clone(),
            objects: objects.into_iter().map(|o| (o.kind, o.count)).collect(),
        };
        let recent = engine.recent().cloned().collect();
        Box::new(Known { model, recent, wall_offset_ns: engine.settings().wall_offset_ns })
    }

    fn transitions(&mut self) {
        while let Some(transition) = self.engine.poll_transition() {
            // A pair that begins or ends without a finding is no event.
            let quiet = |s: Option<State>| matches!(s, None | Some(State::Silent | State::Verified));
            if quiet(transition.from) && quiet(transition.to) && (transition.from.is_none() || transition.to.is_none())
            {
                debug!(flow = &*transition.flow, to = transition.to.map(State::as_str), "pair");
            } else {
                log::transition(&transition);
                if let Some(events) = &mut self.events {
                    let pod = [&transition.source, &transition.destination]
                        .into_iter()
                        .find_map(|end| own_pod(&self.engine, end));
                    pod.into_iter().for_each(|pod| events.transition(&transition, &pod));
                }
            }
        }
    }

    fn is_recorded(&self) -> bool {
        self.recorder.is_some() || !self.taps.is_empty()
    }

    /// An input cannot be written down: a recording has no holes.
    fn unrecorded(&mut self, error: &serde_json::Error) {
        warn!(%error, "the recording ends here");
        self.recorder = None;
        self.taps = Taps::default();
    }

    fn note(&mut self, now: Time, input: impl FnOnce() -> Input) {
        if !self.is_recorded() {
            return;
        }
        let input = input();
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(now, &input)
        {
            warn!(%error, "the recording ends here");
            self.recorder = None;
        }
        self.taps.note(now, input);
    }

    fn flush(&mut self) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.flush()
        {
            warn!(%error, "the recording ends here");
            self.recorder = None;
        }
    }
}

/// What stays unseen while these probes are inactive.
fn unseen(probes: &[ProbeView]) -> Unseen {
    let off = |name: &str| probes.iter().any(|probe| probe.name == name && !probe.active);
    let on = |name: &str| probes.iter().any(|probe| probe.name == name && probe.active);
    Unseen { tcp: off("tcp_state") && !on("tcp_callback"), udp: off("udp_release"), drops: off("packet_drop") }
}

/// A pod of this agent's nodes behind one end of a pair.
fn own_pod(engine: &Engine, end: &EndView) -> Option<Name> {
    let nodes = &engine.settings().nodes;
    let own = |node: &str| nodes.is_empty() || nodes.iter().any(|n| n == node);
    let is_it = |pod: &&Pod| {
        let workload = &pod.workload;
        !pod.template
            && !pod.finished()
            && (&workload.name, &workload.kind) == (&end.workload, &end.workload_kind)
            && pod.node.as_deref().is_some_and(own)
    };
    engine.cluster().pods_in(&end.namespace).find(is_it).map(|pod| pod.name.clone())
}

/// The next change of a source that may not be there, or may be over.
async fn received(changes: &mut Option<mpsc::Receiver<Change>>) -> Option<Change> {
    let change = maybe(changes.as_mut().map(mpsc::Receiver::recv)).await;
    if change.is_none() {
        *changes = None;
    }
    change
}

/// Logs what is new, and that all is well again.
fn report(before: &[Problem], now: &[Problem]) {
    for problem in now.iter().filter(|p| !before.contains(p)).take(MAX_LOGGED) {
        log::problem(problem);
    }
    let new = now.iter().filter(|p| !before.contains(p)).count();
    if new > MAX_LOGGED {
        warn!(more = new - MAX_LOGGED, "more problems with manifests; /snapshot has them all");
    }
    if now.is_empty() && !before.is_empty() {
        info!("all manifests are readable again");
    }
}
