//! Every flow of the catalogue, blocked alone: its own series turns, and no other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::Engine;
use crate::policy::Endpoint;
use crate::requirement::{Pair, PairKey};
use crate::testing::{self as t, End, apply, at, connect};
use crate::verdict::State;
use crate::words::Protocol;

fn istio(kind: &str, group: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("{group}.istio.io/v1"), "kind": kind,
           "metadata": {"namespace": "istio-system", "name": name}, "spec": spec})
}

/// The small mesh with everything else that the catalogue knows of.
fn everything() -> Vec<Value> {
    let ambient = json!({"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "w"});
    let waypoint =
        json!({"gateway.networking.k8s.io/gateway-name": "w", "gateway.istio.io/managed": "istio.io-mesh-controller"});
    let sidecar = |app: &str| json!({"app": app, "security.istio.io/tlsMode": "istio"});
    let kyma = |istio: &str| json!({"app": istio, "istio": istio, "kyma-project.io/module": "istio"});
    let controller = json!({"kyma-project.io/module": "istio", "app.kubernetes.io/name": "istio-operator"});
    let scraper = json!({"networking.kyma-project.io/metrics-scraping": "allowed"});
    let http = |target: u16| json!([{"name": "http", "port": 80, "targetPort": target}]);
    let cross =
        json!([{"name": "tls", "port": 15443}, {"name": "xds", "port": 15012}, {"name": "hook", "port": 15017}]);
    let mut backend = sidecar("backend");
    backend["networking.kyma-project.io/from-ingressgateway"] = json!("allowed");
    let mut user = sidecar("user");
    user["networking.kyma-project.io/to-egressgateway"] = json!("allowed");
    let config = "extensionProviders:\n- name: authz\n  envoyExtAuthzHttp: {service: plain.plain.svc.cluster.local, port: 80}\n\
                  - name: traces\n  opentelemetry: {service: plain.plain.svc.cluster.local, port: 80}\n\
                  defaultProviders: {tracing: [traces]}\n";
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "istio"},
                     "data": {"mesh": config}});
    let rules = json!([{"issuer": "a", "jwksUri": "https://keys.example.com/jwks"}]);
    let authz = json!({"selector": {"matchLabels": {"istio": "ingressgateway"}}, "action": "CUSTOM",
                       "provider": {"name": "authz"}, "rules": [{}]});
    let route = json!([{"route": [{"destination": {"host": "server.app.svc.cluster.local", "port": {"number": 80}}}]}]);
    let one = ["app"].as_slice();
    let proxy = ["istio-proxy"].as_slice();
    let both = ["istio-proxy", "app"].as_slice();
    let mut objects = t::mesh();
    objects.extend([
        t::namespace("amb", ambient),
        t::namespace("plain", json!({})),
        t::namespace("kyma-system", json!({})),
        t::pod("istio-system", "cni", "10.1.0.80", json!({"k8s-app": "istio-cni-node"}), &["install-cni"]),
        t::pod("istio-system", "ztunnel", "10.1.0.81", json!({"app": "ztunnel"}), proxy),
        t::pod("amb", "client", "10.1.0.82", json!({"app": "client"}), one),
        t::pod("amb", "called", "10.1.1.83", json!({"app": "called"}), one),
        t::service("amb", "called", "10.2.2.83", json!({"app": "called"}), http(8080), "ClusterIP"),
        t::pod("amb", "w-0", "10.1.1.84", waypoint, proxy),
        t::pod("istio-system", "out", "10.1.1.85", json!({"app": "out", "istio": "egressgateway"}), proxy),
        t::service("istio-system", "out", "10.2.2.85", json!({"app": "out"}), http(8081), "ClusterIP"),
        t::pod("istio-system", "cross", "10.1.1.86", json!({"app": "cross", "istio": "eastwestgateway"}), proxy),
        t::service("istio-system", "cross", "10.2.2.86", json!({"app": "cross"}), cross, "LoadBalancer"),
        t::pod("istio-system", "kyma-in", "10.1.1.87", kyma("ingressgateway"), proxy),
        t::pod("istio-system", "kyma-out", "10.1.1.88", kyma("egressgateway"), proxy),
        t::service("istio-system", "kyma-out", "10.2.2.88", json!({"app": "egressgateway"}), http(8082), "ClusterIP"),
        t::pod("kyma-system", "controller", "10.1.0.89", controller, &["manager"]),
        t::pod("kyma-system", "agent", "10.1.0.90", scraper, &["vmagent"]),
        t::pod("app", "backend", "10.1.1.91", backend, both),
        t::service("app", "backend", "10.2.2.91", json!({"app": "backend"}), http(8083), "ClusterIP"),
        t::pod("app", "user", "10.1.1.92", user, both),
        t::pod("app", "server", "10.1.1.93", sidecar("server"), both),
        t::service("app", "server", "10.2.2.93", json!({"app": "server"}), http(8084), "ClusterIP"),
        t::pod("plain", "plain", "10.1.1.94", json!({"app": "plain"}), one),
        t::service("plain", "plain", "10.2.2.94", json!({"app": "plain"}), http(8085), "ClusterIP"),
        map,
        istio("RequestAuthentication", "security", "jwt", json!({"jwtRules": rules})),
        istio("AuthorizationPolicy", "security", "authz", authz),
        istio("Gateway", "networking", "g", json!({"selector": {"istio": "ingressgateway"}})),
        istio("VirtualService", "networking", "vs", json!({"gateways": ["istio-system/g"], "http": route})),
    ]);
    objects
}

/// What only traffic tells of: source, destination, pod port.
const TRAFFIC: [(&str, &str, u16); 16] = [
    (t::WEB, t::ISTIOD, 15010),
    (t::WEB, "10.1.1.93", 8084),
    ("10.1.1.94", "10.1.1.93", 8084),
    (t::WEB, "10.1.1.85", 8081),
    ("10.1.1.85", t::CLIENT, 443),
    ("10.1.1.88", t::CLIENT, 443),
    ("10.1.0.82", "10.1.1.83", 15008),
    ("10.1.0.82", "10.1.1.93", 15008),
    (t::WEB, "10.1.1.83", 15008),
    ("10.1.0.82", "10.1.1.94", 8085),
    (t::NODE_A, "10.1.0.82", 8080),
    ("10.1.0.82", "10.1.1.84", 15008),
    (t::CLIENT, "10.1.1.86", 15443),
    (t::CLIENT, "10.1.1.86", 15012),
    ("10.1.1.86", t::ISTIOD, 15017),
    // Where a declared host really is.
    (t::ISTIOD, "203.0.113.77", 443),
];

fn address(engine: &Engine, endpoint: &Endpoint) -> IpAddr {
    let cluster = &engine.cluster;
    match endpoint {
        Endpoint::Pod { address: Some(address), .. } | Endpoint::Node { address: Some(address), .. } => *address,
        Endpoint::Address(address) => *address,
        Endpoint::Pod { name, .. } => cluster.pod(name).expect("a pod").addresses[0],
        Endpoint::Node { name, .. } => cluster.node(name).expect("a node").addresses[0],
        Endpoint::External => t::ip("203.0.113.77"),
    }
}

/// The same packets, whatever they are required for.
fn wire(key: &PairKey) -> (String, String, Protocol, u16) {
    (key.source.to_string(), key.destination.to_string(), key.protocol, key.port)
}

#[test]
fn each_flow_blocked_alone_turns_its_own_series_only() {
    let mut base = Engine::new(t::settings());
    let namespaces = ["app", "istio-system", "kube-system", "monitoring", "amb", "plain", "kyma-system"];
    for object in everything().into_iter().chain(namespaces.map(t::default_deny)) {
        apply(&mut base, 0, object);
    }
    base.synced(at(0));
    for (index, (source, destination, port)) in (0_u64..).zip(TRAFFIC) {
        connect(&mut base, 20_000 + index * 1_000, source, destination, port, End::Established);
    }
    base.handle_timeout(at(60_000));
    let pairs: Vec<Pair> = base.pairs().cloned().collect();
    let mut covered: BTreeSet<&str> = BTreeSet::new();
    for pair in &pairs {
        covered.insert(&pair.key.flow);
        // The kubelet and the pods of its node are what no policy parts.
        if pair.key.source == crate::requirement::End::Kubelet {
            continue;
        }
        let (source, destination) = pair.instances().next().expect("an instance");
        let (from, to) = (address(&base, source), address(&base, destination));
        let tuple = t::tuple(&from.to_string(), &to.to_string(), pair.key.port, pair.key.protocol);
        let mut engine = base.clone();
        engine.observe(at(100_000), &t::drop_of(100_000, tuple));
        engine.handle_timeout(at(100_200));
        let snapshot = engine.snapshot(at(100_200));
        let turned: BTreeSet<String> = snapshot
            .pairs
            .iter()
            .filter(|p| p.state == State::Denied)
            .map(|p| format!("{} {} {} {} {}", p.flow, p.source.workload, p.destination.workload, p.port, p.protocol))
            .collect();
        let own: BTreeSet<String> = pairs
            .iter()
            .filter(|p| wire(&p.key) == wire(&pair.key))
            .map(|p| {
                let end = |end: &crate::requirement::End| match end {
                    crate::requirement::End::Workload(w) => w.name.to_string(),
                    other => other.to_string(),
                };
                let key = &p.key;
                format!("{} {} {} {} {}", key.flow, end(&key.source), end(&key.destination), key.port, key.protocol)
            })
            .collect();
        assert_eq!(turned, own, "{} → {}", pair.key.source, pair.key.destination);
    }
    let required = base.resolver.catalogue().flows().filter(|r| !r.configured).map(|r| &*r.id);
    let missing: Vec<&str> = required.filter(|id| !covered.contains(id)).collect();
    assert!(missing.is_empty(), "no pair in this mesh: {missing:?}");
}
