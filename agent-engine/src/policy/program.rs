//! The NetworkPolicies that select a group, flattened: what a decision walks lies in a few arrays side by side.
//!
//! A decision that chases every policy, rule, peer and selector through its own allocation spends its time waiting for
//! memory. Groups with the same policies share one program; it is never changed, only replaced.

use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use super::decide::{Peers, Query};
use super::index::SpaceId;
use super::lower::{Lowered, Peer, Port};
use super::peer::{Far, FarKind, Hit};
use super::selector::{Selector, Symbol, Test};
use crate::words::{Direction, Name, Protocol};

/// Policies of one namespace and direction, ready to be walked.
#[derive(Debug)]
pub(super) struct Program {
    /// The policies, by name.
    pub policies: Box<[Arc<Lowered>]>,
    /// Their names.
    pub names: Arc<[Name]>,
    pub direction: Direction,
    own: SpaceId,
    rules: Box<[FlatRule]>,
    ports: Box<[FlatPort]>,
    port_names: Box<[Arc<str>]>,
    peers: Box<[FlatPeer]>,
    tests: Box<[FlatTest]>,
    values: Box<[Symbol]>,
    blocks: Box<[(IpNet, Box<[IpNet]>)]>,
    /// Per peer: no namespace of the cluster matches its selector.
    dead: Box<[bool]>,
}

/// Indices of the array that follows in the walk.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    first: u32,
    end: u32,
}

#[derive(Clone, Copy, Debug)]
struct FlatRule {
    /// `None`: every port.
    ports: Option<Span>,
    /// `None`: everyone.
    peers: Option<Span>,
    policy: u32,
    rule: u32,
}

#[derive(Clone, Copy, Debug)]
struct FlatPort {
    protocol: Protocol,
    first: u16,
    last: u16,
    /// Into the names, for a named port.
    name: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
enum FlatPeer {
    Pods { namespaces: Namespaces, pods: Span },
    Block(u32),
    Never,
}

#[derive(Clone, Copy, Debug)]
enum Namespaces {
    Own,
    Matching(Span),
}

#[derive(Clone, Copy, Debug)]
struct FlatTest {
    key: Symbol,
    test: FlatOperator,
}

#[derive(Clone, Copy, Debug)]
enum FlatOperator {
    Is(Symbol),
    In(Span),
    NotIn(Span),
    Exists,
    Absent,
    Never,
}

/// What a walk found.
pub(super) struct Walked {
    pub hit: Hit,
    /// Policy and rule of the first rule that may match.
    pub unsure: Option<(usize, usize)>,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.first as usize..self.end as usize
    }
}

fn small(n: usize) -> u32 {
    u32::try_from(n).expect("fewer than 2^32 rules fit in memory")
}

impl Program {
    pub fn new(
        policies: Box<[Arc<Lowered>]>,
        direction: Direction,
        own: SpaceId,
        matches_no_namespace: impl Fn(&Selector) -> bool,
    ) -> Self {
        let mut flat = Flat::default();
        for (p, policy) in policies.iter().enumerate() {
            for (r, rule) in policy.rules(direction).iter().enumerate() {
                let ports = rule.ports.as_ref().map(|ports| flat.ports(ports));
                let peers = rule.peers.as_ref().map(|peers| flat.peers(peers, &matches_no_namespace));
                flat.rules.push(FlatRule { ports, peers, policy: small(p), rule: small(r) });
            }
        }
        Self {
            names: policies.iter().map(|p| p.name.clone()).collect(),
            policies,
            direction,
            own,
            rules: flat.rules.into(),
            ports: flat.ports.into(),
            port_names: flat.port_names.into(),
            peers: flat.peers.into(),
            tests: flat.tests.into(),
            values: flat.values.into(),
            blocks: flat.blocks.into(),
            dead: flat.dead.into(),
        }
    }

    /// Whether it is made of exactly these policies.
    pub fn is_of(&self, policies: &[Arc<Lowered>]) -> bool {
        self.policies.len() == policies.len() && self.policies.iter().zip(policies).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Whether no namespace matches the selector of a peer, as things stood when the program was made.
    pub fn is_dead(&self, policy: usize, rule: usize, peer: usize) -> bool {
        let found = self.rules.iter().find(|r| r.policy as usize == policy && r.rule as usize == rule);
        found.and_then(|r| r.peers).is_some_and(|span| self.dead[span.range()][peer])
    }

    /// Walks the rules. `admitting` is told every rule that admits at least one address; without it the walk ends as soon as
    /// everything is admitted.
    pub fn walk(
        &self,
        asked: &Peers<'_>,
        far: &Far<'_>,
        query: &Query<'_>,
        mut admitting: Option<&mut dyn FnMut(usize, usize)>,
    ) -> Walked {
        let all = far.slots.all();
        let mut walked = Walked { hit: Hit::NONE, unsure: None };
        for rule in &self.rules {
            if !rule.ports.is_none_or(|ports| self.ports[ports.range()].iter().any(|p| self.matches(*p, query))) {
                continue;
            }
            let hit = match rule.peers {
                None => Hit { yes: all, maybe: 0 },
                Some(peers) => self.hit(&self.peers[peers.range()], asked, far),
            };
            if hit.yes != 0
                && let Some(admitting) = &mut admitting
            {
                admitting(rule.policy as usize, rule.rule as usize);
            }
            if hit.maybe != 0 && walked.unsure.is_none() {
                walked.unsure = Some((rule.policy as usize, rule.rule as usize));
            }
            walked.hit = walked.hit.or(hit);
            if walked.hit.yes == all && admitting.is_none() {
                break;
            }
        }
        walked
    }

    fn matches(&self, port: FlatPort, query: &Query<'_>) -> bool {
        if port.protocol != query.protocol {
            return false;
        }
        match port.name {
            None => (port.first..=port.last).contains(&query.port),
            Some(name) => query.is_called(&self.port_names[name as usize]),
        }
    }

    fn hit(&self, peers: &[FlatPeer], asked: &Peers<'_>, far: &Far<'_>) -> Hit {
        let all = far.slots.all();
        let mut total = Hit::NONE;
        for peer in peers {
            let hit = match (peer, &far.kind) {
                (FlatPeer::Never, _) => Hit::NONE,
                (_, FarKind::Unknown(_)) => Hit { yes: 0, maybe: all },
                (FlatPeer::Pods { namespaces, pods }, FarKind::Pod { group, .. }) => {
                    let in_namespace = match namespaces {
                        Namespaces::Own => group.space == self.own,
                        Namespaces::Matching(tests) => self.holds(*tests, group.namespace_set()),
                    };
                    if in_namespace && self.holds(*pods, group.pod_set()) {
                        Hit { yes: all, maybe: 0 }
                    } else {
                        Hit::NONE
                    }
                }
                (FlatPeer::Pods { namespaces: Namespaces::Matching(n), pods: p }, FarKind::Host { .. }) => {
                    let everyone = n.first == n.end && p.first == p.end && asked.profile.host_matches_everyone();
                    Hit { yes: if everyone { all } else { 0 }, maybe: 0 }
                }
                (FlatPeer::Pods { .. }, _) => Hit::NONE,
                (FlatPeer::Block(block), _) => {
                    let (block, except) = &self.blocks[*block as usize];
                    far.block_hit(asked, block, except)
                }
            };
            total = total.or(hit);
            if total.yes == all {
                break;
            }
        }
        total
    }

    fn holds(&self, tests: Span, labels: &[(Symbol, Symbol)]) -> bool {
        self.tests[tests.range()].iter().all(|t| {
            let found = labels.iter().find(|(key, _)| *key == t.key).map(|(_, value)| *value);
            match t.test {
                FlatOperator::Is(value) => found == Some(value),
                FlatOperator::In(values) => found.is_some_and(|v| self.values[values.range()].contains(&v)),
                FlatOperator::NotIn(values) => found.is_none_or(|v| !self.values[values.range()].contains(&v)),
                FlatOperator::Exists => found.is_some(),
                FlatOperator::Absent => found.is_none(),
                FlatOperator::Never => false,
            }
        })
    }
}

#[derive(Default)]
struct Flat {
    rules: Vec<FlatRule>,
    ports: Vec<FlatPort>,
    port_names: Vec<Arc<str>>,
    peers: Vec<FlatPeer>,
    tests: Vec<FlatTest>,
    values: Vec<Symbol>,
    blocks: Vec<(IpNet, Box<[IpNet]>)>,
    dead: Vec<bool>,
}

impl Flat {
    fn ports(&mut self, ports: &[Port]) -> Span {
        let first = small(self.ports.len());
        for port in ports {
            match port {
                Port::All(protocol) => self.port(*protocol, 0, u16::MAX, None),
                Port::Range { protocol, first, last } => self.port(*protocol, *first, *last, None),
                Port::Named { protocol, name } => {
                    let at = u16::try_from(self.port_names.len()).ok();
                    self.port_names.push(name.clone());
                    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
                    for any in known.into_iter().filter(|p| protocol.is_none_or(|wanted| wanted == *p)) {
                        self.port(any, 0, 0, at);
                    }
                }
                Port::Invalid(_) => {}
            }
        }
        Span { first, end: small(self.ports.len()) }
    }

    fn port(&mut self, protocol: Protocol, first: u16, last: u16, name: Option<u16>) {
        self.ports.push(FlatPort { protocol, first, last, name });
    }

    fn peers(&mut self, peers: &[Peer], matches_no_namespace: impl Fn(&Selector) -> bool) -> Span {
        let first = small(self.peers.len());
        for peer in peers {
            let (flat, dead) = match peer {
                Peer::Pods { namespaces, pods } => {
                    let dead = namespaces.as_ref().is_some_and(&matches_no_namespace);
                    let namespaces =
                        namespaces.as_ref().map_or(Namespaces::Own, |s| Namespaces::Matching(self.selector(s)));
                    let pods = pods.as_ref().map_or(Span::default(), |s| self.selector(s));
                    (FlatPeer::Pods { namespaces, pods }, dead)
                }
                Peer::Block { block, except } => {
                    self.blocks.push((*block, except.clone()));
                    (FlatPeer::Block(small(self.blocks.len() - 1)), false)
                }
                // Nodes, domains and everyone are of cluster-wide policies, which are not flattened.
                Peer::Nodes(_) | Peer::Domains | Peer::Everyone | Peer::Invalid(_) => (FlatPeer::Never, false),
            };
            self.peers.push(flat);
            self.dead.push(dead);
        }
        Span { first, end: small(self.peers.len()) }
    }

    fn selector(&mut self, selector: &Selector) -> Span {
        let first = small(self.tests.len());
        if selector.invalid().is_some() {
            self.tests.push(FlatTest { key: 0, test: FlatOperator::Never });
        }
        for (key, test) in selector.tests() {
            let test = match test {
                Test::Is(value) => FlatOperator::Is(*value),
                Test::In(values) => FlatOperator::In(self.values(values)),
                Test::NotIn(values) => FlatOperator::NotIn(self.values(values)),
                Test::Exists => FlatOperator::Exists,
                Test::Absent => FlatOperator::Absent,
            };
            self.tests.push(FlatTest { key, test });
        }
        Span { first, end: small(self.tests.len()) }
    }

    fn values(&mut self, values: &[Symbol]) -> Span {
        let first = small(self.values.len());
        self.values.extend(values);
        Span { first, end: small(self.values.len()) }
    }
}
