//! Random clusters, small enough that everything meets everything.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use weir_engine::policy::{Endpoint, Flow};
use weir_engine::words::{Name, Protocol};

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["x", "y", ""];
const PORTS: [u16; 4] = [80, 81, 443, 9000];
const NAMES: [&str; 2] = ["http", "metrics"];
const BLOCKS: [&str; 7] =
    ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.2/31", "192.168.0.0/16", "203.0.113.0/24", "::/0"];

fn labels() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map(select(&KEYS[..]), select(&VALUES[..]), 0..3).prop_map(|m| json!(m))
}

fn selector() -> impl Strategy<Value = Value> {
    let values = vec(select(&VALUES[..]), 1..3);
    let expression = prop_oneof![
        (select(&KEYS[..]), select(&["In", "NotIn"][..]), values)
            .prop_map(|(key, operator, values)| json!({"key": key, "operator": operator, "values": values})),
        (select(&KEYS[..]), select(&["Exists", "DoesNotExist"][..]))
            .prop_map(|(key, operator)| json!({"key": key, "operator": operator})),
    ];
    prop_oneof![
        2 => Just(json!({})),
        3 => labels().prop_map(|l| json!({"matchLabels": l})),
        2 => (labels(), vec(expression, 0..3)).prop_map(|(l, e)| json!({"matchLabels": l, "matchExpressions": e})),
        1 => select(&NAMESPACES[..]).prop_map(|n| json!({"matchLabels": {"kubernetes.io/metadata.name": n}})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let excepts: fn(&str) -> Vec<&'static str> = |cidr| {
        let block: ipnet::IpNet = cidr.parse().unwrap();
        BLOCKS.into_iter().filter(|b| *b != cidr && block.contains(&b.parse::<ipnet::IpNet>().unwrap())).collect()
    };
    prop_oneof![
        selector().prop_map(|s| json!({"podSelector": s})),
        selector().prop_map(|s| json!({"namespaceSelector": s})),
        (selector(), selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        (select(&BLOCKS[..]), any::<bool>()).prop_map(move |(cidr, except)| {
            let except = if except { excepts(cidr) } else { Vec::new() };
            json!({"ipBlock": {"cidr": cidr, "except": except}})
        }),
    ]
}

fn protocol() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![2 => Just(None), 2 => Just(Some("TCP")), 1 => Just(Some("UDP"))]
}

fn port() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        1 => Just(Value::Null),
        4 => select(&PORTS[..]).prop_map(|p| json!({"port": p})),
        1 => Just(json!({"port": 80, "endPort": 443})),
        2 => select(&NAMES[..]).prop_map(|n| json!({"port": n})),
    ];
    (number, protocol()).prop_map(|(port, protocol)| {
        let mut port = port.as_object().cloned().unwrap_or_default();
        port.extend(protocol.map(|p| ("protocol".to_owned(), json!(p))));
        Value::Object(port)
    })
}

fn rules(peers: &'static str) -> impl Strategy<Value = Option<Vec<Value>>> {
    let rule = (option::of(vec(peer(), 0..3)), option::of(vec(port(), 0..3))).prop_map(move |(from, ports)| {
        let mut rule = Map::new();
        rule.extend(from.map(|f| (peers.to_owned(), json!(f))));
        rule.extend(ports.map(|p| ("ports".to_owned(), json!(p))));
        Value::Object(rule)
    });
    option::of(vec(rule, 0..3))
}

fn spec() -> impl Strategy<Value = Value> {
    let types = select(vec![vec![], vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"]]);
    (selector(), types, rules("from"), rules("to")).prop_map(|(pods, types, ingress, egress)| {
        let mut spec = json!({"podSelector": pods});
        if !types.is_empty() {
            spec["policyTypes"] = json!(types);
        }
        if let Some(ingress) = ingress {
            spec["ingress"] = json!(ingress);
        }
        if let Some(egress) = egress {
            spec["egress"] = json!(egress);
        }
        spec
    })
}

/// NetworkPolicies; names are few, so that a sequence of them replaces as well as adds.
pub fn policy() -> impl Strategy<Value = Value> {
    (select(&NAMESPACES[..]), 0..3, spec()).prop_map(|(namespace, n, spec)| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("p{n}"), "namespace": namespace}, "spec": spec})
    })
}

/// Cluster-wide policies, each with its own priority.
fn cluster_policy() -> impl Strategy<Value = Value> {
    let rule = |peers: &'static str| {
        let peer = prop_oneof![
            3 => selector().prop_map(|s| json!({"namespaces": s})),
            1 => select(&BLOCKS[..]).prop_map(|b| json!({"networks": [b]})),
        ];
        let port = (select(&PORTS[..]), select(&["TCP", "UDP"][..]))
            .prop_map(|(port, protocol)| json!({"portNumber": {"port": port, "protocol": protocol}}));
        let action = select(&["Accept", "Deny", "Pass"][..]);
        let rule = (action, vec(peer, 1..3), vec(port, 0..2))
            .prop_map(move |(action, peer, ports)| json!({"action": action, peers: peer, "ports": ports}));
        vec(rule, 0..3)
    };
    let tier = select(&["Admin", "Baseline"][..]);
    (tier, 0..4, selector(), rule("from"), rule("to")).prop_map(|(tier, n, subject, ingress, egress)| {
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": format!("{tier}-{n}").to_lowercase()},
            "spec": {"tier": tier, "priority": n, "subject": {"namespaces": subject}, "ingress": ingress, "egress": egress}})
    })
}

fn namespace() -> impl Strategy<Value = Value> {
    (select(&NAMESPACES[..]), labels()).prop_map(
        |(name, labels)| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    )
}

/// Pods with addresses in `10.0.0.0/29` or, on the host network, of their node.
fn pod() -> impl Strategy<Value = Value> {
    let port = (option::of(select(&NAMES[..])), select(&PORTS[..]), protocol()).prop_map(|(name, port, protocol)| {
        let mut entry = Map::from_iter([("containerPort".to_owned(), json!(port))]);
        entry.extend(name.map(|n| ("name".to_owned(), json!(n))));
        entry.extend(protocol.map(|p| ("protocol".to_owned(), json!(p))));
        Value::Object(entry)
    });
    let host = prop_oneof![5 => Just(false), 1 => Just(true)];
    (0..6u8, labels(), host, vec(port, 0..4)).prop_map(|(n, labels, host, ports)| {
        let node = n % 2 + 1;
        let address = if host { format!("192.168.0.{node}") } else { format!("10.0.0.{n}") };
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod{n}"), "namespace": NAMESPACES[usize::from(n) % 3], "labels": labels},
            "spec": {"nodeName": format!("n{node}"), "hostNetwork": host, "containers": [{"name": "c", "ports": ports}]},
            "status": {"podIP": address, "podIPs": [{"ip": address}]}})
    })
}

fn service() -> impl Strategy<Value = Value> {
    (select(&NAMESPACES[..]), labels(), select(&PORTS[..])).prop_map(|(namespace, selector, port)| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": namespace},
            "spec": {"selector": selector, "ports": [{"port": port, "targetPort": "http"}]}})
    })
}

/// Any object; two of one name are two states of one object.
pub fn object() -> impl Strategy<Value = Value> {
    prop_oneof![2 => namespace(), 5 => pod(), 5 => policy(), 1 => cluster_policy(), 1 => service()]
}

/// Objects, each name once, and both nodes.
pub fn objects() -> impl Strategy<Value = Vec<Value>> {
    vec(object(), 0..25).prop_map(|objects| {
        let nodes = (1..3).map(|n| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{n}")},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.0.{n}")}]}})
        });
        let mut known = std::collections::BTreeSet::new();
        let mut once = |o: &Value| {
            known.insert((
                o["kind"].to_string(),
                o["metadata"]["namespace"].to_string(),
                o["metadata"]["name"].to_string(),
            ))
        };
        nodes.chain(objects).filter(|o| once(o)).collect()
    })
}

/// Every flow between the pods, both nodes, a node that is none, and the outside.
pub fn flows(objects: &[Value]) -> Vec<Flow> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let pods = objects.iter().filter(|o| o["kind"] == "Pod").map(|o| Endpoint::Pod {
        name: Name::new(text(&o["metadata"]["namespace"]), text(&o["metadata"]["name"])),
        address: None,
    });
    let addresses = ["192.168.0.1", "192.168.0.2", "192.168.0.3", "203.0.113.7", "8.8.8.8", "2001:db8::1"];
    let ends: Vec<Endpoint> = pods.chain(addresses.map(|a| Endpoint::Address(a.parse().unwrap()))).collect();
    let mut flows = Vec::new();
    for source in &ends {
        for destination in &ends {
            for (protocol, port) in
                [(Protocol::Tcp, 80), (Protocol::Tcp, 443), (Protocol::Udp, 81), (Protocol::Tcp, 100)]
            {
                let (source, destination) = (source.clone(), destination.clone());
                flows.push(Flow { source, destination, protocol, port, dialled: None });
            }
        }
    }
    flows
}
