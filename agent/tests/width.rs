//! Whatever the names: every page for people fits 100 columns, is without colour where none is wanted, and ends with what to do
//! next. Names of DNS labels have 63 characters at most.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{busy, empty, objects, serve_as, workload};
use snapbox::cmd::cargo_bin;
use tokio::runtime::Runtime;
use weir::outputs::View;
use weir::outputs::socket::Socket;
use weir_engine::snapshot::{CandidatePolicy, CandidatesView};

const WIDTH: usize = 100;

fn long(letter: &str) -> String {
    letter.repeat(63)
}

fn agent(view: View, path: &Path, [namespace, name]: [&str; 2]) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let context = runtime.enter();
    let socket = Socket::bind(path).unwrap();
    let views = serve_as(view, namespace, name);
    runtime.spawn(async move {
        socket.serve(views).await;
    });
    drop(context);
    runtime
}

fn run(arguments: &[&str], colour: bool) -> Output {
    let mut command = Command::new(cargo_bin!("weir"));
    command.args(arguments).env_remove("WEIR_SOCKET").env_remove("WEIR_NODE");
    // Both are asked for; who wants none wins.
    command.env("CLICOLOR_FORCE", "1");
    if !colour {
        command.env_remove("CLICOLOR_FORCE").env("NO_COLOR", "1");
    }
    command.output().unwrap()
}

fn without_colour(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn pages_fit_whatever_the_names() {
    let (namespace, name) = (long("n"), long("w"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let file = folder.path().join("cluster.json");
    let all = objects(&namespace, &name);
    std::fs::write(&file, serde_json::json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string()).unwrap();
    let mut view = busy();
    for pair in &mut view.snapshot.pairs {
        pair.source = workload(&namespace, &name);
        pair.destination = workload(&long("d"), &long("e"));
        if !pair.policies.is_empty() {
            pair.policies = vec![format!("{namespace}/{}", long("p")), format!("{}/{}", long("d"), long("q"))];
        }
        if let Some(candidate) = &mut pair.candidate {
            candidate.policies = vec![format!("{namespace}/{}", long("c"))];
        }
    }
    view.snapshot.pairs[0].flow = long("f").as_str().into();
    view.snapshot.pairs[0].service_port = Some(32_443);
    let policy = CandidatePolicy {
        policy: format!("{namespace}/{}", long("c")),
        replaces: Vec::new(),
        source: format!("ConfigMap {namespace}/{}", long("c")),
    };
    view.snapshot.candidates =
        Some(CandidatesView { policies: vec![policy], breaks: 12_345, opens: 12_345, traffic_breaks: 12_345 });
    view.agent.problems[0].message = "word ".repeat(60);
    let _agent = agent(view, &path, [&namespace, &name]);
    let (socket, file) = (path.to_str().unwrap(), file.to_str().unwrap());
    let (from, to) = (format!("{namespace}/{name}"), "istio-system/istiod");
    let commands: Vec<(Vec<&str>, bool)> = vec![
        (vec!["status", "--socket", socket], true),
        (vec!["status", "--all", "--socket", socket], true),
        (vec!["explain", &from, to, "15012", "--socket", socket], true),
        (vec!["explain", &from, to, "15012", "-f", file], true),
        (vec!["probe", "--yes", "--timeout", "1s", "--socket", socket], true),
        // Ends when its agent hangs up, and says so.
        (vec!["watch", "--socket", socket], true),
        (vec!["doctor", "--socket", socket], true),
        (vec!["check", "-f", file], true),
        (vec!["check", "-f", file, "--all"], true),
        (vec!["flows"], true),
        (vec!["flows", "sidecar-xds"], true),
        (vec!["flows", "--symptom", "upstream"], true),
        (vec!["diff", file, file], true),
    ];
    for (arguments, ends) in commands {
        let plain = run(&arguments, false);
        let text = String::from_utf8(plain.stdout).unwrap();
        let told = String::from_utf8(plain.stderr).unwrap();
        assert!(!text.is_empty(), "{arguments:?}: {told}");
        assert!(!text.contains('\u{1b}') && !told.contains('\u{1b}'), "{arguments:?}: colours with NO_COLOR\n{text}");
        for line in text.lines() {
            // A word of a command to copy stays in one piece, alone on its line.
            if line.split_whitespace().filter(|word| *word != "\\").count() == 1 {
                continue;
            }
            assert!(line.chars().count() <= WIDTH, "{arguments:?}: {} columns: {line}\n{text}", line.chars().count());
        }
        let coloured = String::from_utf8(run(&arguments, true).stdout).unwrap();
        if arguments[0] != "doctor" && arguments[0] != "probe" {
            assert_eq!(without_colour(&coloured), text, "{arguments:?}");
        }
        let last: Vec<&str> = text.lines().chain(told.lines()).filter(|l| !l.trim().is_empty()).collect();
        let tail = last[last.len().saturating_sub(4)..].join(" ");
        let leads = tail.to_lowercase().contains("next") || tail.contains("weir ") || tail.contains("kubectl");
        assert!(!ends || leads, "{arguments:?} ends without what to do next:\n{text}{told}");
    }
}

#[test]
fn errors_say_what_failed_and_the_next_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let _agent = agent(empty(), &path, ["shop", "cart"]);
    let nowhere = folder.path().join("nobody.sock");
    let (socket, nowhere) = (path.to_str().unwrap(), nowhere.to_str().unwrap());
    let table: [(&[&str], &str); 12] = [
        (&["status", "--socket", nowhere], "weir run"),
        (&["watch", "--socket", nowhere], "weir run"),
        (&["explain", "shop/cart", "istio-system/istiod", "15012", "--socket", nowhere], "weir run"),
        (&["probe", "--socket", nowhere], "weir run"),
        (&["record", "/dev/null", "--socket", nowhere], "weir run"),
        (&["explain", "shop/nobody", "istio-system/istiod", "15012", "--socket", socket], "it has shop/cart"),
        (&["probe", "shop/nobody", "--socket", socket], "it has shop/cart"),
        (&["probe", "shop/cart", "no-such-flow", "--socket", socket], "weir flows"),
        (&["flows", "no-such-flow"], "weir flows"),
        (&["check", "-f", "/no/such/file"], "/no/such/file"),
        (&["replay", "/no/such/file"], "/no/such/file"),
        (&["top", "--socket", socket], "weir status"),
    ];
    for (arguments, next) in table {
        let said = run(arguments, false);
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.starts_with("weir: ") && text.contains(next), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    }
}
