//! What the engine is told once, at its start.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Profile;

/// The ports watched unless told otherwise: DNS, API servers, webhooks, Istio's own, and the usual HTTP ports.
pub const WATCHED_PORTS: [u16; 14] =
    [53, 80, 443, 6443, 8080, 8443, 15008, 15010, 15012, 15014, 15017, 15020, 15021, 15090];

/// What no probe shows on this node: of that, absence proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unseen {
    /// TCP attempts.
    pub tcp: bool,
    /// UDP queries and whether they are answered.
    pub udp: bool,
    /// Dropped packets: what fails here may fail by a rule.
    pub drops: bool,
}

/// The engine's settings. Part of a recording: the same settings and inputs give the same outputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// How long evidence counts.
    pub window: Duration,
    /// How long after a policy change or a pod's start a disagreement of model and traffic is put down to lag.
    pub grace: Duration,
    /// Nanoseconds to add to a [`Time`](crate::time::Time) for nanoseconds since the Unix epoch; 0 where unknown.
    pub wall_offset_ns: i64,
    /// Ports that the probes watch from the start; those of pairs and of applications are added as they become known.
    pub watched_ports: Vec<u16>,
    /// Ports watched at most. A pair on a port that is not watched cannot be seen and is never called silent for it.
    pub max_watched_ports: usize,
    /// Nodes whose traffic this agent's kernel sees; empty means all of them (a test kernel plays every node).
    pub nodes: Vec<String>,
    /// Texts of the user's catalogue files, which add flows or replace them by id. They have been read once by whoever set
    /// them; one that cannot be read adds nothing.
    pub flows: Vec<String>,
    /// Not every pod and node is among the objects, and others are looked up by address: an address that none of them has is
    /// unknown, never outside of the cluster, until the answer says so.
    pub lookups: bool,
    /// What cannot be seen here.
    pub unseen: Unseen,
    /// Whose reading of the NetworkPolicy specification decides.
    pub profile: Profile,
    /// How long an end learnt from traffic is kept without being seen again.
    pub learnt_for: Duration,
    /// Pairs kept at most.
    pub max_pairs: usize,
    /// Open attempts kept at most.
    pub max_attempts: usize,
    /// Series of the drop counter at most.
    pub max_drop_series: usize,
    /// Transitions waiting to be fetched at most.
    pub max_transitions: usize,
    /// Ends learnt from traffic at most.
    pub max_learnt: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(300),
            grace: Duration::from_secs(10),
            wall_offset_ns: 0,
            watched_ports: WATCHED_PORTS.to_vec(),
            max_watched_ports: 1_024,
            nodes: Vec::new(),
            flows: Vec::new(),
            lookups: false,
            unseen: Unseen::default(),
            profile: Profile::default(),
            learnt_for: Duration::from_secs(3_600),
            max_pairs: 20_000,
            max_attempts: 65_536,
            max_drop_series: 512,
            max_transitions: 4_096,
            max_learnt: 1_024,
        }
    }
}
