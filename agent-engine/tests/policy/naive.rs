//! The specification read out loud: no index, no shared code, every policy and rule looked at for every flow.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use weir_engine::policy::{Admission, Endpoint, Flow};

/// Objects as JSON, by kind.
pub struct Naive<'a> {
    pub objects: &'a [Value],
}

/// One end: a pod of the pod network, or an address, perhaps of a node.
struct End<'a> {
    pod: Option<&'a Value>,
    node: Option<String>,
    address: IpAddr,
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl<'a> Naive<'a> {
    fn of(&self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |o| text(o, "/kind") == kind)
    }

    /// Both sides, egress first.
    pub fn decide(&self, flow: &Flow) -> [Admission; 2] {
        let (source, destination) = (self.end(&flow.source), self.end(&flow.destination));
        let itself =
            source.pod.is_some() && source.pod.map(|p| &p["metadata"]) == destination.pod.map(|p| &p["metadata"]);
        let one_node = source.pod.is_none() && destination.pod.is_none();
        if itself || one_node {
            return [Admission::Admitted; 2];
        }
        let egress = source.pod.map_or(Admission::Admitted, |pod| {
            let side = self.side(pod, "Egress", &destination, &destination, flow);
            let own = destination.node.as_deref() == Some(text(pod, "/spec/nodeName"));
            if side == Admission::NotAdmitted && own { Admission::Undecidable } else { side }
        });
        let ingress = destination.pod.map_or(Admission::Admitted, |pod| {
            let local = source.node.as_deref() == Some(text(pod, "/spec/nodeName"));
            if local { Admission::Admitted } else { self.side(pod, "Ingress", &source, &destination, flow) }
        });
        [egress, ingress]
    }

    fn end(&self, endpoint: &Endpoint) -> End<'a> {
        match endpoint {
            Endpoint::Pod { name, .. } => {
                let is_it = |p: &&Value| {
                    text(p, "/metadata/name") == &*name.name && text(p, "/metadata/namespace") == &*name.namespace
                };
                let pod = self.of("Pod").find(is_it).expect("flows of these tests are between known pods");
                let host = pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
                let node = host.then(|| text(pod, "/spec/nodeName").to_owned());
                End { pod: (!host).then_some(pod), node, address: text(pod, "/status/podIP").parse().unwrap() }
            }
            Endpoint::Address(address) => {
                let has = |n: &&Value| {
                    list(n, "/status/addresses").iter().any(|a| text(a, "/address") == address.to_string())
                };
                let node = self.of("Node").find(has).map(|n| text(n, "/metadata/name").to_owned());
                End { pod: None, node, address: *address }
            }
            Endpoint::Node { .. } | Endpoint::External => panic!("not among the flows of these tests"),
        }
    }

    fn side(&self, pod: &Value, direction: &str, peer: &End<'_>, destination: &End<'_>, flow: &Flow) -> Admission {
        for tier in ["Admin", "NetworkPolicy", "Baseline"] {
            if tier == "NetworkPolicy" {
                match self.network_policies(pod, direction, peer, destination, flow) {
                    None => continue,
                    Some(true) => return Admission::Admitted,
                    Some(false) => return Admission::NotAdmitted,
                }
            }
            match self.admin(tier, pod, direction, peer, destination, flow) {
                "Accept" => return Admission::Admitted,
                "Deny" => return Admission::NotAdmitted,
                _ => {}
            }
        }
        Admission::Admitted
    }

    fn network_policies(
        &self,
        pod: &Value,
        direction: &str,
        peer: &End<'_>,
        destination: &End<'_>,
        flow: &Flow,
    ) -> Option<bool> {
        let mut isolated = false;
        let mut admitted = false;
        for policy in self.of("NetworkPolicy") {
            let spec = &policy["spec"];
            let types: Vec<&str> = list(spec, "/policyTypes").iter().filter_map(Value::as_str).collect();
            let affects = match (types.is_empty(), direction) {
                (false, _) => types.contains(&direction),
                (true, "Ingress") => true,
                (true, _) => !list(spec, "/egress").is_empty(),
            };
            let namespace = text(policy, "/metadata/namespace");
            let selected = text(pod, "/metadata/namespace") == namespace
                && selects(&spec["podSelector"], &pod["metadata"]["labels"]);
            if !affects || !selected {
                continue;
            }
            isolated = true;
            let (rules, peers) = if direction == "Egress" { ("/egress", "/to") } else { ("/ingress", "/from") };
            for rule in list(spec, rules) {
                let from = list(rule, peers);
                let ports = list(rule, "/ports");
                admitted |= (from.is_empty() || from.iter().any(|p| self.peer(p, namespace, peer)))
                    && (ports.is_empty() || ports.iter().any(|p| port(p, destination, flow)));
            }
        }
        isolated.then_some(admitted)
    }

    fn namespace_labels(&self, name: &str) -> Value {
        let known = self.of("Namespace").find(|n| text(n, "/metadata/name") == name);
        let mut labels = known.map_or(Value::Null, |n| n["metadata"]["labels"].clone());
        if labels.is_null() {
            labels = serde_json::json!({});
        }
        labels["kubernetes.io/metadata.name"] = name.into();
        labels
    }

    fn peer(&self, peer: &Value, own: &str, end: &End<'_>) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            let inside = |cidr: &str| cidr.parse::<IpNet>().is_ok_and(|net| net.contains(&end.address));
            return inside(text(block, "/cidr"))
                && !list(block, "/except").iter().filter_map(Value::as_str).any(inside);
        }
        let Some(pod) = end.pod else { return false };
        let namespace = text(pod, "/metadata/namespace");
        let in_namespace = match peer.get("namespaceSelector") {
            Some(selector) => selects(selector, &self.namespace_labels(namespace)),
            None => namespace == own,
        };
        in_namespace && peer.get("podSelector").is_none_or(|s| selects(s, &pod["metadata"]["labels"]))
    }

    fn admin(
        &self,
        tier: &str,
        pod: &Value,
        direction: &str,
        peer: &End<'_>,
        destination: &End<'_>,
        flow: &Flow,
    ) -> &'a str {
        let labels = self.namespace_labels(text(pod, "/metadata/namespace"));
        let of_tier = self.of("ClusterNetworkPolicy").filter(|p| text(p, "/spec/tier") == tier);
        let mut of_tier: Vec<&Value> =
            of_tier.filter(|p| selects(&p["spec"]["subject"]["namespaces"], &labels)).collect();
        of_tier.sort_by_key(|p| p["spec"]["priority"].as_i64());
        let (rules, peers) = if direction == "Egress" { ("/spec/egress", "/to") } else { ("/spec/ingress", "/from") };
        for policy in of_tier {
            for rule in list(policy, rules) {
                let matches = list(rule, peers).iter().any(|p| {
                    let in_namespace = |end: &Value| {
                        selects(&p["namespaces"], &self.namespace_labels(text(end, "/metadata/namespace")))
                    };
                    let in_network = |n: &Value| n.as_str().unwrap().parse::<IpNet>().unwrap().contains(&peer.address);
                    match p.get("networks") {
                        Some(_) => list(p, "/networks").iter().any(in_network),
                        None => peer.pod.is_some_and(in_namespace),
                    }
                });
                let ports = list(rule, "/ports");
                if matches && (ports.is_empty() || ports.iter().any(|p| port(&p["portNumber"], destination, flow))) {
                    return text(rule, "/action");
                }
            }
        }
        "Nothing"
    }
}

fn port(port: &Value, destination: &End<'_>, flow: &Flow) -> bool {
    let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
    if protocol != flow.protocol.as_str() {
        return false;
    }
    match port.get("port") {
        None => true,
        Some(Value::String(name)) => destination.pod.is_some_and(|pod| {
            list(pod, "/spec/containers").iter().flat_map(|c| list(c, "/ports")).any(|p| {
                text(p, "/name") == name
                    && p["containerPort"] == flow.port
                    && p.get("protocol").and_then(Value::as_str).unwrap_or("TCP") == protocol
            })
        }),
        Some(number) => {
            let first = number.as_u64().unwrap();
            let last = port.get("endPort").and_then(Value::as_u64).unwrap_or(first);
            (first..=last).contains(&u64::from(flow.port))
        }
    }
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let empty = serde_json::Map::new();
    let wanted = selector.get("matchLabels").and_then(Value::as_object).unwrap_or(&empty);
    wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
        && list(selector, "/matchExpressions").iter().all(|e| {
            let found = labels.get(text(e, "/key"));
            let listed = found.is_some_and(|v| list(e, "/values").contains(v));
            match text(e, "/operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                other => panic!("{other} is not among the operators of these tests"),
            }
        })
}
