//! The floor of the confusion matrix on the running kernel.

use anyhow::{Result, ensure};
use harness::agent;
use harness::matrix::run::{Options, enough, run};

#[test]
fn nothing_but_a_policy_is_denied_and_no_visible_policy_drop_is_missed() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
    let report = run(&Options { binary: agent::binary()?, only: None, quick: true, load: true })?;
    println!("{}", report.summary());
    ensure!(enough(&report), "too few causes could be made for the floor to mean anything");
    ensure!(report.below_floor().is_empty(), "{} cells are below the floor", report.below_floor().len());
    ensure!(report.load_failures().is_empty(), "a check under load failed");
    Ok(())
}
