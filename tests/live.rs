//! The whole agent in a cluster: it follows an API server, its probes see real packets, and what it reports follows both.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::apiserver::{ApiServer, Fault, Rule, Type};
use harness::{Agent, AgentOptions, DriveOptions, Enforcement, Fixture, Flow, Mesh, MeshOptions, agent, fixture};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Where the pod is that the test is about; the agent plays this node's.
const NODE: &str = "node-a";
const NAMESPACE: &str = "my-namespace";
const PATIENCE: Duration = Duration::from_secs(60);

/// A mesh, an API server that has its objects, and an agent that knows only that server.
struct Cluster {
    agent: Agent,
    server: ApiServer,
    runtime: Runtime,
    mesh: Mesh,
    fixture: Fixture,
    policies: Vec<NetworkPolicy>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Without policies and without the pods of the namespace.
    fn begin(more: &[&str]) -> Result<Self> {
        let fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/01-sidecar-injection"))?;
        let mesh = Mesh::with(&fixture.cluster, &fixture.flows, &MeshOptions::default())?;
        let runtime = Runtime::new()?;
        let server = runtime.block_on(ApiServer::start())?;
        server.install(Type::new("networking.istio.io", "v1", "Sidecar", "sidecars", true));
        server.fault(Rule::all(Fault::Status(403, None)).of("sidecars"));
        // Nothing is granted but what the shipped roles grant.
        let roles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/weir.yaml");
        server.require_roles(&roles)?;
        for object in mesh.manifests().into_iter().filter(|o| !is_pod_of_the_namespace(o)) {
            server.try_apply(object)?;
        }
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        server.write_kubeconfig(&kubeconfig, None, None)?;
        let kubeconfig = kubeconfig.to_str().context("a path that is no text")?;
        let arguments = ["--kubeconfig", kubeconfig, "--node", NODE, "--grace", "300ms", "--window", "60s"];
        let arguments = arguments.iter().chain(more).map(|a| (*a).to_owned()).collect();
        let agent = Agent::start(&AgentOptions { binary: agent::binary()?, manifests: None, arguments })?;
        Ok(Self { agent, server, runtime, mesh, fixture, policies: Vec::new(), _folder: folder })
    }

    fn pods_appear(&self) -> Result<()> {
        self.mesh.manifests().into_iter().filter(is_pod_of_the_namespace).try_for_each(|o| self.server.try_apply(o))
    }

    /// Puts a state of the fixture into force: in the kernel, and as objects.
    fn enter(&mut self, state: &str) -> Result<()> {
        let new = self.fixture.state(state)?.policies.clone();
        for policy in &new {
            self.server.try_apply(serde_json::to_value(policy)?)?;
        }
        let name = |p: &NetworkPolicy| {
            let namespace = p.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
            (namespace, p.metadata.name.clone().unwrap_or_default())
        };
        for gone in self.policies.iter().filter(|old| !new.iter().any(|n| name(n) == name(old))) {
            let (namespace, name) = name(gone);
            self.server.delete("networking.k8s.io", "networkpolicies", &namespace, &name);
        }
        // Network plugins follow the API server: what they enforce is never ahead of it.
        self.mesh.apply_policies(&new, Enforcement::Drop)?;
        self.policies = new;
        Ok(())
    }

    /// The Events of the namespace, oldest first: type, reason, note.
    fn events(&self) -> Vec<[String; 3]> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = ("events.k8s.io".to_owned(), "events".to_owned());
        let mut events: Vec<Value> =
            self.server.read(|store| store.objects(&key).map(|(_, event)| Value::clone(event)).collect());
        events.sort_by_key(|e| text(&e["eventTime"]));
        events.retain(|e| e["regarding"]["namespace"] == NAMESPACE);
        events.iter().map(|e| [text(&e["type"]), text(&e["reason"]), text(&e["note"])]).collect()
    }

    fn flow(&self, id: &str) -> Result<Flow> {
        self.fixture.flows.iter().find(|f| f.id == id).cloned().with_context(|| format!("there is no flow {id}"))
    }

    /// Drives a flow until the agent shows what is awaited.
    fn drive_until(&self, flow: &Flow, what: &str, fits: impl Fn(&str, &Value) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            self.mesh.drive(std::slice::from_ref(flow), &DriveOptions::default())?;
            std::thread::sleep(Duration::from_millis(300));
            let (metrics, snapshot) = (self.agent.metrics()?, self.agent.snapshot()?);
            if fits(&metrics, &snapshot) {
                println!("{what}: after {:?}", begin.elapsed());
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                bail!("{what}: not so:\n{:#}\n{}", pairs_of(&snapshot, NAMESPACE), self.agent.log());
            }
        }
    }

    /// Waits until a page of the agent is as awaited.
    fn until(&self, what: &str, page: &str, fits: impl Fn(u16, &str) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let (status, text) = self.agent.get(page)?;
            if fits(status, &text) {
                println!("{what}: after {:?}", begin.elapsed());
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "{what}: not so: {status} {text}\n{}", self.agent.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn is_pod_of_the_namespace(object: &Value) -> bool {
    object["kind"] == "Pod" && object["metadata"]["namespace"] == NAMESPACE
}

fn pairs_of(snapshot: &Value, namespace: &str) -> Value {
    let ours = |p: &&Value| p["source"]["namespace"] == namespace || p["destination"]["namespace"] == namespace;
    snapshot["pairs"].as_array().into_iter().flatten().filter(ours).cloned().collect()
}

/// The states of a flow's pairs that end at a workload.
fn states<'a>(snapshot: &'a Value, code: &str, source: &str, destination: &str) -> Vec<&'a str> {
    let pairs = snapshot["pairs"].as_array().into_iter().flatten();
    let ours = |p: &&Value| {
        p["code"] == code && p["source"]["workload"] == source && p["destination"]["workload"] == destination
    };
    pairs.filter(ours).filter_map(|p| p["state"].as_str()).collect()
}

fn is_alarm(metrics: &str) -> bool {
    metrics.lines().any(|line| {
        line.starts_with("weir_required_flow_denied{")
            && line.contains("flow=\"sidecar-xds\"")
            && line.contains("source_namespace=\"my-namespace\"")
            && line.contains("policies=\"my-namespace/default-deny\"")
            && line.ends_with("} 1")
    })
}

#[test]
fn what_the_agent_reports_follows_the_cluster_and_the_packets() -> Result<()> {
    let mut cluster = Cluster::begin(&[])?;
    let xds = cluster.flow("sc-02-xds-ca")?;
    let xds_states = |snapshot: &Value| -> Vec<String> {
        states(snapshot, "SC-XDS", "httpbin", "istiod").into_iter().map(str::to_owned).collect()
    };

    // A kind that may not be read is named, and takes nothing else with it.
    cluster.until("the refused kind is named", "/readyz", |status, text| {
        status == 200 && text.contains("sidecars") && text.contains("refused")
    })?;
    ensure!(cluster.agent.log().contains("sidecars"), "the log names it: {}", cluster.agent.log());
    let metrics = cluster.agent.metrics()?;
    let ages: Vec<&str> = metrics.lines().filter(|l| l.starts_with("weir_cluster_view_age_seconds{")).collect();
    ensure!(ages.iter().any(|l| l.contains("sidecars")), "{ages:#?}");
    ensure!(xds_states(&cluster.agent.snapshot()?).is_empty(), "there is no pod yet");

    // Pods appear, and are verified.
    cluster.pods_appear()?;
    cluster.drive_until(&xds, "a pod that appeared is verified", |_, s| xds_states(s) == ["verified"])?;

    // A policy closes the flow.
    cluster.enter("before")?;
    cluster.drive_until(&xds, "the policy closes it", |metrics, s| is_alarm(metrics) && xds_states(s) == ["denied"])?;

    // A peer of another node, which nobody watches, is looked up.
    let data = cluster.flow("sc-07-client-to-httpbin")?;
    cluster
        .drive_until(&data, "the peer is looked up", |_, s| states(s, "SC-DATA", "curl", "httpbin") == ["denied"])?;
    let peer = cluster.mesh.addresses(&data.from)?.first().context("a client without an address")?.to_string();
    let lookups: Vec<String> =
        cluster.server.requests().into_iter().filter(|r| r.contains("status.podIP") && r.contains(&peer)).collect();
    ensure!((1..=10).contains(&lookups.len()), "{lookups:#?}");

    // Without the API server it serves what it knows, and says how old that is.
    let Cluster { runtime, server, .. } = &mut cluster;
    runtime.block_on(server.stop());
    cluster.until("the view grows old", "/readyz", |status, text| {
        status == 200 && text.contains("networkpolicies") && text.contains("stale")
    })?;
    cluster.drive_until(&xds, "still denied", |metrics, s| is_alarm(metrics) && xds_states(s) == ["denied"])?;

    // The fix comes while it is away; the agent catches up.
    cluster.enter("after")?;
    let Cluster { runtime, server, .. } = &mut cluster;
    runtime.block_on(server.resume())?;
    cluster.drive_until(&xds, "the fix opens it", |metrics, s| !is_alarm(metrics) && xds_states(s) == ["verified"])?;
    cluster.until("all but the refused kind is current", "/readyz", |_, text| {
        text.contains("sidecars") && !text.contains("stale")
    })?;
    let snapshot = cluster.agent.snapshot()?;
    let parts = snapshot["agent"]["parts"].as_array().context("no parts")?;
    let refused: Vec<&Value> = parts.iter().filter(|p| p["state"] == "refused").collect();
    ensure!(refused.len() == 1 && refused[0]["part"].as_str().is_some_and(|p| p.contains("sidecars")), "{parts:#?}");
    Ok(())
}

#[test]
fn candidates_tell_what_the_switch_would_break_and_events_what_it_broke() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("next.yaml");
    std::fs::write(&file, "")?;
    let path = file.to_str().context("a path that is no text")?;
    let mut cluster = Cluster::begin(&["--candidate", path, "--candidates-from", "weir-system"])?;
    let xds = cluster.flow("sc-02-xds-ca")?;
    cluster.pods_appear()?;
    let effect = |snapshot: &Value| -> Vec<String> {
        let pairs = snapshot["pairs"].as_array().into_iter().flatten();
        let ours = pairs.filter(|p| p["code"] == "SC-XDS" && p["source"]["workload"] == "httpbin");
        ours.map(|p| p["candidate"]["effect"].as_str().unwrap_or("none").to_owned()).collect()
    };
    let verified = |s: &Value| states(s, "SC-XDS", "httpbin", "istiod") == ["verified"];
    let breaks = |metrics: &str| {
        let ours = |l: &&str| {
            l.starts_with("weir_candidate_denied{")
                && l.contains("flow=\"sidecar-xds\"")
                && l.contains("source_workload=\"httpbin\"")
                && l.contains("policies=\"my-namespace/default-deny\"")
        };
        metrics.lines().filter(ours).count() == 1
    };
    cluster.drive_until(&xds, "no candidate", |m, s| verified(s) && !breaks(m) && effect(s) == ["none"])?;

    // From a file: nothing is enforced, and what it would break shows.
    let deny = cluster.fixture.state("before")?.policies.clone();
    let text: Vec<String> = deny.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    agent::replace_file(&file, &text.join("\n---\n"))?;
    cluster
        .drive_until(&xds, "a candidate would break it", |m, s| verified(s) && breaks(m) && effect(s) == ["breaks"])?;
    ensure!(!is_alarm(&cluster.agent.metrics()?), "a candidate denies nothing");
    let snapshot = cluster.agent.snapshot()?;
    ensure!(snapshot["candidates"]["breaks"].as_u64() > Some(0), "{:#}", snapshot["candidates"]);
    ensure!(cluster.events().is_empty(), "{:#?}", cluster.events());

    // The same from a labelled ConfigMap, with the policies that the flows need beside it.
    agent::replace_file(&file, "")?;
    cluster.drive_until(&xds, "the candidate is withdrawn", |m, s| !breaks(m) && effect(s) == ["none"])?;
    let map = |policies: &[NetworkPolicy], label: &str| -> Result<Value> {
        let text: Vec<String> = policies.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        let meta = json!({"namespace": "weir-system", "name": "next", "labels": {"weir.io/candidates": label}});
        Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"x.yaml": text.join("\n---\n")}}))
    };
    cluster.server.try_apply(map(&deny, "true")?)?;
    cluster
        .drive_until(&xds, "a ConfigMap would break it", |m, s| verified(s) && breaks(m) && effect(s) == ["breaks"])?;
    let mended = cluster.fixture.state("after")?.policies.clone();
    cluster.server.try_apply(map(&mended, "true")?)?;
    cluster.drive_until(&xds, "the mended candidates would not", |m, s| {
        verified(s) && !breaks(m) && effect(s) == ["same"]
    })?;
    cluster.server.try_apply(map(&deny, "false")?)?;
    cluster.drive_until(&xds, "without the label it holds none", |_, s| {
        s["candidates"].is_null() && effect(s) == ["none"]
    })?;

    // The switch for real, and back: an Event each, on the pod, once.
    ensure!(cluster.events().is_empty(), "{:#?}", cluster.events());
    cluster.enter("before")?;
    cluster
        .drive_until(&xds, "denied", |m, s| is_alarm(m) && states(s, "SC-XDS", "httpbin", "istiod") == ["denied"])?;
    let of_xds = |cluster: &Cluster| -> Vec<[String; 3]> {
        cluster.events().into_iter().filter(|e| e[2].starts_with("sidecar-xds is ")).collect()
    };
    let begin = Instant::now();
    while of_xds(&cluster).is_empty() && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    let events = of_xds(&cluster);
    ensure!(events.len() == 1, "{events:#?}\n{}", cluster.agent.log());
    ensure!(events[0][0] == "Warning" && events[0][1] == "RequiredFlowDenied", "{events:#?}");
    ensure!(events[0][2].contains("my-namespace/default-deny"), "{events:#?}");
    cluster.enter("after")?;
    cluster.drive_until(&xds, "verified again", |m, s| !is_alarm(m) && verified(s))?;
    let begin = Instant::now();
    while of_xds(&cluster).len() < 2 && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    let events = of_xds(&cluster);
    ensure!(events.len() == 2 && events[1][0] == "Normal", "{events:#?}");
    ensure!(events[1][1] == "RequiredFlowRecovered", "{events:#?}");
    Ok(())
}

#[test]
fn whatever_the_api_server_does_the_agent_catches_up() -> Result<()> {
    let mut cluster = Cluster::begin(&["--no-events"])?;
    let xds = cluster.flow("sc-02-xds-ca")?;
    cluster.pods_appear()?;
    let is = |s: &Value, state: &str| states(s, "SC-XDS", "httpbin", "istiod") == [state];
    cluster.drive_until(&xds, "verified", |_, s| is(s, "verified"))?;
    let closed = "before";
    let open = "after";
    let mut state = open;
    let faults: [(&str, Vec<Rule>); 6] = [
        ("errors with a time to wait", vec![Rule::all(Fault::Status(429, Some(1)))]),
        ("errors without", vec![Rule::all(Fault::Status(503, None))]),
        ("a proxy's page", vec![Rule::all(Fault::Page(502))]),
        ("half a document", vec![Rule::all(Fault::Garbage)]),
        ("watches that end at once", vec![Rule::all(Fault::CloseAfter(0))]),
        ("versions too old", vec![Rule::all(Fault::GoneInWatch)]),
    ];
    for (what, rules) in faults {
        cluster.server.clear_faults();
        for rule in rules {
            cluster.server.fault(rule.of("networkpolicies"));
        }
        // Every watch is cut, and what comes back meets the fault.
        cluster.server.compact();
        let Cluster { runtime, server, .. } = &mut cluster;
        runtime.block_on(server.stop());
        runtime.block_on(server.resume())?;
        state = if state == open { closed } else { open };
        cluster.enter(state)?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(cluster.agent.get("/livez")?.0 == 200, "{what}: not alive");
        cluster.server.clear_faults();
        let expected = if state == open { "verified" } else { "denied" };
        cluster.drive_until(&xds, what, |_, s| is(s, expected))?;
    }
    Ok(())
}

#[test]
fn an_agent_that_starts_without_its_api_server_waits_for_it() -> Result<()> {
    let runtime = Runtime::new()?;
    let mut server = runtime.block_on(ApiServer::start())?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    runtime.block_on(server.stop());
    let path = kubeconfig.to_str().context("a path that is no text")?;
    let arguments = ["--kubeconfig", path, "--node", NODE].map(str::to_owned).to_vec();
    let agent = Agent::launch(&AgentOptions { binary: agent::binary()?, manifests: None, arguments })?;
    let until = |what: &str, fits: &dyn Fn(u16, &str) -> bool| -> Result<()> {
        let begin = Instant::now();
        loop {
            match agent.get("/readyz") {
                Ok((status, text)) if fits(status, &text) => return Ok(()),
                other => ensure!(begin.elapsed() < PATIENCE, "{what}: {other:?}\n{}", agent.log()),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    until("not ready, and says why", &|status, text| status == 503 && text.contains("not loaded"))?;
    ensure!(agent.get("/livez")?.0 == 200, "it lives");
    runtime.block_on(server.resume())?;
    until("ready", &|status, _| status == 200)?;
    ensure!(agent.stop()?.success(), "it stops in good order");
    Ok(())
}
