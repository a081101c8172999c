//! What runs in a guest, as static programs: nothing of this machine's libraries is needed there, and the same commands build
//! them for another architecture.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{apt::Apt, architecture::Architecture};
use crate::{build_ebpf, setup, tools};

/// Of the workspace's manifest, made for this.
const PROFILE: &str = "static";
/// Debian's standard library of Rust; `cargo xtask setup` installs this machine's.
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";
const SYSTEM_COMPILER: &str = "/usr/bin/rustc";

/// Paths of the programs.
pub struct Programs {
    pub agent: PathBuf,
    pub init: PathBuf,
    pub matrix: PathBuf,
    pub tests: PathBuf,
}

/// Builds what is stale. The probes must have been built: the agent embeds them.
pub fn build(architecture: Architecture) -> Result<Programs> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    let mut cargo = if architecture == Architecture::host()? {
        tools::cargo()
    } else {
        let mut cargo = tools::fresh_cargo();
        flags.extend(cross(&mut cargo, architecture)?);
        cargo
    };
    // Given a target, cargo leaves the flags to what is built for it: build scripts and macros cannot be static.
    cargo.args(["build", "--quiet", "--locked", "--profile", PROFILE, "--target", architecture.triple()]);
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo.args(["--package", "weir", "--package", "weir-tests", "--features", "weir-tests/root"]);
    cargo.args(["--bin", "weir", "--bin", "weir-vm-init", "--bin", "weir-matrix", "--test", "probes"]);
    cargo.arg("--target-dir").arg(tools::target().join("static"));
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let mut built = BTreeMap::new();
    for line in BufReader::new(child.stdout.take().context("it was piped")?).lines() {
        let message: serde_json::Value = serde_json::from_str(&line?).unwrap_or_default();
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            built.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    ensure!(child.wait()?.success(), "building the guests' programs for {} failed", architecture.debian());
    let mut take = |name: &str| built.remove(name).with_context(|| format!("cargo did not say where it left {name}"));
    Ok(Programs {
        agent: take("weir")?,
        init: take("weir-vm-init")?,
        matrix: take("weir-matrix")?,
        tests: take("probes")?,
    })
}

/// Makes cargo build for another architecture: a linker, and a compiler with a standard library. Returns the compiler's flags.
fn cross(cargo: &mut Command, architecture: Architecture) -> Result<Option<String>> {
    let (triple, linker) = (architecture.triple(), format!("{}-gcc", architecture.gnu()));
    if !tools::on_path(&linker) && !setup::install_packages(&architecture.cross_packages())? {
        bail!("no {linker}: run the commands above");
    }
    cargo.env(format!("CARGO_TARGET_{}_LINKER", triple.replace('-', "_").to_uppercase()), &linker);
    cargo.env(format!("CC_{}", triple.replace('-', "_")), &linker);
    if build_ebpf::has_core(Path::new("rustc"), triple) {
        return Ok(None);
    }
    let version = tools::output("dpkg-query", &["--show", "--showformat=${Version}", STANDARD_LIBRARY]);
    let version = version.with_context(|| {
        format!("no standard library for {triple}: `rustup target add {triple}`, or Debian's {STANDARD_LIBRARY}")
    })?;
    cargo.env("RUSTC", SYSTEM_COMPILER);
    let folder = tools::target().join("vm/rust").join(architecture.debian());
    let (root, note) = (folder.join("root"), folder.join("version"));
    // Another version's files would be refused by the compiler.
    if fs::read_to_string(&note).ok().as_ref() != Some(&version) {
        fs::create_dir_all(&folder)?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let apt = Apt::new(suite.context("/etc/os-release names no VERSION_CODENAME")?, architecture)?;
        eprintln!("fetching {STANDARD_LIBRARY} {version} ({})", architecture.debian());
        apt.unpack(&[format!("{STANDARD_LIBRARY}={version}")], &root).with_context(|| {
            format!("the archive's {STANDARD_LIBRARY} is not the installed one: upgrade that and rustc-web")
        })?;
        fs::write(note, version)?;
    }
    Ok(Some(format!("--sysroot={}", root.join("usr").display())))
}
