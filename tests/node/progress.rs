//! What takes long shows on a terminal how far it is, and leaves nothing of it behind.

use super::*;

#[test]
fn what_takes_long_shows_how_far_it_is() -> Result<()> {
    let rehearsal = begin()?;
    let (binary, socket) = (agent::binary()?, rehearsal.agent.socket());
    let (binary, socket) = (text(&binary)?, text(&socket)?);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("recording");
    let file = text(&file)?;
    // Long enough that its replay takes seconds.
    let said = rehearsal.agent.command(&["record", file, "--for", "1s"])?;
    ensure!(said.status.success(), "{said:?}");
    let mut recording = fs::read_to_string(file)?;
    let last = recording.lines().last().context("an empty recording")?;
    let at: u64 = serde_json::from_str::<Value>(last)?[0].as_u64().context("a line without its time")?;
    for n in 0..400_000_u64 {
        recording += &format!("[{},{{\"input\":\"timeout\"}}]\n", at + n * 1_000_000);
    }
    fs::write(file, recording)?;
    // Large enough that judging it takes a moment.
    let cluster = folder.path().join("large.json");
    let mut objects = rehearsal.mesh.manifests();
    let template = objects.iter().find(|o| o["kind"] == "Pod" && o["metadata"]["namespace"] == "my-namespace").cloned();
    let template = template.context("no pod in my-namespace")?;
    for n in 0..1_500 {
        let mut pod = template.clone();
        let name = format!("copy-{n}");
        let ip = format!("10.200.{}.{}", n / 250, n % 250 + 1);
        pod["metadata"]["ownerReferences"] = serde_json::json!([
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": "1", "controller": true},
        ]);
        pod["metadata"]["name"] = format!("{name}-0").into();
        pod["status"]["podIPs"] = serde_json::json!([{"ip": ip}]);
        pod["status"]["podIP"] = ip.into();
        objects.push(pod);
    }
    fs::write(&cluster, serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    let (cluster, policies) = (text(&cluster)?, fixture::fixtures_dir().join(SCENARIO).join("policies-before.yaml"));
    let policies = text(&policies)?;
    let check = format!("{binary} check -f {policies} --cluster {cluster} > {file}.out");
    let fix = format!("{binary} fix -f {policies} --cluster {cluster} --flow sidecar-xds > {file}.out");
    let cases = [
        (check, "judging what the mesh needs"),
        (fix, "trying out policies"),
        (format!("{binary} record {file}.more --socket {socket} --for 6s"), "of 6 s"),
        (format!("{binary} replay {file} > {file}.out"), " left"),
        (format!("{binary} probe my-namespace/httpbin --socket {socket} --timeout 1s > {file}.out"), " of "),
    ];
    for (command, shown) in cases {
        let Some(terminal) = Terminal::open()? else { return Ok(()) };
        terminal.keys(&["PS1='$ '; clear", "Enter"])?;
        // Typed ahead, the bar would begin behind the prompt.
        terminal.until("a prompt", |screen| screen.trim() == "$")?;
        terminal.keys(&[&format!("{command}; echo ended $?"), "Enter"])?;
        terminal.until(shown, |screen| screen.lines().any(|line| !line.contains("ended") && line.contains(shown)))?;
        let screen = terminal.until("its end", |screen| screen.lines().any(|line| line.starts_with("ended ")))?;
        let left = screen.lines().any(|line| !line.contains("ended") && line.contains(shown));
        ensure!(!left && !screen.contains('█'), "the bar is still there:\n{screen}");
    }
    Ok(())
}
