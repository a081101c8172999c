//! Small clusters in a few words.

use serde_json::{Value, json};
use weir_engine::cluster::{Cluster, Object, Origin};
use weir_engine::policy::{Admission, Decision, Endpoint, Flow, Policies, Profile};
use weir_engine::words::{Name, Protocol};

/// A cluster with its policies, kept up to date.
pub struct World {
    pub cluster: Cluster,
    pub policies: Policies,
}

impl World {
    pub fn new(objects: impl IntoIterator<Item = Value>) -> Self {
        Self::under(Profile::Spec, objects)
    }

    pub fn under(profile: Profile, objects: impl IntoIterator<Item = Value>) -> Self {
        let mut world = Self { cluster: Cluster::default(), policies: Policies::new(profile) };
        objects.into_iter().for_each(|object| world.apply(object));
        world
    }

    pub fn apply(&mut self, object: Value) {
        let object = Object::from_value(object).expect("objects of tests are valid");
        let change = self.cluster.apply(object, Origin::default());
        self.policies.update(&self.cluster, &change);
    }

    pub fn delete(&mut self, object: &Value) {
        let key = Object::from_value(object.clone()).expect("objects of tests are valid").key();
        let change = self.cluster.delete(&key);
        self.policies.update(&self.cluster, &change);
    }

    /// Judges, and makes sure that both ways of asking agree.
    pub fn decide(&self, flow: &Flow) -> Decision {
        let decision = self.policies.decide(&self.cluster, flow);
        assert_eq!(self.policies.admits(&self.cluster, flow), decision.admission(), "{flow:?}");
        decision
    }

    /// `yes`, `no` or `?` for `"app/web -> db/main TCP 5432"`.
    pub fn verdict(&self, text: &str) -> &'static str {
        match self.decide(&flow(text)).admission() {
            Admission::Admitted => "yes",
            Admission::NotAdmitted => "no",
            Admission::Undecidable => "?",
        }
    }
}

/// `"FROM -> TO PROTOCOL PORT"`; an end is `namespace/pod`, `node:name`, an address, or `outside`.
pub fn flow(text: &str) -> Flow {
    let (source, rest) = text.split_once(" -> ").expect("FROM -> TO PROTOCOL PORT");
    let mut rest = rest.split(' ');
    let (destination, protocol, port) = (rest.next().unwrap(), rest.next().unwrap(), rest.next().unwrap());
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("no protocol {other}"),
    };
    Flow { source: end(source), destination: end(destination), protocol, port: port.parse().unwrap(), dialled: None }
}

fn end(text: &str) -> Endpoint {
    if text == "outside" {
        return Endpoint::External;
    }
    if let Some(node) = text.strip_prefix("node:") {
        return Endpoint::Node { name: node.into(), address: None };
    }
    if let Ok(address) = text.parse() {
        return Endpoint::Address(address);
    }
    let (namespace, name) = text.split_once('/').expect("namespace/pod");
    Endpoint::Pod { name: Name::new(namespace, name), address: None }
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub fn node(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

/// A pod on node `n1` with TCP 80 `http`, UDP 53 `dns` and TCP 8443 without a name.
pub fn pod(name: &str, address: &str, labels: Value) -> Value {
    let (namespace, name) = name.split_once('/').expect("namespace/pod");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
            {"name": "http", "containerPort": 80}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"containerPort": 8443}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

pub fn policy(name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').expect("namespace/policy");
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}
