//! What one agent asks of the API server, counted by the fake one, and what that makes for a whole cluster.
//!
//! For each size of cluster an agent of one node synchronises with a server that holds the whole cluster, and then every kind of
//! change happens once. The rates at which changes happen in a real cluster are assumptions and printed with the result.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Parser;
use harness::apiserver::{ApiServer, Counts, Type, Verb};
use serde_json::{Value, json};
use weir::cluster::change::Change;
use weir::cluster::watch::{Settings, Source, start};
use weir_engine::cluster::{Cluster, Object, Origin};

/// Counts requests and bytes of one agent and computes those of a cluster, as a Markdown table.
#[derive(Parser)]
struct Arguments {
    /// Nodes of each cluster that is computed.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000])]
    nodes: Vec<u32>,
    /// Pods of a node.
    #[arg(long, default_value_t = 30)]
    pods_per_node: u32,
    /// Pods that start or end on a node in an hour.
    #[arg(long, default_value_t = 6.0)]
    pod_changes: f64,
    /// Peers on other nodes that a node meets for the first time in an hour.
    #[arg(long, default_value_t = 60.0)]
    new_peers: f64,
    /// Peers on other nodes that a node meets again and again.
    #[arg(long, default_value_t = 50.0)]
    peers: f64,
    /// Services that a node's pods dial, looked up where not all EndpointSlices are watched.
    #[arg(long, default_value_t = 20.0)]
    services: f64,
    /// Policies, services, namespaces and Istio objects that are written in an hour, of each kind, in the whole cluster.
    #[arg(long, default_value_t = 10.0)]
    edits: f64,
}

/// Writes to a pod's status until it runs, and its writes at the end.
const WRITES_OF_A_POD: f64 = 5.0;
/// A kubelet writes its node every five minutes (`nodeStatusReportFrequency`).
const NODE_WRITES_AN_HOUR: f64 = 12.0;

/// What was counted for one size of cluster.
struct Counted {
    initial: Counts,
    /// Bytes that one change of each kind cost the agent.
    change: BTreeMap<&'static str, f64>,
    lookup: f64,
    check: f64,
    endpoints: f64,
    bookmark: f64,
    watches: f64,
    connections: f64,
    all_nodes: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!(
        "Assumed: {} pods a node, {} pod starts or ends a node and hour with {WRITES_OF_A_POD} writes each, \
         and one of its Service's EndpointSlice; {NODE_WRITES_AN_HOUR} writes of each node an hour; \
         {} peers and {} Services a node in use, {} new peers an hour; {} edits of each other kind an hour in the whole cluster.\n",
        arguments.pods_per_node,
        arguments.pod_changes,
        arguments.peers,
        arguments.services,
        arguments.new_peers,
        arguments.edits
    );
    println!(
        "| nodes | pods | start: requests, MB of one agent | watches, connections of one agent | requests/s of one agent | B/s of one agent | requests/s of all | MB/s of all | of it EndpointSlices | of it nodes |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for nodes in &arguments.nodes {
        let counted = count(*nodes, arguments.pods_per_node).await?;
        row(&arguments, *nodes, &counted);
    }
    Ok(())
}

fn row(a: &Arguments, nodes: u32, c: &Counted) {
    let n = f64::from(nodes);
    let hour = 3600.0;
    let settings = Settings::for_node("node-0");
    let cost = |kind: &str| c.change.get(kind).copied().unwrap_or(0.0);
    let watch_time = settings.watch_time.as_secs_f64() * 1.125;
    let check = settings.lookups.check.as_secs_f64() * 1.125;
    let lookups = a.new_peers / hour;
    let checks = a.peers / check;
    let discovery = 1.0 / settings.rediscover.as_secs_f64();
    let dialled = if c.all_nodes { 0.0 } else { a.services / check };
    let requests = c.watches / watch_time + discovery + lookups + checks + dialled;
    let pods = a.pod_changes * WRITES_OF_A_POD / hour * cost("pods");
    let slices = if c.all_nodes { n } else { 0.0 } * a.pod_changes / hour * cost("endpointslices");
    let of_nodes = if c.all_nodes { n } else { 1.0 } * NODE_WRITES_AN_HOUR / hour * cost("nodes");
    let edited = ["networkpolicies", "services", "namespaces", "virtualservices", "authorizationpolicies"];
    let edits: f64 = edited.iter().map(|k| a.edits / hour * cost(k)).sum();
    let bookmarks = c.bookmark / 60.0;
    let bytes =
        pods + slices + of_nodes + edits + bookmarks + lookups * c.lookup + checks * c.check + dialled * c.endpoints;
    println!(
        "| {nodes} | {} | {}, {:.1} | {:.0}, {:.0} | {requests:.2} | {bytes:.0} | {:.0} | {:.1} | {:.1} | {:.1} |",
        nodes * a.pods_per_node,
        c.initial.requests(None, None),
        c.initial.bytes(None, None) as f64 / 1e6,
        c.watches,
        c.connections,
        requests * n,
        bytes * n / 1e6,
        slices * n / 1e6,
        of_nodes * n / 1e6,
    );
}

async fn count(nodes: u32, pods_per_node: u32) -> anyhow::Result<Counted> {
    let server = ApiServer::start().await?;
    fill(&server, nodes, pods_per_node);
    let mut source = start(kube::Config::new(server.url().parse()?), Settings::for_node("node-0"))?;
    until(&mut source, |change| matches!(change, Change::Synced)).await;
    quiet(&mut source).await;
    let initial = server.counts();
    let watches = initial.open(None);

    let mut change = BTreeMap::new();
    let changed: [(&'static str, Value); 8] = [
        ("pods", pod(0, 0, "changed")),
        ("nodes", node(0, "changed")),
        ("endpointslices", slice(1, pods_per_node, "changed")),
        ("networkpolicies", policy(0, "changed")),
        ("services", service(0, "changed")),
        ("namespaces", namespace(0, "changed")),
        ("virtualservices", istio("networking.istio.io/v1", "VirtualService", 0, "changed")),
        ("authorizationpolicies", istio("security.istio.io/v1", "AuthorizationPolicy", 0, "changed")),
    ];
    for (plural, object) in changed {
        let before = server.counts();
        server.apply(object);
        quiet(&mut source).await;
        change.insert(plural, server.counts().since(&before).bytes(None, Some(Verb::Watch)) as f64);
    }
    let before = server.counts();
    source.lookups.want("10.0.1.1".parse()?);
    quiet(&mut source).await;
    let lookup = server.counts().since(&before).bytes(Some("pods"), Some(Verb::List)) as f64;
    let before = server.counts();
    source.lookups.want_fresh("10.0.1.1".parse()?, Duration::ZERO);
    quiet(&mut source).await;
    let check = server.counts().since(&before).bytes(Some("pods"), Some(Verb::Get)) as f64;

    let before = server.counts();
    let mut cluster = Cluster::default();
    cluster.apply(Object::from_value(service(2, "first"))?, Origin::default());
    source.lookups.meet(&cluster, "10.96.0.3".parse()?);
    quiet(&mut source).await;
    let endpoints = server.counts().since(&before).bytes(Some("endpointslices"), Some(Verb::List)) as f64;

    // One bookmark of each watch: watches take the pace when they are opened, so by a second agent.
    server.set_bookmark_every(Duration::from_secs(1));
    drop(source);
    let mut source = start(kube::Config::new(server.url().parse()?), Settings::for_node("node-0"))?;
    until(&mut source, |change| matches!(change, Change::Synced)).await;
    quiet(&mut source).await;
    let (before, began) = (server.counts(), Instant::now());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let bytes = server.counts().since(&before).bytes(None, Some(Verb::Watch)) as f64;
    let bookmark = bytes / began.elapsed().as_secs_f64();
    let all_nodes = server
        .requests()
        .iter()
        .any(|r| r.contains("/nodes?") && r.contains("watch=true") && !r.contains("fieldSelector"));
    Ok(Counted {
        change,
        lookup,
        check,
        endpoints,
        bookmark,
        watches: watches as f64,
        connections: initial.connections as f64,
        all_nodes,
        initial,
    })
}

async fn until(source: &mut Source, done: impl Fn(&Change) -> bool) {
    while let Some(change) = source.changes.recv().await {
        if done(&change) {
            return;
        }
    }
}

/// Takes in changes until none came for a while.
async fn quiet(source: &mut Source) {
    while tokio::time::timeout(Duration::from_millis(500), source.changes.recv()).await.is_ok_and(|c| c.is_some()) {}
}

fn fill(server: &ApiServer, nodes: u32, pods_per_node: u32) {
    for (group, kind, plural) in [
        ("networking.istio.io", "VirtualService", "virtualservices"),
        ("networking.istio.io", "DestinationRule", "destinationrules"),
        ("networking.istio.io", "Gateway", "gateways"),
        ("networking.istio.io", "ServiceEntry", "serviceentries"),
        ("networking.istio.io", "Sidecar", "sidecars"),
        ("security.istio.io", "PeerAuthentication", "peerauthentications"),
        ("security.istio.io", "RequestAuthentication", "requestauthentications"),
        ("security.istio.io", "AuthorizationPolicy", "authorizationpolicies"),
    ] {
        server.install(Type::new(group, "v1", kind, plural, true));
    }
    let namespaces = nodes.max(10) / 2;
    for n in 0..namespaces {
        server.apply(namespace(n, "first"));
        server.apply(policy(n, "first"));
        server.apply(istio("networking.istio.io/v1", "VirtualService", n, "first"));
        server.apply(istio("security.istio.io/v1", "AuthorizationPolicy", n, "first"));
    }
    for n in 0..nodes {
        server.apply(node(n, "first"));
        server.apply(service(n, "first"));
        server.apply(slice(n, pods_per_node, "first"));
        for p in 0..pods_per_node {
            server.apply(pod(n, p, "first"));
        }
    }
}

fn meta(namespace: Option<u32>, name: &str, revision: &str, extra: usize) -> Value {
    let mut meta = json!({
        "name": name,
        "labels": {"app.kubernetes.io/part-of": "shop", "revision": revision},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(extra)},
        "managedFields": [{"manager": "kubectl-client-side-apply", "operation": "Update", "apiVersion": "v1",
                           "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f": "y".repeat(extra)}}],
    });
    if let Some(n) = namespace {
        meta["namespace"] = format!("ns-{n}").into();
    }
    meta
}

fn namespace(n: u32, revision: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta(None, &format!("ns-{n}"), revision, 300)})
}

fn policy(n: u32, revision: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta(Some(n), "default", revision, 700),
           "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 8080}]}],
                    "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]}]}})
}

fn istio(api_version: &str, kind: &str, n: u32, revision: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": meta(Some(n), "main", revision, 700),
           "spec": {"hosts": ["web.example.org"], "http": [{"route": [{"destination": {"host": "web"}}]}]}})
}

fn service(n: u32, revision: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(Some(0), &format!("svc-{n}"), revision, 600),
           "spec": {"clusterIP": format!("10.96.{}.{}", n / 250, n % 250 + 1), "selector": {"app": "web"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

/// A slice of a Service with as many endpoints as a node has pods.
fn slice(n: u32, endpoints: u32, revision: &str) -> Value {
    let endpoints: Vec<Value> = (0..endpoints)
        .map(|e| {
            json!({"addresses": [format!("10.{}.{}.{e}", n / 256, n % 256)], "nodeName": format!("node-{n}"), "zone": "zone-a",
                   "conditions": {"ready": true, "serving": true, "terminating": false},
                   "targetRef": {"kind": "Pod", "namespace": "ns-0", "name": format!("web-{n}-{e}"),
                                 "uid": "00000000-0000-4000-8000-000000000000"}})
        })
        .collect();
    let mut meta = meta(Some(0), &format!("svc-{n}-x"), revision, 0);
    meta["labels"]["kubernetes.io/service-name"] = format!("svc-{n}").into();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": meta,
           "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

/// About 12 KB, as a node with forty images has.
fn node(n: u32, revision: &str) -> Value {
    let images: Vec<Value> = (0..40)
        .map(|i| {
            json!({"names": [format!("registry.example.org/team/image-{i}@sha256:{}", "0".repeat(64)),
                                  format!("registry.example.org/team/image-{i}:v1.2.3")], "sizeBytes": 123_456_789})
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": meta(None, &format!("node-{n}"), revision, 1000),
           "spec": {"podCIDR": format!("10.{}.{}.0/24", n / 256, n % 256)},
           "status": {"addresses": [{"type": "InternalIP", "address": format!("172.16.{}.{}", n / 256, n % 256)}],
                      "images": images}})
}

/// About 8 KB, as a pod with a sidecar has.
fn pod(n: u32, p: u32, revision: &str) -> Value {
    let ip = format!("10.{}.{}.{p}", n / 256, n % 256);
    let mut meta = meta(Some(p), &format!("web-{n}-{p}"), revision, 600);
    meta["labels"]["app"] = "web".into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta,
           "spec": {"nodeName": format!("node-{n}"),
                    "containers": [{"name": "app", "image": "registry.example.org/app:1",
                                    "env": [{"name": "E", "value": "z".repeat(2500)}],
                                    "ports": [{"name": "http", "containerPort": 8080}]},
                                   {"name": "istio-proxy", "args": ["a".repeat(2500)], "ports": [{"containerPort": 15090}]}]},
           "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                      "containerStatuses": [{"name": "app", "imageID": "i".repeat(600)}, {"name": "p", "imageID": "i".repeat(600)}]}})
}
