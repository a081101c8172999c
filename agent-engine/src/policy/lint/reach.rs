//! Selectors that match nothing, as far as the objects at hand can tell.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;

use super::facts::{Facts, Group, Wish, holds_all, is_valid, nearest, text, wants};
use super::{Level, LintId, Place, Rule, Sink, View};
use crate::policy::Wanted;

pub(super) fn check(facts: &Facts<'_>, view: &View<'_>, out: &mut Sink<'_>) {
    selection(facts, view, out);
    for rule in view.effective() {
        for (index, peer) in rule.peers.unwrap_or_default().iter().enumerate() {
            check_peer(facts, view, &rule, index, peer, out);
        }
    }
}

fn selection(facts: &Facts<'_>, view: &View<'_>, out: &mut Sink<'_>) {
    let wants = wants(view.spec.pod_selector.as_ref());
    let pods = facts.pods(&view.name.namespace);
    if wants.is_empty() || pods.is_empty() || !is_valid(&wants) {
        return;
    }
    let mut matching = pods.iter().filter(|g| holds_all(&wants, g.labels)).peekable();
    let namespace = &view.name.namespace;
    if matching.peek().is_none() {
        let near = nearest(&wants, pods.iter()).map(|n| format!(" ({n})")).unwrap_or_default();
        let message = format!("selects no pod: none of {namespace} has {}{near}", text(&wants));
        let hint = "select the labels that the pods carry, or remove the policy";
        out.push(LintId::SelectsNothing, Level::Warning, Place::POLICY, message, hint.to_owned());
    } else if matching.all(|g| g.host_network) {
        let message = "selects only pods on their node's network, to which NetworkPolicies do not apply";
        let hint = "remove the policy; such pods are nodes for it";
        out.push(LintId::SelectsHostNetwork, Level::Warning, Place::POLICY, message.to_owned(), hint.to_owned());
    }
}

fn check_peer(
    facts: &Facts<'_>,
    view: &View<'_>,
    rule: &Rule<'_>,
    index: usize,
    peer: &NetworkPolicyPeer,
    out: &mut Sink<'_>,
) {
    let (namespace_wants, pod_wants) = (wants(peer.namespace_selector.as_ref()), wants(peer.pod_selector.as_ref()));
    if peer.ip_block.is_some() || !is_valid(&namespace_wants) || !is_valid(&pod_wants) {
        return;
    }
    let Some(namespaces) = facts.peer_namespaces(&view.name.namespace, peer) else { return };
    let place = Place::peer(rule, index);
    if namespaces.is_empty() {
        // By name alone the namespace may be one that was not read.
        if facts.whole_cluster && !namespace_wants.is_empty() {
            no_namespace(facts, view, rule, place, &namespace_wants, out);
        }
        return;
    }
    // With pods of some of the namespaces unread, none can be said not to match.
    if pod_wants.is_empty() || !facts.any_pod(&namespaces) {
        return;
    }
    let matching = facts.select(&namespaces, &pod_wants);
    if !matching.is_empty() {
        if matching.iter().all(|g| g.host_network) {
            let message = format!(
                "the pods with {} are on their nodes' network (as pod {}): selectors do not match those",
                text(&pod_wants),
                matching[0].example.name
            );
            let hint = "use an ipBlock with the nodes' addresses";
            out.push(LintId::PeerHostNetwork, Level::Warning, place, message, hint.to_owned());
        }
        return;
    }
    if out.has(&[LintId::OrNotAnd], place)
        || peer.namespace_selector.is_none() && own_namespace(facts, view, rule, place, &pod_wants, out)
    {
        return;
    }
    let near = nearest(&pod_wants, namespaces.iter().flat_map(|n| facts.pods(n)));
    let near = near.map(|n| format!("; {n}")).unwrap_or_default();
    let scope = match peer.namespace_selector {
        Some(_) if namespace_wants.is_empty() => "any namespace".to_owned(),
        Some(_) | None => scope(&namespaces),
    };
    let message = format!("no pod of {scope} has {}{near}", text(&pod_wants));
    let hint = "label the pods that this is for, or select the labels that they carry";
    out.push(LintId::PeerNoPod, Level::Note, place, message, hint.to_owned());
}

fn scope(namespaces: &[&Arc<str>]) -> String {
    match namespaces {
        [one] => format!("namespace {one}"),
        [one, two] => format!("namespaces {one} and {two}"),
        many => format!("{} namespaces", many.len()),
    }
}

fn no_namespace(facts: &Facts<'_>, view: &View<'_>, rule: &Rule<'_>, place: Place, wants: &[Wish], out: &mut Sink<'_>) {
    let keys = facts.namespace_keys();
    let unknown = wants.iter().filter(|w| w.is_positive()).map(Wish::key).find(|k| !keys.contains(&***k));
    let meant = wants.iter().find_map(|w| match w {
        Wish::Valid(Wanted::Is { key, value }) if **key != *"kubernetes.io/metadata.name" => {
            facts.has_namespace(value).then_some(value)
        }
        Wish::Valid(_) | Wish::Invalid { .. } => None,
    });
    let hint = match meant {
        Some(name) => format!("every namespace carries its name: use kubernetes.io/metadata.name: {name}"),
        None => "label the namespaces that this is for, or select a label that they carry".to_owned(),
    };
    match unknown {
        Some(key) => {
            let message = format!("matches no namespace: none carries the label {key} (wanted: {})", text(wants));
            out.push(LintId::NamespaceLabelUnknown, Level::Warning, place, message, hint);
        }
        None => {
            // As an alternative beside peers that do match it is often meant for other clusters.
            let peers = rule.peers.unwrap_or_default();
            let alternative = peers.iter().any(|p| {
                p.ip_block.is_some() || facts.peer_pods(&view.name.namespace, p).is_none_or(|pods| !pods.is_empty())
            });
            let level = if alternative { Level::Note } else { Level::Warning };
            let message = format!("matches no namespace: none has {}", text(wants));
            out.push(LintId::PeerNoNamespace, level, place, message, hint);
        }
    }
}

/// Pods of other namespaces would match, and no other peer of the rule names them.
fn own_namespace(
    facts: &Facts<'_>,
    view: &View<'_>,
    rule: &Rule<'_>,
    place: Place,
    wants: &[Wish],
    out: &mut Sink<'_>,
) -> bool {
    let elsewhere: Vec<&Group<'_>> =
        facts.all_pods().filter(|g| !g.host_network && holds_all(wants, g.labels)).collect();
    let Some(first) = elsewhere.first() else { return false };
    let peers = rule.peers.unwrap_or_default();
    let named = peers.iter().filter(|p| p.namespace_selector.is_some()).any(|p| {
        let pods = facts.peer_pods(&view.name.namespace, p);
        pods.is_none_or(|pods| pods.iter().any(|g| elsewhere.iter().any(|e| std::ptr::eq(*e, *g))))
    });
    if named {
        return false;
    }
    let own = &view.name.namespace;
    let message = format!(
        "a podSelector alone means namespace {own}, where no pod has {}; pod {} has",
        text(wants),
        first.example.name
    );
    let hint = "add a namespaceSelector to the same list item ({} for every namespace)";
    out.push(LintId::PeerOwnNamespace, Level::Warning, place, message, hint.to_owned());
    true
}
