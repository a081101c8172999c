//! A small network plugin: turns NetworkPolicies into nftables rules in each node's namespace.
//!
//! Written from the specification of networking.k8s.io/v1 and on purpose without any code of the engine, so that the
//! two can be held against each other. Where the specification leaves the choice to plugins it does this: traffic
//! from a node to its own pods always passes; a pod's egress policies also hold for its own node (as in Calico and
//! Cilium); packets are judged after service translation; established connections outlive a change of policies.

mod lower;
mod render;
mod select;

use std::thread;

use anyhow::Result;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::objects::Objects;
use crate::topology::Topology;
use crate::topology::plan::Host;

pub use lower::{Direction, Isolation, Match, Ports, Target, isolations};
pub use render::{clear, rules};

/// What happens to a packet that no policy admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// Nothing comes back (Calico, Cilium, kindnet).
    #[default]
    Drop,
    /// ICMP "port unreachable" comes back (kube-router).
    Reject,
    /// A TCP reset comes back; ICMP "port unreachable" for other protocols.
    RejectWithReset,
}

/// Puts these policies into force on every node, in place of those before: on each node at once.
pub fn apply(
    topology: &Topology,
    cluster: &Objects,
    policies: &[NetworkPolicy],
    enforcement: Enforcement,
) -> Result<()> {
    let isolations = isolations(cluster, policies)?;
    for_each_node(topology, |name| rules(&isolations, name, enforcement))
}

/// Takes all policies out of force.
pub fn remove(topology: &Topology) -> Result<()> {
    for_each_node(topology, |_| clear())
}

fn for_each_node(topology: &Topology, rules: impl Fn(&str) -> String) -> Result<()> {
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (host, namespace) in topology.hosts() {
            if let Host::Node(node) = host {
                let rules = rules(&topology.plan.nodes[node].name);
                running.push(scope.spawn(move || namespace.nft(&rules)));
            }
        }
        running
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
