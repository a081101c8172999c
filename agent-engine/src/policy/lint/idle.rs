//! Policies that isolate by themselves, and rules that nothing uses.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::facts::{Facts, Group};
use super::ports::opens;
use super::shape::list;
use super::{Level, LintId, Place, Rule, Sink, Usage, View};
use crate::words::Direction;

pub(super) fn check(facts: &Facts<'_>, view: &View<'_>, used: &Usage, out: &mut Sink<'_>) {
    for direction in [Direction::Ingress, Direction::Egress] {
        alone(facts, view, direction, out);
    }
    for rule in view.effective() {
        // Where the port is wrong, that is what there is to say.
        let wrong_port = [LintId::ServicePort, LintId::PortNameUnknown, LintId::Invalid];
        if !used.rules.contains(&(view.name.clone(), rule.direction, rule.index))
            && !out.has(&wrong_port, Place::rule(&rule))
        {
            unused(facts, view, &rule, used, out);
        }
    }
}

fn alone(facts: &Facts<'_>, view: &View<'_>, direction: Direction, out: &mut Sink<'_>) {
    let rules = view.rules(direction);
    // One without rules is there to isolate; one that admits everything isolates nothing in effect.
    if !view.isolates(direction) || rules.is_empty() || rules.iter().any(|r| r.anyone() && r.ports.is_empty()) {
        return;
    }
    let selected = facts.selected(view);
    if selected.is_empty() || selected.iter().any(|g| facts.others_isolate(view, g, direction)) {
        return;
    }
    let (verb, rules) = match direction {
        Direction::Ingress => ("reach", "ingress"),
        Direction::Egress => ("leave", "egress"),
    };
    let message = format!(
        "nothing else isolates its pods for {rules}: by selecting them this policy denies whatever its rules do not list"
    );
    let hint = format!("make sure that the rules list everything that has to {verb} these pods");
    out.push(LintId::IsolatesAlone, Level::Note, Place::direction(direction), message, hint);
}

fn unused(facts: &Facts<'_>, view: &View<'_>, rule: &Rule<'_>, used: &Usage, out: &mut Sink<'_>) {
    let peers = rule.peers.unwrap_or_default();
    if rule.ports.is_empty() || peers.iter().any(|p| p.ip_block.is_some()) || facts.selected(view).is_empty() {
        return;
    }
    let Some(destinations) = facts.destinations(view, rule) else { return };
    let listens = |g: &&Group<'_>| {
        // Istio's own ports are listened on without being declared.
        let istio = (15000..=15100).any(|port| opens_exactly(rule, port));
        let declared = g.ports.iter().map(|p| (p.protocol, p.port));
        let served = g.served.iter().map(|(_, _, target, protocol)| (*protocol, *target));
        let named = rule.ports.iter().any(|p| match &p.port {
            Some(IntOrString::String(name)) => g.ports.iter().any(|d| *d.name == **name),
            Some(IntOrString::Int(_)) | None => false,
        });
        // A pod that declares nothing may listen anywhere.
        istio || g.ports.is_empty() || named || declared.chain(served).any(|(proto, port)| opens(rule, proto, port))
    };
    let node_local = |g: &&Group<'_>| {
        let inside = used.node_local.iter().filter(|(namespace, ..)| *namespace == g.example.name.namespace);
        inside.into_iter().any(|(_, protocol, port)| opens(rule, *protocol, *port))
    };
    if destinations.iter().any(node_local) {
        return;
    }
    if destinations.is_empty() || destinations.iter().any(listens) {
        return;
    }
    let message = format!(
        "opens {}, which no required flow needs and no destination pod declares, such as pod {}",
        list(rule.ports),
        destinations[0].example.name
    );
    let hint = "remove the rule, unless the pods listen on ports that they do not declare";
    out.push(LintId::RuleUnused, Level::Note, Place::rule(rule), message, hint.to_owned());
}

fn opens_exactly(rule: &Rule<'_>, port: i32) -> bool {
    rule.ports.iter().any(|p| matches!(p.port, Some(IntOrString::Int(n)) if n == port))
}
