//! AdminNetworkPolicy, BaselineAdminNetworkPolicy and ClusterNetworkPolicy in the evaluated form.

use std::sync::Arc;

use super::decide::{Peers, Query, rule_hit, rule_ref};
use super::decision::{Invalid, Tier, Undecided};
use super::group::Group;
use super::lower::{Action, Lowered, Peer, Port, Rule, Subject, block, range};
use super::peer::Far;
use super::selector::{Selector, Symbols};
use crate::cluster::admin::{AdminDestination, AdminPeer, AdminPods, AdminPort, AdminProtocol, AdminRule};
use crate::cluster::pod::protocol;
use crate::cluster::{AdminPolicy, Kind};
use crate::words::{Direction, Name, Protocol};

/// BaselineAdminNetworkPolicy has no priority: it comes after every ClusterNetworkPolicy of the baseline tier.
const AFTER_ALL: i64 = i64::MAX;

pub(super) fn lower(kind: Kind, policy: &AdminPolicy, symbols: &mut Symbols) -> Lowered {
    let spec = &policy.spec;
    let tier = match (kind, spec.tier.as_deref()) {
        (Kind::BaselineAdminNetworkPolicy, _) | (Kind::ClusterNetworkPolicy, Some("Baseline")) => Tier::Baseline,
        _ => Tier::Admin,
    };
    let priority =
        if kind == Kind::BaselineAdminNetworkPolicy { AFTER_ALL } else { spec.priority.unwrap_or(AFTER_ALL) };
    let subject = match &spec.subject {
        AdminPods { namespaces: Some(namespaces), pods: None } => {
            let all = Selector::lower(&Default::default(), symbols);
            Subject { namespaces: Some(Selector::lower(namespaces, symbols)), pods: all }
        }
        AdminPods { namespaces: None, pods: Some(pods) } => Subject {
            namespaces: Some(Selector::lower(&pods.namespace_selector, symbols)),
            pods: Selector::lower(&pods.pod_selector, symbols),
        },
        // Neither, or both: the API refuses it, so it selects nothing.
        _ => {
            let invalid = Invalid::Selector("a subject has either namespaces or pods".into());
            Subject { namespaces: Some(Selector::nothing(invalid.clone())), pods: Selector::nothing(invalid) }
        }
    };
    let mut rules = |rules: &[AdminRule], peers: fn(&AdminRule) -> &[AdminPeer]| {
        let lowered = rules.iter().map(|r| rule(r, peers(r), symbols)).collect();
        (!rules.is_empty()).then_some(lowered)
    };
    let egress = rules(&spec.egress, |r| &r.to);
    let ingress = rules(&spec.ingress, |r| &r.from);
    let name = Name::new("", policy.metadata.name.as_deref().unwrap_or(""));
    Lowered::new(name, tier, priority, subject, egress, ingress)
}

fn rule(rule: &AdminRule, peers: &[AdminPeer], symbols: &mut Symbols) -> Rule {
    let action = match rule.action.as_str() {
        "Accept" | "Allow" => Action::Accept,
        "Pass" => Action::Pass,
        _ => Action::Deny,
    };
    let mut lowered: Vec<Peer> = peers.iter().flat_map(|p| peer(p, symbols)).collect();
    // "Fail closed": an Accept rule with a peer that is not understood matches nothing there, any other becomes "deny all".
    let unknown = lowered.iter().any(|p| matches!(p, Peer::Invalid(Invalid::Peer(_))));
    if peers.is_empty() {
        lowered.push(Peer::Invalid(Invalid::Peer("a rule without peers".into())));
    }
    if unknown && action != Action::Accept {
        return Rule::new(Action::Deny, Some([Peer::Everyone].into()), None);
    }
    let old = rule.ports.iter().flatten().map(port);
    let new = rule.protocols.iter().flatten().map(protocol_port);
    let ports: Box<[Port]> = old.chain(new).collect();
    Rule::new(action, Some(lowered.into()), (!ports.is_empty()).then_some(ports))
}

fn peer(peer: &AdminPeer, symbols: &mut Symbols) -> Vec<Peer> {
    let AdminPeer { namespaces, pods, nodes, networks, domain_names } = peer;
    match (namespaces, pods, nodes, networks, domain_names) {
        (Some(n), None, None, None, None) => {
            vec![Peer::Pods { namespaces: Some(Selector::lower(n, symbols)), pods: None }]
        }
        (None, Some(p), None, None, None) => vec![Peer::Pods {
            namespaces: Some(Selector::lower(&p.namespace_selector, symbols)),
            pods: Some(Selector::lower(&p.pod_selector, symbols)),
        }],
        (None, None, Some(nodes), None, None) => vec![Peer::Nodes(Selector::lower(nodes, symbols))],
        (None, None, None, Some(nets), None) => nets.iter().map(|n| block(n, std::iter::empty())).collect(),
        (None, None, None, None, Some(_)) => vec![Peer::Domains],
        _ => vec![Peer::Invalid(Invalid::Peer("a peer has exactly one field that is known here".into()))],
    }
}

fn port(port: &AdminPort) -> Port {
    let known = |text: &Option<String>| protocol(text.as_deref());
    match port {
        AdminPort { port_number: Some(n), named_port: None, port_range: None } => {
            known(&n.protocol).map(|p| range(p, n.port, n.port))
        }
        AdminPort { port_number: None, named_port: Some(name), port_range: None } => {
            Some(Port::Named { protocol: None, name: name.as_str().into() })
        }
        AdminPort { port_number: None, named_port: None, port_range: Some(r) } => {
            known(&r.protocol).map(|p| range(p, r.start, r.end))
        }
        _ => None,
    }
    .unwrap_or_else(|| Port::Invalid(Invalid::Port("exactly one of portNumber, namedPort and portRange".into())))
}

fn protocol_port(entry: &AdminProtocol) -> Port {
    let AdminProtocol { tcp, udp, sctp, destination_named_port } = entry;
    match (tcp, udp, sctp, destination_named_port) {
        (Some(d), None, None, None) => destination(Protocol::Tcp, d),
        (None, Some(d), None, None) => destination(Protocol::Udp, d),
        (None, None, Some(d), None) => destination(Protocol::Sctp, d),
        (None, None, None, Some(name)) => Port::Named { protocol: None, name: name.as_str().into() },
        _ => Port::Invalid(Invalid::Port("exactly one of tcp, udp, sctp and destinationNamedPort".into())),
    }
}

fn destination(protocol: Protocol, destination: &AdminDestination) -> Port {
    let Some(port) = &destination.destination_port else { return Port::All(protocol) };
    match (port.number, &port.range) {
        (Some(n), None) => range(protocol, n, n),
        (None, Some(r)) => range(protocol, r.start, r.end),
        _ => Port::Invalid(Invalid::Port("exactly one of number and range".into())),
    }
}

/// What the cluster-wide policies of a tier say of a flow.
pub(super) enum Say<'a> {
    /// No rule matches, or the first that does passes the question on.
    Nothing,
    /// The rule that accepts.
    Accept(&'a Lowered, usize),
    /// The rule that denies.
    Deny(&'a Lowered, usize),
    /// Not known: what it may be.
    Maybe { accept: bool, deny: bool, pass: bool, why: Undecided },
}

/// The first rule that matches, by priority and place. Every address of the far end is asked for on its own.
pub(super) fn say<'a>(
    asked: &Peers<'_>,
    group: &'a Group,
    direction: Direction,
    tier: Tier,
    far: &Far<'_>,
    query: &Query<'_>,
) -> Say<'a> {
    let mut total: Option<Say<'a>> = None;
    for slots in far.slots.each() {
        let one = say_of(asked, group.admin(direction), direction, tier, &Far { slots, ..*far }, query);
        total = Some(match total {
            None => one,
            Some(other) => other.and(one),
        });
    }
    total.unwrap_or(Say::Nothing)
}

impl<'a> Say<'a> {
    fn flags(&self) -> (bool, bool, bool) {
        match self {
            Self::Nothing => (false, false, true),
            Self::Accept(..) => (true, false, false),
            Self::Deny(..) => (false, true, false),
            Self::Maybe { accept, deny, pass, .. } => (*accept, *deny, *pass),
        }
    }

    /// Either of two, by reason of `why`; the first where both come to the same.
    fn either(self, other: Self, why: impl FnOnce() -> Undecided) -> Self {
        let (a, b) = (self.flags(), other.flags());
        if a == b {
            return self;
        }
        let why = match (self, other) {
            (Self::Maybe { why, .. }, _) | (_, Self::Maybe { why, .. }) => why,
            _ => why(),
        };
        Self::Maybe { accept: a.0 || b.0, deny: a.1 || b.1, pass: a.2 || b.2, why }
    }

    /// What two addresses of one end get.
    fn and(self, other: Self) -> Self {
        self.either(other, || Undecided::Addresses)
    }
}

fn say_of<'a>(
    asked: &Peers<'_>,
    policies: &'a [Arc<Lowered>],
    direction: Direction,
    tier: Tier,
    far: &Far<'_>,
    query: &Query<'_>,
) -> Say<'a> {
    let mut of_tier = policies.iter().filter(|p| p.tier == tier).peekable();
    // Policies of one priority are asked together: where they disagree the API leaves the result open.
    while let Some(first) = of_tier.next() {
        let mut said = first_match(asked, first, direction, far, query);
        while let Some(equal) = of_tier.next_if(|p| p.priority == first.priority) {
            let other = first_match(asked, equal, direction, far, query);
            said = match (said, other) {
                (None, said) | (said, None) => said,
                (Some(one), Some(other)) => Some(together(one, other)),
            };
        }
        match said {
            None => {}
            Some(Matched { say, sure: true, .. }) => return say,
            // It may match: either this, or whatever comes next.
            Some(Matched { say, why, .. }) => {
                let rest = say_rest(asked, policies, first.priority, direction, tier, far, query);
                return say.either(rest, || why);
            }
        }
    }
    Say::Nothing
}

fn say_rest<'a>(
    asked: &Peers<'_>,
    policies: &'a [Arc<Lowered>],
    after: i64,
    direction: Direction,
    tier: Tier,
    far: &Far<'_>,
    query: &Query<'_>,
) -> Say<'a> {
    let next = policies.iter().position(|p| p.tier == tier && p.priority > after);
    next.map_or(Say::Nothing, |next| say_of(asked, &policies[next..], direction, tier, far, query))
}

/// What the first matching rule of one policy says.
struct Matched<'a> {
    say: Say<'a>,
    /// Whether it matches for certain.
    sure: bool,
    why: Undecided,
    at: (&'a Lowered, usize),
}

fn together<'a>(one: Matched<'a>, other: Matched<'a>) -> Matched<'a> {
    let disagree =
        || Undecided::SamePriority { one: rule_ref(one.at.0, one.at.1), other: rule_ref(other.at.0, other.at.1) };
    let why = disagree();
    let say = one.say.either(other.say, disagree);
    Matched { say, sure: one.sure && other.sure, why, at: one.at }
}

fn first_match<'a>(
    asked: &Peers<'_>,
    policy: &'a Lowered,
    direction: Direction,
    far: &Far<'_>,
    query: &Query<'_>,
) -> Option<Matched<'a>> {
    let mut unsure: Option<Matched<'a>> = None;
    for (index, rule) in policy.rules(direction).iter().enumerate() {
        if !query.matches(rule) {
            continue;
        }
        let hit = rule_hit(asked, policy, rule, far);
        if !hit.any() {
            continue;
        }
        let say = match rule.action {
            Action::Accept => Say::Accept(policy, index),
            Action::Deny => Say::Deny(policy, index),
            Action::Pass => Say::Nothing,
        };
        let sure = hit.yes != 0;
        let matched = Matched { say, sure, why: far.unsure(rule_ref(policy, index)), at: (policy, index) };
        let merged = match unsure.take() {
            None => matched,
            Some(before) => {
                let why = before.why.clone();
                Matched { say: before.say.either(matched.say, || before.why), sure, why, at: before.at }
            }
        };
        if sure {
            return Some(merged);
        }
        unsure = Some(merged);
    }
    unsure
}
