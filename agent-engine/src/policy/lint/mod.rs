//! What is probably not meant in a NetworkPolicy: selectors that match nothing, ports that nothing listens on, shapes that
//! mean something else than they look like.
//!
//! A lint is raised only where the objects at hand are enough to be sure: a selector without pods is not reported in a
//! namespace of which no pod was read, a peer without namespaces not where the input is a few manifests and no cluster.
//! Whether a policy *should* be written differently is a [`Level::Note`].

mod facts;
mod idle;
mod ports;
mod reach;
mod shape;
#[cfg(test)]
mod tests;
mod types;
mod validity;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::networking::v1 as networking;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Origin, Policy};
use crate::words::{Direction, Name, Protocol};
use facts::Facts;

/// How sure it is that something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The API server refuses it, or it can never have an effect.
    Error,
    /// It does not do what it looks like.
    Warning,
    /// It may be meant; worth knowing.
    Note,
}

impl Level {
    /// `error`, `warning` or `note`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Every lint there is. The id is an interface: it names the rule in SARIF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LintId {
    /// A field that the API server refuses.
    Invalid,
    /// Rules of a direction that policyTypes leaves out.
    RulesIgnored,
    /// No policyTypes, egress rules only: ingress is isolated as well.
    PolicyTypesIngress,
    /// No policyTypes, and an empty list of egress rules: egress is not isolated.
    PolicyTypesEgress,
    /// No pod of the namespace matches `spec.podSelector`.
    SelectsNothing,
    /// Only pods on their node's network match `spec.podSelector`.
    SelectsHostNetwork,
    /// A namespaceSelector asks for a label key that no namespace carries.
    NamespaceLabelUnknown,
    /// A namespaceSelector matches no namespace.
    PeerNoNamespace,
    /// A podSelector alone matches no pod of its own namespace, and pods of others.
    PeerOwnNamespace,
    /// A peer's selectors match no pod.
    PeerNoPod,
    /// A peer's selectors match only pods on their node's network.
    PeerHostNetwork,
    /// A rule opens the port of a Service whose pods listen on another one.
    ServicePort,
    /// A named port that no destination pod declares.
    PortNameUnknown,
    /// `namespaceSelector` and `podSelector` as two list items.
    OrNotAnd,
    /// Peers without ports in one rule, ports without peers in the next.
    SplitRule,
    /// A rule with ports and no peers.
    PortsOnly,
    /// `from: []` or `to: []`.
    EmptyPeerList,
    /// The policy alone isolates the pods that it selects.
    IsolatesAlone,
    /// A rule that no required flow and no other pair of pods uses.
    RuleUnused,
}

impl LintId {
    /// Every lint.
    pub const ALL: [Self; 19] = [
        Self::Invalid,
        Self::RulesIgnored,
        Self::PolicyTypesIngress,
        Self::PolicyTypesEgress,
        Self::SelectsNothing,
        Self::SelectsHostNetwork,
        Self::NamespaceLabelUnknown,
        Self::PeerNoNamespace,
        Self::PeerOwnNamespace,
        Self::PeerNoPod,
        Self::PeerHostNetwork,
        Self::ServicePort,
        Self::PortNameUnknown,
        Self::OrNotAnd,
        Self::SplitRule,
        Self::PortsOnly,
        Self::EmptyPeerList,
        Self::IsolatesAlone,
        Self::RuleUnused,
    ];

    /// The id: `selects-nothing`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::RulesIgnored => "rules-ignored",
            Self::PolicyTypesIngress => "policy-types-ingress",
            Self::PolicyTypesEgress => "policy-types-egress",
            Self::SelectsNothing => "selects-nothing",
            Self::SelectsHostNetwork => "selects-host-network",
            Self::NamespaceLabelUnknown => "namespace-label-unknown",
            Self::PeerNoNamespace => "peer-no-namespace",
            Self::PeerOwnNamespace => "peer-own-namespace",
            Self::PeerNoPod => "peer-no-pod",
            Self::PeerHostNetwork => "peer-host-network",
            Self::ServicePort => "service-port",
            Self::PortNameUnknown => "port-name-unknown",
            Self::OrNotAnd => "or-not-and",
            Self::SplitRule => "split-rule",
            Self::PortsOnly => "ports-only",
            Self::EmptyPeerList => "empty-peer-list",
            Self::IsolatesAlone => "isolates-alone",
            Self::RuleUnused => "rule-unused",
        }
    }

    /// What the lint is about, in one sentence.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Invalid => "A field has a value that the API server refuses.",
            Self::RulesIgnored => "Rules of a direction that policyTypes does not list have no effect.",
            Self::PolicyTypesIngress => "An egress policy without policyTypes also isolates its pods for ingress.",
            Self::PolicyTypesEgress => "An empty list of egress rules without policyTypes does not isolate for egress.",
            Self::SelectsNothing => "The policy selects no pod of its namespace.",
            Self::SelectsHostNetwork => "NetworkPolicies do not apply to pods on their node's network.",
            Self::NamespaceLabelUnknown => "A namespaceSelector asks for a label that no namespace carries.",
            Self::PeerNoNamespace => "A namespaceSelector matches no namespace.",
            Self::PeerOwnNamespace => "A podSelector without namespaceSelector means the policy's own namespace.",
            Self::PeerNoPod => "A peer's selectors match no pod.",
            Self::PeerHostNetwork => "Selectors do not match pods on their node's network.",
            Self::ServicePort => "A rule opens a Service's port; policies see the pod's port.",
            Self::PortNameUnknown => "A rule names a port that no destination pod declares.",
            Self::OrNotAnd => "A namespaceSelector and a podSelector in two list items mean either, not both.",
            Self::SplitRule => "Peers and ports in two rules mean any port of the peers, and the ports of anyone.",
            Self::PortsOnly => "A rule with ports and no peers admits anyone on these ports.",
            Self::EmptyPeerList => "An empty list of peers means everyone, not no one.",
            Self::IsolatesAlone => "A policy that admits something also denies everything else in that direction.",
            Self::RuleUnused => "No required flow and no other pair of pods uses the rule.",
        }
    }
}

impl fmt::Display for LintId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something in a policy that is probably not meant. Ordered by level, then id and place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lint {
    /// How sure it is.
    pub level: Level,
    /// Which lint.
    pub id: LintId,
    /// The policy.
    pub policy: Name,
    /// File and line, or resourceVersion.
    pub origin: Origin,
    /// In which direction's rules.
    pub direction: Option<Direction>,
    /// Which rule, from 0.
    pub rule: Option<usize>,
    /// Which peer of the rule, from 0.
    pub peer: Option<usize>,
    /// What is so, as a sentence without a full stop.
    pub message: String,
    /// What to do about it, likewise.
    pub hint: String,
}

/// A rule by policy, direction and index.
pub type RuleKey = (Name, Direction, usize);

/// What required flows make of the policies.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Rules that admit a required flow.
    pub rules: BTreeSet<RuleKey>,
    /// Ports of required flows that need no rule because they stay on their node, such as probes, by the destination's
    /// namespace: who opens them all the same means these.
    pub node_local: BTreeSet<(Arc<str>, Protocol, u16)>,
}

/// Every lint of every NetworkPolicy.
#[must_use]
pub fn lint(cluster: &Cluster, used: &Usage) -> Vec<Lint> {
    let facts = Facts::new(cluster);
    let mut found: Vec<Lint> = cluster.policies().flat_map(|policy| one(&facts, policy, used)).collect();
    found.sort_unstable();
    found
}

fn one(facts: &Facts<'_>, policy: &Policy, used: &Usage) -> Vec<Lint> {
    let view = View::new(policy);
    let mut out = Sink { view: &view, found: Vec::new() };
    validity::check(&view, &mut out);
    types::check(facts, &view, &mut out);
    shape::check(facts, &view, &mut out);
    reach::check(facts, &view, &mut out);
    ports::check(facts, &view, &mut out);
    idle::check(facts, &view, used, &mut out);
    out.found
}

/// A policy with its defaults filled in.
struct View<'a> {
    name: Name,
    origin: &'a Origin,
    spec: networking::NetworkPolicySpec,
}

/// A rule of either direction.
#[derive(Clone, Copy)]
struct Rule<'a> {
    direction: Direction,
    index: usize,
    /// `from` or `to`; `None` where the field is absent.
    peers: Option<&'a [networking::NetworkPolicyPeer]>,
    ports: &'a [networking::NetworkPolicyPort],
}

impl Rule<'_> {
    /// Absent and empty both mean everyone.
    fn anyone(&self) -> bool {
        self.peers.is_none_or(<[_]>::is_empty)
    }
}

impl<'a> View<'a> {
    fn new(policy: &'a Policy) -> Self {
        let meta = &policy.object.metadata;
        let name = Name::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or(""));
        Self { name, origin: &policy.origin, spec: policy.object.spec.clone().unwrap_or_default() }
    }

    /// `spec.policyTypes` as written, if it was.
    fn written_types(&self) -> Option<&[String]> {
        self.spec.policy_types.as_deref().filter(|types| !types.is_empty())
    }

    /// Whether the policy isolates its pods in this direction.
    fn isolates(&self, direction: Direction) -> bool {
        match (self.written_types(), direction) {
            (Some(types), Direction::Ingress) => types.iter().any(|t| t == "Ingress"),
            (Some(types), Direction::Egress) => types.iter().any(|t| t == "Egress"),
            (None, Direction::Ingress) => true,
            (None, Direction::Egress) => self.spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        }
    }

    /// The rules of a direction, as written.
    fn rules(&self, direction: Direction) -> Vec<Rule<'_>> {
        match direction {
            Direction::Ingress => {
                let rules = self.spec.ingress.iter().flatten().enumerate();
                rules
                    .map(|(index, r)| Rule {
                        direction,
                        index,
                        peers: r.from.as_deref(),
                        ports: r.ports.as_deref().unwrap_or_default(),
                    })
                    .collect()
            }
            Direction::Egress => {
                let rules = self.spec.egress.iter().flatten().enumerate();
                rules
                    .map(|(index, r)| Rule {
                        direction,
                        index,
                        peers: r.to.as_deref(),
                        ports: r.ports.as_deref().unwrap_or_default(),
                    })
                    .collect()
            }
        }
    }

    /// The rules that have an effect.
    fn effective(&self) -> impl Iterator<Item = Rule<'_>> {
        let directions = [Direction::Ingress, Direction::Egress];
        directions.into_iter().filter(|d| self.isolates(*d)).flat_map(|d| self.rules(d))
    }
}

/// Where lints of one policy go.
struct Sink<'a> {
    view: &'a View<'a>,
    found: Vec<Lint>,
}

/// Where in the policy.
#[derive(Clone, Copy, Default)]
struct Place {
    direction: Option<Direction>,
    rule: Option<usize>,
    peer: Option<usize>,
}

impl Place {
    const POLICY: Self = Self { direction: None, rule: None, peer: None };

    fn direction(direction: Direction) -> Self {
        Self { direction: Some(direction), ..Self::POLICY }
    }

    fn rule(rule: &Rule<'_>) -> Self {
        Self { direction: Some(rule.direction), rule: Some(rule.index), peer: None }
    }

    fn peer(rule: &Rule<'_>, peer: usize) -> Self {
        Self { peer: Some(peer), ..Self::rule(rule) }
    }
}

impl Sink<'_> {
    /// One of these lints is there already, at this place or inside it.
    fn has(&self, ids: &[LintId], place: Place) -> bool {
        self.found.iter().any(|l| {
            let inside = place.peer.is_none() || l.peer == place.peer;
            ids.contains(&l.id) && l.direction == place.direction && l.rule == place.rule && inside
        })
    }

    fn push(&mut self, id: LintId, level: Level, place: Place, message: String, hint: String) {
        self.found.push(Lint {
            level,
            id,
            policy: self.view.name.clone(),
            origin: self.view.origin.clone(),
            direction: place.direction,
            rule: place.rule,
            peer: place.peer,
            message,
            hint,
        });
    }
}
