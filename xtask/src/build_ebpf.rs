//! Builds the probes: `agent-ebpf` for `bpfel-unknown-none`, linked by `target/tools/bin/bpf-linker`.
//!
//! Two toolchains can: Debian's `rustc-web`, whose `libstd-rust-web-dev-bpf` holds core for that target, and rustup's nightly
//! with `rust-src`, which builds core itself. Cargo decides what is stale, in a target folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{setup, tools};

const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "bpf";

/// `cargo xtask build-ebpf`
#[derive(clap::Args)]
pub struct BuildEbpf {}

impl BuildEbpf {
    pub fn run(self) -> Result<ExitCode> {
        let Self {} = self;
        build()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What can compile for [`TARGET`].
pub enum Toolchain {
    /// The distribution's compiler with a prebuilt core.
    System(PathBuf),
    /// rustup's nightly with the sources of core.
    Nightly,
}

/// The toolchain to use, the distribution's first: it needs nothing built.
pub fn toolchain() -> Option<Toolchain> {
    let system = PathBuf::from("/usr/bin/rustc");
    if has_core(&system, TARGET) {
        return Some(Toolchain::System(system));
    }
    let sysroot = tools::output("rustc", &["+nightly", "--print", "sysroot"])?;
    PathBuf::from(sysroot).join("lib/rustlib/src/rust/library/core").is_dir().then_some(Toolchain::Nightly)
}

/// Has this compiler a prebuilt core for this target?
pub fn has_core(rustc: &Path, target: &str) -> bool {
    let Some(libraries) = tools::output(rustc, &["--print", "target-libdir", "--target", target]) else { return false };
    fs::read_dir(libraries).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
    })
}

/// Builds what is stale and returns the object's path, below which the agent's `build.rs` looks. Sets up what is missing.
pub fn build() -> Result<PathBuf> {
    if !tools::bpf_linker().is_file() || toolchain().is_none() {
        setup::ensure(setup::For::Probes)?;
    }
    let Some(toolchain) = toolchain() else {
        bail!("no toolchain for {TARGET}: run `cargo xtask setup`");
    };
    let folder = tools::target().join("bpf");
    let mut cargo = tools::fresh_cargo();
    cargo.args(["build", "--quiet", "--locked", "--package", "weir-ebpf", "--target", TARGET, "--profile", PROFILE]);
    match toolchain {
        // The compiler counts as stable and aya's crates use unstable features on this target.
        Toolchain::System(rustc) => cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1"),
        Toolchain::Nightly => cargo.env("RUSTUP_TOOLCHAIN", "nightly").args(["-Z", "build-std=core"]),
    };
    cargo
        .env("CARGO_TARGET_DIR", folder.join("build"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", tools::bpf_linker());
    tools::run(&mut cargo).context("building the probes")?;
    let built = folder.join("build").join(TARGET).join(PROFILE).join("weir-ebpf");
    let object = folder.join("object/weir-ebpf");
    let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
    // An unchanged object keeps its time stamp, so that the agent is not built again.
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::create_dir_all(object.parent().expect("it has one"))?;
        fs::write(&object, &bytes).with_context(|| object.display().to_string())?;
    }
    eprintln!("probes: {} ({} bytes)", object.display(), bytes.len());
    Ok(object)
}

/// One line for `setup --check`.
pub fn describe(toolchain: &Toolchain) -> String {
    match toolchain {
        Toolchain::System(rustc) => {
            let version = Command::new(rustc).arg("--version").output().ok();
            let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
            format!("{} ({})", rustc.display(), version.unwrap_or_default())
        }
        Toolchain::Nightly => "rustup nightly with rust-src".to_owned(),
    }
}
