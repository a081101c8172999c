//! The one task that owns the engine. Everything reaches it here, one input at a time: probes, manifests, time, readers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use weir_engine::engine::{Engine, Input};
use weir_engine::observation::Observation;
use weir_engine::time::Time;
use weir_engine::verdict::State;

use super::live::Watchers;
use super::{Clock, Recorder, maybe};
use crate::cluster::manifests::{Problem, Update};
use crate::outputs::{AgentView, ProbeView, Request, View, log};

/// Readers that come shortly after one another get the same view.
const VIEW_AGE: Duration = Duration::from_millis(100);
/// Problems logged for one update; all of them are in the snapshot.
const MAX_LOGGED: usize = 50;

/// What watches the kernel.
pub trait Observer {
    /// Waits for observations and appends them. Dropping the future loses none.
    fn next(&mut self, batch: &mut Vec<Observation>) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Which probes there are.
    fn probes(&self) -> Vec<ProbeView>;

    /// Events lost since the start, by stage.
    fn lost(&mut self) -> Vec<(&'static str, u64)>;
}

/// The engine and what feeds it.
#[derive(Debug)]
pub struct EventLoop<O> {
    engine: Engine,
    clock: Clock,
    observer: O,
    recorder: Option<Recorder>,
    lost: Vec<(&'static str, u64)>,
    agent: AgentView,
    latest: Option<(Instant, Arc<View>)>,
    watchers: Watchers,
}

impl<O: Observer> EventLoop<O> {
    /// A loop that has seen nothing yet.
    #[must_use]
    pub fn new(engine: Engine, clock: Clock, observer: O, recorder: Option<Recorder>) -> Self {
        let agent = AgentView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            probes: observer.probes(),
            ..AgentView::default()
        };
        Self { engine, clock, observer, recorder, lost: Vec::new(), agent, latest: None, watchers: Watchers::default() }
    }

    /// Takes in what there was at the start.
    pub fn load(&mut self, first: Update) {
        let objects = first.apply.len();
        let (files, ignored) = (first.files, first.ignored.values().sum::<usize>());
        self.update(first);
        let now = self.clock.now();
        self.note(now, || Input::Synced);
        self.engine.synced(now);
        info!(objects, files, ignored, "cluster objects loaded");
        self.transitions();
    }

    /// Serves until `stop` is done.
    ///
    /// # Errors
    /// When the observer fails for good.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut requests: mpsc::Receiver<Request>,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let mut batch = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tokio::pin!(stop);
        loop {
            let due = [self.engine.poll_timeout(), self.watchers.poll_timeout()].into_iter().flatten().min();
            let timeout = due.map(|time| sleep_until(self.clock.instant(time)));
            tokio::select! {
                () = &mut stop => break,
                seen = self.observer.next(&mut batch) => {
                    seen?;
                    // Loss first: what follows it must not be believed more than it deserves.
                    self.count_lost();
                    self.observe(&mut batch);
                }
                Some(update) = updates.recv() => self.update(update),
                Some(request) = requests.recv() => match request {
                    Request::View(reader) => self.show(reader),
                    Request::Watch(lines) => self.watchers.add(lines),
                },
                () = maybe(timeout) => self.timeout(),
                _ = tick.tick() => {
                    self.count_lost();
                    self.flush();
                }
            }
            self.transitions();
            self.watchers.tell(self.clock.now(), &self.engine);
        }
        self.flush();
        Ok(())
    }

    fn observe(&mut self, batch: &mut Vec<Observation>) {
        let now = self.clock.now();
        for observation in batch.drain(..) {
            self.note(now, || Input::Observe(observation.clone()));
            self.engine.observe(now, &observation);
            self.watchers.observe(now, &observation);
        }
    }

    fn update(&mut self, update: Update) {
        let now = self.clock.now();
        let Update { apply, delete, problems, ignored, files } = update;
        if !apply.is_empty() || !delete.is_empty() {
            debug!(applied = apply.len(), deleted = delete.len(), "cluster objects changed");
        }
        for key in delete {
            self.note(now, || Input::Delete { key: key.clone() });
            self.engine.delete(now, &key);
        }
        for found in apply {
            if let Some(object) = found.value {
                self.note(now, || Input::Apply { object, origin: found.origin.clone() });
            }
            self.engine.apply(now, found.object, found.origin);
        }
        report(&self.agent.problems, &problems);
        self.agent.problems = problems;
        self.agent.ignored = ignored;
        self.agent.files = files;
        self.latest = None;
    }

    fn timeout(&mut self) {
        let now = self.clock.now();
        self.note(now, || Input::Timeout);
        self.engine.handle_timeout(now);
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
            }
        }
        self.lost = lost;
    }

    fn show(&mut self, reader: oneshot::Sender<Arc<View>>) {
        let fresh = self.latest.as_ref().filter(|(at, _)| at.elapsed() < VIEW_AGE).map(|(_, view)| view.clone());
        let view = fresh.unwrap_or_else(|| {
            self.agent.probes = self.observer.probes();
            let view = Arc::new(View { snapshot: self.engine.snapshot(self.clock.now()), agent: self.agent.clone() });
            self.latest = Some((Instant::now(), view.clone()));
            view
        });
        // A reader that has gone away needs no view.
        let _ = reader.send(view);
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
            }
        }
    }

    fn note(&mut self, now: Time, input: impl FnOnce() -> Input) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(now, &input())
        {
            warn!(%error, "the recording ends here");
            self.recorder = None;
        }
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
