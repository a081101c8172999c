//! A small mesh for the tests: two nodes, a control plane, DNS, a gateway, a workload, a scraper and the API server's tunnel.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cluster::{Kind, Object, Origin};
use crate::engine::{Engine, Settings, Snapshot, Transition};
use crate::observation::{AttemptEnd, AttemptStart, Observation, Owner, PacketDrop, Tuple, UdpEnd};
use crate::snapshot::PairView;
use crate::time::Time;
use crate::words::Protocol;

pub(crate) const ISTIOD: &str = "10.1.0.10";
pub(crate) const DNS: [&str; 2] = ["10.1.0.2", "10.1.1.2"];
pub(crate) const GATEWAY: &str = "10.1.1.20";
pub(crate) const WEB: &str = "10.1.0.30";
pub(crate) const PROMETHEUS: &str = "10.1.1.40";
pub(crate) const TUNNEL: &str = "10.1.1.3";
pub(crate) const NODE_A: &str = "192.168.0.1";
pub(crate) const NODE_B: &str = "192.168.0.2";
pub(crate) const API_SERVER: &str = "198.51.100.10";
pub(crate) const ISTIOD_SERVICE: &str = "10.2.1.10";
pub(crate) const DNS_SERVICE: &str = "10.2.0.10";
pub(crate) const CLIENT: &str = "203.0.113.50";

pub(crate) fn at(milliseconds: u64) -> Time {
    Time(1_000_000_000_000 + milliseconds * 1_000_000)
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("a test address")
}

pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub(crate) fn node(name: &str, address: &str, pods: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": pods, "podCIDRs": [pods]},
           "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

pub(crate) fn pod(namespace: &str, name: &str, address: &str, labels: Value, containers: &[&str]) -> Value {
    let node = if address.starts_with("10.1.0.") { "node-a" } else { "node-b" };
    let containers: Vec<Value> = containers.iter().map(|c| json!({"name": c})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": labels},
           "spec": {"nodeName": node, "containers": containers},
           "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

pub(crate) fn service(namespace: &str, name: &str, address: &str, selector: Value, ports: Value, kind: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
           "spec": {"clusterIP": address, "clusterIPs": [address], "selector": selector, "ports": ports, "type": kind}})
}

/// A NetworkPolicy that selects by labels (all pods if empty), with rules as the API has them.
pub(crate) fn policy(
    namespace: &str,
    name: &str,
    selector: Value,
    ingress: Option<Value>,
    egress: Option<Value>,
) -> Value {
    let types: Vec<&str> =
        [(&ingress, "Ingress"), (&egress, "Egress")].iter().filter(|(r, _)| r.is_some()).map(|(_, t)| *t).collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"namespace": namespace, "name": name},
           "spec": {"podSelector": {"matchLabels": selector}, "policyTypes": types,
                    "ingress": ingress.unwrap_or(json!([])), "egress": egress.unwrap_or(json!([]))}})
}

pub(crate) fn default_deny(namespace: &str) -> Value {
    policy(namespace, "default-deny", json!({}), Some(json!([])), Some(json!([])))
}

/// Opens 15012 from the workload's namespace to the control plane, on the workload's side.
pub(crate) fn allow_xds() -> Value {
    let rule = json!([{"ports": [{"protocol": "TCP", "port": 15012}]}]);
    policy("app", "allow-xds", json!({}), None, Some(rule))
}

pub(crate) fn mesh() -> Vec<Value> {
    let dns_ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]);
    let istiod = json!({"app": "istiod", "istio": "pilot", "istio.io/rev": "default", "pod-template-hash": "5d5"});
    let gateway = json!({"app": "gw", "istio": "ingressgateway", "pod-template-hash": "9f9"});
    let web = json!({"app": "web", "security.istio.io/tlsMode": "istio", "pod-template-hash": "7c7"});
    let dns = json!({"k8s-app": "kube-dns", "pod-template-hash": "2b2"});
    let xds = json!([{"name": "xds", "port": 15012}, {"name": "webhook", "port": 443, "targetPort": 15017}]);
    let public = json!([{"name": "status", "port": 15021}, {"name": "https", "port": 443, "targetPort": 8443}]);
    vec![
        namespace("kube-system", json!({})),
        namespace("istio-system", json!({})),
        namespace("app", json!({})),
        namespace("monitoring", json!({})),
        node("node-a", NODE_A, "10.1.0.0/24"),
        node("node-b", NODE_B, "10.1.1.0/24"),
        service("default", "kubernetes", "10.2.0.1", json!(null), json!([{"name": "https", "port": 443}]), "ClusterIP"),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
               "metadata": {"namespace": "default", "name": "kubernetes",
                            "labels": {"kubernetes.io/service-name": "kubernetes"}},
               "endpoints": [{"addresses": [API_SERVER]}], "ports": [{"name": "https", "port": 6443}]}),
        pod("kube-system", "vpn-0", TUNNEL, json!({"app": "vpn-shoot"}), &["vpn"]),
        pod("kube-system", "coredns-2b2-x", DNS[0], dns.clone(), &["coredns"]),
        pod("kube-system", "coredns-2b2-y", DNS[1], dns, &["coredns"]),
        service("kube-system", "dns", DNS_SERVICE, json!({"k8s-app": "kube-dns"}), dns_ports, "ClusterIP"),
        pod("istio-system", "istiod-5d5-x", ISTIOD, istiod, &["discovery"]),
        service("istio-system", "istiod", ISTIOD_SERVICE, json!({"app": "istiod"}), xds, "ClusterIP"),
        pod("istio-system", "gateway-9f9-x", GATEWAY, gateway, &["istio-proxy"]),
        service("istio-system", "gateway", "10.2.1.20", json!({"app": "gw"}), public, "LoadBalancer"),
        pod("app", "web-7c7-x", WEB, web, &["istio-proxy", "web"]),
        pod("monitoring", "prometheus-0", PROMETHEUS, json!({"app.kubernetes.io/name": "prometheus"}), &["prometheus"]),
    ]
}

pub(crate) fn settings() -> Settings {
    Settings { grace: std::time::Duration::from_secs(10), ..Settings::default() }
}

/// An engine with the mesh and these policies, synced at time 0.
pub(crate) fn engine(policies: &[Value]) -> Engine {
    let mut engine = Engine::new(settings());
    for object in mesh().into_iter().chain(policies.iter().cloned()) {
        apply(&mut engine, 0, object);
    }
    engine.synced(at(0));
    engine
}

pub(crate) fn apply(engine: &mut Engine, milliseconds: u64, object: Value) {
    let origin = Origin { file: Some("mesh.yaml".into()), line: Some(7), resource_version: None };
    engine.apply(at(milliseconds), Object::from_value(object).expect("a test object"), origin);
}

pub(crate) fn delete(engine: &mut Engine, milliseconds: u64, kind: Kind, namespace: &str, name: &str) {
    let name = crate::words::Name::new(namespace, name);
    engine.delete(at(milliseconds), &crate::cluster::Key { kind, name });
}

pub(crate) fn tuple(source: &str, destination: &str, port: u16, protocol: Protocol) -> Tuple {
    Tuple { source: ip(source), source_port: 40_000, destination: ip(destination), destination_port: port, protocol }
}

/// What a TCP connect ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Established,
    Reset,
    TimedOut,
    /// Dropped by netfilter at once; the socket goes on trying.
    Dropped,
    /// Dropped by netfilter and answered with an RST.
    Rejected,
}

/// One TCP connect of a pod, in milliseconds; everything that follows from it is seen at once but for time-outs.
pub(crate) fn connect(engine: &mut Engine, ms: u64, source: &str, destination: &str, port: u16, end: End) {
    connect_as(engine, "envoy", ms, source, destination, port, end);
}

/// The same, by a process of this name.
pub(crate) fn connect_as(
    engine: &mut Engine,
    comm: &str,
    ms: u64,
    source: &str,
    destination: &str,
    port: u16,
    end: End,
) {
    let owner = Owner { pid: 42, comm: comm.into(), cgroup: 1, pod: None };
    connect_owned(engine, owner, ms, source, destination, port, end);
}

/// The same, by this task.
pub(crate) fn connect_owned(
    engine: &mut Engine,
    owner: Owner,
    ms: u64,
    source: &str,
    destination: &str,
    port: u16,
    end: End,
) {
    let tuple = tuple(source, destination, port, Protocol::Tcp);
    let socket = 0xffff_0000_0000_0000 + ms;
    let start = AttemptStart { at: at(ms), tuple: Tuple { source_port: 0, ..tuple }, socket, netns: 1, owner };
    engine.observe(at(ms), &Observation::AttemptStart(start));
    if matches!(end, End::Dropped | End::Rejected) {
        engine.observe(at(ms), &drop_of(ms, tuple));
    }
    let begun = ms;
    let ended = |ms: u64, established, reset, error| {
        Observation::AttemptEnd(AttemptEnd {
            at: at(ms),
            tuple,
            socket,
            started: at(begun),
            established,
            reset,
            cause_unknown: false,
            error,
            soft_error: 0,
            queued: None,
            retransmits: 0,
            netns: 1,
        })
    };
    match end {
        End::Established => engine.observe(at(ms + 1), &ended(ms + 1, true, false, 0)),
        End::Reset | End::Rejected => engine.observe(at(ms + 1), &ended(ms + 1, false, true, 111)),
        End::TimedOut => engine.observe(at(ms + 5_000), &ended(ms + 5_000, false, false, 110)),
        End::Dropped => {}
    }
    let settled = ms + if end == End::TimedOut { 5_200 } else { 200 };
    engine.handle_timeout(at(settled));
}

pub(crate) fn drop_of(ms: u64, tuple: Tuple) -> Observation {
    Observation::Drop(PacketDrop {
        at: at(ms),
        tuple,
        original: None,
        socket: None,
        reason: Some("NETFILTER_DROP".into()),
        location: Some("nft_do_chain".into()),
        stack: Default::default(),
        count: 1,
        netns: 2,
        interface: 3,
        tcp_flags: if tuple.protocol == Protocol::Tcp { 2 } else { 0 },
        reply: false,
        untracked: false,
    })
}

/// One DNS query over a connected socket.
pub(crate) fn query(engine: &mut Engine, ms: u64, source: &str, destination: &str, replied: bool) {
    let end = UdpEnd {
        at: at(ms + 2_000),
        tuple: tuple(source, destination, 53, Protocol::Udp),
        socket: 9,
        created: at(ms),
        replied,
        error: 0,
        netns: 1,
        owner: Owner::default(),
    };
    engine.observe(at(ms + 2_000), &Observation::UdpEnd(end));
    engine.handle_timeout(at(ms + 2_200));
}

/// The pair of a flow from a workload to a workload.
pub(crate) fn pair(snapshot: &Snapshot, flow: &str, source: &str, destination: &str, port: u16) -> PairView {
    let matches = |p: &&PairView| {
        &*p.flow == flow && &*p.source.workload == source && &*p.destination.workload == destination && p.port == port
    };
    snapshot
        .pairs
        .iter()
        .find(matches)
        .unwrap_or_else(|| panic!("no pair {flow} {source} {destination} {port}"))
        .clone()
}

pub(crate) fn transitions(engine: &mut Engine) -> Vec<Transition> {
    std::iter::from_fn(|| engine.poll_transition()).collect()
}
