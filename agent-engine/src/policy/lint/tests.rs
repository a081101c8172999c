//! Positive and negative cases of every lint: one policy each, in a small cluster that was read completely.

use serde_json::{Value, json};

use super::{Level, Lint, LintId, Usage, lint};
use crate::cluster::{Cluster, Object, Origin};
use crate::words::{Direction, Name, Protocol};

use Level::{Error, Note, Warning};
use LintId::*;

/// `(what, spec of policy app/p, expected lints)`.
type Case = (&'static str, Value, &'static [(LintId, Level)]);

fn web() -> Value {
    json!({"matchLabels": {"app": "web"}})
}

fn istiod() -> Value {
    json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "mesh"}},
           "podSelector": {"matchLabels": {"app": "istiod"}}})
}

fn tcp(port: impl Into<Value>) -> Value {
    json!({"protocol": "TCP", "port": port.into()})
}

/// A policy that isolates and lists one rule.
fn ingress(rule: Value) -> Value {
    json!({"podSelector": web(), "policyTypes": ["Ingress"], "ingress": [rule]})
}

fn egress(rule: Value) -> Value {
    json!({"podSelector": web(), "policyTypes": ["Egress"], "egress": [rule]})
}

#[test]
fn policy_types() {
    table(&[
        (
            "ingress: [] shows that ingress was thought of",
            json!({"podSelector": web(), "ingress": [], "egress": [{}]}),
            &[],
        ),
        ("rules of both directions", json!({"podSelector": web(), "ingress": [{}], "egress": [{}]}), &[]),
        ("policyTypes written", json!({"podSelector": web(), "policyTypes": ["Egress"], "egress": [{}]}), &[]),
        (
            "an empty egress list without policyTypes",
            json!({"podSelector": web(), "egress": []}),
            &[(PolicyTypesEgress, Warning)],
        ),
        (
            "an empty egress list with Egress denies",
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": []}),
            &[],
        ),
        ("default deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}), &[]),
        (
            "egress rules under policyTypes Ingress",
            json!({"podSelector": web(), "policyTypes": ["Ingress"], "ingress": [{}], "egress": [{}]}),
            &[(RulesIgnored, Warning)],
        ),
    ]);
}

#[test]
fn policy_types_that_isolate_ingress() {
    let spec = json!({"podSelector": web(), "egress": [{"to": [istiod()]}]});
    let mut objects = objects(spec, "app");
    assert_eq!(ids(&objects), [], "default-deny isolates ingress anyway");
    objects.retain(|o| o["metadata"]["name"] != "default-deny");
    assert_eq!(ids(&objects), [(PolicyTypesIngress, Warning), (IsolatesAlone, Note)]);
}

#[test]
fn selection() {
    table(&[
        (
            "a label that no pod has",
            json!({"podSelector": {"matchLabels": {"app": "wbe"}}}),
            &[(SelectsNothing, Warning)],
        ),
        ("a missing podSelector selects all", json!({"policyTypes": ["Ingress"]}), &[]),
        (
            "an expression that some pod meets",
            json!({"podSelector": {"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": ["db"]}]}}),
            &[],
        ),
        (
            "only host network pods",
            json!({"podSelector": {"matchLabels": {"app": "hostnet"}}}),
            &[(SelectsHostNetwork, Warning)],
        ),
    ]);
    let elsewhere = objects(json!({"podSelector": web()}), "nobody");
    assert_eq!(ids(&elsewhere), [], "of namespace nobody no pod was read: it may have some");
}

#[test]
fn peers() {
    let select = |namespace: Value, pods: Value| {
        ingress(json!({"from": [{"namespaceSelector": namespace, "podSelector": pods}]}))
    };
    table(&[
        (
            "a label that no namespace carries",
            select(json!({"matchLabels": {"name": "mesh"}}), web()),
            &[(NamespaceLabelUnknown, Warning)],
        ),
        (
            "a value that no namespace has",
            select(json!({"matchLabels": {"kubernetes.io/metadata.name": "meshes"}}), web()),
            &[(PeerNoNamespace, Warning)],
        ),
        (
            "no namespace, beside a peer that matches",
            ingress(json!({"from": [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
                {"podSelector": web()}]})),
            &[(PeerNoNamespace, Note)],
        ),
        (
            "a podSelector alone whose pods are elsewhere",
            ingress(json!({"from": [{"podSelector": {"matchLabels": {"app": "istiod"}}}]})),
            &[(PeerOwnNamespace, Warning)],
        ),
        (
            "the same, and a peer that names them there",
            ingress(json!({"from": [{"podSelector": {"matchLabels": {"app": "istiod"}}}, istiod()]})),
            &[(PeerNoPod, Note)],
        ),
        (
            "a label that no pod has",
            ingress(json!({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"metrics": "yes"}}}]})),
            &[(PeerNoPod, Note)],
        ),
        (
            "pods of a namespace of which none was read",
            select(
                json!({"matchLabels": {"kubernetes.io/metadata.name": "empty"}}),
                json!({"matchLabels": {"a": "b"}}),
            ),
            &[],
        ),
        (
            "only host network pods",
            ingress(json!({"from": [{"podSelector": {"matchLabels": {"app": "hostnet"}}}]})),
            &[(PeerHostNetwork, Warning)],
        ),
        ("pods that are there", ingress(json!({"from": [istiod()]})), &[]),
        ("every namespace", ingress(json!({"from": [{"namespaceSelector": {}}]})), &[]),
    ]);
}

#[test]
fn shapes() {
    let mesh = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "mesh"}}});
    let pods = json!({"podSelector": {"matchLabels": {"app": "istiod"}}});
    table(&[
        (
            "two list items, and the pods are in those namespaces only",
            egress(json!({"to": [mesh, pods]})),
            &[(OrNotAnd, Warning)],
        ),
        (
            "two list items that mean different pods",
            egress(json!({"to": [mesh, {"podSelector": {"matchLabels": {"app": "db"}}}]})),
            &[],
        ),
        ("one list item with both", egress(json!({"to": [istiod()]})), &[]),
        ("from: [] without ports", ingress(json!({"from": []})), &[(EmptyPeerList, Warning)]),
        ("from: [] with ports", ingress(json!({"from": [], "ports": [tcp(8080)]})), &[(EmptyPeerList, Note)]),
        ("from left out", ingress(json!({})), &[]),
        ("ports only", ingress(json!({"ports": [tcp(8080)]})), &[(PortsOnly, Note)]),
        ("DNS to anywhere", egress(json!({"ports": [{"protocol": "UDP", "port": 53}, tcp(53)]})), &[]),
        (
            "peers, then their ports as a rule of their own",
            json!({"podSelector": web(), "policyTypes": ["Egress"],
                   "egress": [{"to": [istiod()]}, {"ports": [tcp(15012)]}]}),
            &[(SplitRule, Warning)],
        ),
        (
            "peers, then another port",
            json!({"podSelector": web(), "policyTypes": ["Egress"], "egress": [{"to": [istiod()]}, {"ports": [tcp(443)]}]}),
            &[(SplitRule, Note)],
        ),
        (
            "peers, then DNS",
            json!({"podSelector": web(), "policyTypes": ["Egress"],
                   "egress": [{"to": [istiod()]}, {"ports": [{"protocol": "UDP", "port": 53}]}]}),
            &[],
        ),
    ]);
}

#[test]
fn ports() {
    let to_istiod = |ports: Value| egress(json!({"to": [istiod()], "ports": ports}));
    table(&[
        ("the Service's port", to_istiod(json!([tcp(443)])), &[(ServicePort, Warning)]),
        ("the pods' port", to_istiod(json!([tcp(15017)])), &[]),
        ("both", to_istiod(json!([tcp(443), tcp(15017)])), &[]),
        ("a Service port that is the pods' port", to_istiod(json!([tcp(15012)])), &[]),
        (
            "the Service's port, in another protocol",
            to_istiod(json!([{"protocol": "UDP", "port": 443}])),
            &[(RuleUnused, Note)],
        ),
        ("443 to anywhere is not about this Service", egress(json!({"ports": [tcp(443)]})), &[(PortsOnly, Note)]),
        (
            "at the destination",
            ingress(json!({"from": [{"podSelector": {}}], "ports": [tcp(80)]})),
            &[(ServicePort, Warning)],
        ),
        ("a range around the pods' port", to_istiod(json!([{"port": 15000, "endPort": 15100}])), &[]),
        ("a name that the pods declare", to_istiod(json!([tcp("webhook")])), &[]),
        ("a name that they do not", to_istiod(json!([tcp("https")])), &[(PortNameUnknown, Warning)]),
        (
            "a name in another protocol",
            to_istiod(json!([{"protocol": "UDP", "port": "webhook"}])),
            &[(PortNameUnknown, Warning)],
        ),
        (
            "a port that nobody declares",
            ingress(json!({"from": [{"podSelector": {}}], "ports": [tcp(9999)]})),
            &[(RuleUnused, Note)],
        ),
        (
            "Istio's ports need no declaration",
            ingress(json!({"from": [{"podSelector": {}}], "ports": [tcp(15020)]})),
            &[],
        ),
    ]);
}

#[test]
fn invalid() {
    let block = |cidr: &str, except: Value| egress(json!({"to": [{"ipBlock": {"cidr": cidr, "except": except}}]}));
    table(&[
        ("no CIDR", block("10.0.0.0", json!(null)), &[(Invalid, Error)]),
        ("an exception elsewhere", block("10.0.0.0/8", json!(["11.0.0.0/16"])), &[(Invalid, Error)]),
        ("an exception inside", block("10.0.0.0/8", json!(["10.1.0.0/16"])), &[]),
        ("an empty peer", egress(json!({"to": [{}]})), &[(Invalid, Error)]),
        (
            "ipBlock and selector",
            egress(json!({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]})),
            &[(Invalid, Error)],
        ),
        (
            "a range backwards",
            egress(json!({"ports": [{"port": 90, "endPort": 80}]})),
            &[(Invalid, Error), (PortsOnly, Note)],
        ),
        (
            "an unknown operator",
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}),
            &[(Invalid, Error)],
        ),
        (
            "a policy type that does not exist",
            json!({"podSelector": web(), "policyTypes": ["ingress"]}),
            &[(Invalid, Error)],
        ),
    ]);
}

#[test]
fn isolation() {
    let rule = json!({"podSelector": web(), "policyTypes": ["Ingress"], "ingress": [{"from": [istiod()]}]});
    let with_deny = objects(rule.clone(), "app");
    assert!(!ids(&with_deny).contains(&(IsolatesAlone, Note)), "default-deny isolates these pods anyway");
    let mut objects = with_deny;
    objects.retain(|o| o["metadata"]["name"] != "default-deny");
    assert_eq!(ids(&objects), [(IsolatesAlone, Note)]);
}

#[test]
fn used_rules_are_not_unused() {
    let spec = ingress(json!({"from": [{"podSelector": {}}], "ports": [tcp(9999)]}));
    let rules = [(Name::new("app", "p"), Direction::Ingress, 0)].into();
    let used = Usage { rules, ..Usage::default() };
    assert_eq!(lints(&objects(spec.clone(), "app"), &used), []);
    let probed = Usage { node_local: [("app".into(), Protocol::Tcp, 9999)].into(), ..Usage::default() };
    assert_eq!(lints(&objects(spec, "app"), &probed), [], "a probe's port");
}

#[test]
fn manifests_without_a_cluster_are_not_judged_by_what_they_lack() {
    let mut objects = objects(egress(json!({"to": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}]})), "app");
    objects.retain(|o| o["kind"] == "NetworkPolicy" || o["metadata"]["namespace"] == "app");
    assert_eq!(ids(&objects), [], "no namespace was read, so none can be missing");
}

#[test]
fn messages_name_what_is_there() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "web", "tier": "front"}}});
    let found = lints(&objects(spec, "app"), &Usage::default());
    assert_eq!(found[0].message, "selects no pod: none of app has app=web, tier=front (pod app/web-0 has tier=back)");
    let spec = ingress(json!({"from": [{"namespaceSelector": {"matchLabels": {"name": "mesh"}}}]}));
    let found = lints(&objects(spec, "app"), &Usage::default());
    assert_eq!(found[0].message, "matches no namespace: none carries the label name (wanted: name=mesh)");
    assert_eq!(found[0].hint, "every namespace carries its name: use kubernetes.io/metadata.name: mesh");
}

fn table(cases: &[Case]) {
    for (what, spec, expected) in cases {
        let found = ids(&objects(spec.clone(), "app"));
        let mut expected = expected.to_vec();
        expected.sort_unstable_by_key(|(id, level)| (*level, *id));
        assert_eq!(found, expected, "{what}: {spec}");
    }
}

fn ids(objects: &[Value]) -> Vec<(LintId, Level)> {
    lints(objects, &Usage::default()).iter().map(|l| (l.id, l.level)).collect()
}

/// The lints of policy `p`.
fn lints(objects: &[Value], used: &Usage) -> Vec<Lint> {
    let mut cluster = Cluster::default();
    for object in objects {
        cluster.apply(Object::from_value(object.clone()).expect("an object"), Origin::default());
    }
    lint(&cluster, used).into_iter().filter(|l| *l.policy.name == *"p").collect()
}

/// A cluster, and policy `p` with this spec.
fn objects(spec: Value, namespace: &str) -> Vec<Value> {
    let named = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    let pod = |namespace: &str, name: &str, labels: Value, ports: Value, host_network: bool| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": labels},
               "spec": {"hostNetwork": host_network, "containers": [{"name": "c", "ports": ports}]}})
    };
    let service = |namespace: &str, name: &str, app: &str, ports: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
               "spec": {"selector": {"app": app}, "ports": ports}})
    };
    let policy = |namespace: &str, name: &str, spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
               "metadata": {"namespace": namespace, "name": name}, "spec": spec})
    };
    vec![
        named("Namespace", "kube-system"),
        named("Namespace", "mesh"),
        named("Namespace", "app"),
        named("Namespace", "empty"),
        pod(
            "mesh",
            "istiod-0",
            json!({"app": "istiod"}),
            json!([{"name": "xds", "containerPort": 15012},
            {"name": "webhook", "containerPort": 15017}]),
            false,
        ),
        service(
            "mesh",
            "istiod",
            "istiod",
            json!([{"name": "xds", "port": 15012},
            {"name": "webhook", "port": 443, "targetPort": 15017}]),
        ),
        pod("app", "web-0", json!({"app": "web", "tier": "back"}), json!([{"containerPort": 8080}]), false),
        pod("app", "db-0", json!({"app": "db"}), json!([{"containerPort": 5432}]), false),
        pod("app", "hostnet-0", json!({"app": "hostnet"}), json!([{"containerPort": 8080}]), true),
        service("app", "web", "web", json!([{"port": 80, "targetPort": 8080}])),
        policy("app", "default-deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
        policy(namespace, "p", spec),
    ]
}
