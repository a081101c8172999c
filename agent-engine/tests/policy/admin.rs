//! policy.networking.k8s.io: tiers, priorities and actions.

use serde_json::{Value, json};
use weir_engine::policy::{Side, Tier, Undecided};

use crate::world::{World, flow, namespace, node, pod, policy};

fn cluster(policies: impl IntoIterator<Item = Value>) -> World {
    let objects = [
        namespace("app", json!({"team": "red"})),
        namespace("other", json!({"team": "blue"})),
        node("n1", "192.168.0.1"),
        node("n2", "192.168.0.2"),
        pod("app/server", "10.0.0.1", json!({"app": "server"})),
        pod("app/client", "10.0.0.2", json!({"app": "client"})),
        pod("other/client", "10.0.1.2", json!({"app": "client"})),
    ];
    World::new(objects.into_iter().chain(policies))
}

/// A ClusterNetworkPolicy about namespace `app`.
fn cnp(name: &str, tier: &str, priority: i64, ingress: Value) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
        "spec": {"tier": tier, "priority": priority, "subject": {"namespaces": {"matchLabels": {"team": "red"}}}, "ingress": ingress}})
}

fn anp(name: &str, priority: i64, egress: Value) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy", "metadata": {"name": name},
        "spec": {"priority": priority, "subject": {"pods": {"namespaceSelector": {"matchLabels": {"team": "red"}},
            "podSelector": {"matchLabels": {"app": "server"}}}}, "egress": egress}})
}

fn rule(action: &str, peer: Value) -> Value {
    json!({"name": action, "action": action, "from": [peer]})
}

fn blue() -> Value {
    json!({"namespaces": {"matchLabels": {"team": "blue"}}})
}

const FOREIGN: &str = "other/client -> app/server TCP 80";
const LOCAL: &str = "app/client -> app/server TCP 80";

#[test]
fn the_admin_tier_comes_before_network_policies() {
    let closed = || policy("app/deny", json!({"podSelector": {}}));
    let open = || policy("app/open", json!({"podSelector": {}, "ingress": [{}]}));
    let admin = |action| cnp("c", "Admin", 10, json!([rule(action, blue())]));
    assert_eq!(cluster([admin("Accept"), closed()]).verdict(FOREIGN), "yes");
    assert_eq!(cluster([admin("Accept"), closed()]).verdict(LOCAL), "no");
    assert_eq!(cluster([admin("Deny"), open()]).verdict(FOREIGN), "no");
    assert_eq!(cluster([admin("Deny"), open()]).verdict(LOCAL), "yes");
    assert_eq!(cluster([admin("Pass"), open()]).verdict(FOREIGN), "yes");
    assert_eq!(cluster([admin("Pass"), closed()]).verdict(FOREIGN), "no");
    assert_eq!(cluster([admin("Deny")]).verdict("node:n1 -> app/server TCP 80"), "yes");
}

#[test]
fn the_baseline_is_for_pods_that_nothing_isolates() {
    let base = |action| cnp("b", "Baseline", 10, json!([rule(action, blue())]));
    let banp = json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "BaselineAdminNetworkPolicy",
        "metadata": {"name": "default"}, "spec": {"subject": {"namespaces": {}}, "ingress": [rule("Deny", json!({"namespaces": {}}))]}});
    let open = || policy("app/open", json!({"podSelector": {}, "ingress": [{}]}));
    let closed = || policy("app/deny", json!({"podSelector": {}}));
    assert_eq!(cluster([base("Deny")]).verdict(FOREIGN), "no");
    assert_eq!(cluster([base("Deny")]).verdict(LOCAL), "yes");
    assert_eq!(cluster([base("Deny"), open()]).verdict(FOREIGN), "yes");
    assert_eq!(cluster([base("Accept"), closed()]).verdict(FOREIGN), "no");
    assert_eq!(cluster([banp.clone()]).verdict(LOCAL), "no");
    assert_eq!(cluster([banp.clone(), base("Accept")]).verdict(FOREIGN), "yes");
    assert_eq!(cluster([banp, cnp("p", "Admin", 1, json!([rule("Pass", blue())]))]).verdict(FOREIGN), "no");
}

#[test]
fn the_first_match_decides_by_priority_and_place() {
    let deny = |p| cnp("deny", "Admin", p, json!([rule("Deny", blue())]));
    let accept = |p| cnp("accept", "Admin", p, json!([rule("Accept", json!({"namespaces": {}}))]));
    assert_eq!(cluster([deny(1), accept(2)]).verdict(FOREIGN), "no");
    assert_eq!(cluster([deny(2), accept(1)]).verdict(FOREIGN), "yes");
    assert_eq!(cluster([deny(5), accept(5)]).verdict(FOREIGN), "?");
    assert_eq!(cluster([deny(5), accept(5)]).verdict(LOCAL), "yes");
    let both = |first, second| cnp("c", "Admin", 1, json!([rule(first, blue()), rule(second, blue())]));
    assert_eq!(cluster([both("Accept", "Deny")]).verdict(FOREIGN), "yes");
    assert_eq!(cluster([both("Deny", "Accept")]).verdict(FOREIGN), "no");
}

#[test]
fn ports_of_both_versions() {
    let with = |ports: Value| {
        let mut rule = rule("Deny", blue());
        rule.as_object_mut().unwrap().extend(ports.as_object().unwrap().clone());
        cluster([cnp("c", "Admin", 1, json!([rule]))])
    };
    let rows = [
        (json!({"protocols": [{"tcp": {"destinationPort": {"number": 80}}}]}), "no", "yes"),
        (json!({"protocols": [{"tcp": {"destinationPort": {"range": {"start": 1, "end": 9000}}}}]}), "no", "no"),
        (json!({"protocols": [{"tcp": {}}]}), "no", "no"),
        (json!({"protocols": [{"udp": {}}]}), "yes", "yes"),
        (json!({"protocols": [{"destinationNamedPort": "http"}]}), "no", "yes"),
        (json!({"ports": [{"portNumber": {"protocol": "TCP", "port": 80}}]}), "no", "yes"),
        (json!({"ports": [{"portRange": {"start": 8000, "end": 9000}}]}), "yes", "no"),
        (json!({"ports": [{"namedPort": "http"}]}), "no", "yes"),
    ];
    for (ports, on_80, on_8443) in rows {
        let world = with(ports.clone());
        assert_eq!(world.verdict(FOREIGN), on_80, "{ports}");
        assert_eq!(world.verdict("other/client -> app/server TCP 8443"), on_8443, "{ports}");
    }
}

#[test]
fn egress_peers() {
    let to = |action: &str, peer: Value| anp("a", 1, json!([{"action": action, "to": [peer]}]));
    let rows = [
        (to("Deny", json!({"networks": ["203.0.113.0/24"]})), "app/server -> 203.0.113.9 TCP 443", "no"),
        (to("Deny", json!({"networks": ["203.0.113.0/24"]})), "app/server -> 203.0.114.9 TCP 443", "yes"),
        (to("Deny", json!({"networks": ["10.0.0.0/8"]})), "app/server -> other/client TCP 443", "no"),
        (
            to("Deny", json!({"nodes": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}})),
            "app/server -> node:n2 TCP 443",
            "no",
        ),
        (to("Deny", json!({"nodes": {"matchLabels": {"x": "y"}}})), "app/server -> node:n2 TCP 443", "yes"),
        (
            to("Deny", json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}}})),
            "app/server -> other/client TCP 443",
            "no",
        ),
        // A peer of a later version: to deny fails closed, to allow matches nothing.
        (to("Deny", json!({"galaxies": {}})), "app/server -> other/client TCP 443", "no"),
        (to("Pass", json!({"galaxies": {}})), "app/server -> other/client TCP 443", "no"),
        (to("Allow", json!({"galaxies": {}})), "app/server -> other/client TCP 443", "yes"),
    ];
    for (policy, flow, wanted) in rows {
        assert_eq!(cluster([policy.clone()]).verdict(flow), wanted, "{flow} under {policy}");
    }
    // Names are resolved by the engine only; that matters where the answer depends on it.
    let names = |rest| anp("a", 1, json!([{"action": "Accept", "to": [{"domainNames": ["example.org"]}]}, rest]));
    let deny = names(json!({"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}));
    let accept = names(json!({"action": "Accept", "to": [{"networks": ["0.0.0.0/0"]}]}));
    assert_eq!(cluster([deny]).verdict("app/server -> 203.0.113.9 TCP 443"), "?");
    assert_eq!(cluster([accept]).verdict("app/server -> 203.0.113.9 TCP 443"), "yes");
}

#[test]
fn a_denial_names_its_rule() {
    let world = cluster([cnp(
        "keep-out",
        "Admin",
        1,
        json!([rule("Pass", json!({"namespaces": {"matchLabels": {"team": "green"}}})), rule("Deny", blue())]),
    )]);
    let Side::DeniedBy { by } = world.decide(&flow(FOREIGN)).ingress else { panic!() };
    assert_eq!((by.policy.to_string().as_str(), by.rule, by.tier), ("keep-out", 1, Tier::Admin));
    let tie = cluster([
        cnp("a", "Admin", 1, json!([rule("Deny", blue())])),
        cnp("b", "Admin", 1, json!([rule("Accept", blue())])),
    ]);
    let Side::Undecidable { why: Undecided::SamePriority { .. } } = tie.decide(&flow(FOREIGN)).ingress else {
        panic!()
    };
}

#[test]
fn subjects_follow_the_labels_of_namespaces() {
    let mut world = cluster([cnp("c", "Admin", 1, json!([rule("Deny", json!({"namespaces": {}}))]))]);
    assert_eq!(world.verdict(FOREIGN), "no");
    world.apply(namespace("app", json!({"team": "green"})));
    assert_eq!(world.verdict(FOREIGN), "yes");
    assert_eq!(world.verdict("app/client -> other/client TCP 80"), "yes");
    world.apply(namespace("other", json!({"team": "red"})));
    assert_eq!(world.verdict("app/client -> other/client TCP 80"), "no");
}
