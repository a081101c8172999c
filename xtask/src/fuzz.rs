//! Fuzzes the manifest loader and the policy engine: `cargo-fuzz` below `target/tools`, the targets in `fuzz/targets`.

use std::process::ExitCode;

use anyhow::Result;

use crate::tools;

const TARGETS: [&str; 2] = ["manifests", "decide"];

/// `cargo xtask fuzz`
#[derive(clap::Args)]
pub struct Fuzz {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target.
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
}

impl Fuzz {
    /// Exit codes: 0 nothing found, 2 a finding (its input is below `fuzz/artifacts`) or fuzzing could not run.
    pub fn run(self) -> Result<ExitCode> {
        let Self { seconds, target } = self;
        let root = tools::target().join("tools");
        if !root.join("bin/cargo-fuzz").is_file() {
            eprintln!("building cargo-fuzz (once)");
            let mut install = tools::cargo();
            install.args(["install", "cargo-fuzz", "--locked", "--quiet", "--no-track", "--root"]).arg(&root);
            tools::run(&mut install)?;
        }
        for name in TARGETS.iter().filter(|name| target.as_deref().is_none_or(|wanted| wanted == **name)) {
            let mut cargo = tools::cargo();
            // The sanitizers and the coverage flags are unstable; the code under test is safe Rust, so coverage is enough.
            cargo.env("RUSTC_BOOTSTRAP", "1").env("WEIR_EBPF", "stub");
            cargo.args(["fuzz", "run", "--sanitizer", "none", name, "--"]);
            cargo.arg(format!("-max_total_time={seconds}")).args(["-timeout=10", "-rss_limit_mb=4096"]);
            tools::run(&mut cargo)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
