//! The engine's snapshot and what the agent knows of itself, as one value; and the way to ask for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use weir_engine::snapshot::Snapshot;

use super::live::{self, Live};
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
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeView {
    /// Its name.
    pub name: String,
    /// It is attached.
    pub active: bool,
    /// Why it is not.
    pub reason: Option<String>,
}

impl View {
    /// Why the agent is not ready to be believed, if it isn't.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if !self.snapshot.synced {
            return Some("cluster objects are not loaded yet".to_owned());
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

/// What the engine's task is asked for.
#[derive(Debug)]
pub enum Request {
    /// The view as of now.
    View(oneshot::Sender<Arc<View>>),
    /// Every attempt from now on, until the receiver is dropped.
    Watch(mpsc::Sender<Live>),
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
