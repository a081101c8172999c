//! The command line as users meet it: the real binary, its text and its exit codes.

#[path = "cli/agent.rs"]
mod agent;
mod common;

use std::io::{BufRead as _, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use agent::agent;
use common::{busy, empty, objects, pair, serve, workload};
use snapbox::cmd::{Command, cargo_bin};
use snapbox::{Data, assert_data_eq, file};
use tokio::runtime::Runtime;
use weir::outputs::View;
use weir::outputs::socket::Socket;
use weir_engine::verdict::State;

fn weir() -> Command {
    Command::new(cargo_bin!("weir")).env_remove("WEIR_SOCKET").env_remove("WEIR_NODE").env_remove("RUST_LOG")
}

fn run(args: &[&str]) -> Output {
    weir().args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Compares standard output with a golden file.
fn golden(args: &[&str], code: i32, expected: Data) {
    let output = run(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
    let text = stdout(&output);
    assert_data_eq!(&text, expected);
    assert!(!text.contains('\u{1b}'), "no colours in a pipe");
}

#[test]
fn help() {
    golden(&["--help"], 0, file!["golden/help.txt"]);
    golden(&["run", "--help"], 0, file!["golden/help-run.txt"]);
    golden(&["status", "--help"], 0, file!["golden/help-status.txt"]);
    golden(&["flows", "--help"], 0, file!["golden/help-flows.txt"]);
    for (command, text) in [
        ("probe", file!["golden/help-probe.txt"]),
        ("watch", file!["golden/help-watch.txt"]),
        ("top", file!["golden/help-top.txt"]),
        ("record", file!["golden/help-record.txt"]),
        ("completions", file!["golden/help-completions.txt"]),
        ("man", file!["golden/help-man.txt"]),
    ] {
        golden(&[command, "--help"], 0, text);
    }
    golden(&["doctor", "--help"], 0, file!["golden/help-doctor.txt"]);
    golden(&["replay", "--help"], 0, file!["golden/help-replay.txt"]);
    golden(&["watch", "--help"], 0, file!["golden/help-watch.txt"]);
}

#[test]
fn help_fits_100_columns() {
    for command in ["run", "status", "doctor", "flows", "replay", "watch", "completions", "man"] {
        for line in stdout(&run(&[command, "--help"])).lines() {
            assert!(line.chars().count() <= 100, "{command}: {line}");
        }
    }
}

#[test]
fn what_cannot_start_says_why_on_one_line_and_exits_2() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("cluster.yaml");
    std::fs::write(&manifest, "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").unwrap();
    let socket = folder.path().join("weir.sock");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let rubbish = folder.path().join("rubbish.yaml");
    std::fs::write(&rubbish, "kind: [\n---\n\t%@\n").unwrap();
    let under_a_file = manifest.join("s.sock");
    let (rubbish, under_a_file) = (rubbish.to_str().unwrap(), under_a_file.to_str().unwrap());
    let (manifest, socket) = (manifest.to_str().unwrap(), socket.to_str().unwrap());
    let start = ["run", "--socket", socket, "--listen", "127.0.0.1:0", "--manifests"];
    let with = |more: &[&'static str]| start.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>();
    let table: Vec<(Vec<&str>, &str)> = vec![
        (with(&["/no/such/path"]), "cannot read manifests from /no/such/path"),
        (
            vec!["run", "--socket", socket, "--listen", &taken, "--manifests", manifest],
            "choose another address with --listen",
        ),
        (
            vec!["run", "--socket", manifest, "--listen", "127.0.0.1:0", "--manifests", manifest],
            "is no socket; remove it",
        ),
        (
            vec!["run", "--socket", under_a_file, "--listen", "127.0.0.1:0", "--manifests", manifest],
            "cannot make the socket",
        ),
        (
            vec!["run", "--socket", socket, "--listen", "127.0.0.1:0", "--manifests", rubbish],
            "mend the file, or name others with --manifests",
        ),
        (vec!["watch", "--socket", socket], "start one with `weir run`"),
        (vec!["top", "--socket", socket], "weir top draws on a terminal"),
        (vec!["explain", "a/b", "c/d", "80", "--socket", socket], "start one with `weir run`"),
        (vec!["probe", "a/b", "--socket", socket], "start one with `weir run`"),
        (vec!["record", under_a_file, "--manifests", "/no/such/path"], "cannot read manifests from /no/such/path"),
        (vec!["man", under_a_file], "name one that can be written to"),
        (vec!["run", "--socket", socket, "--node", "a"], "no cluster to follow"),
        (vec!["run", "--kubeconfig", "/no/such/file", "--node", "a"], "cannot use the kubeconfig /no/such/file"),
        (vec!["run", "--kubeconfig", manifest, "--node", "a"], "cannot use the kubeconfig"),
        (vec!["run", "--kubeconfig", manifest], "--node NAME"),
        (vec!["status", "--socket", socket], "start one with `weir run`"),
        (vec!["flows", "xds"], "like it: sidecar-xds"),
        (vec!["flows", "--symptom", "zzz"], "try fewer"),
        (vec!["replay", "/no/such/file"], "/no/such/file: No such file"),
        (vec!["replay", manifest], "not a recording"),
    ];
    for (args, says) in table {
        let output = run(&args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert_eq!((text.lines().count(), stdout(&output).as_str()), (1, ""), "{args:?}: {text}");
        assert!(text.starts_with("weir: ") && text.contains(says), "{args:?}: {text}");
        assert!(text.matches("os error").count() <= 1, "said once: {text}");
    }
}

#[test]
fn wrong_flags_exit_2() {
    let table: [(&[&str], &str); 10] = [
        (&[], "Usage"),
        (&["dance"], "unrecognized subcommand"),
        (&["run", "--manifests", "x", "--kubeconfig", "y"], "cannot be used with"),
        (&["run", "--manifests", "x", "--ports", "0"], "0 is not in 1..=65535"),
        (&["run", "--manifests", "x", "--window", "soon"], "try 90s, 5m or 1h"),
        (&["run", "--manifests", "x", "--listen", "here"], "invalid socket address"),
        (&["status", "--output", "xml"], "possible values: table, json"),
        (&["status", "--state", "bad"], "possible values: denied"),
        (&["watch", "--port", "0"], "0 is not in 1..=65535"),
        (&["watch", "--standalone", "--namespace", "shop"], "cannot be used with"),
    ];
    for (args, says) in table {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn flows() {
    golden(&["flows", "sidecar-xds"], 0, file!["golden/flows-sidecar-xds.txt"]);
    golden(&["flows", "--symptom", "failed calling webhook"], 0, file!["golden/flows-symptom.txt"]);
    let all = stdout(&run(&["flows"]));
    assert!(all.lines().all(|l| l.chars().count() <= 100), "{all}");
    let by_code = run(&["flows", "SC-XDS", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&by_code.stdout).unwrap();
    assert_eq!((&json["version"], &json["flows"][0]["id"]), (&1.into(), &"sidecar-xds".into()));
}

/// An agent that shows this view, as long as the runtime lives.
/// `SNAPSHOTS=overwrite` makes it anew, as it does golden files.
#[test]
fn the_readme_has_the_catalogue_as_it_is() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(&file).unwrap();
    let (begin, end) = ("<!-- weir flows --output markdown -->\n", "<!-- end of flows -->");
    let (before, rest) = readme.split_once(begin).expect("the place of the table");
    let (table, after) = rest.split_once(end).expect("the end of the table");
    let output = run(&["flows", "--output", "markdown"]);
    let current = stdout(&output);
    if std::env::var_os("SNAPSHOTS").is_some_and(|v| v == "overwrite") {
        std::fs::write(&file, format!("{before}{begin}{current}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(table, current, "README.md is out of date: SNAPSHOTS=overwrite cargo test -p weir --test cli");
}

#[test]
fn bad_files_of_flows_name_file_line_fault_and_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let good = "schema = 1\nprofile = \"mine\"\n[[flow]]\nid = \"a-b\"\ncode = \"A\"\nsource = [\"sidecar\"]\n\
                destination = [\"istiod\"]\nports = [1]\npurpose = \"p\"\nsymptom = \"quite odd\"\nseverity = \"high\"\nfact = \"f\"\n";
    let flows = |text: &str| {
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, text).unwrap();
        run(&["flows", "a-b", "--flows", file.to_str().unwrap()])
    };
    let read = flows(good);
    assert_eq!(read.status.code(), Some(0), "{}", stderr(&read));
    assert!(stdout(&read).contains("quite odd"), "{}", stdout(&read));
    for (text, expected) in [
        (good.replace("high", "huge"), ["mine.toml", "line 11", "`huge`", "`critical`"]),
        (good.replace("[\"sidecar\"]", "[\"sidecars\"]"), ["mine.toml", "line 6", "`sidecars`", "`sidecar`"]),
        (good.replace("fact", "fakt"), ["mine.toml", "line 12", "`fakt`", "`fact`"]),
        (good.replace("ports = [1]\n", ""), ["mine.toml", "line 4", "a-b", "port-from"]),
        (good.replace("schema = 1", "schema = 9"), ["mine.toml", "schema = 9", "schema = 1", "reads"]),
    ] {
        let refused = flows(&text);
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(expected.iter().all(|word| said.contains(word)), "{said}: {expected:?}");
    }
}

/// The binary where every user may run it.
fn for_everybody(folder: &Path) -> std::path::PathBuf {
    let copy = folder.join("weir");
    std::fs::copy(cargo_bin!("weir"), &copy).unwrap();
    for path in [folder, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}

#[test]
fn without_privileges_or_type_information_it_says_what_it_needs() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: giving up root takes root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let binary = for_everybody(folder.path());
    let manifest = folder.path().join("cluster.yaml");
    std::fs::write(&manifest, "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").unwrap();
    let open = folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let run = |uid: u32, socket: &Path, more: &[&str]| {
        let mut command = std::process::Command::new(&binary);
        command.env_remove("RUST_LOG").env_remove("WEIR_NODE").env("WEIR_SOCKET", socket);
        command.args(["run", "--listen", "127.0.0.1:0", "--manifests"]).arg(&manifest).args(more);
        command.uid(uid).gid(uid).output().unwrap()
    };
    let nobody = 65_534;
    let mut table = vec![(run(nobody, &folder.path().join("weir.sock"), &[]), "run as root, or grant CAP_BPF")];
    if weir::probes::embedded() {
        table.push((run(nobody, &open.join("weir.sock"), &[]), "run as root, or grant CAP_BPF"));
        // What stands in where there is no BTF needs the root of cgroup v2: hidden below another mount here.
        let hidden = |btf: &str| {
            let mut command = std::process::Command::new("unshare");
            command.args(["--mount", "sh", "-c", "mount -t tmpfs none \"$0\" && exec \"$@\""]);
            command.arg(weir::probes::root_cgroup().unwrap_or_else(|| open.clone())).arg(&binary);
            command.env_remove("RUST_LOG").env_remove("WEIR_NODE").env("WEIR_SOCKET", folder.path().join("root.sock"));
            command.args(["run", "--listen", "127.0.0.1:0", "--btf", btf, "--manifests"]).arg(&manifest);
            command.output().unwrap()
        };
        for btf in ["/no/such/btf", manifest.to_str().unwrap()] {
            table.push((hidden(btf), "CONFIG_DEBUG_INFO_BTF=y"));
            table.push((hidden(btf), "mount the host's /sys/fs/cgroup"));
        }
    } else {
        println!("SKIPPED: this build holds no probes that could fail to load");
    }
    for (output, says) in table {
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{says}: {text}");
        assert!(text.starts_with("weir: ") && text.contains(says), "{says}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let commands = [
        "run", "check", "explain", "fix", "diff", "status", "probe", "watch", "top", "doctor", "flows", "record",
        "replay",
    ];
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let text = stdout(&output);
        assert!(commands.iter().all(|c| text.contains(c)), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("new/pages");
    assert_eq!(run(&["man", pages.to_str().unwrap()]).status.code(), Some(0));
    for command in commands {
        let page = std::fs::read_to_string(pages.join(format!("weir-{command}.1"))).unwrap();
        assert!(page.contains(".SH") && page.contains(command), "{command}");
    }
}

#[test]
fn hostile_names_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let mut view = busy();
    let name = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\n\u{202e}evil";
    view.snapshot.pairs[0].source.workload = name.into();
    view.snapshot.pairs[0].policies = vec![name.to_owned()];
    view.agent.problems[0].message = name.to_owned();
    let _agent = agent(view, &path);
    for format in ["table", "json"] {
        let text = stdout(&run(&["status", "--all", "--output", format, "--socket", path.to_str().unwrap()]));
        let hostile = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!text.contains(hostile), "{format}: {text:?}");
    }
    let error = stderr(&run(&["replay", "\u{1b}[2J"]));
    assert!(!error.contains('\u{1b}'), "{error:?}");
}

#[test]
fn colours_are_there_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let _agent = agent(busy(), &path);
    let output =
        weir().args(["status", "--socket", path.to_str().unwrap()]).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(stdout(&output).contains("\u{1b}["));
}

#[test]
fn a_reader_who_leaves_early_is_no_failure() {
    let mut child = std::process::Command::new(cargo_bin!("weir"))
        .args(["flows", "--output", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((child.wait().unwrap().code(), text.as_str()), (Some(0), ""));
}

#[test]
fn probing_from_more_than_ten_pods_is_asked_for_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.json");
    for (pods, asks) in [(10, false), (11, true)] {
        let mut all = objects("shop", "cart");
        let is_cart = |o: &&serde_json::Value| o["kind"] == "Pod" && o["metadata"]["namespace"] == "shop";
        let cart = all.iter().find(is_cart).cloned().unwrap();
        for n in 1..pods {
            let mut pod = cart.clone();
            let address = format!("203.0.113.{n}");
            pod["metadata"]["name"] = format!("cart-1-{n}").into();
            pod["status"] = serde_json::json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
            all.push(pod);
        }
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": all});
        std::fs::write(&file, list.to_string()).unwrap();
        // Nobody is there to answer.
        let output = run(&["probe", "-f", file.to_str().unwrap(), "--timeout", "1s"]);
        let text = stderr(&output);
        assert_eq!(text.contains("from 11 pods; name one, or say --yes"), asks, "{pods}: {text}");
        assert!(!asks || output.status.code() == Some(2) && stdout(&output).is_empty(), "{text}{}", stdout(&output));
    }
}
