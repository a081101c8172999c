//! Pages as golden files: what a user sees of the offline commands.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use snapbox::cmd::{Command, cargo_bin};
use snapbox::{Data, assert_data_eq};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

pub fn run(args: &[&str]) -> Output {
    let command = Command::new(cargo_bin!("weir")).current_dir(folder().join("input"));
    command.env_remove("RUST_LOG").args(args).output().expect("weir")
}

/// Runs in the folder of the inputs; compares the exit code, and standard output with a golden file.
fn golden(args: &[&str], code: i32, file: &str) -> String {
    let output = run(args);
    let text = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}\n{text}");
    assert_data_eq!(&text, Data::read_from(&folder().join("check").join(file), None));
    assert!(!text.contains('\u{1b}'), "no colours in a pipe: {args:?}");
    text
}

/// The same for pages, which fit 100 columns.
pub fn page(args: &[&str], code: i32, file: &str) {
    let text = golden(args, code, file);
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{args:?}: {line}");
    }
}

const CLOSED: [&str; 4] = ["-f", "closed.yaml", "--cluster", "mesh.yaml"];
const OPEN: [&str; 4] = ["-f", "open.yaml", "--cluster", "mesh.yaml"];

fn with<'a>(first: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
    [first, rest].concat()
}

#[test]
fn help() {
    page(&["check", "--help"], 0, "help-check.txt");
    page(&["explain", "--help"], 0, "help-explain.txt");
    page(&["fix", "--help"], 0, "help-fix.txt");
    page(&["diff", "--help"], 0, "help-diff.txt");
}

#[test]
fn check_formats() {
    page(&with(&["check"], &CLOSED), 1, "closed.txt");
    golden(&with(&["check", "-o", "json"], &CLOSED), 1, "closed.json");
    golden(&with(&["check", "-o", "sarif"], &CLOSED), 1, "closed.sarif");
    golden(&with(&["check", "-o", "junit"], &CLOSED), 1, "closed.junit.xml");
    golden(&with(&["check", "-o", "markdown"], &CLOSED), 1, "closed.md");
    page(&with(&["check"], &OPEN), 0, "open.txt");
    page(&with(&["check", "--all", "--mutate"], &OPEN), 0, "open-all.txt");
}

/// Pairs that only traffic tells of are judged with the others, and what tells of none is named.
#[test]
fn connections_that_were_seen() {
    let objects = with(&OPEN, &["basket.yaml", "--connections", "connections.yaml"]);
    page(&with(&["check", "--all"], &objects), 1, "connections.txt");
    // The next step knows them as well: what they tell of is opened.
    golden(&with(&["fix"], &objects), 1, "connections-fix.yaml");
    let said = run(&with(&["check"], &objects));
    assert_data_eq!(
        String::from_utf8(said.stderr).expect("text"),
        Data::read_from(&folder().join("check/connections.stderr"), None)
    );
    // Without them the pair is not known, and nothing is wrong.
    assert_eq!(run(&with(&["check"], &with(&OPEN, &["basket.yaml"]))).status.code(), Some(0));
    let refused = |text: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let name = file.path().to_str().expect("text").to_owned();
        let output = run(&with(&["check", "--connections", &name], &OPEN));
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(&name), "the file is named: {error}");
        error
    };
    // What is wrong and what is allowed.
    let error = refused("connections: [{from: {pod: shop/cart-0}, to: {ip: 192.0.2.1}, prot: UDP, port: 53}]");
    assert!(error.contains("prot") && error.contains("an end is pod, node or ip"), "{error}");
    refused("connections: [{from: {pod: shop/cart-0}, to: {ip: 192.0.2.300}, port: 53}]");
    refused("connections: [{from: {pod: shop/cart-0}, to: {ip: 192.0.2.3}, port: 70000}]");
    let missing = run(&with(&["check", "--connections", "nowhere.yaml"], &OPEN));
    assert_eq!(missing.status.code(), Some(2), "{}", String::from_utf8_lossy(&missing.stderr));
}

#[test]
fn check_exit_codes() {
    let code = |args: &[&str]| run(args).status.code();
    assert_eq!(code(&with(&["check"], &OPEN)), Some(0));
    assert_eq!(code(&with(&["check"], &CLOSED)), Some(1));
    assert_eq!(code(&["check", "-f", "open.yaml"]), Some(2), "no pods: nothing can be told");
    assert_eq!(code(&["check", "-f", "broken.yaml", "--cluster", "mesh.yaml"]), Some(2), "a policy could not be read");
    assert_eq!(code(&["check", "-f", "nowhere.yaml"]), Some(2));
    assert_eq!(code(&with(&["check", "--fail-on", "critical"], &CLOSED)), Some(1));
    assert_eq!(code(&["check", "-f", "-", "--cluster", "-"]), Some(2), "one standard input");
}

#[test]
fn broken_documents_are_named_and_the_rest_is_judged() {
    page(&["check", "-f", "broken.yaml", "--cluster", "mesh.yaml"], 2, "broken.txt");
    let output = run(&["check", "-f", "broken.yaml", "--cluster", "mesh.yaml"]);
    let errors = String::from_utf8(output.stderr).expect("text");
    assert_data_eq!(&errors, Data::read_from(&folder().join("check/broken.stderr"), None));
}

#[test]
fn standard_input() {
    let policies = std::fs::read(folder().join("input/closed.yaml")).expect("a file");
    let output = Command::new(cargo_bin!("weir"))
        .current_dir(folder().join("input"))
        .args(["check", "-f", "-", "--cluster", "mesh.yaml"])
        .stdin(policies)
        .output()
        .expect("weir");
    assert_eq!(output.status.code(), Some(1));
    let file = String::from_utf8(run(&with(&["check"], &CLOSED)).stdout).expect("text");
    let piped = String::from_utf8(output.stdout).expect("text");
    assert_eq!(piped.replace("-f - ", "-f closed.yaml ").replace("-:", "closed.yaml:"), file);
}

#[test]
fn names_are_shown_and_not_obeyed() {
    for format in ["table", "junit", "markdown", "sarif", "json"] {
        let args = ["check", "-f", "hostile.yaml", "--cluster", "mesh.yaml", "-o", format];
        let text = String::from_utf8(run(&args).stdout).expect("text");
        assert!(text.contains("evil"), "{format}: the policy is named: {text}");
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{format}: {text:?}");
    }
}

#[test]
fn fix() {
    golden(&with(&["fix"], &CLOSED), 1, "fix.yaml");
    golden(&with(&["fix", "-o", "json"], &CLOSED), 1, "fix.json");
    golden(&with(&["fix"], &OPEN), 0, "fix-nothing.yaml");
    golden(&["fix", "-f", "managed.yaml", "--cluster", "mesh.yaml", "--flow", "SC-XDS"], 1, "fix-managed.yaml");
    let output = run(&with(&["fix", "--flow", "sidecar-sds"], &CLOSED));
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(
        (output.status.code(), &*error),
        (Some(2), "weir: there is no flow \"sidecar-sds\"; `weir flows` lists them\n")
    );
}

#[test]
fn fixes_apply() {
    let fixes = run(&with(&["fix"], &CLOSED)).stdout;
    let output = Command::new(cargo_bin!("weir"))
        .current_dir(folder().join("input"))
        .args(["check", "-f", "-", "--cluster", "mesh.yaml", "closed.yaml"])
        .stdin(fixes)
        .output()
        .expect("weir");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn diff() {
    page(&["diff", "open.yaml", "closed.yaml", "--cluster", "mesh.yaml"], 1, "diff-closes.txt");
    page(&["diff", "closed.yaml", "open.yaml", "--cluster", "mesh.yaml"], 0, "diff-opens.txt");
    page(&["diff", "open.yaml", "open.yaml", "--cluster", "mesh.yaml"], 0, "diff-same.txt");
    golden(&["diff", "open.yaml", "closed.yaml", "--cluster", "mesh.yaml", "-o", "json"], 1, "diff-closes.json");
}

#[test]
fn explain() {
    page(&with(&["explain", "shop/cart-0", "istio-system/istiod", "15012"], &CLOSED), 1, "explain-denied.txt");
    golden(
        &with(&["explain", "shop/cart-0", "istio-system/istiod", "15012", "-o", "json"], &CLOSED),
        1,
        "explain-denied.json",
    );
    page(&with(&["explain", "shop/cart-0", "istio-system/svc/istiod", "443"], &CLOSED), 1, "explain-service.txt");
    page(&with(&["explain", "shop/cart-0", "kube-system/kube-dns", "53/udp"], &OPEN), 0, "explain-admitted.txt");
    page(&with(&["explain", "203.0.113.9", "shop/cart-0", "8080"], &CLOSED), 1, "explain-outside.txt");
}

#[test]
fn explain_says_what_it_does_not_know() {
    let error = |args: &[&str]| {
        let output = run(&with(args, &CLOSED));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let unknown = error(&["explain", "shop/basket", "istio-system/istiod", "15012"]);
    assert_eq!(unknown, "weir: shop has no pod, workload or Service basket; it has shop/cart-0\n");
    let unknown = error(&["explain", "shop/cart-0", "istio-system/svc/istiod", "80"]);
    assert_eq!(unknown, "weir: Service istio-system/istiod has no port 80/TCP; it has 15012/TCP, 443/TCP\n");
    assert!(error(&["explain", "shop/cart-0", "nobody", "80"]).contains("names no end: an end is NAMESPACE/POD"));
}

#[test]
fn a_reader_who_left_is_no_failure() {
    let mut child = std::process::Command::new(cargo_bin!("weir"))
        .current_dir(folder().join("input"))
        .args(["check", "-f", "closed.yaml", "--cluster", "mesh.yaml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("weir");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
