//! Commands that ask a running agent, here one with a scripted view.

use snapbox::file;

use super::*;

pub fn agent(view: View, path: &Path) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let context = runtime.enter();
    let socket = Socket::bind(path).unwrap();
    let views = serve(view);
    runtime.spawn(async move {
        socket.serve(views).await;
    });
    drop(context);
    runtime
}

#[test]
fn status_shows_what_needs_attention_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let _agent = agent(busy(), &path);
    let socket = path.to_str().unwrap();
    golden(&["status", "--socket", socket], 1, file!["../golden/status.txt"]);
    golden(&["status", "--all", "--socket", socket], 1, file!["../golden/status-all.txt"]);
    let pairs = |args: &[&str]| {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        json["pairs"].as_array().unwrap().len()
    };
    assert_eq!(pairs(&["status", "--output", "json", "--socket", socket]), 3);
    assert_eq!(pairs(&["status", "--output", "json", "--all", "--socket", socket]), 5);
}

#[test]
fn status_shows_what_the_filters_leave() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let _agent = agent(busy(), &path);
    let socket = path.to_str().unwrap();
    let table: [(&[&str], i32, usize); 9] = [
        (&["--flow", "sidecar-xds"], 1, 1),
        (&["--flow", "sidecar-xds", "--all"], 1, 2),
        (&["--namespace", "monitoring"], 1, 1),
        (&["--workload", "shop/cart"], 1, 1),
        (&["--workload", "web", "--all"], 1, 2),
        (&["--state", "verified", "--state", "silent"], 1, 2),
        (&["--state", "unknown"], 1, 0),
        (&["--flow", "sidecar-dns"], 0, 0),
        (&["--flow", "sidecar-dns", "--all"], 0, 1),
    ];
    for (filters, code, pairs) in table {
        let args: Vec<&str> =
            ["status", "--output", "json", "--socket", socket].into_iter().chain(filters.iter().copied()).collect();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(code), "{filters:?}: {}", stderr(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["pairs"].as_array().unwrap().len(), pairs, "{filters:?}");
    }
    let none = run(&["status", "--namespace", "shp", "--socket", socket]);
    assert_eq!(none.status.code(), Some(2), "a filter that fits nothing proves nothing");
    assert!(stderr(&none).contains("none of the 5 pairs fits the filters"), "{}", stderr(&none));
}

/// The first lines of a command that does not end by itself.
fn first_lines(args: &[&str], count: usize) -> String {
    let mut child = std::process::Command::new(cargo_bin!("weir"))
        .args(args)
        .env_remove("WEIR_SOCKET")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().take(count);
    let text = lines.map(|l| l.unwrap() + "\n").collect();
    child.kill().unwrap();
    child.wait().unwrap();
    text
}

#[test]
fn a_watched_status_follows_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let agent_one = agent(busy(), &path);
    let later = std::thread::spawn({
        let path = path.clone();
        move || {
            std::thread::sleep(std::time::Duration::from_millis(1_500));
            drop(agent_one);
            let _ = std::fs::remove_file(&path);
            let agent_two = agent(empty(), &path);
            std::thread::sleep(std::time::Duration::from_secs(4));
            drop(agent_two);
        }
    });
    let first = stdout(&run(&["status", "--socket", path.to_str().unwrap()])).lines().count();
    let text = first_lines(&["status", "--watch", "--socket", path.to_str().unwrap()], first + 2);
    assert!(text.starts_with("STATE "), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("no required flows") || last.contains("no agent answers"), "{text}");
    later.join().unwrap();
}

#[test]
fn watch_shows_attempts_as_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let _agent = agent(busy(), &path);
    let watch = |more: &[&'static str], count| {
        let args: Vec<&str> =
            ["watch", "--socket", path.to_str().unwrap()].into_iter().chain(more.iter().copied()).collect();
        first_lines(&args, count)
    };
    let shown = watch(&[], 8);
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    assert_data_eq!(shown, file!["../golden/watch.txt"]);
    let joined = |text: &str| text.replace("\n    ", " ");
    assert_eq!(joined(&watch(&["--wide"], 4)), joined(&watch(&[], 8)), "the same, on one line each");
    let denied = watch(&["--denied", "--wide"], 2);
    assert!(denied.contains("shop/cart") && denied.lines().nth(1).unwrap().starts_with("7 lines skipped"), "{denied}");
    let web = watch(&["--workload", "shop/web", "--port", "15012", "--wide"], 2);
    assert!(web.contains("shop/web") && !web.contains("shop/cart"), "{web}");
    let stranger = watch(&["--port", "443", "--wide"], 2);
    assert!(stranger.contains("2001:db8::2") && !stranger.contains("shop/"), "{stranger}");
    for line in watch(&["--json"], 4).lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(json["attempt"].is_object() || json["skipped"] == 7, "{line}");
    }
}

#[test]
fn an_agent_that_stops_ends_the_watch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let _agent = agent(busy(), &path);
    // The scripted agent tells its lines and hangs up.
    let output = run(&["watch", "--socket", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the agent has stopped"), "{}", stderr(&output));
}

#[test]
fn status_ends_as_the_states_say() {
    let one = |state| {
        let mut view = empty();
        view.snapshot.pairs =
            vec![pair("sidecar-xds", state, workload("shop", "cart"), workload("istio-system", "istiod"), 15012)];
        view
    };
    let mut loading = one(State::Verified);
    loading.snapshot.synced = false;
    let mut table: Vec<(String, View, i32)> =
        vec![("nothing known".into(), empty(), 2), ("loading".into(), loading, 2)];
    for state in State::ALL {
        let code = match state {
            State::Verified | State::Silent => 0,
            State::Unknown => 2,
            State::Denied
            | State::Predicted
            | State::AtRisk
            | State::Unenforced
            | State::Unexplained
            | State::Failing => 1,
        };
        table.push((state.to_string(), one(state), code));
    }
    for (name, view, code) in table {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weir.sock");
        let _agent = agent(view, &path);
        let output = run(&["status", "--socket", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}{}", stdout(&output), stderr(&output));
    }
}
