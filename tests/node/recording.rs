//! Recordings of the running agent: what it says is what a replay says.

use super::*;

#[test]
fn a_recording_of_the_running_agent_replays_to_what_it_says() -> Result<()> {
    let rehearsal = begin()?;
    let flow = rehearsal.flow(FLOW)?;
    let socket = rehearsal.agent.socket();
    let socket = text(&socket)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("recording");
    let file = text(&file)?;
    let record = Running::start(&["record", file, "--socket", socket, "--for", "10m", "--redact"])?;
    let begin = Instant::now();
    while !fs::read_to_string(file).is_ok_and(|text| text.contains("\"synced\"")) {
        ensure!(begin.elapsed() < PATIENCE, "nothing is recorded");
        std::thread::sleep(Duration::from_millis(50));
    }
    let replay = || Command::new(agent::binary()?).args(["replay", file]).output().context("weir replay");
    let last = |said: &std::process::Output| -> Result<Value> {
        let text = String::from_utf8(said.stdout.clone())?;
        let line = text.lines().last().context("a replay that says nothing")?;
        Ok(serde_json::from_str::<Value>(line)?["snapshot"]["pairs"].take())
    };
    let xds = |pairs: &Value| {
        let is_it = |p: &&Value| p["flow"] == "sidecar-xds" && p["source"]["workload"] == "httpbin";
        pairs.as_array().and_then(|all| all.iter().find(is_it).cloned()).unwrap_or_default()
    };
    loop {
        rehearsal.mesh.drive(std::slice::from_ref(flow), &DriveOptions::default())?;
        if xds(&last(&replay()?)?)["state"] == "denied" {
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "the replay does not know that it is denied");
    }
    // A recorder that sleeps holds nobody up.
    let pid = Pid::from_raw(i32::try_from(record.child.id())?);
    kill(pid, Signal::SIGSTOP)?;
    rehearsal.mesh.drive(std::slice::from_ref(flow), &DriveOptions::default())?;
    let now = rehearsal.pair(flow)?.context("the pair is gone")?;
    kill(pid, Signal::SIGCONT)?;
    ensure!(now["state"] == "denied", "{now:#}");
    record.interrupt()?;

    let (first, second) = (replay()?, replay()?);
    ensure!(first.status.success() && first.stdout == second.stdout, "two replays differ");
    let replayed = xds(&last(&first)?);
    for part in ["state", "policies", "directions", "egress", "ingress", "instances"] {
        ensure!(replayed[part] == now[part], "{part}: the agent says {}, the replay {}", now[part], replayed[part]);
    }
    let pairs = |value: &Value| -> BTreeSet<String> {
        let key = |p: &Value| format!("{} {} {} {}", p["flow"], p["source"], p["destination"], p["port"]);
        value.as_array().into_iter().flatten().map(key).collect()
    };
    let (ours, theirs) = (pairs(&last(&first)?), pairs(&rehearsal.agent.snapshot()?["pairs"]));
    ensure!(ours == theirs, "not the agent's pairs: {:?}", ours.symmetric_difference(&theirs).collect::<Vec<_>>());
    let recorded = fs::read_to_string(file)?;
    ensure!(recorded.starts_with("{\"weir_recording\":1,"), "no version");
    ensure!(!recorded.split("\"comm\":\"").skip(1).any(|rest| !rest.starts_with('"')), "it tells of processes");

    // Its limit ends it; what is there replays.
    let small = folder.path().join("small");
    let small = text(&small)?;
    let said = rehearsal.agent.command(&["record", small, "--for", "10m", "--limit", "5000"])?;
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(
        said.status.success() && told.contains("limit of 5000 bytes") && told.contains("next: weir replay"),
        "{told}"
    );
    ensure!(fs::metadata(small)?.len() <= 5000, "beyond its limit");
    ensure!(Command::new(agent::binary()?).args(["replay", small]).output()?.status.success(), "it does not replay");
    // Over `kubectl exec` there is only standard output.
    let said = rehearsal.agent.command(&["record", "-", "--for", "1s"])?;
    ensure!(said.status.success() && said.stdout.starts_with(b"{\"weir_recording\":1,"), "{said:?}");
    ensure!(String::from_utf8_lossy(&said.stderr).contains("next: weir replay"), "{said:?}");
    Ok(())
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
