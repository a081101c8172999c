//! Shows the main job: builds what is missing, then a mini-mesh with the real agent beside it.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{build_ebpf, setup, tools};

/// `cargo xtask demo`
#[derive(clap::Args)]
pub struct Demo {
    /// Leave the mesh and the agent running until Enter is pressed.
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Exit codes: 0 both scenes showed what they should, 1 they did not, 2 the demo could not run.
    pub fn run(self) -> Result<ExitCode> {
        let Self { keep } = self;
        if !tools::is_root() {
            bail!("the demo makes network namespaces and attaches probes: run it as root (`sudo -E cargo xtask demo`)");
        }
        setup::ensure(setup::For::Mesh)?;
        build_ebpf::build()?;
        eprintln!("building the agent and the mini-mesh");
        let mut cargo = tools::cargo();
        tools::run(cargo.args(["build", "--package", "weir", "--package", "weir-tests", "--bins"]))?;
        let program = tools::built("weir-demo");
        let mut demo = Command::new(&program);
        if keep {
            demo.arg("--keep");
        }
        let status = demo.status().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }
}
