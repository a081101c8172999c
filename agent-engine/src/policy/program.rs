//! The NetworkPolicies that select a group, flattened into words: what a decision walks lies in one array, in walking order.
//!
//! A decision that chases every policy, rule, peer and selector through its own allocation spends its time waiting for
//! memory. Groups with the same policies share one program; it is never changed, only replaced.
//!
//! ```text
//! rule:  length, number of ports or ANY, number of peers or ANY, ports…, peers…
//! port:  protocol | name << 8, first | last << 16        (name 0: by number)
//! peer:  kind | length << 8, operand, tests…             (operand: block, or tests of the namespace | tests of the pod << 16)
//! test:  operator | values << 8, key, values…
//! ```

use std::sync::Arc;

use ipnet::IpNet;

use super::decide::{Peers, Query};
use super::group::SpaceId;
use super::lower::{Lowered, Peer, Port};
use super::peer::{Far, FarKind, Hit};
use super::selector::{Selector, Symbol, Test};
use crate::words::{Direction, Name, Protocol};

/// Policies of one namespace and direction, ready to be walked. What every walk reads comes first.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Program {
    code: Box<[u32]>,
    own: SpaceId,
    pub direction: Direction,
    port_names: Box<[Arc<str>]>,
    blocks: Box<[(IpNet, Box<[IpNet]>)]>,
    /// Their names.
    pub names: Arc<[Name]>,
    /// The policies, by name.
    pub policies: Box<[Arc<Lowered>]>,
    /// Policy and rule of each rule walked.
    places: Box<[(u32, u32)]>,
    /// Policy, rule and peer whose selector no namespace of the cluster matches, in that order.
    dead: Box<[(u32, u32, u32)]>,
}

const ANY: u32 = u32::MAX;

// Kinds of peers.
const NEVER: u32 = 0;
const BLOCK: u32 = 1;
const OWN: u32 = 2;
const MATCHING: u32 = 3;

// Operators of tests.
const IN: u32 = 0;
const NOT_IN: u32 = 1;
const EXISTS: u32 = 2;
const ABSENT: u32 = 3;

/// What a walk found.
pub(super) struct Walked {
    pub hit: Hit,
    /// Policy and rule of the first rule that may match.
    pub unsure: Option<(usize, usize)>,
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
                let start = flat.code.len();
                let (ports, peers) = (rule.ports.as_deref(), rule.peers.as_deref());
                flat.code.extend([0, 0, peers.map_or(ANY, |peers| small(peers.len()))]);
                flat.code[start + 1] = ports.map_or(ANY, |ports| flat.ports(ports));
                for (at, peer) in peers.into_iter().flatten().enumerate() {
                    if let Peer::Pods { namespaces: Some(namespaces), .. } = peer
                        && matches_no_namespace(namespaces)
                    {
                        flat.dead.push((small(p), small(r), small(at)));
                    }
                    flat.peer(peer);
                }
                flat.code[start] = small(flat.code.len() - start);
                flat.places.push((small(p), small(r)));
            }
        }
        Self {
            names: policies.iter().map(|p| p.name.clone()).collect(),
            policies,
            direction,
            own,
            code: flat.code.into(),
            port_names: flat.port_names.into(),
            blocks: flat.blocks.into(),
            places: flat.places.into(),
            dead: flat.dead.into(),
        }
    }

    /// Whether it is made of exactly these policies.
    pub fn is_of(&self, policies: &[Arc<Lowered>]) -> bool {
        self.policies.len() == policies.len() && self.policies.iter().zip(policies).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Whether no namespace matches the selector of a peer, as things stood when the program was made.
    pub fn is_dead(&self, policy: usize, rule: usize, peer: usize) -> bool {
        self.dead.binary_search(&(small(policy), small(rule), small(peer))).is_ok()
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
        let mut rest = &self.code[..];
        let mut number = 0;
        while let [length, ports, peers, body @ ..] = rest {
            let at = number;
            number += 1;
            rest = &rest[*length as usize..];
            let (matches, body) = self.ports(*ports, body, query);
            if !matches {
                continue;
            }
            let hit = if *peers == ANY { Hit { yes: all, maybe: 0 } } else { self.peers(*peers, body, asked, far) };
            if !hit.any() {
                continue;
            }
            let (policy, rule) = self.places[at];
            let place = (policy as usize, rule as usize);
            if hit.yes != 0
                && let Some(admitting) = &mut admitting
            {
                admitting(place.0, place.1);
            }
            if hit.maybe != 0 && walked.unsure.is_none() {
                walked.unsure = Some(place);
            }
            walked.hit = walked.hit.or(hit);
            if walked.hit.yes == all && admitting.is_none() {
                break;
            }
        }
        walked
    }

    /// Whether one of the ports is the flow's, and the words behind them.
    fn ports<'a>(&self, count: u32, body: &'a [u32], query: &Query<'_>) -> (bool, &'a [u32]) {
        if count == ANY {
            return (true, body);
        }
        let (ports, rest) = body.split_at(2 * count as usize);
        let wanted = query.protocol as u32;
        let matches = |word: u32, range: u32| {
            word & 0xff == wanted
                && match word >> 8 {
                    0 => (range & 0xffff..=range >> 16).contains(&u32::from(query.port)),
                    name => query.is_called(&self.port_names[name as usize - 1]),
                }
        };
        (ports.chunks_exact(2).any(|port| matches(port[0], port[1])), rest)
    }

    fn peers(&self, count: u32, body: &[u32], asked: &Peers<'_>, far: &Far<'_>) -> Hit {
        let all = far.slots.all();
        let mut total = Hit::NONE;
        let mut rest = body;
        for _ in 0..count {
            let [head, operand, tests @ ..] = rest else { break };
            rest = &rest[(head >> 8) as usize..];
            let hit = match (head & 0xff, &far.kind) {
                (NEVER, _) => Hit::NONE,
                (_, FarKind::Unknown(_)) => Hit { yes: 0, maybe: all },
                (BLOCK, _) => {
                    let (block, except) = &self.blocks[*operand as usize];
                    far.block_hit(asked, block, except)
                }
                (kind, FarKind::Pod { group, .. }) => {
                    let in_namespace = if kind == OWN {
                        (group.space == self.own).then_some(tests)
                    } else {
                        holds(operand & 0xffff, tests, group.namespace_set())
                    };
                    match in_namespace.and_then(|tests| holds(operand >> 16, tests, group.pod_set())) {
                        Some(_) => Hit { yes: all, maybe: 0 },
                        None => Hit::NONE,
                    }
                }
                (MATCHING, FarKind::Host { .. }) if *operand == 0 && asked.profile.host_matches_everyone() => {
                    Hit { yes: all, maybe: 0 }
                }
                _ => Hit::NONE,
            };
            total = total.or(hit);
            if total.yes == all {
                break;
            }
        }
        total
    }
}

/// The words behind that many tests if all of them hold.
fn holds<'a>(count: u32, mut tests: &'a [u32], labels: &[(Symbol, Symbol)]) -> Option<&'a [u32]> {
    for _ in 0..count {
        let [head, key, rest @ ..] = tests else { return None };
        let (values, rest) = rest.split_at((head >> 8) as usize);
        let found = labels.iter().find(|(k, _)| k == key).map(|(_, value)| value);
        let holds = match head & 0xff {
            IN => found.is_some_and(|v| values.contains(v)),
            NOT_IN => found.is_none_or(|v| !values.contains(v)),
            EXISTS => found.is_some(),
            _ => found.is_none(),
        };
        if !holds {
            return None;
        }
        tests = rest;
    }
    Some(tests)
}

#[derive(Default)]
struct Flat {
    code: Vec<u32>,
    port_names: Vec<Arc<str>>,
    blocks: Vec<(IpNet, Box<[IpNet]>)>,
    places: Vec<(u32, u32)>,
    dead: Vec<(u32, u32, u32)>,
}

impl Flat {
    /// Appends the ports that can match, and says how many.
    fn ports(&mut self, ports: &[Port]) -> u32 {
        let start = self.code.len();
        for port in ports {
            match port {
                Port::All(protocol) => self.port(*protocol, 0, u16::MAX, 0),
                Port::Range { protocol, first, last } => self.port(*protocol, *first, *last, 0),
                Port::Named { protocol, name } => {
                    self.port_names.push(name.clone());
                    let name = small(self.port_names.len());
                    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
                    for any in known.into_iter().filter(|p| protocol.is_none_or(|wanted| wanted == *p)) {
                        self.port(any, 0, 0, name);
                    }
                }
                Port::Invalid(_) => {}
            }
        }
        small((self.code.len() - start) / 2)
    }

    fn port(&mut self, protocol: Protocol, first: u16, last: u16, name: u32) {
        self.code.extend([protocol as u32 | name << 8, u32::from(first) | u32::from(last) << 16]);
    }

    fn peer(&mut self, peer: &Peer) {
        let start = self.code.len();
        self.code.extend([NEVER, 0]);
        let kind = match peer {
            Peer::Pods { namespaces, pods } => {
                let in_namespace = namespaces.as_ref().and_then(|s| self.selector(s));
                let of_pods = pods.as_ref().map_or(Some(0), |s| self.selector(s));
                match (namespaces, in_namespace, of_pods) {
                    (None, _, Some(p)) => {
                        self.code[start + 1] = p << 16;
                        OWN
                    }
                    (Some(_), Some(n), Some(p)) => {
                        self.code[start + 1] = n | p << 16;
                        MATCHING
                    }
                    _ => NEVER,
                }
            }
            Peer::Block { block, except } => {
                self.code[start + 1] = small(self.blocks.len());
                self.blocks.push((*block, except.clone()));
                BLOCK
            }
            // Nodes, domains and everyone are of cluster-wide policies, which are not flattened.
            Peer::Nodes(_) | Peer::Domains | Peer::Everyone | Peer::Invalid(_) => NEVER,
        };
        self.code[start] = kind | small(self.code.len() - start) << 8;
    }

    /// Appends the tests of a selector, and says how many; none where it matches nothing at all.
    fn selector(&mut self, selector: &Selector) -> Option<u32> {
        if selector.invalid().is_some() {
            return None;
        }
        let mut count = 0;
        for (key, test) in selector.tests() {
            let (operator, values) = match test {
                Test::Is(value) => (IN, std::slice::from_ref(value)),
                Test::In(values) => (IN, &**values),
                Test::NotIn(values) => (NOT_IN, &**values),
                Test::Exists => (EXISTS, &[][..]),
                Test::Absent => (ABSENT, &[][..]),
            };
            self.code.extend([operator | small(values.len()) << 8, key]);
            self.code.extend(values);
            count += 1;
        }
        Some(count)
    }
}
