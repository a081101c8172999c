//! Who dialled: by address, network namespace and cgroup, in this order.

use serde_json::{Value, json};

use super::Engine;
use crate::attempt::{Attempt, Outcome};
use crate::cluster::Kind;
use crate::identity::Peer;
use crate::observation::Owner;
use crate::testing::{self as t, apply, at, delete};
use crate::words::Protocol;

const UID: [&str; 2] = ["7f3c1a52-90de-4b1b-8c55-3a1be0d6f001", "7f3c1a52-90de-4b1b-8c55-3a1be0d6f002"];
const HASH: &str = "0123456789abcdef0123456789abcdef";

fn attempt(ms: u64, source: &str, netns: u32, pod: Option<&str>) -> Attempt {
    let owner = Owner { pid: 4, comm: "x".into(), cgroup: 9, pod: pod.map(Into::into) };
    let seen = Attempt::seen(at(ms), t::tuple(source, t::ISTIOD, 15012, Protocol::Tcp), Outcome::Established);
    Attempt { netns, owner: Some(owner), ..seen }
}

fn who(engine: &Engine, attempt: &Attempt) -> String {
    match engine.identity.dialler(&engine.cluster, attempt) {
        Peer::Pod { name, .. } => format!("pod {name}"),
        Peer::GonePod { name, .. } => format!("gone {name}"),
        Peer::Node { name, .. } => format!("node {name}"),
        Peer::Unknown { .. } => "unknown".to_owned(),
        Peer::External { .. } => "external".to_owned(),
        other => format!("{other:?}"),
    }
}

fn learn(engine: &mut Engine, attempt: &Attempt) {
    engine.identity.learn(&engine.cluster, attempt);
}

/// A pod of the workload's namespace without an address yet.
fn starting(name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "app", "name": name, "uid": uid},
           "spec": {"nodeName": "node-a", "containers": [{"name": "c"}]}, "status": {"phase": "Pending"}})
}

#[test]
fn a_network_namespace_tells_whose_an_address_is_that_no_object_has() {
    let mut engine = t::engine(&[]);
    let second = "10.1.0.199";
    assert_eq!(who(&engine, &attempt(1_000, second, 77, None)), "unknown");
    learn(&mut engine, &attempt(1_000, t::WEB, 77, None));
    assert_eq!(who(&engine, &attempt(1_100, second, 77, None)), "pod app/web-7c7-x");
    assert_eq!(who(&engine, &attempt(1_100, second, 78, None)), "unknown", "another namespace");
    assert_eq!(
        who(&engine, &attempt(1_100, t::ISTIOD, 77, None)),
        "pod istio-system/istiod-5d5-x",
        "its address is stronger"
    );
    // On a second network no policy has a say.
    assert_eq!(who(&engine, &attempt(1_100, "203.0.113.9", 77, None)), "external");
    delete(&mut engine, 2_000, Kind::Pod, "app", "web-7c7-x");
    assert_eq!(who(&engine, &attempt(2_100, second, 77, None)), "unknown", "the inode may be another's now");
}

#[test]
fn a_node_is_known_by_its_network_namespace_whatever_its_address() {
    let mut engine = t::engine(&[]);
    // The bridge of its pods: the source of whatever the node itself sends to them.
    let bridge = "10.1.0.250";
    assert_eq!(who(&engine, &attempt(1_000, bridge, 1, None)), "unknown");
    learn(&mut engine, &attempt(1_000, t::NODE_A, 1, None));
    assert_eq!(who(&engine, &attempt(1_100, bridge, 1, None)), "node node-a");
    assert_eq!(who(&engine, &attempt(1_100, "172.30.0.1", 1, None)), "node node-a");
}

#[test]
fn a_network_namespace_seen_with_two_owners_is_nobodys() {
    let mut engine = t::engine(&[]);
    learn(&mut engine, &attempt(1_000, t::WEB, 77, None));
    learn(&mut engine, &attempt(1_100, t::ISTIOD, 77, None));
    learn(&mut engine, &attempt(1_200, t::WEB, 77, None));
    assert_eq!(who(&engine, &attempt(1_300, "10.1.0.199", 77, None)), "unknown");
}

#[test]
fn a_cgroup_tells_the_pod_whose_address_is_not_known_yet_or_was_another_pods() {
    let mut engine = t::engine(&[]);
    apply(&mut engine, 1_000, starting("new", UID[0]));
    assert_eq!(who(&engine, &attempt(1_100, "10.1.0.198", 5, Some(UID[0]))), "pod app/new");
    assert_eq!(who(&engine, &attempt(1_100, "10.1.0.198", 5, Some(UID[1]))), "unknown", "no pod has this UID");
    delete(&mut engine, 2_000, Kind::Pod, "app", "web-7c7-x");
    assert_eq!(who(&engine, &attempt(2_100, t::WEB, 5, None)), "gone app/web-7c7-x");
    assert_eq!(who(&engine, &attempt(2_100, t::WEB, 5, Some(UID[0]))), "pod app/new");
    delete(&mut engine, 3_000, Kind::Pod, "app", "new");
    assert_eq!(who(&engine, &attempt(3_100, "10.1.0.198", 5, Some(UID[0]))), "unknown");
}

#[test]
fn host_network_pods_of_one_node_are_told_apart_by_their_cgroups() {
    let gateway = |name: &str, meta: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "istio-system", "name": name,
               "labels": {"app": name, "istio": "ingressgateway"}},
               "spec": {"nodeName": "node-a", "hostNetwork": true, "containers": [{"name": "istio-proxy"}]},
               "status": {"phase": "Running", "podIP": t::NODE_A, "podIPs": [{"ip": t::NODE_A}]}});
        for (key, value) in meta.as_object().into_iter().flatten() {
            pod["metadata"][key] = value.clone();
        }
        pod
    };
    let mut engine = t::engine(&[]);
    apply(&mut engine, 100, gateway("edge", json!({"uid": UID[0]})));
    apply(&mut engine, 100, gateway("inner", json!({"uid": UID[1]})));
    // The mirror of a static pod has a UID of its own; the cgroup is called by the hash of the manifest.
    let annotations = json!({"kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH});
    apply(
        &mut engine,
        100,
        gateway("fixed", json!({"uid": "00000000-0000-4000-8000-000000000000", "annotations": annotations})),
    );
    engine.handle_timeout(at(1_000));
    let evidence = |engine: &Engine, name: &str| {
        let pairs = engine.snapshot(at(30_000)).pairs;
        let pair = pairs.into_iter().find(|p| &*p.flow == "gateway-xds" && &*p.source.workload == name);
        pair.unwrap_or_else(|| panic!("no pair of {name}")).evidence.is_some()
    };
    let connect = |engine: &mut Engine, ms, uid: Option<&str>| {
        let owner = Owner { pid: 4, comm: "envoy".into(), cgroup: 9, pod: uid.map(Into::into) };
        t::connect_owned(engine, owner, ms, t::NODE_A, t::ISTIOD, 15012, t::End::Established);
    };
    connect(&mut engine, 20_000, None);
    for name in ["edge", "inner", "fixed"] {
        assert!(!evidence(&engine, name), "a process of the host is none of its pods: {name}");
    }
    connect(&mut engine, 21_000, Some(UID[0]));
    assert_eq!(["edge", "inner", "fixed"].map(|name| evidence(&engine, name)), [true, false, false]);
    connect(&mut engine, 22_000, Some(HASH));
    assert_eq!(["edge", "inner", "fixed"].map(|name| evidence(&engine, name)), [true, false, true]);
}
