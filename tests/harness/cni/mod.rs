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

use anyhow::{Context, Result};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

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

/// What a node's rules have done to the packets of one pod since they were put into force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denials {
    /// Name of the node.
    pub node: String,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// The side that did not admit them.
    pub direction: Direction,
    /// Packets.
    pub packets: u64,
}

/// Reads the counters of all rules that deny; those that have denied nothing are left out.
pub fn denials(topology: &Topology) -> Result<Vec<Denials>> {
    let mut all = Vec::new();
    for (host, namespace) in topology.hosts() {
        if let Host::Node(node) = host {
            let list = namespace.tool("nft", &["-j", "list", "ruleset"], "")?;
            let list: Value = serde_json::from_str(&list).context("nft -j wrote something that is no JSON")?;
            let rules = list["nftables"].as_array().into_iter().flatten().map(|entry| &entry["rule"]);
            let denying = rules.filter(|rule| rule["table"] == render::TABLE && rule["comment"].is_string());
            all.extend(denying.filter_map(|rule| denial(rule, &topology.plan.nodes[node].name)));
        }
    }
    Ok(all)
}

/// A denying rule's comment is `DIRECTION POD: POLICIES`.
fn denial(rule: &Value, node: &str) -> Option<Denials> {
    let (direction, rest) = rule["comment"].as_str()?.split_once(' ')?;
    let direction = if direction == "egress" { Direction::Egress } else { Direction::Ingress };
    let pod = rest.split_once(':')?.0.to_owned();
    let packets = rule["expr"].as_array()?.iter().find_map(|part| part["counter"]["packets"].as_u64())?;
    (packets > 0).then(|| Denials { node: node.to_owned(), pod, direction, packets })
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
