//! Network namespaces and links from a plan: one per node, per pod and for the outside, with routed veth pairs.

pub mod plan;
pub mod services;
pub(crate) mod wiring;

use std::collections::BTreeMap;

use anyhow::Result;

use crate::netns::{Netns, RunId};
use plan::{Host, Plan};

/// The namespaces of a plan, wired up. They go away with it.
#[derive(Debug)]
pub struct Topology {
    /// What was made.
    pub plan: Plan,
    namespaces: BTreeMap<Host, Netns>,
}

impl Topology {
    /// Makes and wires the namespaces. Nothing in them leads to the machine's own network.
    pub fn new(run: &RunId, plan: Plan) -> Result<Self> {
        let hosts: Vec<Host> = (0..plan.nodes.len())
            .map(Host::Node)
            .chain((0..plan.pods.len()).map(Host::Pod))
            .chain([Host::Outside])
            .filter(|host| !plan.is_far(*host))
            .collect();
        let names: Vec<String> = hosts
            .iter()
            .map(|host| match host {
                Host::Node(node) => run.name(&plan.nodes[*node].name),
                Host::Pod(pod) => run.name(&plan.pods[*pod].key),
                Host::Outside => run.name("outside"),
            })
            .collect();
        let namespaces = hosts.into_iter().zip(Netns::create(&names)?).collect();
        let topology = Self { plan, namespaces };
        wiring::wire(&topology)?;
        Ok(topology)
    }

    /// The namespace of a host; none if the host is far.
    pub fn namespace(&self, host: Host) -> Option<&Netns> {
        self.namespaces.get(&host)
    }

    /// Every host with its namespace.
    pub fn hosts(&self) -> impl Iterator<Item = (Host, &Netns)> {
        self.namespaces.iter().map(|(host, namespace)| (*host, namespace))
    }
}
