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
    let programs = loaded::held_by(watch.child.id())?;
    ensure!(!programs.is_empty(), "it has no probe");
    watch.interrupt()?;
    loaded::until_gone(&programs, PATIENCE)
}
