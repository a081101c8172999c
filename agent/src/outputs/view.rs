//! The engine's snapshot and what the agent knows of itself, as one value; and the way to ask for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::probes::ProbeStatus;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use weir_engine::attempt::Attempt;
use weir_engine::check::Model;
use weir_engine::snapshot::Snapshot;

use super::live::{self, Live};
use super::recording::Begun;
use crate::cluster::change::{Health, State};
use crate::cluster::manifests::Problem;

/// Everything that is shown. Its JSON is the snapshot's with one more member, `agent`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// What the engine knows.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// What the agent knows of itself.
    pub agent: AgentView,
}

/// The agent's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    /// Of the program.
    pub version: String,
    /// Each probe, active or not.
    pub probes: Vec<ProbeView>,
    /// What is wrong with the manifests.
    pub problems: Vec<Problem>,
    /// Objects that Weir does not read, by `apiVersion kind`.
    pub ignored: BTreeMap<String, usize>,
    /// Manifest files read.
    pub files: usize,
    /// The parts of the view of the cluster that come from an API server.
    #[serde(default)]
    pub parts: Vec<PartView>,
    /// Drops told without their kernel stack, which a rate limit held back: their hook is not known, and nothing else is lost.
    #[serde(default)]
    pub suppressed_stacks: u64,
}

impl AgentView {
    /// The parts of the view of the cluster that are not current, with their age and why; none if all are.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        let fine = |state: &str| state == State::Current.as_str() || state == State::Absent.as_str();
        let parts = self.parts.iter().filter(|p| !fine(&p.state)).map(|p| {
            let reason = p.reason.as_deref().map_or(String::new(), |reason| format!(", {reason}"));
            format!("{} {} for {} s{reason}", p.part, p.state, p.age_seconds)
        });
        let parts: Vec<String> = parts.collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// One part of what an API server says, and how old it may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartView {
    /// `networkpolicies.networking.k8s.io`, `pods (spec.nodeName=worker-1)`, …
    pub part: Arc<str>,
    /// `current`, `stale`, `refused`, …
    pub state: String,
    /// Why it is not current.
    pub reason: Option<Arc<str>>,
    /// Objects of it that could not be decoded; their last good versions stay in force.
    #[serde(default)]
    pub undecodable: u32,
    /// Seconds since the API server last confirmed it, or since the start where it never did; 0 while it is current.
    pub age_seconds: u64,
}

impl PartView {
    /// What a part's health means now, for an agent that has run since `started`.
    #[must_use]
    pub fn of(health: &Health, started: Instant, now: Instant) -> Self {
        let age = match health.state {
            State::Current | State::Absent => Duration::ZERO,
            State::Starting | State::Stale | State::Refused => {
                now.saturating_duration_since(health.confirmed.unwrap_or(started))
            }
        };
        Self {
            part: health.part.clone(),
            state: health.state.as_str().to_owned(),
            reason: health.reason.clone(),
            undecodable: health.undecodable,
            age_seconds: age.as_secs(),
        }
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeView {
    /// Its name.
    pub name: String,
    /// Where it is attached: `skb:kfree_skb`, `cgroup:sock_release`, …
    #[serde(default)]
    pub hook: String,
    /// It is attached.
    pub active: bool,
    /// Why it is not.
    pub reason: Option<String>,
}

impl From<&ProbeStatus> for ProbeView {
    fn from(ProbeStatus { name, hook, active, reason }: &ProbeStatus) -> Self {
        Self { name: (*name).to_owned(), hook: hook.clone(), active: *active, reason: reason.clone() }
    }
}

impl View {
    /// Why the agent is not ready to be believed, if it isn't.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if !self.snapshot.synced {
            let missing = self.agent.degraded().map_or(String::new(), |parts| format!(": {parts}"));
            return Some(format!("cluster objects are not loaded yet{missing}"));
        }
        if self.agent.probes.iter().any(|p| p.active) {
            return None;
        }
        let reason = self.agent.probes.iter().find_map(|p| p.reason.as_deref()).unwrap_or("none is loaded");
        Some(format!("no probe is active: {reason}; `weir doctor` says more"))
    }
}

/// Why there is no view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The engine's task is gone: the agent stops.
    #[error("the agent is stopping")]
    Stopping,
    /// It did not answer in time.
    #[error("the agent is too busy to answer; try again")]
    Busy,
}

/// What questions about connections are answered from.
#[derive(Debug)]
pub struct Known {
    /// What decisions are made from.
    pub model: Model,
    /// The newest attempts that were decided, newest last.
    pub recent: Vec<Attempt>,
    /// Nanoseconds from the engine's clock to the Unix epoch.
    pub wall_offset_ns: i64,
}

/// What the engine's task is asked for.
#[derive(Debug)]
pub enum Request {
    /// Whether it is alive.
    Alive(oneshot::Sender<()>),
    /// The view as of now.
    View(oneshot::Sender<Arc<View>>),
    /// A copy of what decisions are made from.
    Known(oneshot::Sender<Box<Known>>),
    /// Every attempt from now on, until the receiver is dropped.
    Watch(mpsc::Sender<Live>),
    /// What is known, and every input of the engine from now on, until the receiver is dropped.
    Record(oneshot::Sender<Box<Begun>>),
}

/// Asks the engine's task for views. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Views {
    requests: mpsc::Sender<Request>,
}

/// How long a reader waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// Readers waiting at the same time.
const QUEUE: usize = 64;

impl Views {
    /// The asking end, and the end that the engine's task serves.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (requests, served) = mpsc::channel(QUEUE);
        (Self { requests }, served)
    }

    /// That the engine's task answers. Costs it nothing.
    ///
    /// # Errors
    /// [`ViewError`].
    pub async fn alive(&self) -> Result<(), ViewError> {
        let ask = async {
            let (answer, alive) = oneshot::channel();
            self.requests.send(Request::Alive(answer)).await.map_err(|_| ViewError::Stopping)?;
            alive.await.map_err(|_| ViewError::Stopping)
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ViewError::Busy))
    }

    /// The view as of now.
    ///
    /// # Errors
    /// [`ViewError`].
    pub async fn get(&self) -> Result<Arc<View>, ViewError> {
        let ask = async {
            let (answer, view) = oneshot::channel();
            self.requests.send(Request::View(answer)).await.map_err(|_| ViewError::Stopping)?;
            view.await.map_err(|_| ViewError::Stopping)
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ViewError::Busy))
    }

    /// What decisions are made from, as of now: for questions that take longer than the engine's task may.
    ///
    /// # Errors
    /// [`ViewError`].
    pub async fn known(&self) -> Result<Box<Known>, ViewError> {
        let ask = async {
            let (answer, known) = oneshot::channel();
            self.requests.send(Request::Known(answer)).await.map_err(|_| ViewError::Stopping)?;
            known.await.map_err(|_| ViewError::Stopping)
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ViewError::Busy))
    }

    /// What is known, and every input of the engine from now on. The engine never waits for the reader either.
    ///
    /// # Errors
    /// [`ViewError`].
    pub async fn record(&self) -> Result<Box<Begun>, ViewError> {
        let ask = async {
            let (answer, begun) = oneshot::channel();
            self.requests.send(Request::Record(answer)).await.map_err(|_| ViewError::Stopping)?;
            begun.await.map_err(|_| ViewError::Stopping)
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(ViewError::Busy))
    }

    /// Attempts from now on. The engine never waits for the reader: what does not fit in is counted instead.
    ///
    /// # Errors
    /// [`ViewError`].
    pub async fn watch(&self) -> Result<mpsc::Receiver<Live>, ViewError> {
        let (lines, receiver) = mpsc::channel(live::QUEUE);
        let sent = tokio::time::timeout(PATIENCE, self.requests.send(Request::Watch(lines))).await;
        sent.map_err(|_| ViewError::Busy)?.map_err(|_| ViewError::Stopping)?;
        Ok(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(state: State, confirmed: Option<Instant>) -> Health {
        Health {
            part: "networkpolicies.networking.k8s.io".into(),
            kind: None,
            essential: true,
            state,
            reason: None,
            confirmed,
            undecodable: 0,
        }
    }

    #[test]
    fn a_part_ages_from_its_last_confirmation_or_from_the_start() {
        let started = Instant::now();
        let after = |seconds| started + Duration::from_secs(seconds);
        for (state, confirmed, age) in [
            (State::Current, Some(after(10)), 0),
            (State::Stale, Some(after(60)), 40),
            (State::Refused, None, 100),
            (State::Starting, None, 100),
            // A kind that the cluster does not have cannot be old.
            (State::Absent, None, 0),
        ] {
            let part = PartView::of(&health(state, confirmed), started, after(100));
            assert_eq!(part.age_seconds, age, "{state:?}");
        }
    }
}
