//! The far end of a flow and the comparison with one peer of a rule.
//!
//! A far end may have several addresses, or none that is known: a comparison says for each whether it matches, so that two
//! peers which each match one family of a dual-stack pod together match it whole.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::decide::{Peers, family};
use super::decision::{NotAPod, RuleRef, Undecided};
use super::group::Group;
use super::lower::Peer;
use super::selector::Selector;
use crate::cluster::{Cluster, Pod};
use crate::words::Name;

/// The other end, as seen from the pod that is judged.
#[derive(Clone, Copy)]
pub(super) struct Far<'a> {
    pub kind: FarKind<'a>,
    pub slots: Slots<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum FarKind<'a> {
    Pod {
        /// Not needed for comparing peers: reasons that are read later go without.
        pod: Option<&'a Arc<Pod>>,
        group: &'a Arc<Group>,
    },
    Host {
        node: Option<&'a Arc<str>>,
        pod: Option<&'a Name>,
    },
    Address,
    External,
    /// A pod that is not known: it may be anything.
    Unknown(&'a Name),
}

/// The addresses in question, one bit each.
#[derive(Clone, Copy)]
pub(super) enum Slots<'a> {
    /// Those of the list whose bit is set.
    Known { addresses: &'a [IpAddr], mask: u64 },
    /// A pod or node without an address yet: one unknown address per family.
    Unknown { families: u8 },
    /// Outside the cluster: every address that is nobody's in it, per family.
    Outside { families: u8 },
}

/// Which addresses match, and which may.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Hit {
    pub yes: u64,
    pub maybe: u64,
}

impl Hit {
    pub const NONE: Self = Self { yes: 0, maybe: 0 };

    pub fn or(self, other: Self) -> Self {
        let yes = self.yes | other.yes;
        Self { yes, maybe: (self.maybe | other.maybe) & !yes }
    }

    pub fn any(self) -> bool {
        self.yes | self.maybe != 0
    }
}

impl<'a> Slots<'a> {
    /// All of these; the sixty-fifth and later are left out, which no node or pod has.
    pub fn known(addresses: &'a [IpAddr]) -> Self {
        let addresses = &addresses[..addresses.len().min(64)];
        let mask = if addresses.len() == 64 { u64::MAX } else { (1 << addresses.len()) - 1 };
        Self::Known { addresses, mask }
    }

    pub fn all(&self) -> u64 {
        match self {
            Self::Known { mask, .. } => *mask,
            Self::Unknown { families } | Self::Outside { families } => u64::from(*families),
        }
    }

    /// 1 for IPv4, 2 for IPv6, 3 for both or not known.
    pub fn families(&self) -> u8 {
        match self {
            Self::Known { addresses: [], .. } => 3,
            Self::Known { addresses: [one], .. } => family(one),
            Self::Known { .. } => self.addresses().map(|a| family(&a)).fold(0, |a, b| a | b),
            Self::Unknown { families } | Self::Outside { families } => *families,
        }
    }

    /// Those of the families that both ends have; all, where that is none.
    pub fn only(self, families: u8) -> Self {
        let Self::Known { addresses, mask } = self else { return self };
        if addresses.len() <= 1 {
            return self;
        }
        let of_family = |(bit, address): (usize, &IpAddr)| if family(address) & families != 0 { 1 << bit } else { 0 };
        let kept = addresses.iter().enumerate().map(of_family).fold(0, |a: u64, b: u64| a | b) & mask;
        Self::Known { addresses, mask: if kept == 0 { mask } else { kept } }
    }

    /// The addresses in question, where they are known.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let (addresses, mask) = match self {
            Self::Known { addresses, mask } => (*addresses, *mask),
            Self::Unknown { .. } | Self::Outside { .. } => (&[][..], 0),
        };
        addresses.iter().enumerate().filter(move |(bit, _)| mask & (1 << bit) != 0).map(|(_, a)| *a)
    }

    /// The same end with one of its addresses only.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let all = self.all();
        (0..64).map(|bit| 1u64 << bit).filter(move |bit| all & bit != 0).map(move |bit| match self {
            Self::Known { addresses, .. } => Self::Known { addresses, mask: bit },
            Self::Unknown { .. } => Self::Unknown { families: if bit == 1 { 1 } else { 2 } },
            Self::Outside { .. } => Self::Outside { families: if bit == 1 { 1 } else { 2 } },
        })
    }
}

impl<'a> Far<'a> {
    /// Compares with one peer of a rule of a policy in `namespace`.
    pub fn hit(&self, peers: &Peers<'_>, namespace: &Arc<str>, peer: &Peer) -> Hit {
        let all = |matches: bool| if matches { Hit { yes: self.slots.all(), maybe: 0 } } else { Hit::NONE };
        if let FarKind::Unknown(_) = self.kind {
            return match peer {
                Peer::Everyone => all(true),
                Peer::Invalid(_) => Hit::NONE,
                Peer::Pods { .. } | Peer::Block { .. } | Peer::Nodes(_) | Peer::Domains => {
                    Hit { yes: 0, maybe: self.slots.all() }
                }
            };
        }
        match peer {
            Peer::Pods { namespaces, pods } => all(match &self.kind {
                FarKind::Pod { group, .. } => {
                    let in_namespace = match namespaces {
                        Some(selector) => selector.matches(group.namespace_set()),
                        None => group.namespace == *namespace,
                    };
                    in_namespace && pods.as_ref().is_none_or(|s| s.matches(group.pod_set()))
                }
                FarKind::Host { .. } => peers.profile.host_matches_everyone() && everyone(namespaces, pods),
                FarKind::Address | FarKind::External | FarKind::Unknown(_) => false,
            }),
            Peer::Block { block, except } => self.block_hit(peers, block, except),
            Peer::Nodes(selector) => all(match &self.kind {
                FarKind::Host { node: Some(node), .. } => {
                    peers.cluster.node(node).is_some_and(|node| selector.matches_labels(&node.labels))
                }
                FarKind::Pod { .. }
                | FarKind::Host { .. }
                | FarKind::Address
                | FarKind::External
                | FarKind::Unknown(_) => false,
            }),
            Peer::Domains => match &self.kind {
                FarKind::Address | FarKind::External => Hit { yes: 0, maybe: self.slots.all() },
                FarKind::Pod { .. } | FarKind::Host { .. } | FarKind::Unknown(_) => Hit::NONE,
            },
            Peer::Everyone => all(true),
            Peer::Invalid(_) => Hit::NONE,
        }
    }

    /// A pod or a node of this cluster.
    pub fn is_ours(&self) -> bool {
        matches!(self.kind, FarKind::Pod { .. } | FarKind::Host { .. })
    }

    /// Compares with an address block.
    pub fn block_hit(&self, peers: &Peers<'_>, block: &IpNet, except: &[IpNet]) -> Hit {
        if self.is_ours() && !peers.profile.blocks_match_cluster() {
            return Hit::NONE;
        }
        let family: u64 = if block.addr().is_ipv4() { 1 } else { 2 };
        match self.slots {
            Slots::Known { addresses, mask } => {
                let mut yes = 0;
                for (bit, address) in addresses.iter().enumerate() {
                    if mask & (1 << bit) != 0 && block.contains(address) && !except.iter().any(|e| e.contains(address))
                    {
                        yes |= 1 << bit;
                    }
                }
                Hit { yes, maybe: 0 }
            }
            Slots::Unknown { families } | Slots::Outside { families } => {
                let bit = family & u64::from(families);
                let excepts_matter = match self.slots {
                    // What is excepted of the cluster's own is not missed by those outside.
                    Slots::Outside { .. } => except.iter().any(|e| !inside_cluster(peers.cluster, e)),
                    Slots::Known { .. } | Slots::Unknown { .. } => !except.is_empty(),
                };
                if block.prefix_len() == 0 && !excepts_matter {
                    return Hit { yes: bit, maybe: 0 };
                }
                let matches = match (self.slots, &self.kind) {
                    (Slots::Unknown { .. }, FarKind::Pod { .. }) => holds_pods(peers.cluster, block, except),
                    (Slots::Unknown { .. }, _) => None,
                    (Slots::Known { .. } | Slots::Outside { .. }, _) => {
                        if inside_cluster(peers.cluster, block) {
                            Some(false)
                        } else {
                            None
                        }
                    }
                };
                match matches {
                    Some(true) => Hit { yes: bit, maybe: 0 },
                    Some(false) => Hit::NONE,
                    None => Hit { yes: 0, maybe: bit },
                }
            }
        }
    }

    /// Why a rule that may match cannot be decided.
    pub fn unsure(&self, rule: RuleRef) -> Undecided {
        match &self.kind {
            FarKind::Pod { pod, group } => Undecided::NoAddress { rule, pod: name_of(*pod, group) },
            FarKind::Host { pod: Some(name), .. } => Undecided::NoAddress { rule, pod: (*name).clone() },
            FarKind::Host { node, pod: None } => {
                Undecided::NoAddress { rule, pod: Name::new("", node.cloned().unwrap_or_default()) }
            }
            FarKind::Address => Undecided::DomainNames { rule },
            FarKind::External => Undecided::SomeAddresses { rule },
            FarKind::Unknown(pod) => Undecided::UnknownPod { pod: (*pod).clone() },
        }
    }

    /// What it is, for a selector that cannot match it.
    pub fn not_a_pod(&self) -> NotAPod {
        match (&self.kind, self.slots.addresses().next()) {
            (FarKind::Pod { pod, group }, _) => NotAPod::HostNetworkPod(name_of(*pod, group)),
            (FarKind::Host { pod: Some(name), .. }, _) => NotAPod::HostNetworkPod((*name).clone()),
            (FarKind::Host { node: Some(node), .. }, _) => NotAPod::Node((*node).clone()),
            (FarKind::Address | FarKind::Host { .. }, Some(address)) => NotAPod::Address(address),
            (FarKind::Address | FarKind::Host { .. } | FarKind::External | FarKind::Unknown(_), _) => NotAPod::External,
        }
    }
}

fn name_of(pod: Option<&Arc<Pod>>, group: &Group) -> Name {
    pod.map_or_else(|| Name::new(group.namespace.clone(), ""), |pod| pod.name.clone())
}

fn everyone(namespaces: &Option<Selector>, pods: &Option<Selector>) -> bool {
    namespaces.as_ref().is_some_and(Selector::is_empty) && pods.as_ref().is_none_or(Selector::is_empty)
}

/// Whether a pod that has no address yet will get one of the block, where the nodes' pod ranges tell.
fn holds_pods(cluster: &Cluster, block: &IpNet, except: &[IpNet]) -> Option<bool> {
    let ranges = || cluster.nodes().flat_map(|n| &n.pod_cidrs);
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    ranges().next()?;
    if !ranges().any(|range| overlaps(range, block)) || ranges().all(|range| except.iter().any(|e| e.contains(range))) {
        return Some(false);
    }
    let mut of_family = ranges().filter(|range| range.addr().is_ipv4() == block.addr().is_ipv4());
    let inside = of_family.all(|range| block.contains(range) && !except.iter().any(|e| overlaps(e, range)));
    inside.then_some(true)
}

/// Whether every address of the block is a pod's, a node's or a Service's, as far as ranges and single addresses tell.
fn inside_cluster(cluster: &Cluster, block: &IpNet) -> bool {
    let single = block.prefix_len() == block.max_prefix_len();
    let ours = |a: IpAddr| {
        cluster.pod_by_address(a).is_some()
            || cluster.node_by_address(a).is_some()
            || cluster.service_by_address(a).is_some()
    };
    let ranges: Vec<IpNet> = cluster.nodes().flat_map(|n| n.pod_cidrs.iter().copied()).collect();
    // Neighbouring nodes' ranges make up larger ones.
    single && ours(block.addr()) || IpNet::aggregate(&ranges).iter().any(|range| range.contains(block))
}
