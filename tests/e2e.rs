//! The main job on real packets: every flow of a fixture, before and after its policies, as the running agent reports it.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{
    DriveOptions, Enforcement, Family, FarAnswer, Fixture, MeshOptions, Protocol, Rehearsal, agent, fixture, loaded,
    rehearsal,
};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn control_plane_under_deny_all_then_opened() -> Result<()> {
    all_states("scenarios/00-control-plane-install", Enforcement::Drop, Family::V4)
}

#[test]
fn sidecar_injection_under_deny_all_then_opened() -> Result<()> {
    all_states("scenarios/01-sidecar-injection", Enforcement::Drop, Family::V4)
}

#[test]
fn the_same_over_ipv6() -> Result<()> {
    all_states("scenarios/01-sidecar-injection", Enforcement::Drop, Family::V6)
}

#[test]
fn a_reject_by_a_policy_is_denied_and_rejected() -> Result<()> {
    for enforcement in [Enforcement::Reject, Enforcement::RejectWithReset] {
        let rehearsal = begin("scenarios/01-sidecar-injection", enforcement)?;
        let flow = rehearsal.flow("sc-02-xds-ca")?;
        let (pair, _) = rehearsal.drive_until(flow, &DriveOptions::default(), "denied", Duration::from_secs(4))?;
        ensure!(pair["evidence"]["outcome"] == "rejected", "{enforcement:?}: {}", pair["evidence"]);
        ensure!(pair["policies"] == serde_json::json!(["my-namespace/default-deny"]), "{}", pair["policies"]);
    }
    Ok(())
}

#[test]
fn a_missing_listener_is_failing_and_never_denied() -> Result<()> {
    let rehearsal = begin("scenarios/01-sidecar-injection", Enforcement::Drop)?;
    rehearsal.enter("after", Enforcement::Drop)?;
    let flow = rehearsal.flow("sc-02-xds-ca")?;
    let options = DriveOptions::default();
    rehearsal.drive_until(flow, &options, "verified", Duration::from_secs(8))?;
    ensure!(rehearsal.mesh.stop_listening(&flow.to, Protocol::Tcp, flow.port)?, "nothing was listening");
    let (pair, _) = rehearsal.drive_until(flow, &options, "failing", Duration::from_secs(4))?;
    ensure!(pair["evidence"]["outcome"] == "refused", "{}", pair["evidence"]);
    // Where the policies do not admit and no rule of theirs fires, a refusal is no proof against them either.
    rehearsal.enter("before", Enforcement::Drop)?;
    rehearsal.mesh.remove_policies()?;
    rehearsal.mesh.drive(std::slice::from_ref(flow), &options)?;
    std::thread::sleep(Duration::from_secs(1));
    let pair = rehearsal.pair(flow)?.context("the pair is gone")?;
    ensure!(pair["state"] != "denied", "{}", rehearsal::line(&pair));
    Ok(())
}

#[test]
fn a_silent_loss_is_reported_within_four_seconds_and_is_not_called_a_drop() -> Result<()> {
    let fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/00-control-plane-install"))?;
    let mesh = MeshOptions { far: vec![("node-a".to_owned(), FarAnswer::Discard)] };
    let rehearsal = Rehearsal::with(fixture, agent::binary()?, Enforcement::Drop, &mesh, &[])?;
    rehearsal.mesh.remove_policies()?; // what drops is on the far node, unseen
    let flow = rehearsal.flow("cp-07-gateway-xds")?;
    let patient = DriveOptions { timeout: Duration::from_secs(5), ..DriveOptions::default() };
    let (pair, took) = rehearsal.drive_until(flow, &patient, "predicted", Duration::from_secs(6))?;
    println!("predicted was reported {took:?} after connect()");
    ensure!(took < Duration::from_secs(4), "took {took:?}");
    ensure!(pair["evidence"]["class"].is_null(), "no drop was seen here: {}", pair["evidence"]);
    // The same loss where the policies admit is no policy's doing.
    rehearsal.enter("after", Enforcement::Drop)?;
    rehearsal.mesh.remove_policies()?;
    let (pair, took) = rehearsal.drive_until(flow, &patient, "failing", Duration::from_secs(6))?;
    ensure!(took < Duration::from_secs(4), "took {took:?}");
    ensure!(pair["evidence"]["outcome"] == "timed-out", "{}", pair["evidence"]);
    Ok(())
}

#[test]
fn a_full_listener_is_told_from_a_time_out_where_a_process_shows_its_namespace() -> Result<()> {
    // As in a cluster: the agent may not enter namespaces, and sees the processes that are in them.
    let confined = tempfile::tempdir()?;
    let binary = confined.path().join("weir");
    let script = format!("#!/bin/sh\nexec setpriv --bounding-set -sys_admin {} \"$@\"\n", agent::binary()?.display());
    fs::write(&binary, script)?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    let fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/01-sidecar-injection"))?;
    let rehearsal = Rehearsal::with(fixture, binary, Enforcement::Drop, &MeshOptions::default(), &[])?;
    rehearsal.enter("after", Enforcement::Drop)?;
    let flow = rehearsal.flow("sc-02-xds-ca")?;
    rehearsal.drive_until(flow, &DriveOptions::default(), "verified", PATIENCE)?;
    rehearsal.mesh.stall(&flow.to, flow.port)?;
    let patient = DriveOptions { timeout: Duration::from_millis(3_400), ..DriveOptions::default() };
    let outcome = |expected: &str| -> Result<()> {
        let begin = Instant::now();
        loop {
            rehearsal.mesh.drive(std::slice::from_ref(flow), &patient)?;
            std::thread::sleep(Duration::from_secs(1));
            let pair = rehearsal.pair(flow)?.context("the pair is gone")?;
            if pair["evidence"]["outcome"] == expected && pair["evidence"]["provisional"] == false {
                ensure!(pair["state"] == "failing", "{}", rehearsal::line(&pair));
                return Ok(());
            }
            ensure!(begin.elapsed() < 2 * PATIENCE, "not {expected}: {}", pair["evidence"]);
        }
    };
    let pause = || Ok(Command::new("sleep").arg("120").spawn()?);
    let mut inside = rehearsal.mesh.namespace(&flow.to)?.run(pause)?;
    let told = outcome("backlog-full");
    inside.kill()?;
    inside.wait()?;
    told?;
    outcome("timed-out")
}

#[test]
fn without_btf_connections_are_seen_and_nobody_is_accused() -> Result<()> {
    const NOWHERE: [&str; 2] = ["--btf", "/nowhere/vmlinux"];
    let fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/01-sidecar-injection"))?;
    let rehearsal = Rehearsal::with(fixture, agent::binary()?, Enforcement::Drop, &MeshOptions::default(), &NOWHERE)?;
    let nobody_is_accused = || -> Result<()> {
        let snapshot = rehearsal.agent.snapshot()?;
        let pairs = snapshot["pairs"].as_array().context("no pairs")?;
        let accuses = |pair: &&serde_json::Value| {
            matches!(pair["state"].as_str(), Some("denied" | "unexplained" | "unenforced" | "failing"))
        };
        let accused: Vec<_> = pairs.iter().filter(accuses).map(rehearsal::line).collect();
        ensure!(!pairs.is_empty() && accused.is_empty(), "{accused:?}");
        Ok(())
    };
    let flow = rehearsal.flow("sc-02-xds-ca")?;
    let patient = DriveOptions { timeout: Duration::from_secs(5), ..DriveOptions::default() };
    let (pair, _) = rehearsal.drive_until(flow, &patient, "predicted", PATIENCE)?;
    ensure!(pair["evidence"]["outcome"] == "timed-out" && pair["evidence"]["class"].is_null(), "{}", pair["evidence"]);
    ensure!(pair["policies"] == serde_json::json!(["my-namespace/default-deny"]), "{}", pair["policies"]);
    nobody_is_accused()?;
    rehearsal.enter("after", Enforcement::Drop)?;
    let (pair, _) = rehearsal.drive_until(flow, &DriveOptions::default(), "verified", PATIENCE)?;
    ensure!(pair["evidence"]["outcome"] == "established", "{}", pair["evidence"]);
    // The kernel drops what the policies, as the agent knows them, admit: who did it is not to be seen here.
    rehearsal.mesh.apply_policies(&rehearsal.fixture.state("before")?.policies, Enforcement::Drop)?;
    let (pair, _) = rehearsal.drive_until(flow, &patient, "unknown", PATIENCE)?;
    let why = pair["why"].as_str().unwrap_or_default();
    ensure!(why.contains("timed-out") && why.contains("no probe of this node sees drops"), "{why}");
    nobody_is_accused()?;

    let dns = rehearsal.agent.snapshot()?;
    let dns = dns["pairs"].as_array().and_then(|pairs| pairs.iter().find(|pair| pair["protocol"] == "UDP"));
    let dns = dns.context("a mesh without DNS")?;
    ensure!(dns["state"] != "silent" && dns["state"] != "verified", "UDP cannot be seen: {}", rehearsal::line(dns));
    let metrics = rehearsal.agent.metrics()?;
    for (probe, active) in [("tcp_callback", 1), ("tcp_state", 0), ("packet_drop", 0), ("udp_release", 0)] {
        let line = format!("weir_probe_active{{probe=\"{probe}\"}} {active}\n");
        ensure!(metrics.contains(&line), "{line}{metrics}");
    }
    let doctor = rehearsal.agent.command(&["doctor", NOWHERE[0], NOWHERE[1]])?;
    let page = String::from_utf8_lossy(&doctor.stdout);
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(doctor.status.success(), "{page}");
    for said in [
        "tcp_callback stands in for tcp_state and syn_retransmit",
        "ok tcp_callback cgroup:sock_ops",
        "weak packet_drop skb:kfree_skb: it needs the kernel's BTF; no drop is seen: nothing is called denied",
        "weir can work on this node without BTF",
    ] {
        ensure!(page.contains(said), "{said}\n{page}");
    }
    Ok(())
}

#[test]
fn a_resolver_that_does_not_connect_is_seen_where_that_was_asked_for() -> Result<()> {
    let fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/01-sidecar-injection"))?;
    let options = MeshOptions::default();
    let rehearsal = Rehearsal::with(fixture, agent::binary()?, Enforcement::Drop, &options, &["--dns-replies"])?;
    rehearsal.enter("after_with_dns", Enforcement::Drop)?;
    let flow = rehearsal.flow("sc-03-dns-udp")?;
    let server = rehearsal.mesh.addresses(&flow.to)?.iter().find(|address| address.is_ipv4());
    let server = *server.context("a server without an IPv4 address")?;
    let begin = Instant::now();
    loop {
        rehearsal.mesh.namespace(&flow.from)?.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"?", (server, flow.port))?;
            Ok(socket.recv_from(&mut [0; 8]).map(drop)?)
        })?;
        let pair = rehearsal.pair(flow)?.context("no pair")?;
        if pair["state"] == "verified" {
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "{}\n{}", rehearsal::line(&pair), rehearsal.agent.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    let doctor = rehearsal.agent.command(&["doctor"])?;
    let page = String::from_utf8_lossy(&doctor.stdout);
    ensure!(page.contains("ok      dns_reply4") && !page.contains("off by choice"), "{page}");
    Ok(())
}

#[test]
fn a_local_drop_is_reported_within_a_second_and_a_half() -> Result<()> {
    let rehearsal = begin("scenarios/01-sidecar-injection", Enforcement::Drop)?;
    let flow = rehearsal.flow("sc-02-xds-ca")?;
    let (_, took) = rehearsal.drive_until(flow, &DriveOptions::default(), "denied", Duration::from_secs(5))?;
    println!("denied was reported {took:?} after connect()");
    ensure!(took < Duration::from_millis(1500), "took {took:?}");
    Ok(())
}

#[test]
fn a_recording_replayed_gives_the_same_bytes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recording = folder.path().join("recording");
    let path = recording.to_str().context("a path that is no text")?;
    let fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/01-sidecar-injection"))?;
    let arguments = ["--record", path];
    let rehearsal = Rehearsal::with(fixture, agent::binary()?, Enforcement::Drop, &MeshOptions::default(), &arguments)?;
    let comparison = rehearsal.compare("before", Family::V4, PATIENCE)?;
    ensure!(comparison.faultless(), "{}", comparison.faults());
    rehearsal.agent.stop()?;
    let replay = || Command::new(agent::binary()?).arg("replay").arg(&recording).output().context("weir replay");
    let (first, second) = (replay()?, replay()?);
    ensure!(first.status.code() != Some(2), "{}", String::from_utf8_lossy(&first.stderr));
    ensure!(first.stdout == second.stdout, "two replays differ");
    ensure!(
        String::from_utf8_lossy(&first.stdout).contains("sidecar-xds"),
        "the replay says nothing of the denied flow"
    );
    Ok(())
}

#[test]
fn metrics_name_the_flow_and_the_policies_and_promtool_accepts_them() -> Result<()> {
    let rehearsal = begin("scenarios/01-sidecar-injection", Enforcement::Drop)?;
    let comparison = rehearsal.compare("before", Family::V4, PATIENCE)?;
    ensure!(comparison.faultless(), "{}", comparison.faults());
    let metrics = rehearsal.agent.metrics()?;
    let series: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("weir_required_flow_denied{") && line.contains("flow=\"sidecar-xds\""))
        .collect();
    ensure!(series.len() == 1, "one series for the one sidecar, not {series:#?}");
    for part in [
        "severity=\"critical\"",
        "direction=\"egress\"",
        "source_namespace=\"my-namespace\"",
        "source_workload=\"httpbin\"",
        "destination_namespace=\"istio-system\"",
        "destination_workload=\"istiod\"",
        "port=\"15012\"",
        "protocol=\"TCP\"",
        "policies=\"my-namespace/default-deny\"",
    ] {
        ensure!(series[0].contains(part), "{part} is missing in {}", series[0]);
    }
    ensure!(series[0].ends_with("} 1"), "{}", series[0]);
    promtool(&metrics)?;
    rehearsal.enter("after", Enforcement::Drop)?;
    let comparison = rehearsal.compare("after", Family::V4, PATIENCE)?;
    ensure!(comparison.faultless(), "{}", comparison.faults());
    let metrics = rehearsal.agent.metrics()?;
    let still = metrics.lines().find(|l| l.starts_with("weir_required_flow_denied{") && l.contains("sidecar-xds"));
    ensure!(still.is_none_or(|line| line.ends_with("} 0")), "still there: {still:?}");
    promtool(&metrics)
}

#[test]
fn kill_leaves_nothing_attached_and_nothing_in_the_way() -> Result<()> {
    let rehearsal = begin("scenarios/01-sidecar-injection", Enforcement::Drop)?;
    let ours = loaded::held_by(rehearsal.agent.pid())?;
    ensure!(!ours.is_empty(), "a running agent must have programs loaded: without them this test shows nothing");
    let Rehearsal { agent, mesh, .. } = rehearsal;
    let left = agent.kill()?;
    let socket = left.path().join("weir.sock");
    ensure!(socket.exists(), "a killed agent leaves its socket: without it this test shows nothing");
    loaded::until_gone(&ours, Duration::from_secs(3))?;
    // The next agent takes the same socket path.
    let manifests = left.path().join("cluster.json");
    std::fs::write(
        &manifests,
        serde_json::json!({"apiVersion":"v1","kind":"List","items":mesh.manifests()}).to_string(),
    )?;
    let next = Command::new(agent::binary()?)
        .args(["run", "--listen", "127.0.0.1:0", "--socket"])
        .arg(&socket)
        .arg("--manifests")
        .arg(&manifests)
        .spawn()?;
    let mut next = Killed(next);
    let begin = Instant::now();
    loop {
        let status = Command::new(agent::binary()?).args(["status", "--socket"]).arg(&socket).output()?;
        // Exit code 2 is also "could not tell": nothing was driven. The table says that it answers.
        if !status.stdout.is_empty() {
            break;
        }
        ensure!(next.0.try_wait()?.is_none(), "the next agent did not start");
        ensure!(begin.elapsed() < Duration::from_secs(20), "{}", String::from_utf8_lossy(&status.stderr));
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Every state of a fixture in turn, with nothing reported that is not so.
fn all_states(folder: &str, enforcement: Enforcement, family: Family) -> Result<()> {
    let rehearsal = begin(folder, enforcement)?;
    let states: Vec<String> = rehearsal.fixture.states.iter().map(|state| state.name.clone()).collect();
    for (index, state) in states.iter().enumerate() {
        if index > 0 {
            rehearsal.enter(state, enforcement)?;
        }
        let comparison = rehearsal.compare(state, family, PATIENCE)?;
        ensure!(!comparison.rows.is_empty(), "{folder}: no flow was compared");
        ensure!(comparison.faultless(), "{folder}, {state}:\n{}\n{}", comparison.faults(), rehearsal.agent.log());
    }
    let status = rehearsal.agent.stop()?;
    ensure!(status.success(), "SIGTERM must end the agent cleanly: {status}");
    Ok(())
}

fn begin(folder: &str, enforcement: Enforcement) -> Result<Rehearsal> {
    ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
    let fixture = Fixture::load(&fixture::fixtures_dir().join(Path::new(folder)))?;
    Rehearsal::begin(fixture, agent::binary()?, enforcement)
}

fn promtool(metrics: &str) -> Result<()> {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool (Debian package prometheus; `cargo xtask setup` installs it)")?;
    child.stdin.take().context("no stdin")?.write_all(metrics.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "promtool check metrics: {said}");
    Ok(())
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
