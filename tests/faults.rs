//! What the running agent withstands: hostile names, huge objects, a full disk, impatient readers, signals at any time, a
//! second agent beside it. Real probes, real processes; objects from the fake API server or from files.

#[path = "faults/ends.rs"]
mod ends;
#[path = "faults/many.rs"]
mod many;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::apiserver::ApiServer;
use harness::{Agent, AgentOptions, Terminal, agent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, agent: &Agent, fits: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !fits()? {
        ensure!(begin.elapsed() < PATIENCE, "{what}: not so\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn pod(namespace: &str, name: &str, labels: Value, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": "node-a", "containers": [{"name": "istio-proxy"}, {"name": "discovery"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn deny(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}})
}

fn istiod() -> Value {
    pod("istio-system", "istiod-0", json!({"app": "istiod", "istio": "pilot"}), "10.99.0.2")
}

fn follower(runtime: &Runtime, more: &[&str]) -> Result<(ApiServer, Agent, tempfile::TempDir)> {
    let server = runtime.block_on(ApiServer::start())?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    let path = kubeconfig.to_str().context("a path that is no text")?;
    let arguments = ["--kubeconfig", path, "--node", "node-a"];
    let arguments = arguments.iter().chain(more).map(|a| (*a).to_owned()).collect();
    let agent = Agent::start(&AgentOptions { binary: agent::binary()?, manifests: None, arguments })?;
    Ok((server, agent, folder))
}

#[test]
fn hostile_names_reach_no_log_page_or_terminal_as_they_are() -> Result<()> {
    let runtime = Runtime::new()?;
    let (server, agent, _folder) = follower(&runtime, &[])?;
    // What no API server would admit; a forged kubeconfig or a future version may.
    let name = "web\u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}\u{2066}\u{200b}<script>alert(1)</script>\"\n\u{430}\r";
    for object in [namespace("istio-system"), namespace(name), istiod(), deny(name, name)] {
        server.try_apply(object)?;
    }
    let labels = json!({"security.istio.io/tlsMode": "istio", "app": name, name: name, "long": "x".repeat(4_096), "limit": "x".repeat(63)});
    server.try_apply(pod(name, name, labels, "10.99.0.3"))?;
    let is_there = || {
        let snapshot = agent.snapshot()?;
        let pairs = snapshot["pairs"].as_array().into_iter().flatten();
        Ok(pairs.into_iter().any(|p| p["source"]["namespace"] == name && p["policies"] != json!([])))
    };
    until("the pod with the hostile name is judged", &agent, is_there)?;

    let hostile = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{2066}\u{200b}".contains(c);
    let status = agent.command(&["status", "--all"])?;
    let json = agent.command(&["status", "--all", "--output", "json"])?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (what, text) in [
        ("log", agent.log()),
        ("metrics", agent.metrics()?),
        ("readyz", agent.get("/readyz")?.1),
        ("status", text(&status.stdout)),
        ("status as json", text(&json.stdout)),
        ("page", agent.get("/")?.1),
    ] {
        let found = text.chars().find(|c| hostile(*c));
        ensure!(found.is_none(), "{what} has {found:?}: {text}");
        ensure!(what != "page" || !text.contains("<script>alert"), "{what}: {text}");
    }
    ensure!(text(&status.stdout).contains("\\u{1b}"), "shown, but harmless: {}", text(&status.stdout));

    let Some(terminal) = Terminal::open()? else { return Ok(()) };
    let (binary, socket) = (agent::binary()?, agent.socket());
    for screen in ["top", "status --watch"] {
        terminal.keys(&[&format!("{} {screen} --socket {}", binary.display(), socket.display()), "Enter"])?;
        let shown = terminal.until("the hostile name", |screen| screen.contains("web\\u{1b}]0;owned"))?;
        ensure!(shown.contains("sidecar-xds"), "{screen}: it has wiped the screen:\n{shown}");
        ensure!(terminal.format("#{pane_title}")? != "owned", "{screen}: it has named the window");
        terminal.keys(&["C-c"])?;
        terminal.keys(&["clear", "Enter"])?;
    }
    Ok(())
}

#[test]
fn huge_objects_and_many_policies_do_not_stop_it() -> Result<()> {
    let runtime = Runtime::new()?;
    let (server, agent, _folder) = follower(&runtime, &[])?;
    server.try_apply(namespace("istio-system"))?;
    server.try_apply(istiod())?;
    let mut huge = deny("istio-system", "huge");
    huge["metadata"]["annotations"] = json!({"x": "x".repeat(10 << 20)});
    server.try_apply(huge)?;
    let mut wide = deny("istio-system", "wide");
    let peers: Vec<Value> = (0..50_000)
        .map(|n| json!({"ipBlock": {"cidr": format!("10.{}.{}.{}/32", n / 65_536, n / 256 % 256, n % 256)}}))
        .collect();
    wide["spec"]["ingress"] = json!([{"from": peers}]);
    server.try_apply(wide)?;
    for n in 0..5_000 {
        server.try_apply(deny("istio-system", &format!("deny-{n}")))?;
    }
    // Never too busy for an answer while it takes all of them in.
    let count = || {
        let snapshot = agent.snapshot()?;
        let objects = snapshot["objects"].as_array().context("no objects")?;
        Ok(objects.iter().any(|o| o["kind"] == "NetworkPolicy" && o["count"] == 5_002))
    };
    until("all policies are known", &agent, count)?;
    ensure!(agent.get("/readyz")?.0 == 200, "ready all the same");
    let metrics = agent.metrics()?;
    let longest = metrics.lines().map(str::len).max().unwrap_or(0);
    ensure!(longest < 4_096, "5,000 names in one label: {longest} bytes");
    Ok(())
}

#[test]
fn a_hundred_scrapes_a_second_are_answered() -> Result<()> {
    let runtime = Runtime::new()?;
    let (server, agent, _folder) = follower(&runtime, &[])?;
    server.try_apply(namespace("istio-system"))?;
    server.try_apply(istiod())?;
    let begin = Instant::now();
    let mut times = Vec::new();
    for n in 1..=500 {
        let asked = Instant::now();
        ensure!(agent.get("/metrics")?.0 == 200, "{}", agent.log());
        times.push(asked.elapsed());
        std::thread::sleep((begin + Duration::from_millis(10) * n).saturating_duration_since(Instant::now()));
    }
    let rate = 500.0 / begin.elapsed().as_secs_f64();
    times.sort();
    let (median, slowest) = (times[250], times[499]);
    println!("500 scrapes at {rate:.0}/s, median {median:?}, slowest {slowest:?}");
    ensure!(rate >= 50.0 && median < Duration::from_millis(100), "{rate:.0}/s, median {median:?}");
    Ok(())
}

#[test]
fn it_ends_in_good_order_whenever_it_is_told_to() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("cluster.yaml");
    fs::write(&manifests, namespace("istio-system").to_string())?;
    for milliseconds in [0, 1, 5, 20, 50, 100, 200, 400, 800, 1_600, 3_200] {
        let options =
            AgentOptions { binary: agent::binary()?, manifests: Some(manifests.clone()), arguments: Vec::new() };
        let agent = Agent::launch(&options)?;
        let socket = agent.socket();
        std::thread::sleep(Duration::from_millis(milliseconds));
        let log = agent.log();
        let ended = agent.stop().with_context(|| format!("told after {milliseconds} ms: {log}"))?;
        // Before it catches signals there is nothing to clean up, and the signal itself ends it.
        use std::os::unix::process::ExitStatusExt;
        ensure!(ended.success() || ended.signal() == Some(15), "told after {milliseconds} ms: {ended}");
        ensure!(!socket.exists(), "told after {milliseconds} ms: the socket is still there");
    }
    Ok(())
}

#[test]
fn two_agents_on_a_node_do_not_disturb_one_another_and_one_socket_has_one_owner() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("cluster.yaml");
    fs::write(&manifests, namespace("istio-system").to_string())?;
    let options = AgentOptions { binary: agent::binary()?, manifests: Some(manifests.clone()), arguments: Vec::new() };
    let first = Agent::start(&options)?;
    let second = Agent::start(&options)?;
    let active = |agent: &Agent| -> Result<Vec<Value>> {
        let snapshot = agent.snapshot()?;
        let probes = snapshot["agent"]["probes"].as_array().context("no probes")?;
        Ok(probes.iter().filter(|p| p["active"] == true).map(|p| p["name"].clone()).collect())
    };
    ensure!(active(&first)? == active(&second)?, "{:?} and {:?}", active(&first)?, active(&second)?);
    let output = Command::new("timeout")
        .args(["20"])
        .arg(agent::binary()?)
        .args(["run", "--manifests"])
        .arg(&manifests)
        .args(["--listen", "127.0.0.1:0", "--socket"])
        .arg(first.socket())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "{:?}: {said}", output.status);
    ensure!(said.contains("weir.sock"), "it names the socket: {said}");
    ensure!(first.get("/livez")?.0 == 200, "the first one lives on");
    let status = first.command(&["status"])?;
    ensure!(!String::from_utf8_lossy(&status.stderr).contains("cannot reach"), "{status:?}");
    Ok(())
}

#[test]
fn a_full_disk_ends_the_recording_and_not_the_agent() -> Result<()> {
    let runtime = Runtime::new()?;
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::create_dir(&disk)?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk).status()?;
    ensure!(mounted.success(), "cannot mount a small file system");
    let file = disk.join("recording.jsonl");
    let result = (|| {
        let path = file.to_str().context("a path that is no text")?;
        let (server, agent, _folder) = follower(&runtime, &["--record", path])?;
        for n in 0..2_000 {
            server.try_apply(namespace(&format!("a-namespace-with-a-long-name-{n}")))?;
        }
        until("the log says that the recording ends", &agent, || Ok(agent.log().contains("the recording ends here")))?;
        ensure!(agent.get("/readyz")?.0 == 200, "it goes on: {}", agent.log());
        ensure!(agent.stop()?.success(), "it stops in good order");
        Ok(())
    })();
    let unmounted = Command::new("umount").arg(&disk).status()?;
    ensure!(unmounted.success(), "cannot unmount {}", disk.display());
    result
}

/// A process that was stopped and goes on, as on a machine that slept: time has jumped for it.
#[test]
fn a_pause_of_the_whole_process_is_survived() -> Result<()> {
    let runtime = Runtime::new()?;
    let (server, agent, _folder) = follower(&runtime, &[])?;
    let process = Pid::from_raw(i32::try_from(agent.pid())?);
    kill(process, Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_secs(3));
    server.try_apply(namespace("new"))?;
    kill(process, Signal::SIGCONT)?;
    let knows = || {
        let snapshot = agent.snapshot()?;
        let objects = snapshot["objects"].as_array().context("no objects")?;
        Ok(objects.iter().any(|o| o["kind"] == "Namespace" && o["count"] == 1))
    };
    until("it catches up", &agent, knows)?;
    ensure!(agent.stop()?.success(), "it stops in good order");
    Ok(())
}
