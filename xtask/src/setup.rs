//! Installs what building the probes and testing need, and nothing twice.
//!
//! Packages come from the distribution; bpf-linker, promtool, Prometheus, Alertmanager and the container runtimes' seccomp
//! profiles go below `target/tools`, so that neither the user's cargo folder nor the machine's services change (the package
//! `prometheus` would start a server). Exit codes: 0 all there, 1 something is missing (`--check` only), 2 it could not be
//! installed: the commands to type are on stdout.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{build_ebpf, tools};

const LINKER_VERSION: &str = "0.13.0";
/// bpf-linker links against the LLVM whose bitcode the compiler writes, or a newer one.
const LLVM: &str = "/usr/lib/llvm-22";

/// `cargo xtask setup`
#[derive(clap::Args)]
pub struct Setup {
    /// Only report what is there and what is missing.
    #[arg(long)]
    check: bool,
}

/// What something is needed for; each includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum For {
    /// Building the probes.
    Probes,
    /// The mini-mesh of the demo.
    Mesh,
    /// Every test.
    Tests,
}

/// One thing that must be there.
struct Need {
    name: &'static str,
    needed: For,
    why: &'static str,
    /// What was found.
    found: fn() -> Option<String>,
    how: How,
}

enum How {
    /// Distribution packages.
    Packages(&'static [&'static str]),
    /// `cargo install` below `target/tools`.
    Linker,
    /// Files of a distribution package, below `target/tools`: programs in `bin`, everything else in `share`.
    Unpacked(&'static str, &'static [&'static str]),
}

const NEEDS: [Need; 15] = [
    Need {
        name: "C compiler",
        needed: For::Probes,
        why: "linking",
        found: || program("cc"),
        how: How::Packages(&["build-essential"]),
    },
    Need {
        name: "probe compiler",
        needed: For::Probes,
        why: "Rust for bpfel-unknown-none",
        found: || build_ebpf::toolchain().map(|toolchain| build_ebpf::describe(&toolchain)),
        how: How::Packages(&["rustc-web", "libstd-rust-web-dev", "libstd-rust-web-dev-bpf"]),
    },
    Need {
        name: "LLVM 22",
        needed: For::Probes,
        why: "building bpf-linker",
        found: || linker().or_else(|| Path::new(LLVM).join("bin/llvm-config").is_file().then(|| LLVM.to_owned())),
        how: How::Packages(&["llvm-22-dev"]),
    },
    Need {
        name: "nft",
        needed: For::Mesh,
        why: "end-to-end tests",
        found: || program("nft"),
        how: How::Packages(&["nftables"]),
    },
    Need {
        name: "ip",
        needed: For::Mesh,
        why: "end-to-end tests",
        found: || program("ip"),
        how: How::Packages(&["iproute2"]),
    },
    Need {
        name: "tmux",
        needed: For::Tests,
        why: "screens of the command line",
        found: || program("tmux"),
        how: How::Packages(&["tmux"]),
    },
    Need {
        name: "iptables",
        needed: For::Tests,
        why: "the matrix's drops by iptables-legacy and iptables-nft",
        found: || program("iptables-legacy").and(program("iptables-nft")),
        how: How::Packages(&["iptables"]),
    },
    Need { name: "bpf-linker", needed: For::Probes, why: "linking the probes", found: linker, how: How::Linker },
    Need {
        name: "prometheus",
        needed: For::Tests,
        why: "checking the metrics text; alerts end to end",
        found: || tools::tool("promtool").and(tools::tool("prometheus")),
        how: How::Unpacked("prometheus", &["usr/bin/promtool", "usr/bin/prometheus"]),
    },
    Need {
        name: "alertmanager",
        needed: For::Tests,
        why: "alerts end to end",
        found: || tools::tool("prometheus-alertmanager"),
        how: How::Unpacked("prometheus-alertmanager", &["usr/bin/prometheus-alertmanager"]),
    },
    Need {
        name: "runc",
        needed: For::Tests,
        why: "the shipped security context for real",
        found: || program("runc"),
        how: How::Packages(&["runc"]),
    },
    Need {
        name: "containerd's seccomp",
        needed: For::Tests,
        why: "the default profile of containerd",
        found: || shared("seccomp_default.go"),
        how: How::Unpacked(
            "golang-github-containerd-containerd-dev",
            &["usr/share/gocode/src/github.com/containerd/containerd/contrib/seccomp/seccomp_default.go"],
        ),
    },
    Need {
        name: "CRI-O's seccomp",
        needed: For::Tests,
        why: "the default profile of CRI-O and Podman",
        found: || shared("seccomp.json"),
        how: How::Unpacked("golang-github-containers-common", &["usr/share/containers/seccomp.json"]),
    },
    Need {
        name: "kubectl",
        needed: For::Tests,
        why: "the documents' commands against the fake API server",
        found: || tools::tool("kubectl"),
        how: How::Unpacked("kubernetes-client", &["usr/bin/kubectl"]),
    },
    Need {
        name: "chromium",
        needed: For::Tests,
        why: "the status page in a browser",
        found: || ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(program),
        how: How::Packages(&["chromium"]),
    },
];

impl Setup {
    pub fn run(self) -> Result<ExitCode> {
        let Self { check } = self;
        if check {
            return Ok(if report() { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
        let done = install(|_| true)?;
        report();
        Ok(if done { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }
}

/// Installs what a task needs.
///
/// # Errors
/// When it is not there and could not be installed; the commands to type were printed.
pub fn ensure(task: For) -> Result<()> {
    if install(|need| need.needed <= task)? {
        return Ok(());
    }
    bail!("something is missing on this machine: run the commands above, then `cargo xtask setup --check`");
}

/// Is everything there?
fn report() -> bool {
    let mut complete = true;
    for need in NEEDS {
        let found = (need.found)();
        complete &= found.is_some();
        eprintln!(
            "{:8} {:20} {}",
            if found.is_some() { "ok" } else { "MISSING" },
            need.name,
            found.unwrap_or(need.why.into())
        );
    }
    complete
}

/// Installs what is wanted and missing; false if the user has to (the commands were printed).
fn install(wanted: impl Fn(&Need) -> bool) -> Result<bool> {
    let missing = || NEEDS.into_iter().filter(|need| wanted(need) && (need.found)().is_none());
    let packages: Vec<_> = missing()
        .flat_map(|need| match need.how {
            How::Packages(packages) => packages.to_vec(),
            How::Linker | How::Unpacked(..) => Vec::new(),
        })
        .collect();
    if !packages.is_empty() && !install_packages(&packages)? {
        return Ok(false);
    }
    for need in missing() {
        match need.how {
            How::Packages(_) => bail!("`{}` is still missing after installing its packages", need.name),
            How::Linker => install_linker()?,
            How::Unpacked(package, files) => unpack(package, files).with_context(|| format!("unpacking {package}"))?,
        }
    }
    Ok(true)
}

/// Installs distribution packages; false if the user has to (the commands were printed).
pub fn install_packages(packages: &[&str]) -> Result<bool> {
    if !tools::on_path("apt-get") {
        println!(
            "# Not Debian or Ubuntu. Install by your own means: a C compiler, nftables, iproute2, iptables, runc, tmux, chromium, LLVM 22 with headers"
        );
        println!("# (then LLVM_PREFIX=… cargo xtask setup), and a compiler for the probes:");
        println!("rustup toolchain install nightly --profile minimal --component rust-src");
        return Ok(false);
    }
    if !tools::is_root() {
        println!("sudo apt-get update");
        println!("sudo apt-get install --no-install-recommends {}", packages.join(" "));
        println!("cargo xtask setup");
        eprintln!("error: not root: run the commands above");
        return Ok(false);
    }
    if !packages.iter().all(|package| has_candidate(package)) {
        tools::run(apt().arg("update"))?;
    }
    let absent: Vec<_> = packages.iter().filter(|package| !has_candidate(package)).collect();
    if let Some(package) = absent.first() {
        println!("# This distribution has no package `{package}`. For the probes' compiler:");
        println!("rustup toolchain install nightly --profile minimal --component rust-src");
        println!("# for LLVM 22: https://apt.llvm.org, package llvm-22-dev");
        println!("cargo xtask setup");
        return Ok(false);
    }
    tools::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))?;
    Ok(true)
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("--quiet").env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn has_candidate(package: &str) -> bool {
    tools::output("apt-cache", &["policy", package]).is_some_and(|text| {
        text.lines().any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"))
    })
}

fn install_linker() -> Result<()> {
    eprintln!("building bpf-linker {LINKER_VERSION} (once, a few minutes)");
    let root = tools::target().join("tools");
    let mut cargo = tools::fresh_cargo();
    if std::env::var_os("LLVM_PREFIX").is_none() {
        cargo.env("LLVM_PREFIX", LLVM);
    }
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--quiet"])
        .args(["--no-default-features", "--features", "llvm-22", "--no-track", "--root"])
        .arg(&root)
        .env("CARGO_TARGET_DIR", root.join("build"));
    tools::run(&mut cargo)?;
    // A gigabyte that nobody needs again.
    let _ = fs::remove_dir_all(root.join("build"));
    Ok(())
}

/// Unpacks files of a package instead of installing it: installed, it would start a server, or bring many others along.
fn unpack(package: &str, files: &[&str]) -> Result<()> {
    if !tools::on_path("apt-get") {
        println!("# {package}: install it by your own means, or go without: what needs it is then skipped");
        bail!("no apt-get");
    }
    if !has_candidate(package) {
        tools::run(apt().arg("update"))?;
    }
    let folder = tools::target().join("tools/unpacked").join(package);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    // apt would want to write as its own user, who cannot enter a private folder.
    tools::run(apt().args(["download", "-o", "APT::Sandbox::User=root", package]).current_dir(&folder))?;
    let archive = fs::read_dir(&folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    tools::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&folder))?;
    for file in files {
        let to = tools::target().join(if file.starts_with("usr/bin/") { "tools/bin" } else { "tools/share" });
        fs::create_dir_all(&to)?;
        let name = Path::new(file).file_name().context("a path without a file's name")?;
        fs::copy(folder.join(file), to.join(name)).with_context(|| (*file).to_owned())?;
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn shared(name: &str) -> Option<String> {
    let path = tools::target().join("tools/share").join(name);
    path.is_file().then(|| path.display().to_string())
}

fn program(name: &str) -> Option<String> {
    tools::on_path(name).then(|| name.to_owned())
}

fn linker() -> Option<String> {
    let path = tools::bpf_linker();
    tools::output(&path, &["--version"]).filter(|version| version.contains(LINKER_VERSION))
}
