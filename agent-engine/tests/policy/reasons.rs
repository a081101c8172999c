//! The reasons, as a person reads them.

use serde_json::{Value, json};
use weir_engine::policy::{Side, Undecided};

use crate::world::{World, flow, namespace, node, pod, policy};

fn cluster() -> World {
    World::new([
        namespace("app", json!({"team": "red"})),
        namespace("other", json!({"team": "blue"})),
        node("n1", "192.168.0.1"),
        node("n2", "192.168.0.2"),
        pod("app/server", "10.0.0.1", json!({"app": "server"})),
        pod("app/client", "10.0.0.2", json!({"app": "client"})),
        pod("other/client", "10.0.1.2", json!({"app": "client"})),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "app"}, "spec": {
            "selector": {"app": "server"}, "ports": [{"port": 443, "targetPort": 8443}, {"port": 8000, "targetPort": "http"}]}}),
    ])
}

fn ingress(world: &World, text: &str) -> Side {
    world.decide(&flow(text)).ingress
}

/// The one reason of one rule.
fn why(rule: Value, text: &str) -> String {
    let mut world = cluster();
    world.apply(policy("app/tested", json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [rule]})));
    match ingress(&world, text) {
        Side::NotAdmitted { selecting } => selecting[0].misses[0].why.to_string(),
        side => panic!("{text}: {side:?}"),
    }
}

#[test]
fn each_miss_says_what_is_different() {
    let foreign = "other/client -> app/server TCP 8443";
    let peer = |peer: Value| json!({"from": [peer], "ports": [{"port": 8443}]});
    let port = |port: Value| json!({"ports": [port]});
    let rows = [
        (
            peer(json!({"podSelector": {"matchLabels": {"app": "client"}}})),
            foreign,
            "a podSelector alone means the policy's own namespace app; the pod is in other (its labels match)",
        ),
        (
            peer(json!({"podSelector": {"matchLabels": {"app": "x"}}})),
            "app/client -> app/server TCP 8443",
            "wants a pod with app=x; the pod has app=client",
        ),
        (
            peer(json!({"podSelector": {"matchLabels": {"role": "x"}}})),
            "app/client -> app/server TCP 8443",
            "wants a pod with role=x; the pod has no label role",
        ),
        (
            peer(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}})),
            foreign,
            "wants a namespace with team=red; namespace other has team=blue",
        ),
        (
            peer(json!({"namespaceSelector": {"matchLabels": {"name": "other"}}})),
            foreign,
            "wants a namespace with name=other; namespace other has no label name; no namespace matches this selector",
        ),
        (
            peer(
                json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["blue", "x"]}]}}),
            ),
            foreign,
            "wants a namespace with team not in (blue, x); namespace other has team=blue",
        ),
        (
            peer(json!({"namespaceSelector": {}})),
            "203.0.113.9 -> app/server TCP 8443",
            "selectors match pods only; 203.0.113.9 is no pod's address",
        ),
        (
            peer(json!({"namespaceSelector": {}})),
            "node:n2 -> app/server TCP 8443",
            "selectors match pods only; the other end is the host network of node n2",
        ),
        (
            peer(json!({"namespaceSelector": {}})),
            "outside -> app/server TCP 8443",
            "selectors match pods only; the other end is outside the cluster",
        ),
        (peer(json!({"ipBlock": {"cidr": "10.9.0.0/16"}})), foreign, "10.0.1.2 is outside 10.9.0.0/16"),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.1.0/24"]}})),
            foreign,
            "10.0.1.2 is in 10.0.1.0/24, excepted from 10.0.0.0/8",
        ),
        (peer(json!({"ipBlock": {"cidr": "10.0.0.0/99"}})), foreign, "the address block 10.0.0.0/99 is not valid"),
        (port(json!({"port": 443})), foreign, "opens 443, the port of Service app/server; the pod listens on 8443"),
        (
            port(json!({"port": 8000})),
            "other/client -> app/server TCP 80",
            "opens 8000, the port of Service app/server; the pod listens on 80",
        ),
        (port(json!({"port": 9000, "endPort": 9010})), foreign, "opens TCP 9000-9010, not 8443"),
        (port(json!({"port": 8443, "protocol": "UDP"})), foreign, "opens 8443 for UDP, the flow is TCP"),
        (port(json!({"port": 53, "protocol": "UDP"})), foreign, "opens no TCP port; the flow goes to TCP 8443"),
        (
            port(json!({"port": "http"})),
            foreign,
            "opens the port named http, which is 80 on the destination pod, not 8443",
        ),
        (
            port(json!({"port": "web"})),
            "other/client -> app/server TCP 80",
            "opens the port named web; the destination pod has no such port, it calls 80 http",
        ),
        (
            port(json!({"port": "web"})),
            foreign,
            "opens the port named web; the destination pod has no container port of that name",
        ),
        (port(json!({"port": 0})), foreign, "the port is not valid: 0"),
        (json!({"from": [{}]}), foreign, "the peer is not valid: no ipBlock, namespaceSelector or podSelector"),
    ];
    for (rule, text, wanted) in rows {
        assert_eq!(why(rule.clone(), text), wanted, "{rule}");
    }
}

#[test]
fn the_nearest_miss_comes_first() {
    let mut world = cluster();
    world.apply(policy("app/a-deny", json!({"podSelector": {}})));
    world.apply(policy(
        "app/b-far",
        json!({"podSelector": {}, "ingress": [
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "green"}}}], "ports": [{"port": 1}]}]}),
    ));
    world.apply(policy("app/c-near", json!({"podSelector": {}, "ingress": [
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "green"}}}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "x"}}}, {"namespaceSelector": {}}], "ports": [{"port": 443}]}]})));
    let Side::NotAdmitted { selecting } = ingress(&world, "other/client -> app/server TCP 8443") else { panic!() };
    let order: Vec<String> = selecting.iter().map(|s| s.policy.to_string()).collect();
    assert_eq!(order, ["app/c-near", "app/b-far", "app/a-deny"]);
    let first = &selecting[0].misses[0];
    assert_eq!((first.rule, first.peer, first.port_matches), (1, Some(1), false));
    assert!(selecting[2].misses.is_empty());
}

#[test]
fn admission_names_every_rule_and_every_selecting_policy() {
    let mut world = cluster();
    world.apply(policy("app/deny", json!({"podSelector": {}})));
    world.apply(policy("app/two", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 1}]}, {}, {}]})));
    let Side::Admitted { by, selecting } = ingress(&world, "other/client -> app/server TCP 80") else { panic!() };
    assert_eq!(by.iter().map(ToString::to_string).collect::<Vec<_>>(), ["app/two rule 1", "app/two rule 2"]);
    assert_eq!(selecting.iter().map(ToString::to_string).collect::<Vec<_>>(), ["app/deny", "app/two"]);
}

#[test]
fn reasons_read_later_are_those_of_the_decision() {
    let mut world = cluster();
    let green = policy(
        "app/tested",
        json!({"podSelector": {}, "ingress": [
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "green"}}}]}]}),
    );
    world.apply(green.clone());
    let text = "other/client -> app/server TCP 80";
    let (read, unread) = (ingress(&world, text), ingress(&world, text));
    let before = format!("{read:?}");
    world.apply(namespace("other", json!({"team": "green"})));
    world.apply(pod("other/client", "10.9.9.9", json!({"app": "changed"})));
    world.delete(&green);
    assert_eq!(format!("{unread:?}"), before);
    assert_eq!(ingress(&world, text), Side::NotIsolated);
}

#[test]
fn decisions_are_data() {
    let mut world = cluster();
    world.apply(policy(
        "app/tested",
        json!({"podSelector": {}, "ingress": [
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "green"}}}], "ports": [{"port": 443}]}]}),
    ));
    for text in ["other/client -> app/server TCP 80", "app/server -> node:n1 TCP 1", "outside -> app/server TCP 443"] {
        let decision = world.decide(&flow(text));
        let text = serde_json::to_string(&decision).unwrap();
        assert_eq!(serde_json::from_str::<weir_engine::policy::Decision>(&text).unwrap(), decision, "{text}");
    }
    let unknown = ingress(&world, "other/nobody -> app/server TCP 443");
    assert!(matches!(unknown, Side::Undecidable { why: Undecided::UnknownPod { .. } }), "{unknown:?}");
}
