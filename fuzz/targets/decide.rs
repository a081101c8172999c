//! Small clusters of every shape: the decision never panics, the quick answer is the full one's, and the order in which
//! objects arrive does not matter.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use weir_engine::cluster::{Cluster, Object, Origin};
use weir_engine::policy::{Endpoint, Flow, Policies, Profile};
use weir_engine::words::{Name, Protocol};

/// Few words, so that selectors meet labels.
const KEYS: [&str; 4] = ["app", "tier", "istio", "kubernetes.io/metadata.name"];
const VALUES: [&str; 5] = ["a", "b", "n0", "n1", ""];
const OPERATORS: [&str; 5] = ["In", "NotIn", "Exists", "DoesNotExist", "Near"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "none"];
const BLOCKS: [&str; 8] =
    ["10.0.0.0/8", "10.0.0.0/31", "0.0.0.0/0", "10.0.1.1/32", "fd00::/8", "::/0", "not a block", "10.0.0.300/8"];
const TYPES: [&str; 3] = ["Ingress", "Egress", "Sideways"];
const PROTOCOLS: [&str; 4] = ["TCP", "UDP", "SCTP", "ICMP"];

#[derive(Arbitrary, Debug)]
struct Mesh {
    namespaces: [Vec<(u8, u8)>; 2],
    pods: Vec<Pod>,
    policies: Vec<Policy>,
    ports: [u8; 2],
}

#[derive(Arbitrary, Debug)]
struct Pod {
    labels: Vec<(u8, u8)>,
    ports: Vec<(u8, u8, u8)>,
    host_network: bool,
    second_node: bool,
    dual_stack: bool,
}

#[derive(Arbitrary, Debug)]
struct Policy {
    selector: Option<Selector>,
    types: Option<Vec<u8>>,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

#[derive(Arbitrary, Debug)]
struct Selector {
    labels: Vec<(u8, u8)>,
    expressions: Vec<(u8, u8, Vec<u8>)>,
}

#[derive(Arbitrary, Debug)]
struct Rule {
    peers: Option<Vec<Peer>>,
    ports: Option<Vec<Port>>,
}

#[derive(Arbitrary, Debug)]
struct Peer {
    pods: Option<Selector>,
    namespaces: Option<Selector>,
    block: Option<(u8, Vec<u8>)>,
}

#[derive(Arbitrary, Debug)]
struct Port {
    protocol: Option<u8>,
    number: Option<i16>,
    name: Option<u8>,
    end: Option<i16>,
}

fuzz_target!(|mesh: Mesh| {
    let objects = objects(&mesh);
    let forward = load(objects.iter());
    let backward = load(objects.iter().rev());
    let ends: Vec<Endpoint> = (0..mesh.pods.len().min(5))
        .map(|index| Endpoint::Pod { name: Name::new(namespace(index), format!("p{index}")), address: None })
        .chain([Endpoint::External, Endpoint::Address("10.0.9.9".parse().expect("an address"))])
        .collect();
    for source in &ends {
        for destination in &ends {
            for port in mesh.ports {
                let (source, destination) = (source.clone(), destination.clone());
                let flow = Flow { source, destination, protocol: Protocol::Tcp, port: port.into(), dialled: None };
                let decision = forward.1.decide(&forward.0, &flow);
                assert_eq!(decision.admission(), forward.1.admits(&forward.0, &flow), "{flow:?}");
                let again = backward.1.decide(&backward.0, &flow);
                assert_eq!(decision.admission(), again.admission(), "order: {flow:?}");
                drop(format!("{decision:?}"));
            }
        }
    }
});

fn load<'a>(objects: impl Iterator<Item = &'a Value>) -> (Cluster, Policies) {
    let mut cluster = Cluster::default();
    let mut policies = Policies::new(Profile::default());
    for object in objects {
        // What the typed API refuses never reaches the engine.
        if let Ok(object) = Object::from_value(object.clone()) {
            let change = cluster.apply(object, Origin::default());
            policies.update(&cluster, &change);
        }
    }
    (cluster, policies)
}

fn objects(mesh: &Mesh) -> Vec<Value> {
    let mut all = Vec::new();
    for (index, labels) in mesh.namespaces.iter().enumerate() {
        let metadata = json!({"name": namespace(index), "labels": pairs(labels)});
        all.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
        let address = json!({"type": "InternalIP", "address": format!("192.168.0.{index}")});
        let status = json!({"addresses": [address]});
        all.push(
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("k{index}")}, "status": status}),
        );
    }
    for (index, pod) in mesh.pods.iter().enumerate().take(5) {
        let ports: Vec<Value> = pod.ports.iter().map(|(name, port, protocol)| {
            json!({"name": pick(&PORT_NAMES, *name), "containerPort": port, "protocol": pick(&PROTOCOLS, *protocol)})
        }).collect();
        let mut addresses = vec![json!({"ip": format!("10.0.{}.{index}", index % 2)})];
        if pod.dual_stack {
            addresses.push(json!({"ip": format!("fd00::{index}")}));
        }
        let node = if pod.second_node { "k1" } else { "k0" };
        let containers = json!([{"name": "c", "ports": ports}]);
        all.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{index}"), "namespace": namespace(index), "labels": pairs(&pod.labels)},
            "spec": {"nodeName": node, "hostNetwork": pod.host_network, "containers": containers},
            "status": {"podIPs": addresses},
        }));
    }
    for (index, policy) in mesh.policies.iter().enumerate().take(6) {
        let mut spec = Map::new();
        insert(&mut spec, "podSelector", policy.selector.as_ref().map(selector));
        let types = policy.types.as_ref().map(|types| types.iter().map(|t| json!(pick(&TYPES, *t))).collect());
        insert(&mut spec, "policyTypes", types);
        insert(&mut spec, "ingress", policy.ingress.as_ref().map(|r| rules(r, "from")));
        insert(&mut spec, "egress", policy.egress.as_ref().map(|r| rules(r, "to")));
        let metadata = json!({"name": format!("np{index}"), "namespace": namespace(index)});
        let api = "networking.k8s.io/v1";
        all.push(json!({"apiVersion": api, "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}));
    }
    all
}

fn rules(rules: &[Rule], side: &str) -> Value {
    rules
        .iter()
        .map(|rule| {
            let mut value = Map::new();
            insert(&mut value, side, rule.peers.as_ref().map(|peers| peers.iter().map(peer).collect()));
            insert(&mut value, "ports", rule.ports.as_ref().map(|ports| ports.iter().map(port).collect()));
            Value::Object(value)
        })
        .collect()
}

fn peer(peer: &Peer) -> Value {
    let mut value = Map::new();
    insert(&mut value, "podSelector", peer.pods.as_ref().map(selector));
    insert(&mut value, "namespaceSelector", peer.namespaces.as_ref().map(selector));
    let block = peer.block.as_ref().map(|(cidr, except)| {
        json!({"cidr": pick(&BLOCKS, *cidr), "except": except.iter().map(|e| pick(&BLOCKS, *e)).collect::<Vec<_>>()})
    });
    insert(&mut value, "ipBlock", block);
    Value::Object(value)
}

fn port(port: &Port) -> Value {
    let mut value = Map::new();
    insert(&mut value, "protocol", port.protocol.map(|p| json!(pick(&PROTOCOLS, p))));
    let name = port.name.map(|n| json!(pick(&PORT_NAMES, n)));
    insert(&mut value, "port", port.number.map(|n| json!(n)).or(name));
    insert(&mut value, "endPort", port.end.map(|e| json!(e)));
    Value::Object(value)
}

fn selector(selector: &Selector) -> Value {
    let expressions: Vec<Value> = selector
        .expressions
        .iter()
        .map(|(key, operator, values)| {
            let values: Vec<&str> = values.iter().map(|v| pick(&VALUES, *v)).collect();
            json!({"key": pick(&KEYS, *key), "operator": pick(&OPERATORS, *operator), "values": values})
        })
        .collect();
    json!({"matchLabels": pairs(&selector.labels), "matchExpressions": expressions})
}

fn pairs(labels: &[(u8, u8)]) -> Value {
    let all = labels.iter().map(|(key, value)| (pick(&KEYS, *key).to_owned(), json!(pick(&VALUES, *value))));
    Value::Object(all.collect())
}

fn namespace(index: usize) -> String {
    format!("n{}", index % 2)
}

fn pick(words: &[&'static str], index: u8) -> &'static str {
    words[usize::from(index) % words.len()]
}

fn insert(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value);
    }
}
