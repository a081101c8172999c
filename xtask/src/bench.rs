//! What the probes cost on this machine, all in one run.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{build_ebpf, tools};

/// `cargo xtask bench WHAT`
#[derive(clap::Args)]
pub struct Bench {
    /// What to measure
    what: What,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Each probe against an empty one on the same hook, and connections with and without the probes.
    Probes,
}

impl Bench {
    /// Exit codes: 0 all aims met, 1 some missed, 2 could not be measured.
    pub fn run(self) -> Result<ExitCode> {
        let Self { what: What::Probes } = self;
        if !tools::is_root() {
            bail!(
                "the bench attaches probes and makes network namespaces: run it as root (`sudo -E cargo xtask bench probes`)"
            );
        }
        let object = build_ebpf::build()?;
        let mut cargo = tools::cargo();
        cargo.args(["build", "--quiet", "--package", "weir-tests", "--features", "root", "--bin", "weir-bench"]);
        tools::run(&mut cargo)?;
        let program = tools::built("weir-bench");
        let status = Command::new(&program).env("WEIR_EBPF", object).status();
        let status = status.with_context(|| format!("cannot start {}", program.display()))?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }
}
