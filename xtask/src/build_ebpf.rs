//! Builds the probes: `agent-ebpf` for `bpfel-unknown-none`, linked by `target/tools/bin/bpf-linker`.
//!
//! Two toolchains can: Debian's `rustc-web`, whose `libstd-rust-web-dev-bpf` holds core for that target, and rustup's nightly
//! with `rust-src`, which builds core itself. Cargo decides what is stale, in a target folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _, SectionKind};

use crate::{setup, tools};

const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "bpf";

/// Lets LLVM clear memory with plain stores. By default bpf-linker tells it to call a function for that, of three bytes even,
/// which makes each program one with subprograms; see [`check`].
const NO_CALLS: &str = "-Clink-arg=--disable-expand-memcpy-in-order";

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
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", tools::bpf_linker())
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", NO_CALLS);
    tools::run(&mut cargo).context("building the probes")?;
    let built = folder.join("build").join(TARGET).join(PROFILE).join("weir-ebpf");
    let object = folder.join("object/weir-ebpf");
    let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
    check(&bytes).with_context(|| built.display().to_string())?;
    // An unchanged object keeps its time stamp, so that the agent is not built again.
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::create_dir_all(object.parent().expect("it has one"))?;
        fs::write(&object, &bytes).with_context(|| object.display().to_string())?;
    }
    eprintln!("probes: {} ({} bytes)", object.display(), bytes.len());
    Ok(object)
}

/// No program may call a function of its own: a kernel without commit 0108a4e9f358 (June 2023, in no 5.10) registers a program that
/// does twice, once without the table of its loads that may fault, and panics if such a load faults while it finds that one.
fn check(object: &[u8]) -> Result<()> {
    for section in object::File::parse(object)?.sections() {
        let name = section.name()?;
        // There linked-in functions are, which nothing calls.
        if section.kind() != SectionKind::Text || name == ".text" {
            continue;
        }
        ensure!(
            !calls_function(section.data()?),
            "{name}: a program calls a function, which panics older kernels: put #[inline(always)] on every function of \
             agent-ebpf, and copy or clear no more than 1,024 bytes at once"
        );
    }
    Ok(())
}

/// `BPF_JMP | BPF_CALL` with the source register `BPF_PSEUDO_CALL` (include/uapi/linux/bpf.h); with others it calls the kernel.
fn calls_function(code: &[u8]) -> bool {
    code.chunks_exact(8).any(|insn| [insn[0], insn[1] >> 4] == [0x85, 1])
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

#[cfg(test)]
mod tests {
    use super::calls_function;

    #[test]
    fn a_call_of_a_function_is_not_one_of_a_helper() {
        const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
        const HELPER: [u8; 8] = [0x85, 0, 0, 0, 5, 0, 0, 0];
        const FUNCTION: [u8; 8] = [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert!(!calls_function(&[HELPER, EXIT].concat()));
        assert!(calls_function(&[HELPER, FUNCTION, EXIT].concat()));
    }
}
