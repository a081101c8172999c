//! Rules that mean something else than they look like.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::facts::{Facts, Group, is_valid, text, wants};
use super::ports::number;
use super::{Level, LintId, Place, Rule, Sink, View};
use crate::words::Direction;

pub(super) fn check(facts: &Facts<'_>, view: &View<'_>, out: &mut Sink<'_>) {
    let rules: Vec<Rule<'_>> = view.effective().collect();
    for rule in &rules {
        empty_list(rule, out);
        or_not_and(facts, view, rule, out);
    }
    let mut split = Vec::new();
    for (first, second) in rules.iter().zip(rules.iter().skip(1)) {
        if is_split(first, second) {
            split.push((second.direction, second.index));
            report_split(facts, view, first, second, out);
        }
    }
    for rule in &rules {
        let reported = split.contains(&(rule.direction, rule.index));
        if rule.peers.is_none() && !rule.ports.is_empty() && !reported && !only_dns(rule) {
            let (word, who) = words(rule.direction);
            let message =
                format!("opens {} {word} anyone: pods of every namespace and addresses outside", list(rule.ports));
            let hint = format!("add {who}: to the rule if only some may");
            out.push(LintId::PortsOnly, Level::Note, Place::rule(rule), message, hint);
        }
    }
}

/// `to anyone` and the name of the field.
fn words(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("to", "from"),
        Direction::Egress => ("towards", "to"),
    }
}

fn empty_list(rule: &Rule<'_>, out: &mut Sink<'_>) {
    if rule.peers.is_none_or(|p| !p.is_empty()) {
        return;
    }
    let (_, field) = words(rule.direction);
    // With ports, charts render it and mean everyone; without, nobody writes it to admit everything.
    let (level, what) = match rule.ports {
        [] => (Level::Warning, "everything is admitted"),
        [..] => (Level::Note, "everyone is admitted on its ports"),
    };
    let message = format!("{field}: [] means everyone, not no one: {what}");
    let hint = format!("remove {field}: if everyone is meant; to deny, leave out the rule");
    out.push(LintId::EmptyPeerList, level, Place::rule(rule), message, hint);
}

fn or_not_and(facts: &Facts<'_>, view: &View<'_>, rule: &Rule<'_>, out: &mut Sink<'_>) {
    let peers = rule.peers.unwrap_or_default();
    let only_namespace = peers.iter().find(|p| p.namespace_selector.is_some() && p.pod_selector.is_none());
    let only_pods = peers
        .iter()
        .enumerate()
        .find(|(_, p)| p.namespace_selector.is_none() && p.pod_selector.is_some() && p.ip_block.is_none());
    let (Some(by_namespace), Some((index, by_pods))) = (only_namespace, only_pods) else { return };
    let (pod_wants, namespace_wants) =
        (wants(by_pods.pod_selector.as_ref()), wants(by_namespace.namespace_selector.as_ref()));
    if pod_wants.is_empty() || !is_valid(&pod_wants) {
        return;
    }
    let Some(namespaces) = facts.peer_namespaces(&view.name.namespace, by_namespace) else { return };
    // Only where both together would mean something: the pods are there, in these namespaces.
    if facts.select(&namespaces, &pod_wants).is_empty() {
        return;
    }
    let own: Vec<&Arc<str>> = vec![&view.name.namespace];
    let in_own = !facts.select(&own, &pod_wants).is_empty();
    let level = if in_own { Level::Note } else { Level::Warning };
    let what = if namespace_wants.is_empty() {
        "every namespace".to_owned()
    } else {
        format!("namespaces with {}", text(&namespace_wants))
    };
    let message = format!(
        "two list items mean either: every pod of {what}, or pods with {} of {} itself",
        text(&pod_wants),
        view.name.namespace
    );
    let hint = "to mean both, make podSelector a field of the item with namespaceSelector (remove its dash)";
    out.push(LintId::OrNotAnd, level, Place::peer(rule, index), message, hint.to_owned());
}

fn is_split(first: &Rule<'_>, second: &Rule<'_>) -> bool {
    first.direction == second.direction
        && !first.anyone()
        && first.ports.is_empty()
        && second.peers.is_none()
        && !second.ports.is_empty()
        && !only_dns(second)
}

fn report_split(facts: &Facts<'_>, view: &View<'_>, first: &Rule<'_>, second: &Rule<'_>, out: &mut Sink<'_>) {
    // The peers listen on just these ports: together the two rules make sense, apart they hardly do.
    let listens = |groups: Vec<&Group<'_>>| {
        second.ports.iter().all(|p| number(p).is_some_and(|(proto, n)| groups.iter().any(|g| g.listens(proto, n))))
    };
    let belongs = match second.direction {
        Direction::Egress => facts.rule_pods(view, first).is_some_and(listens),
        Direction::Ingress => false,
    };
    let level = if belongs { Level::Warning } else { Level::Note };
    let (word, _) = words(second.direction);
    let message = format!(
        "rule {} opens every port {word} its peers, rule {} opens {} {word} anyone",
        first.index,
        second.index,
        list(second.ports)
    );
    let hint = "to open these ports for these peers only, make ports a field of the rule before (remove its dash)";
    out.push(LintId::SplitRule, level, Place::rule(second), message, hint.to_owned());
}

/// DNS to anywhere is how nearly everyone writes it.
fn only_dns(rule: &Rule<'_>) -> bool {
    let dns = |p: &NetworkPolicyPort| matches!(p.port, Some(IntOrString::Int(53))) && p.end_port.is_none();
    rule.direction == Direction::Egress && rule.ports.iter().all(dns)
}

/// `TCP 80, UDP 53-54, TCP http`.
pub(super) fn list(ports: &[NetworkPolicyPort]) -> String {
    let one = |p: &NetworkPolicyPort| {
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        match (&p.port, p.end_port) {
            (Some(IntOrString::Int(first)), Some(last)) if last != *first => format!("{protocol} {first}-{last}"),
            (Some(IntOrString::Int(port)), _) => format!("{protocol} {port}"),
            (Some(IntOrString::String(name)), _) => format!("{protocol} {name}"),
            (None, _) => format!("every {protocol} port"),
        }
    };
    let ports: Vec<String> = ports.iter().map(one).collect();
    ports.join(", ")
}
