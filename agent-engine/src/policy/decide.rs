//! The evaluation itself. One code path serves [`decide`](super::Policies::decide) and [`admits`](super::Policies::admits):
//! without `REASONS` nothing is allocated.

use std::net::IpAddr;
use std::sync::Arc;

use super::admin::{self, Say};
use super::decision::{Admission, Decision, Endpoint, Flow, RuleRef, Side, Tier, Undecided};
use super::group::{Facts, Group};
use super::index::Index;
use super::lower::{Lowered, Port, Rule};
use super::miss;
use super::peer::{Far, FarKind, Hit, Slots};
use super::profile::Profile;
use super::program::Program;
use super::reasons::{Addresses, Reasons, Scene};
use crate::cluster::{Cluster, Pod};
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

/// What comparing peers looks at besides the far end.
#[derive(Clone, Copy)]
pub(super) struct Peers<'a> {
    pub profile: Profile,
    pub cluster: &'a Cluster,
}

/// The port part of a flow, with what the destination pod says about ports.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    pub protocol: Protocol,
    pub port: u16,
    /// Port and Service that were dialled.
    pub dialled: Option<(u16, &'a Name)>,
    /// The destination, where it is a pod on the pod network.
    pub pod: Option<(&'a Arc<Pod>, &'a Arc<Group>)>,
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
            Port::Named { protocol, name } => protocol.is_none_or(|p| p == self.protocol) && self.is_called(name),
            Port::Invalid(_) => false,
        }
    }

    /// Whether the destination pod has a container port of that name, and it is this one.
    pub fn is_called(&self, name: &Arc<str>) -> bool {
        self.pod.is_some_and(|(pod, _)| {
            pod.ports.iter().any(|p| p.port == self.port && p.protocol == self.protocol && p.name == *name)
        })
    }
}

/// A flow with everything about it looked up.
struct Looked<'a> {
    source: End<'a>,
    destination: End<'a>,
    query: Query<'a>,
    /// The address families that both ends have.
    families: u8,
}

impl<'a> Judge<'a> {
    pub fn decide<const REASONS: bool>(&self, flow: &'a Flow) -> Decision {
        match self.look_up::<REASONS>(flow) {
            None => Decision { egress: Side::NotApplicable, ingress: Side::NotApplicable },
            Some(looked) => {
                Decision { egress: self.egress::<REASONS>(&looked), ingress: self.ingress::<REASONS>(&looked) }
            }
        }
    }

    /// The answer alone, of one side or of both; allocates nothing.
    pub fn admission(&self, flow: &'a Flow, side: Option<Direction>) -> Admission {
        let Some(looked) = self.look_up::<false>(flow) else { return Admission::Admitted };
        let egress = || self.egress::<false>(&looked).admission();
        let ingress = || self.ingress::<false>(&looked).admission();
        match side {
            Some(Direction::Egress) => egress(),
            Some(Direction::Ingress) => ingress(),
            // What one side denies the other cannot open.
            None => match egress() {
                Admission::NotAdmitted => Admission::NotAdmitted,
                egress => egress.and(ingress()),
            },
        }
    }

    /// Nothing for a flow that never leaves its network namespace: it passes no policy.
    fn look_up<const REASONS: bool>(&self, flow: &'a Flow) -> Option<Looked<'a>> {
        let (source, destination) = (self.end(&flow.source), self.end(&flow.destination));
        if self.never_leaves(&source, &destination) {
            return None;
        }
        let families = families(&source) & families(&destination);
        let pod = match destination {
            End::Pod(facts, _) => Some((&facts.pod, self.index.group(facts.group))),
            End::Host { .. } | End::Address(_) | End::External | End::Unknown(_) => None,
        };
        // Whose address was dialled matters to reasons only.
        let dialled = flow.dialled.filter(|_| REASONS);
        let dialled = dialled.and_then(|(address, port)| Some((port, &self.cluster.service_by_address(address)?.name)));
        let query = Query { protocol: flow.protocol, port: flow.port, dialled, pod };
        Some(Looked { source, destination, query, families })
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
        if !facts.host_network {
            return End::Pod(facts, Slots::known(address.map_or(facts.addresses(), std::slice::from_ref)));
        }
        let pod = &facts.pod;
        let node = pod.node.as_ref().and_then(|n| self.cluster.node(n));
        let own = if pod.addresses.is_empty() { node.map_or(&[][..], |n| &n.addresses) } else { &pod.addresses };
        let slots = Slots::known(address.map_or(own, std::slice::from_ref));
        End::Host { node: pod.node.as_ref(), pod: Some(&pod.name), slots }
    }

    /// Both ends in one network namespace: the packet never passes a policy.
    fn never_leaves(&self, source: &End<'_>, destination: &End<'_>) -> bool {
        match (source, destination) {
            // A template stands for several pods, which do talk to one another.
            (End::Pod(a, _), End::Pod(b, _)) => !self.loopback && std::ptr::eq(*a, *b) && !a.template,
            (End::Host { node: Some(a), .. }, End::Host { node: Some(b), .. }) => a == b,
            (_, End::Address(address)) => address.is_loopback(),
            _ => false,
        }
    }

    fn egress<const REASONS: bool>(&self, looked: &Looked<'a>) -> Side {
        let Looked { source, destination, query, families } = looked;
        let facts = match source {
            End::Pod(facts, _) => facts,
            End::Unknown(pod) => return Side::Undecidable { why: Undecided::UnknownPod { pod: (*pod).clone() } },
            End::Host { .. } | End::Address(_) | End::External => return Side::NotApplicable,
        };
        let far = self.far(destination, facts, *families);
        let side = self.side::<REASONS>(facts, Direction::Egress, &far, query);
        let node = match destination {
            End::Host { node, .. } => node,
            End::Unknown(name) if side.admission() == Admission::NotAdmitted => {
                return Side::Undecidable { why: Undecided::UnknownPod { pod: (*name).clone() } };
            }
            End::Pod(..) | End::Address(_) | End::External | End::Unknown(_) => return side,
        };
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

    fn ingress<const REASONS: bool>(&self, looked: &Looked<'a>) -> Side {
        let Looked { source, destination, query, families } = looked;
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
            // It may be on the network of the pod's own node.
            End::Unknown(name) => unless_admitted = Some(Undecided::UnknownPod { pod: (*name).clone() }),
            End::Pod(..) | End::Address(_) | End::External => {}
        }
        let far = self.far(source, facts, *families);
        let side = self.side::<REASONS>(facts, Direction::Ingress, &far, query);
        match unless_admitted {
            Some(why) if side.admission() != Admission::Admitted => Side::Undecidable { why },
            _ => side,
        }
    }

    /// The other end as peers are compared with it.
    fn far(&self, end: &End<'a>, near: &Facts, families: u8) -> Far<'a> {
        let known = |slots: Slots<'a>| match slots {
            Slots::Known { addresses: [], .. } => Slots::Unknown { families: self.family_bits(families) },
            slots => slots.only(families),
        };
        match end {
            End::Pod(facts, slots) => {
                let group = self.index.group(facts.group);
                Far { kind: FarKind::Pod { pod: Some(&facts.pod), group }, slots: known(*slots) }
            }
            End::Host { node, pod, slots } => {
                Far { kind: FarKind::Host { node: *node, pod: *pod }, slots: known(*slots) }
            }
            End::Address(address) => {
                Far { kind: FarKind::Address, slots: Slots::known(std::slice::from_ref(*address)) }
            }
            End::External => {
                let families = if near.addresses().is_empty() { self.family_bits(3) } else { near.families };
                Far { kind: FarKind::External, slots: Slots::Outside { families } }
            }
            End::Unknown(pod) => {
                Far { kind: FarKind::Unknown(pod), slots: Slots::Unknown { families: self.family_bits(families) } }
            }
        }
    }

    /// The families that an address not known may be of: those of the cluster's pods that the other end has too.
    fn family_bits(&self, wanted: u8) -> u8 {
        let [v4, v6] = self.index.families();
        let bits = u8::from(v4) | u8::from(v6) << 1;
        if bits & wanted == 0 { bits } else { bits & wanted }
    }

    fn side<const REASONS: bool>(&self, facts: &Facts, direction: Direction, far: &Far<'a>, query: &Query<'a>) -> Side {
        let group = self.index.group(facts.group);
        let program = group.selecting(direction);
        let policies = || program.map_or(Side::NotIsolated, |p| self.network_policies::<REASONS>(p, far, query));
        if group.admin(direction).is_empty() {
            return policies();
        }
        let say = |tier| admin::say(&self.peers(), group, direction, tier, far, query);
        let names = program.map_or(&[][..], |p| &p.names);
        settle::<REASONS>(say(Tier::Admin), names, || match policies() {
            Side::NotIsolated => settle::<REASONS>(say(Tier::Baseline), &[], || Side::NotIsolated),
            side => side,
        })
    }

    fn network_policies<const REASONS: bool>(&self, program: &Arc<Program>, far: &Far<'a>, query: &Query<'a>) -> Side {
        let mut by = Vec::new();
        let mut admitting = |policy: usize, rule| by.push(rule_ref(&program.policies[policy], rule));
        let walked = program.walk(&self.peers(), far, query, if REASONS { Some(&mut admitting) } else { None });
        if walked.hit.yes == far.slots.all() {
            return Side::Admitted { by, selecting: program.names.clone() };
        }
        if !walked.hit.any() {
            let selecting = if REASONS { self.reasons(program, far, query) } else { Reasons::none() };
            return Side::NotAdmitted { selecting };
        }
        let why = match walked.unsure {
            Some((policy, rule)) => far.unsure(rule_ref(&program.policies[policy], rule)),
            None => Undecided::Addresses,
        };
        Side::Undecidable { why }
    }

    /// Between pods the reasons are found when they are read; other ends are compared with the cluster as it stands now.
    fn reasons(&self, program: &Arc<Program>, far: &Far<'a>, query: &Query<'a>) -> Reasons {
        let (FarKind::Pod { pod: Some(far_pod), group }, Slots::Known { addresses, mask }, Some((pod, own))) =
            (far.kind, far.slots, query.pod)
        else {
            return Reasons::found(miss::rank(&self.peers(), program, far, query), Some(program.names.clone()));
        };
        // Every count that goes up here is memory to wait for.
        Reasons::later(Scene {
            program: program.clone(),
            profile: self.profile,
            far: group.clone(),
            addresses: match addresses {
                [one] => Addresses::One(*one),
                _ => Addresses::Of(far_pod.clone(), mask),
            },
            protocol: query.protocol,
            port: query.port,
            dialled: query.dialled.map(|(port, service)| (port, service.clone())),
            destination: (pod.clone(), own.clone()),
        })
    }

    fn peers(&self) -> Peers<'a> {
        Peers { profile: self.profile, cluster: self.cluster }
    }
}

/// Which of the far end's addresses the rule's peers match; ports are not looked at.
pub(super) fn rule_hit(asked: &Peers<'_>, policy: &Lowered, rule: &Rule, far: &Far<'_>) -> Hit {
    let all = far.slots.all();
    let Some(peers) = &rule.peers else { return Hit { yes: all, maybe: 0 } };
    let hits = peers.iter().map(|peer| far.hit(asked, &policy.name.namespace, peer));
    hits.fold(Hit::NONE, Hit::or)
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
