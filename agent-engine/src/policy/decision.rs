//! The words of a decision: flows, sides, and per rule what did not match. All of it is data; `explain` turns it into text.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::reasons::Reasons;
use crate::words::{Direction, Name, Protocol};

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// A pod (or pod template) of the cluster, hostNetwork pods included; the address says which one of a dual-stack pod.
    Pod {
        /// Which pod.
        name: Name,
        /// The address used; `None` means any of the pod's.
        address: Option<IpAddr>,
    },
    /// The host network of a node: kubelet, hostNetwork processes, SNATed traffic.
    Node {
        /// Which node.
        name: Arc<str>,
        /// The source address; `None` means the node's own addresses.
        address: Option<IpAddr>,
    },
    /// An address that is no pod's and no node's.
    Address(IpAddr),
    /// Any address outside the cluster: a client nobody has seen yet.
    External,
}

/// A connection to judge. The port is the destination pod's, after service translation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// Who connects.
    pub source: Endpoint,
    /// To whom.
    pub destination: Endpoint,
    /// Transport.
    pub protocol: Protocol,
    /// Pod port.
    pub port: u16,
    /// What the client dialled, where that was something else: kept for the report, never judged.
    pub dialled: Option<(IpAddr, u16)>,
}

/// A rule of a policy that admits a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    /// `namespace/name`, or the bare name of a cluster-scoped policy.
    pub policy: Name,
    /// Index in `spec.ingress` or `spec.egress`, from 0.
    pub rule: usize,
    /// Which kind of policy.
    #[serde(default)]
    pub tier: Tier,
}

/// The order in which policies are asked: admin policies first, then NetworkPolicies, then, for pods that no NetworkPolicy
/// isolates, the baseline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// AdminNetworkPolicy, or ClusterNetworkPolicy of tier Admin.
    Admin,
    /// NetworkPolicy.
    #[default]
    NetworkPolicy,
    /// BaselineAdminNetworkPolicy, or ClusterNetworkPolicy of tier Baseline.
    Baseline,
}

/// What the policies say of one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Side {
    /// No policy of this direction selects the pod.
    NotIsolated,
    /// At least one rule admits.
    Admitted {
        /// Every rule that admits.
        by: Vec<RuleRef>,
        /// Every NetworkPolicy that selects the pod for this direction.
        selecting: Arc<[Name]>,
    },
    /// Selected, and no rule admits.
    NotAdmitted {
        /// Every policy that selects the pod for this direction, nearest miss first.
        selecting: Reasons,
    },
    /// An admin policy denies in so many words; NetworkPolicies are not asked.
    DeniedBy {
        /// The rule.
        by: RuleRef,
    },
    /// Source and destination are one node's pod and that node: always admitted by the specification.
    NodeLocal,
    /// This end is not subject to NetworkPolicies: host network, an address outside the cluster.
    NotApplicable,
    /// Cannot be decided.
    Undecidable {
        /// What is not known.
        why: Undecided,
    },
}

/// A policy that selects the pod, and why none of its rules admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selecting {
    /// `namespace/name`.
    pub policy: Name,
    /// One entry per rule; empty for a policy without rules of this direction.
    pub misses: Vec<Miss>,
}

/// Why a rule does not admit: the first thing that did not match, of the peer that came nearest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// Index of the rule.
    pub rule: usize,
    /// Index of the peer that came nearest, for rules with peers.
    pub peer: Option<usize>,
    /// What did not match. Where peer and port both fail, the peer.
    pub why: Why,
    /// Whether the rule's ports would have matched.
    pub port_matches: bool,
}

/// The first thing of a rule that did not match. Its `Display` is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "miss", rename_all = "kebab-case")]
pub enum Why {
    /// The rule opens the port of a Service that leads to this pod port.
    ServicePort {
        /// The Service.
        service: Name,
        /// What the rule opens: `port` of the Service.
        opens: u16,
        /// What the pod listens on.
        pod_port: u16,
    },
    /// No port of the rule is this one.
    Port {
        /// What the rule opens, in this protocol.
        opens: Arc<[Ports]>,
        /// The pod port.
        pod_port: u16,
        /// Of the flow.
        protocol: Protocol,
    },
    /// The rule opens the port number, in another protocol.
    Protocol {
        /// Of the rule.
        opens: Protocol,
        /// Of the flow.
        protocol: Protocol,
        /// The pod port.
        pod_port: u16,
    },
    /// A named port that is another number, or none, on the destination pod.
    PortName {
        /// In the rule.
        name: Arc<str>,
        /// Its number on the pod, in the rule's protocol.
        found: Option<u16>,
        /// What the pod calls the flow's port.
        called: Option<Arc<str>>,
        /// The pod port.
        pod_port: u16,
    },
    /// The peer names a label of pods that the peer pod lacks or has otherwise.
    PodLabel {
        /// What the selector asks for.
        wanted: Wanted,
        /// What the pod has under that key.
        found: Option<Arc<str>>,
    },
    /// The peer names a label of namespaces that the pod's namespace lacks or has otherwise.
    NamespaceLabel {
        /// The pod's namespace.
        namespace: Arc<str>,
        /// What the selector asks for.
        wanted: Wanted,
        /// What the namespace has under that key.
        found: Option<Arc<str>>,
        /// No namespace of the cluster matches this selector.
        matches_none: bool,
    },
    /// A podSelector alone means the policy's own namespace.
    OtherNamespace {
        /// The policy's.
        wanted: Arc<str>,
        /// The pod's.
        found: Arc<str>,
        /// The pod's labels would match.
        labels_match: bool,
    },
    /// Outside the CIDR.
    OutsideBlock {
        /// `ipBlock.cidr`
        block: IpNet,
        /// The peer's address.
        address: IpAddr,
    },
    /// Inside the CIDR and inside an exception.
    Excepted {
        /// `ipBlock.cidr`
        block: IpNet,
        /// The exception.
        except: IpNet,
        /// The peer's address.
        address: IpAddr,
    },
    /// Selectors match pods, and this end is none that they could match.
    NotAPod {
        /// What it is.
        end: NotAPod,
    },
    /// The address block is not compared with this end under this engine.
    BlockNotCompared {
        /// `ipBlock.cidr`
        block: IpNet,
    },
    /// The other end cannot be in the CIDR: another family, or a range of the cluster and the end is outside it.
    BlockElsewhere {
        /// `ipBlock.cidr`
        block: IpNet,
    },
    /// The peer names nodes or domains, and this end is none.
    OtherKind,
    /// A part of the rule means nothing to the API.
    Invalid {
        /// What is wrong with it.
        part: Invalid,
    },
}

/// What a selector asks of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "test", rename_all = "kebab-case")]
pub enum Wanted {
    /// matchLabels, or In with one value.
    Is {
        /// Label key.
        key: Arc<str>,
        /// Label value.
        value: Arc<str>,
    },
    /// `In`
    In {
        /// Label key.
        key: Arc<str>,
        /// Label values.
        values: Arc<[Arc<str>]>,
    },
    /// `NotIn`
    NotIn {
        /// Label key.
        key: Arc<str>,
        /// Label values.
        values: Arc<[Arc<str>]>,
    },
    /// `Exists`
    Exists {
        /// Label key.
        key: Arc<str>,
    },
    /// `DoesNotExist`
    Absent {
        /// Label key.
        key: Arc<str>,
    },
}

impl Wanted {
    /// The label key.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Is { key, .. }
            | Self::In { key, .. }
            | Self::NotIn { key, .. }
            | Self::Exists { key }
            | Self::Absent { key } => key,
        }
    }
}

/// Port numbers that a rule opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ports {
    /// First.
    pub first: u16,
    /// Last, the same as the first for a single port.
    pub last: u16,
}

/// An end that selectors cannot match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "what", rename_all = "kebab-case")]
pub enum NotAPod {
    /// An address that is no pod's.
    Address(IpAddr),
    /// The host network of a node.
    Node(Arc<str>),
    /// A pod on its node's network.
    HostNetworkPod(Name),
    /// Some address outside the cluster.
    External,
}

/// Parts of a policy that the API server would refuse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "part", content = "text", rename_all = "kebab-case")]
pub enum Invalid {
    /// A CIDR or exception that does not parse, or an exception outside its CIDR.
    Cidr(Arc<str>),
    /// A peer with no field, or with ipBlock and selectors.
    Peer(Arc<str>),
    /// A port number, range or protocol that cannot be.
    Port(Arc<str>),
    /// A selector with an unknown operator or impossible values.
    Selector(Arc<str>),
}

/// What keeps a side from being decided. Its `Display` is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Undecided {
    /// The pod is not known.
    UnknownPod {
        /// Which.
        pod: Name,
    },
    /// A rule admits some addresses outside the cluster and not others.
    SomeAddresses {
        /// The rule.
        rule: RuleRef,
    },
    /// A rule has an address block, and the pod has no address yet.
    NoAddress {
        /// The rule.
        rule: RuleRef,
        /// The pod.
        pod: Name,
    },
    /// The other end has several addresses, IPv4 and IPv6 or a tunnel's, and they fare differently.
    Addresses,
    /// The node of the pod or of the other end is not known, so the flow may be node-local.
    MaybeNodeLocal {
        /// The pod.
        pod: Name,
    },
    /// Pod to its own node: the documentation has it always admitted, engines apply egress policies.
    PodToOwnNode {
        /// The node.
        node: Arc<str>,
    },
    /// The address under which the kubelet probes ambient pods: engines take it for the node or for a stranger.
    AmbientProbe {
        /// `169.254.7.127` or its IPv6 twin.
        address: IpAddr,
    },
    /// An admin policy names its peer by domain name.
    DomainNames {
        /// The rule.
        rule: RuleRef,
    },
    /// Two policies of one priority disagree: the API leaves the result open.
    SamePriority {
        /// One of them.
        one: RuleRef,
        /// The other.
        other: RuleRef,
    },
    /// The backends of a Service fare differently.
    Backends,
    /// A Service without a backend that is known.
    NoBackends {
        /// The Service.
        service: Name,
    },
}

/// Both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// At the source.
    pub egress: Side,
    /// At the destination.
    pub ingress: Side,
}

/// What both sides together mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// Both sides let it pass.
    Admitted,
    /// At least one side does not admit.
    NotAdmitted,
    /// One side cannot be decided and the other does not forbid.
    Undecidable,
}

impl Admission {
    /// What two sides come to: not admitted by one is not admitted.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::NotAdmitted, _) | (_, Self::NotAdmitted) => Self::NotAdmitted,
            (Self::Undecidable, _) | (_, Self::Undecidable) => Self::Undecidable,
            (Self::Admitted, Self::Admitted) => Self::Admitted,
        }
    }
}

impl Side {
    /// What this side means on its own.
    #[must_use]
    pub fn admission(&self) -> Admission {
        match self {
            Self::NotIsolated | Self::Admitted { .. } | Self::NodeLocal | Self::NotApplicable => Admission::Admitted,
            Self::NotAdmitted { .. } | Self::DeniedBy { .. } => Admission::NotAdmitted,
            Self::Undecidable { .. } => Admission::Undecidable,
        }
    }

    /// The policies that select the pod on this side; for an explicit denial, the one that denies.
    #[must_use]
    pub fn selecting(&self) -> Vec<&Name> {
        match self {
            Self::NotAdmitted { selecting } => selecting.policies(),
            Self::Admitted { selecting, .. } => selecting.iter().collect(),
            Self::DeniedBy { by } => vec![&by.policy],
            Self::NotIsolated | Self::NodeLocal | Self::NotApplicable | Self::Undecidable { .. } => Vec::new(),
        }
    }

    /// The first of [`selecting`](Self::selecting) by name, so many at most, and how many more there are.
    #[must_use]
    pub fn some_selecting(&self, most: usize) -> (Vec<String>, usize) {
        match self {
            // In the order of their names, and one of them costs what ten thousand cost.
            Self::NotAdmitted { selecting } if let Some(names) = selecting.names() => {
                let left_out = names.len().saturating_sub(most);
                (names.iter().take(most).map(ToString::to_string).collect(), left_out)
            }
            side => first(side.selecting(), most),
        }
    }
}

/// The first by name, and how many more there are.
fn first(mut names: Vec<&Name>, most: usize) -> (Vec<String>, usize) {
    names.sort_unstable();
    names.dedup();
    let left_out = names.len().saturating_sub(most);
    names.truncate(most);
    let mut names: Vec<String> = names.into_iter().map(ToString::to_string).collect();
    names.sort_unstable();
    (names, left_out)
}

impl Decision {
    /// Both sides together: not admitted by one is not admitted.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.egress.admission().and(self.ingress.admission())
    }

    /// The policies that select the ends on the sides that do not admit: the first by name, so many at most, and how many more
    /// there are.
    #[must_use]
    pub fn some_denying(&self, most: usize) -> (Vec<String>, usize) {
        let mut sides = self.denying().map(|(_, side)| side);
        match (sides.next(), sides.next()) {
            (None, _) => (Vec::new(), 0),
            (Some(side), None) => side.some_selecting(most),
            (Some(one), Some(other)) => first(one.selecting().into_iter().chain(other.selecting()).collect(), most),
        }
    }

    /// The sides that do not admit.
    pub fn denying(&self) -> impl Iterator<Item = (Direction, &Side)> {
        let sides = [(Direction::Egress, &self.egress), (Direction::Ingress, &self.ingress)];
        sides.into_iter().filter(|(_, side)| side.admission() == Admission::NotAdmitted)
    }
}
