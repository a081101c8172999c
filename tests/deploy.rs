//! What is shipped around the agent: the chart and the manifests made from it, the alerts, the dashboard, the runbooks.
//! No root, no cluster, no network. What needs promtool, kubectl or the `weir` binary says that it is skipped where there is none.

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/dashboard.rs"]
mod dashboard;
#[path = "deploy/exported.rs"]
mod exported;
#[path = "deploy/image.rs"]
mod image;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/objects.rs"]
mod objects;
#[path = "deploy/own_policy.rs"]
mod own_policy;
#[path = "deploy/rules.rs"]
mod rules;
#[path = "deploy/runbooks.rs"]
mod runbooks;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    files.sort();
    files
}

/// One YAML document.
fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// What promtool said; `None`, and a line that says so, where it is not installed.
fn promtool(arguments: &[&str]) -> Option<Output> {
    // `cargo xtask setup` puts it there.
    let own = root().join("target/tools/bin/promtool");
    match Command::new(if own.is_file() { own } else { "promtool".into() }).args(arguments).current_dir(root()).output()
    {
        Ok(output) => Some(output),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: promtool is not installed; `cargo xtask setup` does it");
            None
        }
        Err(e) => panic!("promtool: {e}"),
    }
}

fn assert_promtool(arguments: &[&str]) {
    let Some(output) = promtool(arguments) else { return };
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {}\n{said}", arguments.join(" "));
}
