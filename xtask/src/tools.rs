//! Where things are, and running other programs.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The workspace root.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the workspace").to_owned()
}

/// The workspace's target folder; tools and probes live below it whatever `CARGO_TARGET_DIR` says, because the agent's
/// `build.rs` must find them.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The bpf-linker that `setup` builds.
pub fn bpf_linker() -> PathBuf {
    target().join("tools/bin/bpf-linker")
}

/// The cargo that runs this task, in the workspace root, with `target/tools/bin` on the search path of what it starts.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [target().join("tools/bin")].into_iter().chain(env::split_paths(&path));
    command
        .current_dir(root())
        .env("RUST_BACKTRACE", "0")
        .env("PATH", env::join_paths(folders).unwrap_or(path.clone()));
    command
}

/// A program of the workspace, as `cargo build` has left it.
pub fn built(name: &str) -> PathBuf {
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(target, |folder| root().join(folder));
    folder.join("debug").join(name)
}

/// Does this task run as root?
pub fn is_root() -> bool {
    output("id", &["-u"]).as_deref() == Some("0")
}

/// A cargo of its own for another toolchain: nothing of the one that runs this task leaks into it.
pub fn fresh_cargo() -> Command {
    let mut command = Command::new("cargo");
    for name in
        ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"]
    {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// Runs a command that must succeed; its output goes to stderr, data on stdout is the tasks' own.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.stdout(std::io::stderr()).status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Output of a command, `None` if it cannot be started or fails.
pub fn output(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Is a program of that name on the search path, or where system administration programs are?
pub fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

/// A program that `setup` unpacked, or that is on the path.
pub fn tool(name: &str) -> Option<String> {
    let own = target().join("tools/bin").join(name);
    if own.is_file() { Some(own.display().to_string()) } else { on_path(name).then(|| name.to_owned()) }
}

/// As one would type it.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
