//! What the agent of this node says of itself, without anything that names a cluster, a node or an address.

use std::time::SystemTime;

use serde::Serialize;

use crate::outputs::View;

/// A running agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AgentReport {
    /// Its version.
    pub version: String,
    /// All initial objects are in.
    pub synced: bool,
    /// Probes that are active.
    pub probes_active: usize,
    /// All probes.
    pub probes: usize,
    /// The parts of its view of the cluster.
    pub parts: Vec<Part>,
    /// Events lost since its start, by stage.
    pub lost: Vec<Lost>,
    /// Manifests and candidates that it could not read.
    pub problems: usize,
    /// How far the wall clock has moved since the agent noted it, milliseconds: what its times are wrong by.
    pub clock_moved_ms: i64,
}

/// One part of the view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// `networkpolicies.networking.k8s.io`, `pods`, …
    pub name: String,
    /// `current`, `stale`, `refused`, …
    pub state: String,
    /// Since the API server last confirmed it; 0 while it is current.
    pub age_seconds: u64,
}

/// Events lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Where.
    pub stage: String,
    /// How many.
    pub count: u64,
}

/// A clock that is off by more makes times hard to compare with other logs.
pub const MAX_CLOCK_MS: i64 = 1_000;

impl AgentReport {
    /// What an agent's view says, as of now.
    #[must_use]
    pub fn of(view: &View) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Self::at(view, i64::try_from(now).unwrap_or(i64::MAX))
    }

    fn at(view: &View, now_unix_ns: i64) -> Self {
        let View { snapshot, agent } = view;
        // A part's selector names the node.
        let name = |part: &str| part.split(" (").next().unwrap_or_default().to_owned();
        Self {
            version: agent.version.clone(),
            synced: snapshot.synced,
            probes_active: agent.probes.iter().filter(|p| p.active).count(),
            probes: agent.probes.len(),
            parts: agent
                .parts
                .iter()
                .map(|p| Part { name: name(&p.part), state: p.state.clone(), age_seconds: p.age_seconds })
                .collect(),
            lost: snapshot.lost.iter().map(|l| Lost { stage: l.stage.clone(), count: l.count }).collect(),
            problems: agent.problems.len(),
            clock_moved_ms: now_unix_ns.saturating_sub(snapshot.at_unix_ns) / 1_000_000,
        }
    }

    /// Parts that are neither current nor of a kind that the cluster lacks.
    pub fn weak_parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|p| p.state != "current" && p.state != "absent")
    }
}
