//! The house rules that no other tool checks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::tools;

/// What the pure core may depend on: no I/O, no clock, no async.
const ENGINE_MAY_USE: [&str; 10] = [
    "weir-common",
    "k8s-openapi",
    "serde",
    "serde_json",
    "ipnet",
    "thiserror",
    "foldhash",
    "enumset",
    "toml",
    "serde-saphyr",
];

/// Where people's folders are.
const HOMES: [&str; 2] = ["/home/", "/Users/"];

/// Folders below the root that every system may have (Filesystem Hierarchy Standard 3.0).
const SYSTEM: [&str; 17] = [
    "bin", "boot", "dev", "etc", "lib", "media", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp",
    "usr", "var",
];

/// Lines above which a file is reported. Not a breach: some files have their reasons.
const LONG: usize = 500;

/// `cargo xtask tidy`
#[derive(clap::Args)]
pub struct Tidy {}

impl Tidy {
    pub fn run(self) -> Result<ExitCode> {
        let Self {} = self;
        let root = tools::root();
        let mut long = Vec::new();
        let mut findings = engine_dependencies(&fs::read_to_string(root.join("agent-engine/Cargo.toml"))?);
        let files = tracked(&root)?;
        let places = places(&root);
        for path in &files {
            let Ok(text) = fs::read_to_string(root.join(path)) else { continue };
            findings.extend(check(path, &text, &places));
            long.extend(too_long(path, &text));
        }
        for note in &long {
            eprintln!("note: {note}");
        }
        for finding in &findings {
            println!("{finding}");
        }
        eprintln!("tidy: {} files, {} findings", files.len(), findings.len());
        Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// Files that git knows or would add, relative to the root.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.to_str().context("the path of the workspace is no text")?;
    let list = tools::output("git", &["-C", folder, "ls-files", "--cached", "--others", "--exclude-standard"])
        .context("`git ls-files` failed: tidy needs a git checkout")?;
    Ok(list.lines().map(PathBuf::from).filter(|path| root.join(path).is_file()).collect())
}

fn check(path: &Path, text: &str, places: &[String]) -> Vec<String> {
    let shown = path.display();
    let mut findings = Vec::new();
    if path.extension().is_some_and(|extension| extension == "rs") {
        let first = text.lines().find(|line| !line.starts_with("#![") && !line.is_empty());
        if !first.is_some_and(|line| line.starts_with("//!")) {
            findings.push(format!("{shown}:1: no module documentation (`//!`)"));
        }
        for (number, line) in numbered(text) {
            if line.contains(concat!("todo", "!(")) || line.contains(concat!("#[", "ignore")) {
                findings.push(format!("{shown}:{number}: unfinished: {}", line.trim()));
            }
        }
    }
    for (number, line) in numbered(text) {
        if places.iter().any(|place| mentions(line, place)) {
            findings.push(format!("{shown}:{number}: a path of one machine: {}", line.trim()));
        }
    }
    findings
}

fn too_long(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let rust = path.extension().is_some_and(|extension| extension == "rs");
    (rust && lines > LONG).then(|| format!("{}:{LONG}: {lines} lines: split it, or argue", path.display()))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// Where one machine keeps what is its own: people's folders, the checkout, and the folder below the root that the checkout
/// is in, unless every system has that one.
fn places(checkout: &Path) -> Vec<String> {
    let mut places = HOMES.map(str::to_owned).to_vec();
    places.push(format!("{}/", checkout.display()));
    let top = checkout.components().nth(1).filter(|_| checkout.components().count() > 2);
    let top = top.map(|folder| format!("/{}/", folder.as_os_str().display()));
    places.extend(top.filter(|top| !SYSTEM.iter().any(|folder| *top == format!("/{folder}/"))));
    places
}

/// As the start of an absolute path, not inside another path or a URL; this file's own list does not count.
fn mentions(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let quoted_alone = line[at + place.len()..].starts_with('"');
        !quoted_alone && !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | '*' | ')'))
    })
}

/// The names below `[dependencies]` against [`ENGINE_MAY_USE`].
fn engine_dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut findings = Vec::new();
    for (number, line) in numbered(manifest) {
        if line.starts_with('[') {
            inside =
                line == "[dependencies]" || line.starts_with("[build-dependencies") || line.starts_with("[target.");
            continue;
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if inside && !name.is_empty() && !name.starts_with('#') && !ENGINE_MAY_USE.contains(&name) {
            findings.push(format!("agent-engine/Cargo.toml:{number}: the pure core must not depend on `{name}`"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_breach() {
        let path = Path::new("a.rs");
        let places = places(Path::new(concat!("/ci", "/checkouts/weir")));
        let check = |path: &Path, text: &str| check(path, text, &places);
        let unfinished = format!("//! x\n{}", concat!("todo", "!()"));
        for (text, expected) in [
            ("fn main() {}\n", "a.rs:1: no module documentation"),
            (unfinished.as_str(), "a.rs:2: unfinished"),
            (concat!("//! see /ho", "me/me/notes\n"), "a.rs:1: a path of one machine"),
            (concat!("//! see /c", "i/notes\n"), "a.rs:1: a path of one machine"),
        ] {
            let findings = check(path, text);
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].starts_with(expected), "{findings:?}");
        }
        assert_eq!(check(path, "//! x\nfn main() {}\n"), Vec::<String>::new());
        assert_eq!(too_long(path, &"x\n".repeat(LONG)), None);
        assert_eq!(too_long(path, &"x\n".repeat(LONG + 1)).as_deref(), Some("a.rs:500: 501 lines: split it, or argue"));
        let elsewhere = concat!("#![no_std]\n//! see https://a.b/ho", "me/x and {root}/ho", "me/y\n");
        assert_eq!(check(path, elsewhere), Vec::<String>::new());
    }

    #[test]
    fn what_every_system_has_is_no_place_of_one_machine() {
        assert_eq!(places(Path::new("/tmp/a/weir"))[HOMES.len()..], ["/tmp/a/weir/"]);
        assert_eq!(places(Path::new("/weir"))[HOMES.len()..], ["/weir/"]);
        assert_eq!(places(Path::new("/data/weir"))[HOMES.len()..], ["/data/weir/", "/data/"]);
    }

    #[test]
    fn only_the_pure_set_is_allowed_in_the_engine() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nserde.workspace = true\ntokio = \"1\"\n[dev-dependencies]\nproptest = \"1\"\n";
        assert_eq!(
            engine_dependencies(manifest),
            ["agent-engine/Cargo.toml:5: the pure core must not depend on `tokio`"]
        );
    }
}
