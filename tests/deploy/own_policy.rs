//! The NetworkPolicy of the agents themselves, judged by the engine that they run: under default-deny they can do their work, and
//! nothing else is open.

use std::net::IpAddr;

use serde_json::{Value, json};
use weir_engine::cluster::{Cluster, Object, Origin};
use weir_engine::policy::{Admission, Endpoint, Flow, Policies, Profile};
use weir_engine::words::{Name, Protocol};

use super::chart::{NAMESPACE, render};

/// A cluster in which everything in the agents' namespace is denied but for what the chart opens.
struct World {
    cluster: Cluster,
    policies: Policies,
}

impl World {
    fn new(over: &str) -> Self {
        let documents = render(over, "Helm");
        let rendered = |file: &str| super::yaml(&documents.iter().find(|(name, _)| name == file).unwrap().1);
        let template = rendered("daemonset.yaml")["spec"]["template"].clone();
        let deny = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "default-deny", "namespace": NAMESPACE},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        });
        let mut world = Self { cluster: Cluster::default(), policies: Policies::new(Profile::Spec) };
        for namespace in [NAMESPACE, "monitoring", "shop"] {
            world.apply(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": namespace, "labels": {"kubernetes.io/metadata.name": namespace}},
            }));
        }
        world.apply(pod(
            NAMESPACE,
            "weir",
            "10.1.0.1",
            &template["metadata"]["labels"],
            &template["spec"]["containers"],
        ));
        let plain = json!([{"name": "main", "image": "any"}]);
        world.apply(pod("monitoring", "prometheus", "10.1.0.2", &json!({"app": "prometheus"}), &plain));
        world.apply(pod("shop", "cart", "10.1.0.3", &json!({"app": "cart"}), &plain));
        world.apply(deny);
        world.apply(rendered("networkpolicy.yaml"));
        world
    }

    fn apply(&mut self, object: Value) {
        let object = Object::from_value(object).unwrap();
        let change = self.cluster.apply(object, Origin::default());
        self.policies.update(&self.cluster, &change);
    }

    fn admits(&self, source: Endpoint, destination: Endpoint, protocol: Protocol, port: u16) -> bool {
        let flow = Flow { source, destination, protocol, port, dialled: None };
        match self.policies.admits(&self.cluster, &flow) {
            Admission::Admitted => true,
            Admission::NotAdmitted => false,
            Admission::Undecidable => panic!("{flow:?}"),
        }
    }
}

fn pod(namespace: &str, name: &str, address: &str, labels: &Value, containers: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": "worker-1", "containers": containers},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

fn named(namespace: &str, name: &str) -> Endpoint {
    Endpoint::Pod { name: Name::new(namespace, name), address: None }
}

fn agent() -> Endpoint {
    named(NAMESPACE, "weir")
}

fn address(text: &str) -> Endpoint {
    Endpoint::Address(text.parse::<IpAddr>().unwrap())
}

#[test]
fn the_agents_work_under_default_deny() {
    let world = World::new("");
    assert!(world.admits(named("monitoring", "prometheus"), agent(), Protocol::Tcp, 15099));
    for port in [443, 6443] {
        assert!(world.admits(agent(), address("192.0.2.1"), Protocol::Tcp, port), "API server on {port}");
    }
    for port in [53, 8053, 5353, 1053] {
        assert!(world.admits(agent(), named("shop", "cart"), Protocol::Udp, port), "DNS on {port}");
    }
}

#[test]
fn nothing_else_is_open() {
    let world = World::new("");
    assert!(!world.admits(named("monitoring", "prometheus"), agent(), Protocol::Tcp, 22));
    assert!(!world.admits(named("monitoring", "prometheus"), agent(), Protocol::Udp, 15099));
    assert!(!world.admits(agent(), address("192.0.2.1"), Protocol::Tcp, 80));
    assert!(!world.admits(agent(), named("shop", "cart"), Protocol::Tcp, 8080));
}

#[test]
fn it_can_be_narrowed() {
    let world = World::new(
        "{networkPolicy: {metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}], \
          apiServerCidrs: [192.0.2.1/32], apiServerPorts: [6443]}}",
    );
    assert!(world.admits(named("monitoring", "prometheus"), agent(), Protocol::Tcp, 15099));
    assert!(!world.admits(named("shop", "cart"), agent(), Protocol::Tcp, 15099));
    assert!(world.admits(agent(), address("192.0.2.1"), Protocol::Tcp, 6443));
    assert!(!world.admits(agent(), address("192.0.2.2"), Protocol::Tcp, 6443));
    assert!(!world.admits(agent(), address("192.0.2.1"), Protocol::Tcp, 443));
}
