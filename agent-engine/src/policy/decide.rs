//! The evaluation itself. One code path serves [`decide`](super::Policies::decide) and [`admits`](super::Policies::admits):
//! without `REASONS` nothing is allocated.

use std::net::IpAddr;
use std::sync::Arc;

use super::admin::{self, Say};
use super::decision::{Admission, Decision, Endpoint, Flow, RuleRef, Side, Tier, Undecided};
use super::index::{Facts, Group, Index};
use super::lower::{Lowered, Port, Rule};
use super::miss;
use super::peer::{Far, FarKind, Hit, Slots};
use super::profile::Profile;
use crate::cluster::{Cluster, ContainerPort};
use crate::words::{Direction, Name, Protocol};

/// Everything that judging one flow looks at.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub index: &'a Index,
    pub cluster: &'a Cluster,
    pub profile: Profile,
    /// Judge a pod's connection to itself like any other, as evaluators without a network do.
    pub loopback: bool,
}

/// The port part of a flow, with what the destination pod says about ports.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    pub protocol: Protocol,
    pub port: u16,
    pub dialled: Option<(IpAddr, u16)>,
    /// Container ports and group of the destination, where it is a pod on the pod network.
    pub pod: Option<(&'a [ContainerPort], &'a Group)>,
}

/// One end of a flow, looked up.
#[derive(Clone, Copy)]
enum End<'a> {
    Pod(&'a Facts, Slots<'a>),
    Host { node: Option<&'a Arc<str>>, pod: Option<&'a Name>, slots: Slots<'a> },
    Address(&'a IpAddr),
    External,
    Unknown(&'a Name),
}

impl Query<'_> {
    /// Whether a rule's ports include this one.
    pub fn matches(&self, rule: &Rule) -> bool {
        rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|p| self.matches_port(p)))
    }

    fn matches_port(&self, port: &Port) -> bool {
        match port {
            Port::All(protocol) => *protocol == self.protocol,
            Port::Range { protocol, first, last } => {
                *protocol == self.protocol && (*first..=*last).contains(&self.port)
            }
            Port::Named { protocol, name } => {
                protocol.is_none_or(|p| p == self.protocol)
                    && self.pod.is_some_and(|(ports, _)| {
                        ports.iter().any(|p| p.port == self.port && p.protocol == self.protocol && p.name == *name)
                    })
            }
            Port::Invalid(_) => false,
        }
    }
}

impl<'a> Judge<'a> {
    pub fn decide<const REASONS: bool>(&self, flow: &'a Flow) -> Decision {
        let (source, destination) = (self.end(&flow.source), self.end(&flow.destination));
        if self.never_leaves(&source, &destination) {
            return Decision { egress: Side::NotApplicable, ingress: Side::NotApplicable };
        }
        let families = families(&source) & families(&destination);
        let pod = match destination {
            End::Pod(facts, _) => Some((&*facts.pod.ports, self.index.group(facts.group))),
            End::Host { .. } | End::Address(_) | End::External | End::Unknown(_) => None,
        };
        let query = Query { protocol: flow.protocol, port: flow.port, dialled: flow.dialled, pod };
        Decision {
            egress: self.egress::<REASONS>(&source, &destination, &query, families),
            ingress: self.ingress::<REASONS>(&source, &destination, &query, families),
        }
    }

    fn end(&self, endpoint: &'a Endpoint) -> End<'a> {
        match endpoint {
            Endpoint::Pod { name, address } => match self.index.pod(name) {
                Some(facts) => self.pod_end(facts, address.as_ref()),
                None => End::Unknown(name),
            },
            Endpoint::Node { name, address } => {
                let own = self.cluster.node(name).map_or(&[][..], |n| &n.addresses);
                let slots = Slots::known(address.as_ref().map_or(own, std::slice::from_ref));
                End::Host { node: Some(name), pod: None, slots }
            }
            Endpoint::Address(address) => {
                if let Some(facts) = self.cluster.pod_by_address(*address).and_then(|p| self.index.pod(&p.name)) {
                    self.pod_end(facts, Some(address))
                } else if let Some(node) = self.cluster.node_by_address(*address) {
                    let slots = Slots::known(std::slice::from_ref(address));
                    End::Host { node: Some(&node.name), pod: None, slots }
                } else {
                    End::Address(address)
                }
            }
            Endpoint::External => End::External,
        }
    }

    fn pod_end(&self, facts: &'a Facts, address: Option<&'a IpAddr>) -> End<'a> {
        let pod = &facts.pod;
        let own = if pod.host_network && pod.addresses.is_empty() {
            pod.node.as_ref().and_then(|n| self.cluster.node(n)).map_or(&[][..], |n| &n.addresses)
        } else {
            &pod.addresses
        };
        let slots = Slots::known(address.map_or(own, std::slice::from_ref));
        if pod.host_network {
            return End::Host { node: pod.node.as_ref(), pod: Some(&pod.name), slots };
        }
        End::Pod(facts, slots)
    }

    /// Both ends in one network namespace: the packet never passes a policy.
    fn never_leaves(&self, source: &End<'_>, destination: &End<'_>) -> bool {
        match (source, destination) {
            // A template stands for several pods, which do talk to one another.
            (End::Pod(a, _), End::Pod(b, _)) => !self.loopback && !a.pod.template && a.pod.name == b.pod.name,
            (End::Host { node: Some(a), .. }, End::Host { node: Some(b), .. }) => a == b,
            (_, End::Address(address)) => address.is_loopback(),
            _ => false,
        }
    }

    fn egress<const REASONS: bool>(
        &self,
        source: &End<'a>,
        destination: &End<'a>,
        query: &Query<'a>,
        families: u8,
    ) -> Side {
        let facts = match source {
            End::Pod(facts, _) => facts,
            End::Unknown(pod) => return Side::Undecidable { why: Undecided::UnknownPod { pod: (*pod).clone() } },
            End::Host { .. } | End::Address(_) | End::External => return Side::NotApplicable,
        };
        let far = self.far(destination, facts, families);
        let side = self.side::<REASONS>(facts, Direction::Egress, &far, query);
        let End::Host { node, .. } = destination else { return side };
        if side.admission() != Admission::NotAdmitted || !self.profile.own_node_is_open() {
            return side;
        }
        let why = match (node, &facts.pod.node) {
            (Some(node), Some(own)) if *node == own => Undecided::PodToOwnNode { node: own.clone() },
            (Some(_), Some(_)) => return side,
            // A template's pods may run on any node; where there are several, the flow has to work from all of them.
            (Some(_), None) if facts.pod.template && self.cluster.nodes().nth(1).is_some() => return side,
            _ => Undecided::MaybeNodeLocal { pod: facts.pod.name.clone() },
        };
        Side::Undecidable { why }
    }

    fn ingress<const REASONS: bool>(
        &self,
        source: &End<'a>,
        destination: &End<'a>,
        query: &Query<'a>,
        families: u8,
    ) -> Side {
        let facts = match destination {
            End::Pod(facts, _) => facts,
            End::Unknown(pod) => return Side::Undecidable { why: Undecided::UnknownPod { pod: (*pod).clone() } },
            End::Host { .. } | End::Address(_) | End::External => return Side::NotApplicable,
        };
        let mut unless_admitted = None;
        match source {
            End::Host { node, .. } => match (node, &facts.pod.node) {
                (Some(node), Some(own)) if *node == own => return Side::NodeLocal,
                (Some(_), Some(_)) => {}
                _ => unless_admitted = Some(Undecided::MaybeNodeLocal { pod: facts.pod.name.clone() }),
            },
            End::Address(address) if is_ambient_probe(**address) => match self.profile.ambient_probe() {
                Some(true) => return Side::NodeLocal,
                Some(false) => {}
                None => unless_admitted = Some(Undecided::AmbientProbe { address: **address }),
            },
            End::Pod(..) | End::Address(_) | End::External | End::Unknown(_) => {}
        }
        let far = self.far(source, facts, families);
        let side = self.side::<REASONS>(facts, Direction::Ingress, &far, query);
        match unless_admitted {
            Some(why) if side.admission() != Admission::Admitted => Side::Undecidable { why },
            _ => side,
        }
    }

    /// The other end as peers are compared with it.
    fn far(&self, end: &End<'a>, near: &Facts, families: u8) -> Far<'a> {
        let known = |slots: Slots<'a>| match slots {
            Slots::Known { addresses: [], .. } => Slots::Unknown { families: self.family_bits() },
            slots => slots.only(families),
        };
        match end {
            End::Pod(facts, slots) => {
                let group = self.index.group(facts.group);
                let kind = FarKind::Pod { name: &facts.pod.name, group, space: self.index.space(group) };
                Far { kind, slots: known(*slots) }
            }
            End::Host { node, pod, slots } => {
                Far { kind: FarKind::Host { node: *node, pod: *pod }, slots: known(*slots) }
            }
            End::Address(address) => {
                Far { kind: FarKind::Address, slots: Slots::known(std::slice::from_ref(*address)) }
            }
            End::External => {
                let own = near.pod.addresses.iter().map(family).fold(0, |a, b| a | b);
                let families = if own == 0 { self.family_bits() } else { own };
                Far { kind: FarKind::External, slots: Slots::Outside { families } }
            }
            End::Unknown(pod) => {
                Far { kind: FarKind::Unknown(*pod), slots: Slots::Unknown { families: self.family_bits() } }
            }
        }
    }

    fn family_bits(&self) -> u8 {
        let [v4, v6] = self.index.families();
        u8::from(v4) | u8::from(v6) << 1
    }

    fn side<const REASONS: bool>(&self, facts: &Facts, direction: Direction, far: &Far<'a>, query: &Query<'a>) -> Side {
        let group = self.index.group(facts.group);
        if group.admin(direction).is_empty() {
            return self.network_policies::<REASONS>(group, direction, far, query);
        }
        let say = |tier| admin::say(self, group, direction, tier, far, query);
        settle::<REASONS>(say(Tier::Admin), &group.selecting(direction).names, || {
            match self.network_policies::<REASONS>(group, direction, far, query) {
                Side::NotIsolated => settle::<REASONS>(say(Tier::Baseline), &[], || Side::NotIsolated),
                side => side,
            }
        })
    }

    fn network_policies<const REASONS: bool>(
        &self,
        group: &Group,
        direction: Direction,
        far: &Far<'a>,
        query: &Query<'a>,
    ) -> Side {
        let selected = group.selecting(direction);
        if selected.policies.is_empty() {
            return Side::NotIsolated;
        }
        let all = far.slots.all();
        let mut total = Hit::NONE;
        let mut by = Vec::new();
        let mut unsure: Option<(&Lowered, usize)> = None;
        for policy in &selected.policies {
            for (index, rule) in policy.rules(direction).iter().enumerate() {
                if !query.matches(rule) {
                    continue;
                }
                let hit = self.rule_hit(policy, rule, far);
                if hit.yes != 0 && REASONS {
                    by.push(rule_ref(policy, index));
                }
                if hit.maybe != 0 && unsure.is_none() {
                    unsure = Some((policy, index));
                }
                total = total.or(hit);
                if total.yes == all && !REASONS {
                    return Side::Admitted { by, selecting: selected.names.clone() };
                }
            }
        }
        if total.yes == all {
            return Side::Admitted { by, selecting: selected.names.clone() };
        }
        if total.yes | total.maybe == 0 {
            let selecting = if REASONS { miss::rank(self, group, direction, far, query) } else { Vec::new() };
            return Side::NotAdmitted { selecting };
        }
        let why = match unsure {
            Some((policy, index)) => far.unsure(rule_ref(policy, index)),
            None => Undecided::Addresses,
        };
        Side::Undecidable { why }
    }

    /// Which of the far end's addresses the rule's peers match; ports are not looked at.
    pub fn rule_hit(&self, policy: &Lowered, rule: &Rule, far: &Far<'a>) -> Hit {
        let all = far.slots.all();
        let Some(peers) = &rule.peers else { return Hit { yes: all, maybe: 0 } };
        let mut total = Hit::NONE;
        for peer in peers {
            total = total.or(far.hit(self, &policy.name.namespace, peer));
            if total.yes == all {
                break;
            }
        }
        total
    }
}

pub(super) fn rule_ref(policy: &Lowered, rule: usize) -> RuleRef {
    RuleRef { policy: policy.name.clone(), rule, tier: policy.tier }
}

/// What a tier says, and what comes after it where it says nothing.
fn settle<const REASONS: bool>(say: Say<'_>, selecting: &[Name], rest: impl FnOnce() -> Side) -> Side {
    match say {
        Say::Nothing => rest(),
        Say::Accept(policy, index) => {
            let by = if REASONS { vec![rule_ref(policy, index)] } else { Vec::new() };
            Side::Admitted { by, selecting: if REASONS { selecting.into() } else { Arc::default() } }
        }
        Say::Deny(policy, index) => Side::DeniedBy { by: rule_ref(policy, index) },
        Say::Maybe { accept, deny, pass, why } => {
            // Not knowing what this tier says does not matter where every answer ends the same.
            let rest = rest();
            let admission = rest.admission();
            let admits = !deny && admission == Admission::Admitted;
            let denies = !accept && admission == Admission::NotAdmitted;
            if pass && (admits || denies) { rest } else { Side::Undecidable { why } }
        }
    }
}

/// 1 for IPv4, 2 for IPv6.
pub(super) fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 1 } else { 2 }
}

fn families(end: &End<'_>) -> u8 {
    match end {
        End::Pod(_, slots) | End::Host { slots, .. } => slots.families(),
        End::Address(address) => family(address),
        End::External | End::Unknown(_) => 3,
    }
}

/// ztunnel and istio-cni rewrite the kubelet's probes of ambient pods to this source (`HOST_PROBE_SNAT_IP` and
/// `HOST_PROBE_SNAT_IPV6` of istio-cni).
fn is_ambient_probe(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets() == [169, 254, 7, 127],
        IpAddr::V6(v6) => v6.segments() == [0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff],
    }
}
