//! A view as an agent would show it, made by hand: nothing here comes from the engine.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]

use std::sync::Arc;

use weir::cluster::manifests::{Problem, Severity as Trouble};
use weir::outputs::live::{FlowName, Line, Live};
use weir::outputs::{AgentView, Known, ProbeView, Request, View, Views};
use weir_engine::attempt::Outcome;
use weir_engine::check::Model;
use weir_engine::cluster::{Kind, Object, Origin};
use weir_engine::observation::{DropClass, Hook, Owner, Tuple};
use weir_engine::policy::{Admission, Profile, Selecting, Side};
use weir_engine::requirement::{Catalogue, Severity};
use weir_engine::snapshot::{
    AttemptCount, CandidatePolicy, CandidateView, CandidatesView, DropCount, Effect, EndView, InstanceView, Latency,
    Loss, ObjectCount, Overflow, PairView, Snapshot, StateCount, TrafficView, VERSION,
};
use weir_engine::time::Time;
use weir_engine::verdict::State;
use weir_engine::words::{Direction, Name, Protocol};

const SECOND: u64 = 1_000_000_000;

pub fn workload(namespace: &str, name: &str) -> EndView {
    EndView {
        kind: "workload".to_owned(),
        namespace: namespace.into(),
        workload: name.into(),
        workload_kind: "Deployment".into(),
    }
}

pub fn pair(flow: &str, state: State, source: EndView, destination: EndView, port: u16) -> PairView {
    PairView {
        flow: flow.into(),
        code: "X".into(),
        profile: "sidecar".into(),
        severity: Severity::Critical,
        purpose: "configuration".into(),
        symptom: "not ready".into(),
        source,
        destination,
        protocol: Protocol::Tcp,
        port,
        service_port: None,
        state,
        why: "no attempt within the window".to_owned(),
        since: Time(88 * SECOND),
        since_unix_ns: 0,
        directions: Vec::new(),
        policies: Vec::new(),
        policies_left_out: 0,
        egress: Side::NotIsolated,
        ingress: Side::NotIsolated,
        instances: 1,
        not_admitted: Vec::new(),
        not_admitted_count: 0,
        evidence: None,
        since_edit: None,
        attempts: 0,
        candidate: None,
    }
}

pub fn side(policies: &[&str]) -> Side {
    let name =
        |text: &str| text.split_once('/').map(|(ns, name)| Name::new(ns, name)).unwrap_or_else(|| Name::new("", text));
    Side::NotAdmitted {
        selecting: policies.iter().map(|p| Selecting { policy: name(p), misses: Vec::new() }).collect(),
    }
}

pub fn denied(mut pair: PairView, egress: &[&str], ingress: &[&str]) -> PairView {
    pair.state = State::Denied;
    if !egress.is_empty() {
        pair.directions.push(Direction::Egress);
        pair.egress = side(egress);
    }
    if !ingress.is_empty() {
        pair.directions.push(Direction::Ingress);
        pair.ingress = side(ingress);
    }
    pair.policies = egress.iter().chain(ingress).map(|p| (*p).to_owned()).collect();
    pair.policies.sort();
    pair
}

/// Nothing known, everything in order.
pub fn empty() -> View {
    let snapshot = Snapshot {
        version: VERSION,
        at: Time(100 * SECOND),
        at_unix_ns: 0,
        synced: true,
        pairs: Vec::new(),
        counts: Vec::new(),
        attempts: Vec::new(),
        drops: Vec::new(),
        latencies: Vec::new(),
        lost: Vec::new(),
        objects: Vec::new(),
        overflow: Overflow::default(),
        pending_attempts: 0,
        unattributed_attempts: 0,
        transitions: Vec::new(),
        candidates: None,
        traffic: Vec::new(),
    };
    let probe = |name: &str, active| ProbeView {
        hook: String::new(),
        name: name.to_owned(),
        active,
        reason: (!active).then(|| "no such hook".to_owned()),
    };
    let agent = AgentView {
        version: "1.2.3".to_owned(),
        probes: vec![probe("tcp_state", true), probe("udp_release", false)],
        ..AgentView::default()
    };
    View { snapshot, agent }
}

/// One of most things.
pub fn busy() -> View {
    let mut view = empty();
    let istiod = || workload("istio-system", "istiod");
    let mut quiet =
        pair("sidecar-dns", State::Silent, workload("shop", "cart"), workload("kube-system", "coredns"), 53);
    quiet.protocol = Protocol::Udp;
    let mut failing =
        pair("sidecar-metrics", State::Failing, workload("monitoring", "prometheus"), workload("shop", "web"), 15020);
    failing.why = "refused: nobody listens on 15020".to_owned();
    failing.since = Time(10 * SECOND);
    failing.candidate = Some(CandidateView {
        effect: Effect::Breaks,
        admission: Admission::NotAdmitted,
        directions: vec![Direction::Ingress],
        policies: vec!["shop/next-deny".to_owned()],
        policies_left_out: 0,
        egress: Side::NotIsolated,
        ingress: side(&["shop/next-deny"]),
        not_admitted: Vec::new(),
        not_admitted_count: 1,
    });
    let mut webhook =
        pair("control-plane-webhook", State::AtRisk, workload("kube-system", "vpn-shoot"), istiod(), 15017);
    webhook.service_port = Some(443);
    webhook.directions = vec![Direction::Ingress];
    webhook.ingress = side(&["istio-system/default-deny"]);
    webhook.policies = vec!["istio-system/default-deny".to_owned()];
    view.snapshot.pairs = vec![
        denied(
            pair("sidecar-xds", State::Denied, workload("shop", "cart"), istiod(), 15012),
            &["shop/default-deny", "shop/allow-dns"],
            &["istio-system/default-deny"],
        ),
        webhook,
        failing,
        quiet,
        pair("sidecar-xds", State::Verified, workload("shop", "web"), istiod(), 15012),
    ];
    view.snapshot.candidates = Some(CandidatesView {
        policies: vec![CandidatePolicy {
            policy: "shop/next-deny".to_owned(),
            replaces: vec!["shop/allow-all".to_owned()],
            source: "next.yaml".to_owned(),
        }],
        breaks: 1,
        opens: 0,
        traffic_breaks: 1,
    });
    view.snapshot.traffic = vec![TrafficView {
        source: workload("shop", "web"),
        destination: workload("shop", "db"),
        protocol: Protocol::Tcp,
        port: 5432,
        instance: InstanceView { source: "shop/web-0".to_owned(), destination: "shop/db-0".to_owned() },
        attempts: 40,
        established: 40,
        last: Time(99 * SECOND),
        last_unix_ns: 0,
        admission: Admission::Admitted,
        candidate: view.snapshot.pairs[2].candidate.clone(),
    }];
    let count = |flow: &str, state, count| StateCount { flow: flow.into(), severity: Severity::Critical, state, count };
    view.snapshot.counts = vec![
        count("sidecar-xds", State::Denied, 1),
        count("sidecar-xds", State::Verified, 1),
        count("sidecar-dns", State::Silent, 1),
    ];
    view.snapshot.attempts = vec![
        AttemptCount { flow: "sidecar-xds".into(), outcome: Outcome::Dropped, count: 7 },
        AttemptCount { flow: "none".into(), outcome: Outcome::Established, count: 3 },
    ];
    let drop = |port, reason: &str, count| DropCount {
        class: DropClass::Netfilter,
        reason: reason.to_owned(),
        port,
        protocol: Protocol::Tcp,
        count,
    };
    view.snapshot.drops = vec![drop(15012, "NETFILTER_DROP", 9), drop(443, "", 2), drop(0, "", 4)];
    view.snapshot.latencies = vec![Latency {
        flow: "sidecar-xds".into(),
        buckets: vec![2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        sum_ns: 12_500_000_000,
        count: 4,
    }];
    view.snapshot.lost = vec![Loss { stage: "ring-buffer".to_owned(), count: 5, last: Time(0) }];
    view.snapshot.objects =
        vec![ObjectCount { kind: Kind::Pod, count: 12 }, ObjectCount { kind: Kind::NetworkPolicy, count: 3 }];
    view.agent.problems = vec![Problem {
        severity: Trouble::Error,
        file: "policies.yaml".into(),
        document: Some(2),
        line: Some(14),
        message: "mapping values are not allowed here".to_owned(),
        hint: None,
    }];
    view.agent.files = 2;
    view
}

/// A denied, an established and a stranger's attempt, and a gap.
pub fn attempts() -> Vec<Live> {
    attempts_of("shop", "cart")
}

/// The same of a pod with these names.
pub fn attempts_of(namespace: &str, name: &str) -> Vec<Live> {
    let dialled = Tuple {
        source: [10, 1, 0, 5].into(),
        source_port: 43210,
        destination: [10, 96, 0, 10].into(),
        destination_port: 15012,
        protocol: Protocol::Tcp,
    };
    let denied = Line {
        at_unix_ns: 1_000_000_123_000_000,
        outcome: Outcome::Dropped,
        provisional: true,
        flows: vec![FlowName { id: "sidecar-xds".into(), code: "SC-XDS".into() }],
        source: workload(namespace, name),
        destination: workload("istio-system", "istiod"),
        dialled,
        translated: Some(Tuple { destination: [10, 2, 0, 7].into(), ..dialled }),
        class: Some(DropClass::Netfilter),
        reason: Some("NETFILTER_DROP".to_owned()),
        location: Some("nft_do_chain".to_owned()),
        hook: Some(Hook::Forward),
        reply: false,
        retransmits: 2,
        latency_ns: None,
        owner: Some(Owner { pid: 1234, comm: "envoy".to_owned(), cgroup: 1, pod: None }),
        admission: Admission::NotAdmitted,
        policies: vec!["istio-system/default-deny".to_owned(), format!("{namespace}/default-deny")],
        policies_left_out: 0,
    };
    let fine = Line {
        outcome: Outcome::Established,
        provisional: false,
        source: workload("shop", "web"),
        class: None,
        reason: None,
        location: None,
        hook: None,
        translated: None,
        retransmits: 0,
        latency_ns: Some(1_234_567),
        owner: None,
        admission: Admission::Admitted,
        policies: Vec::new(),
        policies_left_out: 0,
        ..denied.clone()
    };
    let address = |text: &str| EndView { kind: "external".to_owned(), ..workload("", text) };
    let stranger = Line {
        outcome: Outcome::Refused,
        flows: Vec::new(),
        source: address("2001:db8::1"),
        destination: address("2001:db8::2"),
        dialled: Tuple {
            source: "2001:db8::1".parse().unwrap(),
            source_port: 0,
            destination: "2001:db8::2".parse().unwrap(),
            destination_port: 443,
            protocol: Protocol::Tcp,
        },
        latency_ns: None,
        admission: Admission::Undecidable,
        ..fine.clone()
    };
    let line = |line| Live::Attempt(Arc::new(line));
    vec![line(denied), Live::Skipped(7), line(fine), line(stranger)]
}

/// A pod under default-deny beside istiod, as Kubernetes writes them.
pub fn objects(space: &str, name: &str) -> Vec<serde_json::Value> {
    let pod = |namespace: &str, name: &str, address: &str, containers: serde_json::Value| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": namespace, "name": format!("{name}-1-a"), "labels": {"app": name, "pod-template-hash": "1"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-1"), "uid": "", "controller": true,
                }],
            },
            "spec": {"containers": containers, "nodeName": "node-a"},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })
    };
    let namespace = |name: &str| {
        let labels = serde_json::json!({"kubernetes.io/metadata.name": name});
        serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    };
    vec![
        namespace(space),
        namespace("istio-system"),
        pod(space, name, "10.1.0.5", serde_json::json!([{"name": "app"}, {"name": "istio-proxy"}])),
        pod("istio-system", "istiod", "10.2.0.7", serde_json::json!([{"name": "discovery"}])),
        serde_json::json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": space, "name": "default-deny"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress", "Ingress"]},
        }),
    ]
}

/// Answers every request with this view.
pub fn serve(view: View) -> Views {
    serve_as(view, "shop", "cart")
}

/// The same; what it knows besides has these names.
pub fn serve_as(view: View, namespace: &str, name: &str) -> Views {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let (views, mut requests) = Views::channel();
    let view = Arc::new(view);
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Alive(reader) => drop(reader.send(())),
                Request::View(reader) => drop(reader.send(view.clone())),
                Request::Known(reader) => {
                    let read = |value| (Object::from_value(value).unwrap(), Origin::default());
                    let objects = objects(&namespace, &name).into_iter().map(read);
                    let model = Model::new(objects, Catalogue::built_in(), Profile::Spec);
                    let known = Known { model, recent: Vec::new(), wall_offset_ns: 0 };
                    drop(reader.send(Box::new(known)));
                }
                // This agent is asked for no recording.
                Request::Record(reader) => drop(reader),
                Request::Watch(lines) => {
                    for live in attempts_of(&namespace, &name) {
                        let _ = lines.send(live).await;
                    }
                }
            }
        }
    });
    views
}
