//! From the API's NetworkPolicy to the form that is evaluated: defaults applied, selectors interned, blocks parsed.
//!
//! A part that the API server would refuse becomes an explicit "matches nothing" that the reasons can name; nothing panics.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::decision::{Invalid, Ports, Tier};
use super::miss;
use super::selector::{Selector, Symbols};
use crate::cluster::pod::protocol;
use crate::words::{Direction, Name, Protocol};

/// A policy of any kind, ready to be evaluated.
#[derive(Clone, Debug)]
pub(super) struct Lowered {
    pub name: Name,
    pub tier: Tier,
    /// Lower is asked first; only cluster-wide policies have one.
    pub priority: i64,
    pub subject: Subject,
    /// Per direction: the rules, or `None` where the policy says nothing of that direction.
    rules: [Option<Box<[Rule]>>; 2],
}

#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// `None` is the policy's own namespace.
    pub namespaces: Option<Selector>,
    pub pods: Selector,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub action: Action,
    /// `None` is everyone.
    pub peers: Option<Box<[Peer]>>,
    /// `None` is every port.
    pub ports: Option<Box<[Port]>>,
    /// The numbers among the ports, per protocol, for the reasons.
    pub opens: [Arc<[Ports]>; 3],
}

impl Rule {
    pub fn new(action: Action, peers: Option<Box<[Peer]>>, ports: Option<Box<[Port]>>) -> Self {
        let opens = miss::opens(ports.as_deref());
        Self { action, peers, ports, opens }
    }
}

/// What a matching rule does. NetworkPolicies only know `Accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Deny,
    Pass,
}

#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// Namespaces `None` is the policy's own; pods `None` is all of them.
    Pods {
        namespaces: Option<Selector>,
        pods: Option<Selector>,
    },
    Block {
        block: IpNet,
        except: Box<[IpNet]>,
    },
    Nodes(Selector),
    /// Names that only the engine resolves.
    Domains,
    /// Matches every peer: how a rule to deny fails closed.
    Everyone,
    Invalid(Invalid),
}

#[derive(Clone, Debug)]
pub(super) enum Port {
    /// Every port of the protocol.
    All(Protocol),
    Range {
        protocol: Protocol,
        first: u16,
        last: u16,
    },
    /// Protocol `None` is whichever the container port has.
    Named {
        protocol: Option<Protocol>,
        name: Arc<str>,
    },
    Invalid(Invalid),
}

impl Lowered {
    pub fn new(
        name: Name,
        tier: Tier,
        priority: i64,
        subject: Subject,
        egress: Option<Box<[Rule]>>,
        ingress: Option<Box<[Rule]>>,
    ) -> Self {
        Self { name, tier, priority, subject, rules: [egress, ingress] }
    }

    pub fn network_policy(name: Name, policy: &api::NetworkPolicy, symbols: &mut Symbols) -> Self {
        let spec = policy.spec.clone().unwrap_or_default();
        let subject = Selector::lower(&spec.pod_selector.unwrap_or_default(), symbols);
        let (ingress, egress) = (spec.ingress.unwrap_or_default(), spec.egress.unwrap_or_default());
        // `SetDefaults_NetworkPolicy` in pkg/apis/networking/v1/defaults.go: Ingress always, Egress where egress rules exist.
        let types = spec.policy_types.unwrap_or_default();
        let named = |name: &str| types.iter().any(|t| t == name);
        let affects_ingress = types.is_empty() || named("Ingress");
        let affects_egress = if types.is_empty() { !egress.is_empty() } else { named("Egress") };
        let mut rule = |peers: Option<Vec<api::NetworkPolicyPeer>>, ports: Option<Vec<api::NetworkPolicyPort>>| {
            let peers = peers.filter(|p| !p.is_empty()).map(|p| p.into_iter().map(|p| peer(p, symbols)).collect());
            let ports = ports.filter(|p| !p.is_empty()).map(|p| p.into_iter().map(port).collect());
            Rule::new(Action::Accept, peers, ports)
        };
        let egress = affects_egress.then(|| egress.into_iter().map(|r| rule(r.to, r.ports)).collect());
        let ingress = affects_ingress.then(|| ingress.into_iter().map(|r| rule(r.from, r.ports)).collect());
        Self::new(name, Tier::NetworkPolicy, 0, Subject { namespaces: None, pods: subject }, egress, ingress)
    }

    /// Whether the policy has a say in this direction.
    pub fn affects(&self, direction: Direction) -> bool {
        self.rules[direction as usize].is_some()
    }

    pub fn rules(&self, direction: Direction) -> &[Rule] {
        self.rules[direction as usize].as_deref().unwrap_or_default()
    }

    fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().flatten().flat_map(|rules| rules.iter())
    }

    pub fn all_ports(&self) -> impl Iterator<Item = &Port> {
        self.all_rules().flat_map(|rule| rule.ports.iter().flat_map(|ports| ports.iter()))
    }

    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.all_rules().flat_map(|rule| rule.peers.iter().flat_map(|peers| peers.iter()))
    }

    /// Selectors of namespaces, of the subject and of every peer.
    pub fn namespace_selectors(&self) -> impl Iterator<Item = &Selector> {
        let peers = self.peers().filter_map(|peer| match peer {
            Peer::Pods { namespaces, .. } => namespaces.as_ref(),
            Peer::Block { .. } | Peer::Nodes(_) | Peer::Domains | Peer::Everyone | Peer::Invalid(_) => None,
        });
        self.subject.namespaces.iter().chain(peers)
    }

    pub fn release(&self, symbols: &mut Symbols) {
        self.subject.pods.release(symbols);
        self.namespace_selectors().for_each(|s| s.release(symbols));
        for peer in self.peers() {
            match peer {
                Peer::Pods { pods: Some(pods), .. } => pods.release(symbols),
                Peer::Nodes(nodes) => nodes.release(symbols),
                Peer::Pods { pods: None, .. }
                | Peer::Block { .. }
                | Peer::Domains
                | Peer::Everyone
                | Peer::Invalid(_) => {}
            }
        }
    }
}

fn peer(peer: api::NetworkPolicyPeer, symbols: &mut Symbols) -> Peer {
    let api::NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
    match (ip_block, namespace_selector, pod_selector) {
        (Some(b), None, None) => block(&b.cidr, b.except.iter().flatten().map(String::as_str)),
        (Some(_), ..) => Peer::Invalid(Invalid::Peer("ipBlock together with a selector".into())),
        (None, None, None) => Peer::Invalid(Invalid::Peer("no ipBlock, namespaceSelector or podSelector".into())),
        (None, namespaces, pods) => Peer::Pods {
            namespaces: namespaces.map(|s| Selector::lower(&s, symbols)),
            pods: pods.map(|s| Selector::lower(&s, symbols)),
        },
    }
}

/// An address block with its exceptions.
pub(super) fn block<'a>(cidr: &str, except: impl Iterator<Item = &'a str>) -> Peer {
    let parse =
        |text: &str| text.trim().parse::<IpNet>().map(|net| net.trunc()).map_err(|_| Invalid::Cidr(text.into()));
    let outside = |block: &IpNet, net: &IpNet| {
        let text = format!("{net}, which is not inside {block}");
        if block.contains(net) { Ok(*net) } else { Err(Invalid::Cidr(text.into())) }
    };
    let parsed = parse(cidr).and_then(|block| {
        let except: Result<Box<[IpNet]>, Invalid> = except.map(|e| outside(&block, &parse(e)?)).collect();
        Ok(Peer::Block { block, except: except? })
    });
    parsed.unwrap_or_else(Peer::Invalid)
}

fn port(port: api::NetworkPolicyPort) -> Port {
    let api::NetworkPolicyPort { end_port, port, protocol: text } = port;
    let Some(protocol) = protocol(text.as_deref()) else {
        return Port::Invalid(Invalid::Port(format!("protocol {}", text.unwrap_or_default()).into()));
    };
    match (port, end_port) {
        (None, None) => Port::All(protocol),
        (None, Some(last)) => Port::Invalid(Invalid::Port(format!("endPort {last} without port").into())),
        (Some(IntOrString::Int(first)), last) => range(protocol, first.into(), last.map_or(first, |l| l).into()),
        (Some(IntOrString::String(name)), None) => Port::Named { protocol: Some(protocol), name: name.into() },
        (Some(IntOrString::String(name)), Some(last)) => {
            Port::Invalid(Invalid::Port(format!("port {name} with endPort {last}").into()))
        }
    }
}

/// Ports from first to last, both included.
pub(super) fn range(protocol: Protocol, first: i64, last: i64) -> Port {
    match (u16::try_from(first), u16::try_from(last)) {
        (Ok(first @ 1..), Ok(last)) if first <= last => Port::Range { protocol, first, last },
        _ if first == last => Port::Invalid(Invalid::Port(first.to_string().into())),
        _ => Port::Invalid(Invalid::Port(format!("{first} to {last}").into())),
    }
}
