//! `weir explain` on a node: what the kernel saw, and which edit it was.

use super::*;

#[test]
fn explain_on_a_node_adds_what_the_kernel_saw_and_which_edit_it_was() -> Result<()> {
    let rehearsal = begin()?;
    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "denied", PATIENCE)?;
    let ask = |format| {
        let ends = ["my-namespace/httpbin", "istio-system/istiod", "15012"];
        rehearsal.agent.command(&["explain", ends[0], ends[1], ends[2], "--output", format])
    };
    let said = ask("table")?;
    let text = String::from_utf8(said.stdout)?;
    ensure!(said.status.code() == Some(1), "{:?} {text}", said.status);
    for part in ["DENIED", "my-namespace/default-deny", "sidecar-xds: denied", "last seen", "netfilter"] {
        ensure!(text.contains(part), "{part} is missing:\n{text}");
    }
    ensure!(text.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{text}");
    ensure!(text.contains("newest attempts:"), "{text}");
    // At which hook, by the kernel's stack; other tests' floods may hold one back.
    let begin = Instant::now();
    loop {
        let text = String::from_utf8(ask("table")?.stdout)?;
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if flat.contains("dropped in netfilter FORWARD ") && flat.contains(" nf_hook_slow < ip_forward") {
            ensure!(text.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{text}");
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "no hook is told:\n{text}");
        rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default())?;
    }
    // Nobody needs the way back, and what was tried there is remembered all the same.
    let begin = Instant::now();
    loop {
        let (from, to) = ("istio-system/istiod", "my-namespace/httpbin");
        let source = rehearsal.mesh.namespace(&End::Pod(pod_of(&rehearsal, "istio-system", "istiod")?))?;
        let target = rehearsal.mesh.addresses(&End::Pod(pod_of(&rehearsal, "my-namespace", "httpbin")?))?[0];
        let connect = || TcpStream::connect_timeout(&(target, 15012).into(), Duration::from_millis(500)).is_ok();
        let open = source.run(|| Ok(connect()))?;
        let said = rehearsal.agent.command(&["explain", from, to, "15012", "--output", "json"])?;
        let json: Value = serde_json::from_slice(&said.stdout)?;
        let attempts = json["targets"][0]["attempts"].as_array().cloned().unwrap_or_default();
        ensure!(json["targets"][0]["required"] == serde_json::json!([]), "{json:#}");
        if attempts.iter().any(|a| a["dialled"]["destination"] == target.to_string()) {
            ensure!(!open, "nobody listens there");
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "nothing is remembered: {json:#}");
    }
    // Opened and closed again while the agent looks on: now it knows the edit.
    let open = rehearsal.fixture.states.last().context("a state that opens it")?.name.clone();
    rehearsal.enter(&open, Enforcement::Drop)?;
    let begin = Instant::now();
    loop {
        let json: Value = serde_json::from_slice(&ask("json")?.stdout)?;
        let edit = &json["targets"][0]["observed"][0]["since_edit"];
        if json["verdict"] == "admitted" && edit.is_object() {
            ensure!(edit["object"]["name"]["namespace"].is_string() || edit["object"].is_object(), "{edit:#}");
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "no edit is named: {json:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let said = ask("table")?;
    let text = String::from_utf8(said.stdout)?;
    ensure!(said.status.code() == Some(0) && text.contains("the decision last changed at"), "{text}");
    // Closed again, with the edit in the status as well.
    let closed = rehearsal.fixture.states.first().context("a state that closes it")?.name.clone();
    rehearsal.enter(&closed, Enforcement::Drop)?;
    let begin = Instant::now();
    loop {
        let status = String::from_utf8(rehearsal.agent.command(&["status", "--all"])?.stdout)?;
        let flat = status.replace("\n    ", " ");
        if flat.lines().any(|line| line.contains("since NetworkPolicy my-namespace/") && line.contains(" ago")) {
            ensure!(status.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{status}");
            let json: Value = serde_json::from_slice(&ask("json")?.stdout)?;
            let edit = &json["targets"][0]["observed"][0]["since_edit"];
            ensure!(json["verdict"] == "denied" && edit["at_unix_ns"].is_i64(), "{edit:#}");
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the status names no edit:\n{status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
