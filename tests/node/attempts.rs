//! `weir watch` on real packets: beside an agent, and with probes of its own.

use super::*;

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
