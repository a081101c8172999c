//! The shipped security context for real: the image's static binary in a container that runc starts as a kubelet would have it,
//! with the DaemonSet's arguments, user, capabilities, seccomp profile, mounts, namespaces and read-only root.
//!
//! The pod is one of a mesh with real packets, its API server asks for the service account's token over TLS. Needs root, runc and
//! the profiles that `cargo xtask setup` fetches.

#[path = "container/bundle.rs"]
mod bundle;
#[path = "container/seccomp.rs"]
mod seccomp;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::apiserver::ApiServer;
use harness::netns::Netns;
use harness::{DriveOptions, End, Enforcement, Fixture, Mesh, MeshOptions, agent, fixture, loaded};
use serde_json::{Value, json};
use tokio::runtime::Runtime as Tokio;

use bundle::{Container, Given};
use seccomp::Runtime;

const NODE: &str = "node-a";
const AGENT: &str = "weir-system/weir-7x2kq";
/// What the DaemonSet listens on.
const PORT: u16 = 15099;
const TOKEN: &str = "a-token-of-a-service-account";
const PATIENCE: Duration = Duration::from_secs(120);

/// Is all there that these tests need? Says what is not.
fn ready(profiles: &[Runtime]) -> bool {
    if Command::new("runc").arg("--version").output().is_err() {
        println!("SKIPPED: runc is not installed (`cargo xtask setup`)");
        return false;
    }
    for profile in profiles {
        if !profile.file().is_file() {
            println!("SKIPPED: no default seccomp profile of {profile:?} (`cargo xtask setup`)");
            return false;
        }
    }
    true
}

#[test]
fn a_denial_on_real_packets_is_seen_from_the_shipped_container() -> Result<()> {
    if !ready(&[Runtime::Containerd]) {
        return Ok(());
    }
    let mut cluster = Cluster::begin()?;
    cluster.until("ready", || Ok(cluster.get("/readyz").is_ok_and(|(status, _)| status == 200)))?;
    ensure!(cluster.get("/livez")?.0 == 200, "the kubelet's question is not answered");
    let snapshot = cluster.snapshot()?;
    let probes = snapshot["agent"]["probes"].as_array().context("no probes")?;
    ensure!(probes.len() >= 6 && probes.iter().all(|p| p["active"] == true), "{probes:#?}");

    let flow = cluster.fixture.flows.iter().find(|f| f.id == "sc-02-xds-ca").context("no such flow")?.clone();
    let drive = || cluster.mesh.drive(std::slice::from_ref(&flow), &DriveOptions::default()).map(drop);
    cluster.until("denied, by the policy that does it", || {
        drive()?;
        let pair = cluster.pair()?;
        Ok(pair["state"] == "denied" && pair["policies"] == json!(["my-namespace/default-deny"]))
    })?;
    let metrics = cluster.get("/metrics")?.1;
    let alarm = metrics.lines().find(|l| {
        l.starts_with("weir_required_flow_denied{") && l.contains("flow=\"sidecar-xds\"") && l.ends_with("} 1")
    });
    ensure!(alarm.is_some_and(|l| l.contains("my-namespace/default-deny")), "{metrics}");

    // `kubectl exec`: the command in the same container finds the socket.
    let status = cluster.container.exec(&["/usr/bin/weir", "status"])?;
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(
        said.contains("sidecar-xds") && said.contains("denied"),
        "{said}{}",
        String::from_utf8_lossy(&status.stderr)
    );
    cluster.only_what_is_meant()?;
    // The roles suffice: nothing is refused, and the Event was taken.
    let parts = cluster.snapshot()?["agent"]["parts"].clone();
    let parts = parts.as_array().context("no parts")?;
    ensure!(!parts.is_empty() && parts.iter().all(|p| p["state"] != "refused"), "{parts:#?}");
    let events = ("events.k8s.io".to_owned(), "events".to_owned());
    cluster.until("an Event on the pod", || {
        let denied = |event: &Value| event["reason"] == "RequiredFlowDenied" && event["type"] == "Warning";
        Ok(cluster.server.read(|store| store.objects(&events).any(|(_, event)| denied(event))))
    })?;

    cluster.enter("after")?;
    cluster.until("verified, once the policies admit it", || {
        drive()?;
        Ok(cluster.pair()?["state"] == "verified")
    })?;

    let programs = loaded::held_by(cluster.container.pid()?)?;
    ensure!(programs.len() >= 6, "{programs:?}");
    let ended = cluster.container.terminate(Duration::from_secs(10))?;
    ensure!(ended.code() == Some(0), "{ended}: {}", cluster.container.log());
    loaded::until_gone(&programs, PATIENCE)
}

/// The reasons that the manifest gives for its capabilities are the truth.
#[test]
fn every_probe_attaches_with_what_the_daemon_set_grants_and_not_with_less() -> Result<()> {
    if !ready(&[Runtime::Containerd]) {
        return Ok(());
    }
    let all = attached(&Given::default(), Runtime::Containerd)?;
    ensure!(all.len() >= 6 && all.values().all(|active| *active), "{all:?}");
    let missing = |capability| {
        let given = Given { without: vec![capability], ..Given::default() };
        let some = attached(&given, Runtime::Containerd)?;
        anyhow::Ok(all.keys().filter(|name| some.get(*name) != Some(&true)).cloned().collect::<Vec<_>>())
    };
    let without = missing("NET_ADMIN")?;
    ensure!(without == ["udp_create", "udp_release"], "{without:?}");
    let everything: Vec<String> = all.keys().cloned().collect();
    for capability in ["PERFMON", "BPF"] {
        let without = missing(capability)?;
        ensure!(without == everything, "{capability}: {without:?}");
    }
    let without = missing("SYSLOG")?;
    ensure!(without.is_empty(), "{without:?}");
    Ok(())
}

/// What the chart says of CRI-O's profile: bpf() for CAP_SYS_ADMIN alone, which `legacyCapabilities` grants.
#[test]
fn under_the_profile_of_containers_common_the_legacy_capabilities_are_needed() -> Result<()> {
    if !ready(&[Runtime::ContainersCommon]) {
        return Ok(());
    }
    let shipped = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYSLOG"].map(str::to_owned);
    let allowed = seccomp::allows(&Runtime::ContainersCommon.profile(&shipped)?, "bpf");
    let plain = attached(&Given::default(), Runtime::ContainersCommon)?;
    ensure!(plain.values().any(|active| *active) == allowed, "bpf() allowed: {allowed}, {plain:?}");
    let legacy = attached(&Given { legacy: true, ..Given::default() }, Runtime::ContainersCommon)?;
    ensure!(legacy.len() >= 6 && legacy.values().all(|active| *active), "{legacy:?}");
    Ok(())
}

#[test]
fn the_binary_is_static_and_others_are_told_from_it() -> Result<()> {
    let (own, other) = (bundle::static_binary()?, std::env::current_exe()?);
    ensure!(!bundle::interpreter(&fs::read(&own)?)?, "it wants a dynamic linker");
    ensure!(bundle::interpreter(&fs::read(&other)?)?, "this test is linked dynamically");
    // The image's build finds the same: a line of its own fails for the one and not for the other.
    let build = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/Dockerfile"))?;
    let line = build.lines().find(|l| l.contains("readelf")).context("the build does not look")?;
    let line = line.trim().trim_start_matches("&& ").trim_end_matches('\\');
    for (file, good) in [(own, true), (other, false)] {
        let line = line.replace("/image/usr/bin/weir", &file.to_string_lossy());
        let status = Command::new("sh").args(["-c", &line]).stdout(Stdio::null()).status()?;
        ensure!(status.success() == good, "{line}: {status}");
    }
    Ok(())
}

/// Which probes `weir doctor` attaches in the container; none are named where nothing can be loaded at all.
fn attached(given: &Given, profile: Runtime) -> Result<BTreeMap<String, bool>> {
    let arguments = ["doctor", "--output", "json"].map(str::to_owned).to_vec();
    let output = Container::new(&Given { arguments: Some(arguments), ..given.clone() }, profile)?.finish()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())?;
    let probes = report["probes"].as_array().context("no probes")?.iter();
    Ok(probes.map(|p| (p["name"].as_str().unwrap_or_default().to_owned(), p["active"] == true)).collect())
}

/// The agent's container on a node of a mesh, with an API server.
struct Cluster {
    container: Container,
    server: ApiServer,
    _runtime: Tokio,
    mesh: Mesh,
    fixture: Fixture,
    address: SocketAddr,
    _account: tempfile::TempDir,
}

impl Cluster {
    fn begin() -> Result<Self> {
        let mut fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/01-sidecar-injection"))?;
        let template = bundle::daemon_set()?["spec"]["template"].clone();
        let (namespace, name) = AGENT.split_once('/').context("a name")?;
        let taken: BTreeSet<String> = fixture.cluster.pods.iter().flat_map(|p| p.status.clone()?.pod_ip).collect();
        let node = fixture.cluster.nodes.iter().find(|n| n.metadata.name.as_deref() == Some(NODE));
        let range = node.and_then(|n| n.spec.clone()?.pod_cidr).context("a node without addresses for pods")?;
        let range: ipnet::Ipv4Net = range.parse()?;
        let free = range.hosts().skip(100).find(|ip| !taken.contains(&ip.to_string())).context("no free address")?;
        fixture.cluster.add(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))?;
        fixture.cluster.add(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": template["metadata"]["labels"]},
            "spec": {"nodeName": NODE, "containers": template["spec"]["containers"]},
            "status": {"phase": "Running", "podIP": free.to_string(), "podIPs": [{"ip": free.to_string()}]},
        }))?;
        let mesh = Mesh::with(&fixture.cluster, &fixture.flows, &MeshOptions::default())?;
        let pod = End::Pod(AGENT.to_owned());
        let network: &Netns = mesh.namespace(&pod)?;

        // The mesh serves each port that a pod's containers name; this pod has its own server.
        ensure!(mesh.stop_listening(&pod, harness::Protocol::Tcp, PORT)?, "the pod does not name its port {PORT}");
        // The API server is reached inside of the pod, so that no Service stands between.
        let runtime = Tokio::new()?;
        let server = network.run(|| runtime.block_on(ApiServer::start_tls()))?;
        server.require_token(Some(TOKEN));
        server.require_roles(&bundle::manifests())?;
        for object in mesh.manifests() {
            server.try_apply(object)?;
        }
        let account = tempfile::tempdir()?;
        let certificate = server.certificate().context("no certificate")?;
        for (file, text) in [("token", TOKEN), ("ca.crt", certificate), ("namespace", namespace)] {
            fs::write(account.path().join(file), text)?;
        }
        let environment = [
            ("spec.nodeName", NODE.to_owned()),
            ("KUBERNETES_SERVICE_HOST", server.address().ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", server.address().port().to_string()),
        ];
        let given = Given {
            network: Some(mesh.namespace(&pod)?.path()),
            environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            account: Some(account.path().to_owned()),
            ..Given::default()
        };
        let address = SocketAddr::new(free.into(), PORT);
        let container = Container::new(&given, Runtime::Containerd)?;
        let mut cluster = Self { container, server, _runtime: runtime, mesh, fixture, address, _account: account };
        cluster.enter("before")?;
        cluster.container.start()?;
        Ok(cluster)
    }

    /// Puts a state of the fixture into force: in the kernel, and as objects.
    fn enter(&self, state: &str) -> Result<()> {
        let policies = self.fixture.state(state)?.policies.clone();
        self.mesh.apply_policies(&policies, Enforcement::Drop)?;
        policies.iter().try_for_each(|policy| self.server.try_apply(serde_json::to_value(policy)?))
    }

    /// A page, as the node's kubelet gets it.
    fn get(&self, path: &str) -> Result<(u16, String)> {
        let node = End::Node { name: NODE.to_owned(), ip: None };
        self.mesh.namespace(&node)?.run(|| agent::get(self.address, path))
    }

    fn snapshot(&self) -> Result<Value> {
        serde_json::from_str(&self.get("/snapshot")?.1).context("/snapshot is not JSON")
    }

    /// The pair that the test is about.
    fn pair(&self) -> Result<Value> {
        let snapshot = self.snapshot()?;
        let pairs = snapshot["pairs"].as_array().context("no pairs")?;
        let found = pairs.iter().find(|p| p["code"] == "SC-XDS" && p["source"]["workload"] == "httpbin");
        Ok(found.cloned().unwrap_or_default())
    }

    fn until(&self, what: &str, fits: impl Fn() -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !fits()? {
            ensure!(
                begin.elapsed() < PATIENCE,
                "{what}: not so: {:#}\n{}",
                self.pair().unwrap_or_default(),
                self.container.log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("{what}: after {:?}", begin.elapsed());
        Ok(())
    }

    /// The context is the one that is meant: what the kernel says of the process.
    fn only_what_is_meant(&self) -> Result<()> {
        let process = fs::read_to_string(format!("/proc/{}/status", self.container.pid()?))?;
        let field = |name: &str| -> Option<&str> { process.lines().find_map(|l| l.strip_prefix(name)).map(str::trim) };
        // SYSLOG, PERFMON, BPF and NET_ADMIN by their numbers in linux/capability.h.
        let meant: u64 = [34, 38, 39, 12].iter().map(|number| 1_u64 << number).sum();
        let effective = u64::from_str_radix(field("CapEff:").context("no CapEff")?, 16)?;
        ensure!(effective == meant, "{effective:x}, not {meant:x}");
        ensure!(field("CapBnd:") == field("CapEff:") && field("NoNewPrivs:") == Some("1"), "{process}");
        // 2: filtered.
        ensure!(field("Seccomp:") == Some("2"), "{process}");
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.container.pid()?))?;
        let root = mounts.lines().find(|l| l.split(' ').nth(4) == Some("/")).context("no root")?;
        ensure!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|o| o == "ro")), "{root}");
        Ok(())
    }
}
