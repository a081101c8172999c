//! Measurements on this machine: the policy engine's benches, what the probes cost, what a large cluster costs, and what agents
//! cost the API server.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{build_ebpf, tools};

/// `cargo xtask bench [WHAT]`
#[derive(clap::Args)]
pub struct Bench {
    /// What to measure
    #[arg(default_value = "policies")]
    what: What,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// The policy engine on synthetic clusters; needs no root.
    Policies,
    /// Each probe against an empty one on the same hook, connections and throughput with and without the probes, the agent
    /// under load and beside a flood.
    Probes,
    /// How long status, explain, doctor, watch, flows and check take on a cluster of about 100 pods, beside a running agent.
    Commands,
    /// What following a cluster of 50,000 pods and 2,000 policies costs an agent; needs no root.
    Cluster,
    /// What one agent asks of the API server, and what that makes for 100, 1,000 and 5,000 nodes; needs no root.
    ApiLoad,
}

impl Bench {
    /// Exit codes: 0 measured and all aims met, 1 some missed, 2 could not be measured.
    pub fn run(self) -> Result<ExitCode> {
        match self.what {
            What::Policies => policies(),
            What::Probes => probes(),
            What::Commands => commands(),
            What::Cluster => example("cluster-scale"),
            What::ApiLoad => example("api-load"),
        }
    }
}

fn policies() -> Result<ExitCode> {
    let mut bench = tools::cargo();
    bench.args(["bench", "--quiet", "--package", "weir-engine", "--bench", "policies"]);
    let status = bench.status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// A measuring program of the tests, as it is released.
fn example(name: &str) -> Result<ExitCode> {
    let mut cargo = tools::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "weir-tests", "--example", name]);
    let status = cargo.status().context("cannot start cargo")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

fn commands() -> Result<ExitCode> {
    let object = build_ebpf::build()?;
    // As it is released: that is what is timed. What times it need not be.
    tools::run(tools::cargo().args(["build", "--quiet", "--release", "--package", "weir", "--bin", "weir"]))?;
    let mut cargo = tools::cargo();
    cargo.args(["run", "--quiet", "--package", "weir-tests", "--features", "root", "--example", "commands"]);
    cargo.env("WEIR_EBPF_OBJECT", object).env("WEIR_AGENT", tools::target().join("release/weir"));
    let status = cargo.status().context("cannot start cargo")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

fn probes() -> Result<ExitCode> {
    if !tools::is_root() {
        bail!(
            "the bench attaches probes and makes network namespaces: run it as root (`sudo -E cargo xtask bench probes`)"
        );
    }
    let object = build_ebpf::build()?;
    // The agent as it is released: its own cost is part of what is measured.
    tools::run(tools::cargo().args(["build", "--quiet", "--release", "--package", "weir", "--bin", "weir"]))?;
    let mut cargo = tools::cargo();
    cargo.args(["build", "--quiet", "--package", "weir-tests", "--features", "root", "--bin", "weir-bench"]);
    tools::run(&mut cargo)?;
    let agent = tools::target().join("release/weir");
    let program = tools::built("weir-bench");
    let status = Command::new(&program).env("WEIR_EBPF_OBJECT", object).env("WEIR_AGENT", agent).status();
    let status = status.with_context(|| format!("cannot start {}", program.display()))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}
