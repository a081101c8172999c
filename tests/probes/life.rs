//! What is left of a killed agent: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use weir::probes::{ProbeSettings, Probes};

/// In a process of its own, which is then killed: see below. Without its variable it is no test.
#[test]
fn child_that_holds_the_probes() -> Result<()> {
    if std::env::var_os("WEIR_TEST_HOLD_PROBES").is_none() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let _probes = Probes::load(&ProbeSettings::default())?;
    println!("loaded");
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

#[test]
fn a_killed_agent_leaves_nothing_attached() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "life::child_that_holds_the_probes", "--nocapture"])
        .env("WEIR_TEST_HOLD_PROBES", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no pipe")?;
    let loaded = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.contains("loaded"));
    let programs = program_ids(child.id())?;
    child.kill()?;
    child.wait()?;
    assert!(loaded && programs.len() >= 6, "{programs:?}");
    // The kernel frees programs after a grace period.
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let living: BTreeSet<_> = aya::programs::loaded_programs().flatten().map(|program| program.id()).collect();
        let left: Vec<_> = programs.intersection(&living).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < until, "still loaded: {left:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ids of the programs that a process holds, from its descriptors' `fdinfo`.
fn program_ids(pid: u32) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}
