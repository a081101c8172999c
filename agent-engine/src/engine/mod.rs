//! The engine: wiring only. Inputs with their time in, transitions and snapshots out.

mod settings;

use serde::{Deserialize, Serialize};
pub use settings::{Settings, WATCHED_PORTS};

use crate::cluster::{Cluster, Key, Object, ObjectError, Origin};
use crate::observation::Observation;
use crate::policy::Policies;
pub use crate::snapshot::{Snapshot, Transition};
pub use crate::time::Time;

/// Everything that can enter the engine. A recording is a list of `(Time, Input)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "input", rename_all = "kebab-case")]
pub enum Input {
    /// An object was added or replaced.
    Apply {
        /// As Kubernetes writes it.
        object: serde_json::Value,
        /// Where it came from.
        origin: Origin,
    },
    /// An object is gone.
    Delete {
        /// Which one.
        key: Key,
    },
    /// The kernel did something.
    Observe(Observation),
    /// Events were lost on the way.
    Lost {
        /// Where: `ring-buffer`, `channel`, …
        stage: String,
        /// How many, since the last time.
        count: u64,
    },
    /// All initial objects have been applied.
    Synced,
    /// Time went by.
    Timeout,
}

/// The pure core's state. One task owns it.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    cluster: Cluster,
    policies: Policies,
    synced: bool,
}

impl Engine {
    /// An engine that knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, cluster: Cluster::default(), policies: Policies::default(), synced: false }
    }

    /// Takes in one input.
    ///
    /// # Errors
    /// [`ObjectError`] when an applied value is not an object that Weir reads; nothing has changed then.
    pub fn input(&mut self, now: Time, input: Input) -> Result<(), ObjectError> {
        match input {
            Input::Apply { object, origin } => self.apply(now, Object::from_value(object)?, origin),
            Input::Delete { key } => self.delete(now, &key),
            Input::Observe(observation) => self.observe(now, &observation),
            Input::Lost { stage, count } => self.lost(now, &stage, count),
            Input::Synced => self.synced(now),
            Input::Timeout => self.handle_timeout(now),
        }
        Ok(())
    }

    /// Adds or replaces an object; the same as [`Input::Apply`].
    pub fn apply(&mut self, _now: Time, object: Object, origin: Origin) {
        let change = self.cluster.apply(object, origin);
        self.policies.update(&self.cluster, &change);
    }

    /// Removes an object; the same as [`Input::Delete`].
    pub fn delete(&mut self, _now: Time, key: &Key) {
        let change = self.cluster.delete(key);
        self.policies.update(&self.cluster, &change);
    }

    /// Takes in what the kernel did; the same as [`Input::Observe`].
    pub fn observe(&mut self, _now: Time, _observation: &Observation) {}

    /// Events were lost; the same as [`Input::Lost`].
    pub fn lost(&mut self, _now: Time, _stage: &str, _count: u64) {}

    /// All initial objects are in; the same as [`Input::Synced`].
    pub fn synced(&mut self, _now: Time) {
        self.synced = true;
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// Time went by; the same as [`Input::Timeout`].
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The next change of a pair's state.
    pub fn poll_transition(&mut self) -> Option<Transition> {
        None
    }

    /// The objects known.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The policies known.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Everything, as of `now`.
    #[must_use]
    pub fn snapshot(&self, now: Time) -> Snapshot {
        Snapshot {
            version: crate::snapshot::VERSION,
            at: now,
            at_unix_ns: 0,
            synced: self.synced,
            pairs: Vec::new(),
            counts: Vec::new(),
            attempts: Vec::new(),
            drops: Vec::new(),
            latencies: Vec::new(),
            lost: Vec::new(),
            objects: Vec::new(),
            overflow: crate::snapshot::Overflow::default(),
            pending_attempts: 0,
            unattributed_attempts: 0,
            transitions: Vec::new(),
        }
    }
}
