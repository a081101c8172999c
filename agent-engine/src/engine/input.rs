//! Everything that can enter the engine.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::settings::Unseen;
use crate::cluster::{Key, Origin};
use crate::observation::Observation;

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
    /// All candidates of one source: NetworkPolicies that are not enforced.
    Candidates {
        /// The file or ConfigMap. A later input with the same source takes the place of this one.
        source: String,
        /// As Kubernetes writes them.
        policies: Vec<serde_json::Value>,
    },
    /// Who has an address was looked up; the objects found have been applied before. Only with
    /// [`Settings::lookups`](super::Settings::lookups).
    Answered {
        /// Which one.
        address: IpAddr,
        /// A pod or node has it; else it is outside of the cluster.
        somebody: bool,
    },
    /// The network namespace of a pod of this machine has turned away so many SYNs by now for want of room in a listener's
    /// queue: `ListenDrops` of its `/proc/net/netstat`.
    ListenDrops {
        /// The pod's, or its node's.
        address: IpAddr,
        /// Since the namespace was made.
        count: u64,
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
    /// Something cannot be seen on this node: its kernel does not take every probe.
    Unseen(Unseen),
    /// The wall clock was set: from here on it is this far from the engine's, nanoseconds. What was seen before is shown by it
    /// too, as the clock was wrong then and not the events.
    WallClock {
        /// See [`Settings::wall_offset_ns`](super::Settings::wall_offset_ns).
        offset_ns: i64,
    },
    /// All initial objects have been applied.
    Synced,
    /// Time went by.
    Timeout,
}
