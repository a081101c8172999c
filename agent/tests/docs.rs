//! The documents say what is so: the generated references are current, every command in them is one, and those that need
//! neither a cluster nor an agent nor root run.
//!
//! A block of commands begins with ` ```sh `. Alone, it is executed; followed by `cluster`, `agent`, `root` or `build` it is held
//! against the command line here, and what is weir's in it runs beside an agent in the test `node`.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::busy;
use snapbox::cmd::cargo_bin;
use snapbox::{assert_data_eq, file};
use weir::outputs::PartView;
use weir::outputs::metrics::{Format, Metrics};
use weir_engine::cluster::{Key, Kind, Origin};
use weir_engine::snapshot::Edit;
use weir_engine::time::Time;
use weir_engine::words::Name;

/// What a block can need.
const NEEDS: [&str; 4] = ["cluster", "agent", "root", "build"];
/// What a command may be called with that this repository does not check.
const OTHERS: [&str; 11] =
    ["kubectl", "helm", "cargo", "curl", "promtool", "weir-on", "}", "#", "jq", "--selector", "--set"];

#[test]
fn the_command_line_reference_is_current() {
    let mut text = "# Command line\n\nGenerated from the help texts by a test.\n".to_owned();
    let command = weir::cli::command();
    let names = command.get_subcommands().map(|c| c.get_name().to_owned()).filter(|n| n != "help");
    let help = |args: &[&str]| {
        let output =
            Command::new(cargo_bin!("weir")).args(args).arg("--help").env_remove("WEIR_SOCKET").output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let _ = write!(text, "\n```text\n{}```\n", help(&[]));
    for name in names {
        let _ = write!(text, "\n## weir {name}\n\n```text\n{}```\n", help(&[&name]));
    }
    assert_data_eq!(text, file!["../../docs/cli.md"]);
}

#[test]
fn every_command_has_two_examples_or_more() {
    for command in weir::cli::command().get_subcommands().filter(|c| c.get_name() != "help") {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = after.lines().skip_while(|l| *l != "Examples:").skip(1).take_while(|l| l.starts_with("  "));
        let examples: Vec<&str> = lines.map(str::trim).collect();
        assert!(examples.len() >= 2, "weir {}: {after}", command.get_name());
        for example in examples {
            assert!(parse(example).unwrap() > 0, "{example} has no command of weir");
        }
    }
}

#[test]
fn the_metrics_reference_is_current() {
    let mut view = busy();
    view.agent.parts.push(PartView {
        part: "pods".into(),
        state: "stale".to_owned(),
        reason: None,
        undecodable: 0,
        age_seconds: 1,
    });
    let denied = &mut view.snapshot.pairs[0];
    denied.not_admitted_count = 1;
    denied.since_edit = Some(Edit {
        object: Key { kind: Kind::NetworkPolicy, name: Name::new("shop", "deny") },
        deleted: false,
        origin: Origin::default(),
        at: Time(0),
        at_unix_ns: 0,
    });
    let metrics = Metrics::default().encode(&Arc::new(view), Format::Prometheus).unwrap();
    let mut text = "# Metrics\n\nGenerated from what the agent serves at `/metrics` by a test. Every label set has a hard cap; \
                    what goes beyond it\nis counted in one series whose labels are all `overflow`. No address is ever a label.\n\
                    In OpenMetrics, `weir_attempts_total` has the newest attempt of each series as its exemplar: pods, and when.\n\n\
                    | metric | type | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for line in metrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let help = metrics.lines().find_map(|l| l.strip_prefix(&format!("# HELP {name} "))).unwrap_or_default();
        let sample = metrics.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(['{', '_'])));
        let inside = sample.and_then(|l| Some(l.split_once('{')?.1.rsplit_once('}')?.0)).unwrap_or_default();
        let labels: Vec<String> =
            inside.split("\",").filter_map(|l| Some(format!("`{}`", l.split_once('=')?.0))).collect();
        let labels: Vec<String> = labels.into_iter().filter(|l| l != "`le`").collect();
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(" "));
    }
    assert_data_eq!(text, file!["../../docs/metrics.md"]);
}

#[test]
fn every_page_is_in_the_book() {
    let summary = fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
    for page in pages(&docs()) {
        let name = page.strip_prefix(docs()).unwrap().to_str().unwrap().to_owned();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name} is not in SUMMARY.md");
    }
    let links = summary.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    links.for_each(|link| assert!(docs().join(link).is_file(), "{link} is in SUMMARY.md and is no page"));
}

#[test]
fn every_link_leads_somewhere() {
    let mut checked = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let folder = document.parent().unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, part) = link.split_once('#').map_or((link, None), |(path, part)| (path, Some(part)));
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
            if let Some(part) = part {
                let page = fs::read_to_string(&target).unwrap();
                let known = page.lines().filter(|l| l.starts_with('#')).any(|heading| anchor(heading) == part);
                assert!(known, "{}: there is no heading #{part} in {}", document.display(), target.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} links checked");
}

/// Targets of the links of a page, outside of blocks of code.
fn links(text: &str) -> Vec<&str> {
    let mut code = false;
    let lines = text.lines().filter(move |line| {
        code ^= line.starts_with("```");
        !code
    });
    lines.flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next())).collect()
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_command_is_one_and_what_needs_nothing_runs() {
    let mut checked = 0;
    let mut executed = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let folder = stage();
        for (needs, block) in blocks(&text, &document) {
            let joined = block.replace("\\\n", " ");
            for line in joined.lines().map(str::trim).filter(|l| !l.is_empty()) {
                let parsed = parse(line).unwrap_or_else(|e| panic!("{}: {line}\n{e}", document.display()));
                let other = OTHERS.iter().any(|o| line.split_whitespace().any(|w| w == *o || w.starts_with("$(")));
                assert!(parsed > 0 || other, "{}: what is {line:?}?", document.display());
                checked += 1;
            }
            if needs.is_none() {
                execute(&document, &block, folder.path());
                executed += 1;
            }
        }
    }
    assert!(checked > 30 && executed > 5, "{checked} commands checked, {executed} blocks executed");
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Every Markdown file below a folder.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn documents() -> Vec<PathBuf> {
    let root = docs().join("..");
    let mut found = pages(&docs());
    found.extend(["README.md", "ARCHITECTURE.md", "SECURITY.md", "deploy/README.md"].map(|name| root.join(name)));
    found
}

/// Blocks of commands with what they need.
fn blocks<'a>(text: &'a str, document: &Path) -> Vec<(Option<&'a str>, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|l| !l.trim_start().starts_with("```")).collect();
        let mut words = info.split_whitespace();
        if words.next() != Some("sh") {
            continue;
        }
        let needs = words.next();
        assert!(needs.is_none_or(|n| NEEDS.contains(&n)), "{}: what is {info:?}?", document.display());
        found.push((needs, body.join("\n")));
    }
    found
}

/// How many commands of weir there are in a line of shell; each must be one that the command line takes.
fn parse(line: &str) -> Result<usize, String> {
    let mut count = 0;
    let line = line.split(" # ").next().unwrap_or_default();
    let line = line.split("    # ").next().unwrap_or_default();
    for part in split(line) {
        let mut words = words(&part);
        let plugin = words.starts_with(&["kubectl".to_owned(), "weir".to_owned()]);
        if plugin {
            words.remove(0);
            words[0] = "kubectl-weir".to_owned();
        }
        let parsed = match words.first().map(String::as_str) {
            Some("weir") => weir::cli::command().try_get_matches_from(&words).map(drop),
            Some("kubectl-weir") => weir::cli::kubectl_command().try_get_matches_from(&words).map(drop),
            _ => continue,
        };
        if let Err(error) = parsed
            && !matches!(error.kind(), clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion)
        {
            return Err(error.to_string());
        }
        count += 1;
    }
    Ok(count)
}

/// At pipes and the like, outside of quotes.
fn split(line: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, '|' | ';' | '&') => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    parts
}

/// Words without their quotes, up to a redirection.
fn words(part: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in part.chars() {
        match (quote, c) {
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(q), c) if q == c => quote = None,
            (None, c) if c.is_whitespace() => found.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    let end = found.iter().position(|w| matches!(w.as_str(), ">" | "<" | ">>" | "2>")).unwrap_or(found.len());
    found.truncate(end);
    found
}

/// A folder with what the documents' commands read.
fn stage() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let scenario = docs().join("../tests/fixtures/scenarios/01-sidecar-injection");
    fs::create_dir(folder.path().join("policies")).unwrap();
    fs::copy(scenario.join("cluster.yaml"), folder.path().join("cluster.yaml")).unwrap();
    fs::copy(scenario.join("policies-before.yaml"), folder.path().join("policies/before.yaml")).unwrap();
    fs::copy(scenario.join("policies-after.yaml"), folder.path().join("changed-policy.yaml")).unwrap();
    let catalogue = fs::read_to_string(docs().join("flows.md")).unwrap();
    let toml = catalogue.split("```toml\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
    fs::write(folder.path().join("my-flows.toml"), toml).unwrap();
    folder
}

/// Runs a block as a shell does, command by command; 2 of weir is a failure, 0 and 1 are answers.
fn execute(document: &Path, block: &str, folder: &Path) {
    let binary = cargo_bin!("weir");
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    for line in block.replace("\\\n", " ").lines().filter(|l| !l.trim().is_empty()) {
        let output = Command::new("sh").args(["-c", line]).current_dir(folder).env("PATH", &path).output().unwrap();
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{}: {line}: {:?}\n{}{}",
            document.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
