//! The command line on a node, on real packets: what an attempt looks like live, why it is denied, and what becomes of one
//! that is opened on purpose.

#[path = "node/host_network.rs"]
mod host_network;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

#[path = "node/documents.rs"]
mod documents;
#[path = "node/progress.rs"]
mod progress;
#[path = "node/recording.rs"]
mod recording;

use anyhow::{Context, Result, bail, ensure};
use harness::apiserver::{ApiServer, Exec, Fault, Ran, Rule, Verb};
use harness::fixture::{End, Protocol};
use harness::tls::TlsServer;
use harness::{DriveOptions, Enforcement, Fixture, Rehearsal, agent, fixture};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::runtime::Runtime;

const SCENARIO: &str = "scenarios/01-sidecar-injection";
const FLOW: &str = "sc-02-xds-ca";
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn watch_shows_an_attempt_with_its_names_drop_and_policies() -> Result<()> {
    let rehearsal = begin()?;
    let socket = rehearsal.agent.socket();
    let socket = socket.to_str().context("a path that is no text")?;
    let mut watch = Running::start(&["watch", "--socket", socket, "--denied", "--flow", "sidecar-xds", "--json"])?;
    let line = drive_until(&rehearsal, &mut watch, |line| line["attempt"]["outcome"] == "dropped")?;
    let attempt = &line["attempt"];
    ensure!(attempt["source"]["workload"] == "httpbin" && attempt["destination"]["workload"] == "istiod", "{line:#}");
    ensure!(attempt["class"] == "netfilter" && attempt["admission"] == "not-admitted", "{line:#}");
    ensure!(attempt["policies"] == serde_json::json!(["my-namespace/default-deny"]), "{line:#}");
    ensure!(attempt["translated"]["destination_port"] == 15012 || attempt["dialled"]["destination_port"] == 15012);
    // A filter that fits nothing says nothing, whatever is driven.
    let other = Running::start(&["watch", "--socket", socket, "--namespace", "no-such-namespace"])?;
    rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default())?;
    drive_until(&rehearsal, &mut watch, |line| line["attempt"].is_object())?;
    ensure!(other.lines.try_recv().is_err(), "a line in spite of the filter");
    other.interrupt()?;
    watch.interrupt()?;
    Ok(())
}

#[test]
fn watch_needs_no_agent_and_leaves_nothing_behind() -> Result<()> {
    let rehearsal = begin()?;
    let mut watch = Running::start(&["watch", "--standalone", "--port", "15012", "--json"])?;
    let line = drive_until(&rehearsal, &mut watch, |line| line["attempt"]["outcome"] == "dropped")?;
    ensure!(line["attempt"]["source"]["kind"] == "address", "{line:#}");
    ensure!(line["attempt"]["location"].is_string(), "where it was dropped: {line:#}");
    let programs = programs_of(watch.child.id())?;
    ensure!(!programs.is_empty(), "it has no probe");
    watch.interrupt()?;
    let begin = Instant::now();
    loop {
        let still: Vec<u32> = loaded()?.intersection(&programs).copied().collect();
        if still.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "programs that stay loaded: {still:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn explain_on_a_node_adds_what_the_kernel_saw_and_which_edit_it_was() -> Result<()> {
    let rehearsal = begin()?;
    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "denied", PATIENCE)?;
    let ask = |format| {
        let ends = ["my-namespace/httpbin", "istio-system/istiod", "15012"];
        rehearsal.agent.command(&["explain", ends[0], ends[1], ends[2], "--output", format])
    };
    let said = ask("table")?;
    let text = String::from_utf8(said.stdout)?;
    ensure!(said.status.code() == Some(1), "{:?} {text}", said.status);
    for part in ["DENIED", "my-namespace/default-deny", "sidecar-xds: denied", "last seen", "netfilter"] {
        ensure!(text.contains(part), "{part} is missing:\n{text}");
    }
    ensure!(text.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{text}");
    ensure!(text.contains("newest attempts:"), "{text}");
    // Nobody needs the way back, and what was tried there is remembered all the same.
    let begin = Instant::now();
    loop {
        let (from, to) = ("istio-system/istiod", "my-namespace/httpbin");
        let source = rehearsal.mesh.namespace(&End::Pod(pod_of(&rehearsal, "istio-system", "istiod")?))?;
        let target = rehearsal.mesh.addresses(&End::Pod(pod_of(&rehearsal, "my-namespace", "httpbin")?))?[0];
        let connect = || TcpStream::connect_timeout(&(target, 15012).into(), Duration::from_millis(500)).is_ok();
        let open = source.run(|| Ok(connect()))?;
        let said = rehearsal.agent.command(&["explain", from, to, "15012", "--output", "json"])?;
        let json: Value = serde_json::from_slice(&said.stdout)?;
        let attempts = json["targets"][0]["attempts"].as_array().cloned().unwrap_or_default();
        ensure!(json["targets"][0]["required"] == serde_json::json!([]), "{json:#}");
        if attempts.iter().any(|a| a["dialled"]["destination"] == target.to_string()) {
            ensure!(!open, "nobody listens there");
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "nothing is remembered: {json:#}");
    }
    // Opened and closed again while the agent looks on: now it knows the edit.
    let open = rehearsal.fixture.states.last().context("a state that opens it")?.name.clone();
    rehearsal.enter(&open, Enforcement::Drop)?;
    let begin = Instant::now();
    loop {
        let json: Value = serde_json::from_slice(&ask("json")?.stdout)?;
        let edit = &json["targets"][0]["observed"][0]["since_edit"];
        if json["verdict"] == "admitted" && edit.is_object() {
            ensure!(edit["object"]["name"]["namespace"].is_string() || edit["object"].is_object(), "{edit:#}");
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "no edit is named: {json:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let said = ask("table")?;
    let text = String::from_utf8(said.stdout)?;
    ensure!(said.status.code() == Some(0) && text.contains("the decision last changed at"), "{text}");
    // Closed again, with the edit in the status as well.
    let closed = rehearsal.fixture.states.first().context("a state that closes it")?.name.clone();
    rehearsal.enter(&closed, Enforcement::Drop)?;
    let begin = Instant::now();
    loop {
        let status = String::from_utf8(rehearsal.agent.command(&["status", "--all"])?.stdout)?;
        let flat = status.replace("\n    ", " ");
        if flat.lines().any(|line| line.contains("since NetworkPolicy my-namespace/") && line.contains(" ago")) {
            ensure!(status.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{status}");
            let json: Value = serde_json::from_slice(&ask("json")?.stdout)?;
            let edit = &json["targets"][0]["observed"][0]["since_edit"];
            ensure!(json["verdict"] == "denied" && edit["at_unix_ns"].is_i64(), "{edit:#}");
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the status names no edit:\n{status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn probe_opens_what_a_pod_needs_from_inside_its_network_namespace() -> Result<()> {
    let rehearsal = begin()?;
    let probe = |more: &[&str]| -> Result<(Option<i32>, Value)> {
        let arguments = ["probe", "my-namespace/httpbin", "--timeout", "1s", "--output", "json"];
        let said = rehearsal.agent.command(&[&arguments, more].concat())?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let json =
            serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&said.stderr)))?;
        Ok((said.status.code(), json))
    };
    let of = |json: &Value, flow: &str| -> Vec<Value> {
        json["results"].as_array().into_iter().flatten().filter(|r| r["flow"] == flow).cloned().collect()
    };
    let (code, json) = probe(&[])?;
    ensure!(code == Some(1), "{code:?} {json:#}");
    let xds = of(&json, "sidecar-xds");
    ensure!(xds.len() == 1 && xds[0]["answered"]["reached"] == "timed-out", "{json:#}");
    ensure!(xds[0]["policies"] == serde_json::json!(["my-namespace/default-deny"]), "{xds:#?}");
    // As the pod would: at the Service's address, while policies see the pod's port.
    let dialled: SocketAddr = xds[0]["to"].as_str().context("no address")?.parse()?;
    let service = rehearsal.mesh.cluster.service("istio-system/istiod").context("no Service")?;
    let cluster_ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).context("no address of it")?;
    ensure!(xds[0]["service"] == "istio-system/istiod" && dialled.ip().to_string() == cluster_ip, "{xds:#?}");
    let dns = of(&json, "sidecar-dns");
    ensure!(!dns.is_empty() && dns.iter().all(|r| r["answered"]["reached"] == "timed-out"), "{dns:#?}");
    let open = rehearsal.fixture.states.last().context("a state that opens it")?.name.clone();
    rehearsal.enter(&open, Enforcement::Drop)?;
    let begin = Instant::now();
    loop {
        let (_, json) = probe(&["sidecar-xds", "sidecar-dns"])?;
        let all = json["results"].as_array().context("no results")?;
        ensure!(all.iter().all(|r| r["flow"] == "sidecar-xds" || r["flow"] == "sidecar-dns"), "{json:#}");
        if !all.is_empty() && all.iter().all(|r| r["answered"]["reached"] == "established") {
            let udp = of(&json, "sidecar-dns").into_iter().find(|r| r["protocol"] == "UDP");
            let udp = udp.context("DNS over UDP was not asked")?;
            ensure!(udp["answered"]["said"].as_str().is_some_and(|s| s.contains("kubernetes.default")), "{udp:#}");
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "not all can be reached: {json:#}");
    }
    // Whom the certificate is for is told apart from whether the port can be reached.
    let istiod = End::Pod(xds[0]["destination"].as_str().context("no destination")?.to_owned());
    rehearsal.mesh.stop_listening(&istiod, Protocol::Tcp, 15012)?;
    for (name, right) in [("istiod.istio-system.svc", true), ("istiod.somewhere-else.svc", false)] {
        let _server = TlsServer::start(rehearsal.mesh.namespace(&istiod)?, 15012, &[name])?;
        let (code, json) = probe(&["sidecar-xds"])?;
        let answered = &of(&json, "sidecar-xds")[0]["answered"];
        ensure!(answered["reached"] == "established" && answered["right"] == right, "{json:#}");
        ensure!(answered["said"].as_str().is_some_and(|s| s.contains("istiod.istio-system.svc")), "{json:#}");
        ensure!(code == Some(i32::from(!right)), "{code:?} {json:#}");
    }
    rehearsal.mesh.listen(&istiod, Protocol::Tcp, 15012)?;
    // Never more of them in a second than allowed.
    let begin = Instant::now();
    let (_, json) = probe(&["--rate", "2"])?;
    let opened = json["results"].as_array().context("no results")?.len();
    ensure!(opened > 1, "{json:#}");
    let least = Duration::from_millis(500) * u32::try_from(opened - 1)?;
    ensure!(begin.elapsed() >= least, "{opened} connections in {:?}", begin.elapsed());
    // The agent saw these as attempts of the pod.
    let begin = Instant::now();
    loop {
        let text = rehearsal.agent.command(&["probe", "my-namespace/httpbin", "sidecar-xds", "--timeout", "1s"])?;
        let text = String::from_utf8(text.stdout)?;
        ensure!(text.contains("from my-namespace/httpbin") && text.contains("sidecar-xds"), "{text}");
        ensure!(text.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{text}");
        let state = rehearsal.pair(rehearsal.flow(FLOW)?)?.context("the pair is gone")?["state"].clone();
        if state == "verified" {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the agent says {state}");
    }
}

#[test]
fn a_recording_of_its_own_is_bounded_and_tells_less_when_redacted() -> Result<()> {
    let rehearsal = begin()?;
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("cluster.json");
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": rehearsal.mesh.manifests()});
    fs::write(&manifests, list.to_string())?;
    let file = folder.path().join("recording");
    let (file, manifests) = (text(&file)?, text(&manifests)?);
    let mut record = Running::start(&["record", file, "--manifests", manifests, "--for", "10m", "--redact"])?;
    record.said("weir runs")?;
    rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default())?;
    let begin = Instant::now();
    while !fs::read_to_string(file)?.contains("15012") {
        ensure!(begin.elapsed() < PATIENCE, "the attempt is not in the recording");
        std::thread::sleep(Duration::from_millis(200));
    }
    record.interrupt()?;
    let recorded = fs::read_to_string(file)?;
    ensure!(!recorded.contains("\"image\"") && !recorded.contains("\"comm\":\"t"), "more than verdicts need");
    let replay = || Command::new(agent::binary()?).args(["replay", file]).output().context("weir replay");
    let (first, second) = (replay()?, replay()?);
    ensure!(first.status.success() && first.stdout == second.stdout, "two replays differ");
    ensure!(String::from_utf8_lossy(&first.stdout).contains("sidecar-xds"), "the replay does not know the flow");
    // A limit ends the recording, not the program; what is there replays.
    let mut record = Running::start(&["record", file, "--manifests", manifests, "--for", "1s", "--limit", "5000"])?;
    record.wait()?;
    ensure!(fs::metadata(file)?.len() <= 5000, "beyond its limit");
    ensure!(replay()?.status.success(), "what is there does not replay");
    Ok(())
}

#[test]
fn screens_fit_a_terminal_and_leave_it_clean() -> Result<()> {
    if Command::new("tmux").arg("-V").output().is_err() {
        println!("SKIPPED: tmux is not installed");
        return Ok(());
    }
    let rehearsal = begin()?;
    let binary = agent::binary()?;
    let socket = rehearsal.agent.socket();
    let (binary, socket) = (text(&binary)?, text(&socket)?);
    let terminal = Terminal::open()?;
    terminal.keys(&[&format!("{binary} top --socket {socket}"), "Enter"])?;
    let drive = || rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default());
    let screen = terminal.until("the matrix and the pair", |screen| {
        ["required flows", "sidecar-xds", "denied", "my-namespace/httpbin", "my-namespace/default-deny", "q quit"]
            .iter()
            .all(|part| screen.contains(part))
            || {
                drive().expect("the flow can be driven");
                false
            }
    })?;
    ensure!(screen.lines().all(|line| line.chars().count() <= 100), "{screen}");
    ensure!(terminal.format("#{alternate_on}")? == "1", "top draws on a screen of its own");
    // Attempts appear as they are made.
    let begin = Instant::now();
    while !terminal.screen()?.contains("httpbin → istio-system/istiod") && begin.elapsed() < PATIENCE {
        rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default())?;
    }
    terminal.keys(&["a"])?;
    terminal.until("all pairs", |screen| !screen.contains("pairs that need attention"))?;
    terminal.keys(&["q"])?;
    terminal.until("a prompt", |screen| !screen.contains("required flows"))?;
    ensure!(terminal.format("#{alternate_on} #{cursor_flag}")? == "0 1", "the terminal is not as it was");
    // Redraws in place: a second later there is still one table.
    terminal.keys(&[&format!("{binary} status --watch --socket {socket}"), "Enter"])?;
    terminal.until("the table", |screen| screen.contains("STATE") && screen.contains("sidecar-xds"))?;
    std::thread::sleep(Duration::from_millis(2500));
    let screen = terminal.screen()?;
    ensure!(screen.matches("STATE").count() == 1, "drawn more than once:\n{screen}");
    Ok(())
}

#[test]
fn the_kubectl_plugin_finds_the_agent_on_the_pods_node() -> Result<()> {
    let runtime = Runtime::new()?;
    let server = runtime.block_on(ApiServer::start())?;
    let pod = |namespace: &str, name: &str, node: &str, app: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/name": app}},
            "spec": {"nodeName": node, "containers": [{"name": "weir", "image": "weir"}]},
            "status": {"phase": "Running"},
        })
    };
    server.try_apply(pod("shop", "cart", "node-b", "cart"))?;
    server.try_apply(pod("weir-system", "weir-a", "node-a", "weir"))?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    let plugin = folder.path().join("kubectl-weir");
    std::os::unix::fs::symlink(agent::binary()?, &plugin)?;
    let run = |pod: &str| -> Result<(Option<i32>, String)> {
        let said = Command::new(&plugin).arg("--kubeconfig").arg(&kubeconfig).args([pod, "status"]).output()?;
        Ok((said.status.code(), String::from_utf8(said.stderr)?))
    };
    let (code, said) = run("shop/nobody")?;
    ensure!(code == Some(2) && said.contains("there is no pod nobody in shop"), "{said}");
    let (code, said) = run("shop/cart")?;
    ensure!(code == Some(2) && said.contains("no agent runs on node node-b"), "{said}");
    server.try_apply(pod("weir-system", "weir-b", "node-b", "weir"))?;
    let (code, said) = run("shop/cart")?;
    // This server runs nothing in pods, and says so: the right one was asked.
    ensure!(code == Some(2) && said.contains("cannot run weir in weir-system/weir-b on node node-b"), "{said}");
    let exec = || Rule::all(Fault::Status(403, None)).of("pods/exec").on(Verb::Get);
    server.run_with(|_| Ran::default());
    for (rule, what, next) in [
        (
            exec(),
            "cannot run weir in weir-system/weir-b on node node-b",
            "kubectl auth can-i get pods/exec -n weir-system",
        ),
        (
            Rule::all(Fault::Status(403, None)).of("pods").on(Verb::Get),
            "cannot read pod shop/cart",
            "can-i get pods -n shop",
        ),
        (
            Rule::all(Fault::Status(403, None)).of("pods").on(Verb::List),
            "cannot find the agent's pod",
            "can-i list pods",
        ),
        (
            Rule::all(Fault::Status(401, None)).of("pods").on(Verb::Get),
            "cannot read pod shop/cart",
            "kubectl auth whoami",
        ),
    ] {
        server.fault(rule);
        let (code, said) = run("shop/cart")?;
        ensure!(code == Some(2) && said.contains(what) && said.contains(next) && said.lines().count() == 1, "{said}");
        server.clear_faults();
    }
    let (code, said) = run("shop/cart")?;
    ensure!(code == Some(0), "{said}");
    // A workload stands for its pods.
    let mut owned = pod("shop", "web-5d8f9c-x2x7k", "node-b", "web");
    owned["metadata"]["ownerReferences"] = serde_json::json!([
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8f9c", "uid": "1", "controller": true},
    ]);
    owned["metadata"]["labels"]["pod-template-hash"] = "5d8f9c".into();
    server.try_apply(owned)?;
    let (code, said) = run("shop/web")?;
    ensure!(code == Some(0), "{said}");
    let asked = server.requests();
    ensure!(asked.iter().any(|r| r.contains("fieldSelector=spec.nodeName%3Dnode-b&labelSelector=")), "{asked:#?}");
    Ok(())
}

#[test]
fn the_kubectl_plugin_gives_back_what_the_command_says_and_how_it_ends() -> Result<()> {
    let runtime = Runtime::new()?;
    let server = runtime.block_on(ApiServer::start())?;
    let pod = |namespace: &str, name: &str, app: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/name": app}},
            "spec": {"nodeName": "node-a", "containers": [{"name": "weir", "image": "weir"}]},
            "status": {"phase": "Running"},
        })
    };
    server.try_apply(pod("shop", "cart", "cart"))?;
    server.try_apply(pod("weir-system", "weir-a", "weir"))?;
    // The pod's command is the real one, here without a pod around it.
    let binary = agent::binary()?;
    server.run_with(move |exec: &Exec| {
        assert_eq!((&*exec.namespace, &*exec.pod, &*exec.container), ("weir-system", "weir-a", "weir"));
        assert_eq!(exec.command[0], "weir");
        if exec.command[1] == "run" {
            return Ran { code: 137, ..Ran::default() };
        }
        let said = Command::new(&binary).args(&exec.command[1..]).output().expect("weir runs");
        Ran { stdout: said.stdout, stderr: said.stderr, code: said.status.code().unwrap_or(-1) }
    });
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    let plugin = folder.path().join("kubectl-weir");
    std::os::unix::fs::symlink(agent::binary()?, &plugin)?;
    let scenario = fixture::fixtures_dir().join(SCENARIO);
    let before = scenario.join("policies-before.yaml");
    let cluster = scenario.join("cluster.yaml");
    let check = ["check", "-f", text(&before)?, "--cluster", text(&cluster)?, "--output", "json"];
    let commands: [(&[&str], i32); 4] =
        [(&["flows", "--output", "json"], 0), (&check, 1), (&["status", "--socket", "/nowhere"], 2), (&["run"], 2)];
    for (command, code) in commands {
        let there =
            Command::new(&plugin).arg("--kubeconfig").arg(&kubeconfig).arg("shop/cart").args(command).output()?;
        ensure!(there.status.code() == Some(code), "{command:?}: {:?}", there);
        if command == ["run"] {
            continue;
        }
        let here = Command::new(agent::binary()?).args(command).output()?;
        ensure!(here.status.code() == Some(code), "{command:?}: {:?}", here.status);
        ensure!(there.stdout == here.stdout, "{command:?}: {}", String::from_utf8_lossy(&there.stdout));
        ensure!(there.stderr == here.stderr, "{command:?}: {}", String::from_utf8_lossy(&there.stderr));
    }
    Ok(())
}

#[test]
fn a_panic_leaves_the_terminal_as_it_was() -> Result<()> {
    if Command::new("tmux").arg("-V").output().is_err() {
        println!("SKIPPED: tmux is not installed");
        return Ok(());
    }
    let rehearsal = begin()?;
    let (binary, socket) = (agent::binary()?, rehearsal.agent.socket());
    let (binary, socket) = (text(&binary)?, text(&socket)?);
    let terminal = Terminal::open()?;
    terminal.keys(&[&format!("WEIR_TEST_PANIC=1 {binary} top --socket {socket}; stty -a; echo ended $?"), "Enter"])?;
    let screen = terminal.until("the message and a prompt", |screen| screen.contains("ended 0"))?;
    ensure!(terminal.format("#{alternate_on} #{cursor_flag}")? == "0 1", "the terminal is not as it was:\n{screen}");
    let words: BTreeSet<&str> = screen.split_whitespace().map(|w| w.trim_end_matches(';')).collect();
    ensure!(words.contains("echo") && words.contains("icanon"), "what is typed stays unseen:\n{screen}");
    if cfg!(debug_assertions) {
        ensure!(screen.contains("WEIR_TEST_PANIC is set"), "it did not panic:\n{screen}");
    }
    // Attempts in 100 columns.
    terminal.keys(&["clear", "Enter"])?;
    terminal.keys(&[&format!("{binary} watch --socket {socket} --flow sidecar-xds"), "Enter"])?;
    let drive = || rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default());
    let screen = terminal.until("an attempt", |screen| {
        screen.contains("policies") && screen.contains("dropped") || {
            drive().expect("the flow can be driven");
            false
        }
    })?;
    let lines = || screen.lines().filter(|line| line.contains("my-namespace/httpbin →"));
    ensure!(lines().count() > 0 && screen.lines().any(|line| line.starts_with("    ")), "not wrapped:\n{screen}");
    Ok(())
}

/// A terminal of 100 columns and 40 lines.
struct Terminal {
    name: String,
}

impl Terminal {
    fn open() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let this = Self { name: format!("weir-test-{}-{number}", std::process::id()) };
        this.tmux(&["new-session", "-d", "-x", "100", "-y", "40", "sh"])?;
        Ok(this)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.name, "-f", "/dev/null"]).args(arguments).env("TERM", "xterm-256color");
        let output = command.env("LC_ALL", "C.UTF-8").output()?;
        ensure!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn keys(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    fn format(&self, format: &str) -> Result<String> {
        Ok(self.tmux(&["display-message", "-p", format])?.trim().to_owned())
    }

    fn until(&self, what: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        let begin = Instant::now();
        loop {
            let screen = self.screen()?;
            if fits(&screen) {
                return Ok(screen);
            }
            ensure!(begin.elapsed() < PATIENCE, "{what}: not so:\n{screen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.tmux(&["kill-server"]));
    }
}

/// A command that runs, its lines as they come.
struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(agent::binary()?);
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = read(child.stdout.take().context("no stdout")?);
        let errors = read(child.stderr.take().context("no stderr")?);
        Ok(Self { child, lines, errors })
    }

    /// Waits until standard error has a line with this in it.
    fn said(&mut self, what: &str) -> Result<()> {
        let mut all = String::new();
        while let Ok(line) = self.errors.recv_timeout(PATIENCE) {
            if line.contains(what) {
                return Ok(());
            }
            all += &line;
            all.push('\n');
        }
        bail!("it does not say {what:?}: {all}")
    }

    fn interrupt(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(begin.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Drives the flow again and again until a line is as awaited: who begins to watch misses what was before.
fn drive_until(rehearsal: &Rehearsal, watch: &mut Running, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    let flow = rehearsal.flow(FLOW)?;
    let begin = Instant::now();
    let own: BTreeSet<String> = addresses(&rehearsal.mesh.manifests());
    while begin.elapsed() < PATIENCE {
        rehearsal.mesh.drive(std::slice::from_ref(flow), &DriveOptions::default())?;
        let until = Instant::now() + Duration::from_secs(2);
        while let Ok(line) = watch.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            // Others on this machine connect too.
            let ours = line["attempt"]["dialled"]["source"].as_str().is_some_and(|a| own.contains(a));
            if ours && fits(&line) {
                return Ok(line);
            }
        }
    }
    let said: Vec<String> = watch.errors.try_iter().collect();
    bail!("no such line; {}", said.join("\n"))
}

fn addresses(objects: &[Value]) -> BTreeSet<String> {
    let pods = objects.iter().filter_map(|o| o["status"]["podIPs"].as_array()).flatten();
    pods.filter_map(|a| a["ip"].as_str().map(str::to_owned)).collect()
}

/// Ids of the BPF programs that a process holds.
fn programs_of(pid: u32) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        found.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(found)
}

/// Ids of all BPF programs that the kernel has loaded.
fn loaded() -> Result<BTreeSet<u32>> {
    aya::programs::loaded_programs().map(|program| Ok(program?.id())).collect()
}

/// A pod by the beginning of its name.
fn pod_of(rehearsal: &Rehearsal, namespace: &str, name: &str) -> Result<String> {
    let keys = rehearsal.mesh.cluster.pods.iter().map(|pod| harness::objects::key_of(&pod.metadata));
    let found = keys.into_iter().find(|key| key.starts_with(&format!("{namespace}/{name}")));
    found.with_context(|| format!("there is no pod {namespace}/{name}…"))
}

fn begin() -> Result<Rehearsal> {
    ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
    let fixture = Fixture::load(&fixture::fixtures_dir().join(SCENARIO))?;
    Rehearsal::begin(fixture, agent::binary()?, Enforcement::Drop)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
