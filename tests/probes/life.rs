//! What is left of a killed agent: nothing.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use harness::loaded;
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
    let programs = loaded::held_by(child.id())?;
    child.kill()?;
    child.wait()?;
    assert!(loaded && programs.len() >= 6, "{programs:?}");
    loaded::until_gone(&programs, Duration::from_secs(30))
}
