//! Every command of the documents that needs an agent, root or a cluster, run beside an agent; what needs nothing runs in the
//! tests of the command line. Left out is what belongs to others (`helm`, and what `kubectl` writes) and what cargo builds.

use super::*;

/// How long a command may run that does not end by itself.
const SPAN: &str = "3";

#[test]
fn every_command_of_the_documents_runs_beside_an_agent() -> Result<()> {
    let rehearsal = begin()?;
    // Probing takes more than one attempt to be told of.
    let folder = tempfile::tempdir()?;
    let stage = folder.path();
    let scenario = fixture::fixtures_dir().join(SCENARIO);
    fs::create_dir_all(stage.join("policies"))?;
    for (from, to) in [
        ("cluster.yaml", "cluster.yaml"),
        ("policies-before.yaml", "policies/before.yaml"),
        ("policies-after.yaml", "changed-policy.yaml"),
        // As `helm template` and `kubectl get` would leave them.
        ("policies-after.yaml", "istiod.yaml"),
        ("policies-after.yaml", "kyma.yaml"),
    ] {
        fs::copy(scenario.join(from), stage.join(to))?;
    }
    // A cluster of which the agent runs in a pod.
    let runtime = Runtime::new()?;
    let server = runtime.block_on(ApiServer::start())?;
    for mut object in rehearsal.mesh.manifests() {
        if object["kind"] == "Pod" {
            object["spec"]["nodeName"] = "node-a".into();
        }
        // Kinds that this server does not have are none that the plugin reads.
        drop(server.try_apply(object));
    }
    server.try_apply(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "weir-system", "name": "weir-a", "labels": {"app.kubernetes.io/name": "weir"}},
        "spec": {"nodeName": "node-a", "containers": [{"name": "weir", "image": "weir"}]},
        "status": {"phase": "Running"},
    }))?;
    let (binary, socket) = (agent::binary()?, rehearsal.agent.socket());
    let (inside, its_socket) = (binary.clone(), socket.clone());
    server.run_with(move |exec: &Exec| {
        let mut command = Command::new("timeout");
        command
            .args(["--preserve-status", "--signal", "INT", SPAN])
            .arg(&inside)
            .args(&exec.command[1..])
            .env("WEIR_SOCKET", &its_socket);
        let said = command.output().expect("timeout runs");
        Ran { stdout: said.stdout, stderr: said.stderr, code: said.status.code().unwrap_or(-1) }
    });
    let kubeconfig = stage.join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    let bin = stage.join("bin");
    fs::create_dir(&bin)?;
    std::os::unix::fs::symlink(&binary, bin.join("weir"))?;
    std::os::unix::fs::symlink(&binary, bin.join("kubectl-weir"))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut ran = 0;
    for document in documents()? {
        let page = fs::read_to_string(&document)?;
        for line in commands(&page) {
            // The agent's process is the one of this test, whatever else runs here; its socket is where it was put.
            let line = line.replace("$(pgrep -xo weir)", &rehearsal.agent.pid().to_string());
            let line = line.replace("/run/weir/weir.sock", text(&socket)?).replace("kubectl weir ", "kubectl-weir ");
            let line = match line.strip_prefix("weir run ") {
                Some(rest) => format!("weir run {rest} --listen 127.0.0.1:0 --socket {}/own.sock", stage.display()),
                None => line,
            };
            let line = line.replace(" --for 2m", " --for 2s").replace(" --for 5m", " --for 2s");
            if line.starts_with("weir top") {
                let terminal = Terminal::open()?;
                terminal
                    .keys(&[&format!("{} {} --socket {}", binary.display(), &line[5..], socket.display()), "Enter"])?;
                terminal.until("the screen", |screen| screen.contains("q quit"))?;
                ran += 1;
                continue;
            }
            let mut command = Command::new("timeout");
            command.args(["--signal", "INT", "--kill-after", "60", SPAN, "bash", "-c", &format!("exec {line}")]);
            if line.contains("kubectl-weir")
                || line.contains("probe")
                || line.contains(" > ")
                || line.contains("record")
            {
                command = Command::new("timeout");
                command.args(["--signal", "INT", "60", "bash", "-c", &line]);
            }
            command.current_dir(stage).env("PATH", &path).env("WEIR_SOCKET", &socket).env("KUBECONFIG", &kubeconfig);
            let said = command.output()?;
            let told = String::from_utf8_lossy(&said.stderr).into_owned();
            // 124: it did not end by itself, and ended when it was told to. 2 is a failure, but of a watch that was cut.
            let fine = match said.status.code() {
                Some(0 | 1 | 124) => true,
                Some(2) => line.contains("watch"),
                _ => false,
            };
            ensure!(fine, "{}: {line}: {:?}\n{told}", document.display(), said.status);
            ensure!(!told.contains("error:") && !told.contains("no agent answers"), "{line}: {told}");
            ran += 1;
        }
    }
    ensure!(ran > 15, "{ran} commands ran");
    println!("{ran} commands of the documents ran");
    Ok(())
}

/// README and every page of the book.
fn documents() -> Result<Vec<std::path::PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = vec![root.join("README.md"), root.join("deploy/README.md"), root.join("SECURITY.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The commands of weir in blocks that need something, with their comments taken off.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|l| !l.trim_start().starts_with("```")).collect();
        let mut words = info.split_whitespace();
        if words.next() != Some("sh") || words.next().is_none() {
            continue;
        }
        let joined = body.join("\n").replace("\\\n", " ");
        let known = joined.lines().map(|l| l.split("  #").next().unwrap_or_default().trim().to_owned());
        found.extend(known.filter(|l| l.starts_with("weir ") || l.starts_with("kubectl weir ")));
    }
    found
}
