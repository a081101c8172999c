//! What following a large cluster costs an agent: memory, the first synchronisation, a resync, a burst of changes.
//!
//! The fake API server and the agent's source and engine run in processes of their own, so that each is measured alone. Run it
//! with `--release`; a debug build proves nothing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;
use harness::apiserver::ApiServer;
use harness::{aims, usage};
use serde_json::{Value, json};
use weir::cluster::change::Change;
use weir::cluster::watch::{Settings as Watched, start};
use weir_engine::cluster::Object;
use weir_engine::engine::{Engine, Settings};
use weir_engine::time::Time;

/// Measures an agent that watches every pod of a large cluster.
#[derive(Parser)]
struct Arguments {
    /// Pods of the cluster.
    #[arg(long, default_value_t = 50_000)]
    pods: u32,
    /// NetworkPolicies of the cluster.
    #[arg(long, default_value_t = 2_000)]
    policies: u32,
    /// Changes of pods a second in the burst.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// How long the burst lasts, seconds.
    #[arg(long, default_value_t = 10)]
    burst: u32,
    /// The agent's part: follows the server at this address, tells what it measured on standard output.
    #[arg(long, hide = true)]
    follow: Option<String>,
}

/// Pods of a namespace.
const NAMESPACE: u32 = 100;
/// Pods of a node.
const NODE: u32 = 100;

/// Longer than freed memory is kept.
const QUIET: Duration = Duration::from_secs(4);

/// Aims, at the sizes that are the defaults: resident memory, processor time of a resync, age of a decision in the burst.
const MAX_RSS_MIB: u64 = 120;
const MAX_RESYNC_SECONDS: f64 = 5.0;
const MAX_AGE_MS: f64 = 10.0;

/// Exit codes: 0 all aims met, 1 some missed, 2 could not be measured.
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        match &arguments.follow {
            Some(url) => runtime.block_on(follow(url)),
            None => runtime.block_on(serve(&arguments)),
        }
    };
    aims::exit(measured())
}

/// How a figure compares with its aim, and whether it meets it.
fn aim(met: bool) -> (&'static str, bool) {
    (if met { "met" } else { "MISSED" }, met)
}

/// Plays the cluster, and prints what the agent's process said.
async fn serve(a: &Arguments) -> Result<bool> {
    let mut server = ApiServer::start().await?;
    fill(&server, a);
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--follow", &server.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the agent's part")?;
    let mut said = BufReader::new(child.stdout.take().context("it was piped")?).lines();
    let mut hear = |what: &str| -> Result<String> {
        let line = said.next().with_context(|| format!("{what}: the agent's part has ended"))??;
        Ok(line)
    };
    println!("{} pods, {} policies", a.pods, a.policies);
    println!("synchronised: {}", tokio::task::block_in_place(|| hear("sync"))?);

    // Every watch is cut and its version too old: everything is listed again.
    let mut stdin = child.stdin.take().context("it was piped")?;
    writeln!(stdin, "resync")?;
    server.compact();
    server.stop().await;
    server.apply(namespace(1_000_000));
    server.compact();
    server.resume().await?;
    println!("resynchronised: {}", tokio::task::block_in_place(|| hear("resync"))?);

    writeln!(stdin, "burst")?;
    let begin = Instant::now();
    for n in 0..a.rate * a.burst {
        let due = begin + Duration::from_secs(1) * n / a.rate;
        tokio::time::sleep_until(due.into()).await;
        server.apply(pod(n % a.pods, Some(now_ns())));
    }
    server.apply(namespace(2_000_000));
    println!("burst of {} changes/s: {}", a.rate, tokio::task::block_in_place(|| hear("burst"))?);
    drop(stdin);
    match child.wait()?.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("the agent's part failed"),
    }
}

/// Plays the agent.
async fn follow(url: &str) -> Result<bool> {
    let mut source = start(kube::Config::new(url.parse()?), Watched::all())?;
    let mut engine = Engine::new(Settings { nodes: vec!["node-0".to_owned()], ..Settings::default() });
    let begin = Instant::now();
    let clock = || Time(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(1));
    let apply = |engine: &mut Engine, change: Change| -> Option<(String, Option<u64>)> {
        match change {
            Change::Apply { object, origin } => {
                let name = object.key().name.name.to_string();
                let stamp = match &object {
                    Object::Pod(pod) => pod.metadata.labels.as_ref().and_then(|l| l.get("stamp")?.parse().ok()),
                    _ => None,
                };
                engine.apply(clock(), object, origin);
                return Some((name, stamp));
            }
            Change::Delete(key) => engine.delete(clock(), &key),
            Change::Answered { .. } | Change::Health(_) | Change::Read(_) | Change::Candidates(_) => {}
            Change::Synced => {
                engine.synced(clock());
                return Some(("synced".to_owned(), None));
            }
        }
        engine.handle_timeout(clock());
        None
    };
    let until = async |source: &mut weir::cluster::watch::Source, engine: &mut Engine, last: &str| {
        let mut ages = Vec::new();
        loop {
            let Some(change) = source.changes.recv().await else { bail!("the source has ended") };
            let Some((name, stamp)) = apply(engine, change) else { continue };
            engine.handle_timeout(clock());
            ages.extend(stamp.map(|s| now_ns().saturating_sub(s)));
            if name == last {
                return Ok(ages);
            }
        }
    };
    let cpu = cpu_seconds()?;
    until(&mut source, &mut engine, "synced").await?;
    let (spent, wall) = (cpu_seconds()? - cpu, begin.elapsed());
    settle(&mut source, |change| drop(apply(&mut engine, change))).await;
    engine.handle_timeout(Time(clock().0 + 1_000_000_000));
    let pairs = engine.pairs().count();
    println!("{spent:.1} s of CPU, {:.1} s, {} MiB RSS, {pairs} pairs of this node", wall.as_secs_f64(), rss()?);

    let mut orders = std::io::stdin().lines();
    orders.next().context("no order")??;
    let (cpu, wall) = (cpu_seconds()?, Instant::now());
    until(&mut source, &mut engine, "ns-1000000").await?;
    // The list of pods is the long one: wait until it was confirmed as well.
    let wall = wall.elapsed();
    settle(&mut source, |change| drop(apply(&mut engine, change))).await;
    let (spent, resident) = (cpu_seconds()? - cpu, rss()?);
    let ((cpu_aim, in_time), (rss_aim, small)) = (aim(spent <= MAX_RESYNC_SECONDS), aim(resident <= MAX_RSS_MIB));
    println!(
        "{spent:.1} s of CPU within {:.1} s ({cpu_aim}, <= {MAX_RESYNC_SECONDS} s), {resident} MiB RSS ({rss_aim}, <= {MAX_RSS_MIB} MiB)",
        wall.as_secs_f64(),
    );

    orders.next().context("no order")??;
    let cpu = cpu_seconds()?;
    let mut ages: Vec<u64> = until(&mut source, &mut engine, "ns-2000000").await?;
    ages.sort_unstable();
    let at = |share: f64| ages.get((ages.len() as f64 * share) as usize).copied().unwrap_or(0) as f64 / 1e6;
    let (age_aim, fresh) = aim(at(0.99) < MAX_AGE_MS);
    println!(
        "{} changes, age when decided by: median {:.1} ms, 99 % {:.1} ms ({age_aim}, < {MAX_AGE_MS} ms), most {:.1} ms; \
         {:.1} s of CPU, {} MiB RSS",
        ages.len(),
        at(0.5),
        at(0.99),
        ages.last().map_or(0.0, |ns| *ns as f64 / 1e6),
        cpu_seconds()? - cpu,
        rss()?
    );
    Ok(in_time && small && fresh)
}

/// Takes in changes until none came for a while, in which freed memory is given back.
async fn settle(source: &mut weir::cluster::watch::Source, mut apply: impl FnMut(Change)) {
    while let Ok(Some(change)) = tokio::time::timeout(QUIET, source.changes.recv()).await {
        apply(change);
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(0))
}

/// User and system time of this process, seconds.
fn cpu_seconds() -> Result<f64> {
    Ok(usage::processor_time(std::process::id())?.as_secs_f64())
}

/// Resident memory, MiB.
fn rss() -> Result<u64> {
    Ok(usage::resident(std::process::id())? >> 20)
}

fn fill(server: &ApiServer, a: &Arguments) {
    let namespaces = a.pods.div_ceil(NAMESPACE).max(1);
    for n in 0..namespaces {
        server.apply(namespace(n));
        let meta = json!({"namespace": format!("ns-{n}"), "name": "web"});
        let spec = json!({"clusterIP": format!("10.200.{}.{}", n / 250, n % 250 + 1), "selector": {"app": "app-0"},
                          "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
        server.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}));
    }
    for n in 0..a.pods.div_ceil(NODE) {
        let address = format!("192.168.{}.{}", n / 250, n % 250 + 1);
        server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{n}")},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}}));
    }
    server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}));
    server.apply(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "istio-system", "name": "istiod-5d5-x", "labels": {"app": "istiod", "istio": "pilot"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "discovery"}]},
        "status": {"phase": "Running", "podIP": "10.250.0.1", "podIPs": [{"ip": "10.250.0.1"}]}}));
    for n in 0..a.policies {
        let app = json!({"matchLabels": {"app": format!("app-{}", n / namespaces % 10)}});
        let from = json!([{"podSelector": {"matchLabels": {"app": "app-0"}}},
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}}}]);
        let to = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}}}]);
        server.apply(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": format!("ns-{}", n % namespaces), "name": format!("policy-{n}")},
            "spec": {"podSelector": app, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": from, "ports": [{"port": 8080}]}], "egress": [{"to": to, "ports": [{"port": 15012}]}]}}));
    }
    for n in 0..a.pods {
        server.apply(pod(n, None));
    }
}

fn namespace(n: u32) -> Value {
    let name = format!("ns-{n}");
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "istio-injection": "enabled"}}})
}

/// A pod of a real size: most of it is what Weir does not keep.
fn pod(n: u32, stamp: Option<u64>) -> Value {
    let (space, app, node) = (n / NAMESPACE, n % NAMESPACE % 10, n / NODE);
    let address = format!("10.{}.{}.{}", 100 + n / 60_000, n / 240 % 250, n % 240 + 1);
    let mut labels = json!({"app": format!("app-{app}"), "pod-template-hash": "7d9f", "security.istio.io/tlsMode": "istio",
        "app.kubernetes.io/part-of": format!("team-{}", space % 20)});
    if let Some(stamp) = stamp {
        labels["stamp"] = stamp.to_string().into();
    }
    let env: Vec<Value> =
        (0..20).map(|i| json!({"name": format!("VARIABLE_{i}"), "value": "a value of a usual length"})).collect();
    let container = |name: &str, port: u16| {
        json!({"name": name, "image": "registry.example/team/image:1.2.3", "env": env,
            "ports": [{"containerPort": port, "name": "http"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}})
    };
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": format!("ns-{space}"), "name": format!("app-{app}-7d9f-{n}"), "labels": labels,
            "uid": format!("00000000-0000-0000-0000-{n:012}"), "creationTimestamp": "2024-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{app}-7d9f"),
                "uid": "1", "controller": true}],
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:conditions": {"f:x": "x".repeat(600)}}}}]},
        "spec": {"nodeName": format!("node-{node}"), "containers": [container("istio-proxy", 15090), container("web", 8080)]},
        "status": {"phase": "Running", "startTime": "2024-01-01T00:00:00Z", "podIP": address, "podIPs": [{"ip": address}]}})
}
