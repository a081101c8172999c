//! `kubectl weir` against the fake API server.

use super::*;

#[test]
fn the_kubectl_plugin_finds_the_agent_on_the_pods_node() -> Result<()> {
    let runtime = Runtime::new()?;
    let server = runtime.block_on(ApiServer::start())?;
    let pod = |namespace: &str, name: &str, node: &str, app: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/name": app}},
            "spec": {"nodeName": node, "containers": [{"name": "weir", "image": "weir"}]},
            "status": {"phase": "Running"},
        })
    };
    server.try_apply(pod("shop", "cart", "node-b", "cart"))?;
    server.try_apply(pod("weir-system", "weir-a", "node-a", "weir"))?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    let plugin = folder.path().join("kubectl-weir");
    std::os::unix::fs::symlink(agent::binary()?, &plugin)?;
    let run = |pod: &str| -> Result<(Option<i32>, String)> {
        let said = Command::new(&plugin).arg("--kubeconfig").arg(&kubeconfig).args([pod, "status"]).output()?;
        Ok((said.status.code(), String::from_utf8(said.stderr)?))
    };
    let (code, said) = run("shop/nobody")?;
    ensure!(code == Some(2) && said.contains("there is no pod nobody in shop"), "{said}");
    let (code, said) = run("shop/cart")?;
    ensure!(code == Some(2) && said.contains("no agent runs on node node-b"), "{said}");
    server.try_apply(pod("weir-system", "weir-b", "node-b", "weir"))?;
    let (code, said) = run("shop/cart")?;
    // This server runs nothing in pods, and says so: the right one was asked.
    ensure!(code == Some(2) && said.contains("cannot run weir in weir-system/weir-b on node node-b"), "{said}");
    let exec = || Rule::all(Fault::Status(403, None)).of("pods/exec").on(Verb::Get);
    server.run_with(|_| Ran::default());
    for (rule, what, next) in [
        (
            exec(),
            "cannot run weir in weir-system/weir-b on node node-b",
            "kubectl auth can-i get pods/exec -n weir-system",
        ),
        (
            Rule::all(Fault::Status(403, None)).of("pods").on(Verb::Get),
            "cannot read pod shop/cart",
            "can-i get pods -n shop",
        ),
        (
            Rule::all(Fault::Status(403, None)).of("pods").on(Verb::List),
            "cannot find the agent's pod",
            "can-i list pods",
        ),
        (
            Rule::all(Fault::Status(401, None)).of("pods").on(Verb::Get),
            "cannot read pod shop/cart",
            "kubectl auth whoami",
        ),
    ] {
        server.fault(rule);
        let (code, said) = run("shop/cart")?;
        ensure!(code == Some(2) && said.contains(what) && said.contains(next) && said.lines().count() == 1, "{said}");
        server.clear_faults();
    }
    let (code, said) = run("shop/cart")?;
    ensure!(code == Some(0), "{said}");
    // A workload stands for its pods.
    let mut owned = pod("shop", "web-5d8f9c-x2x7k", "node-b", "web");
    owned["metadata"]["ownerReferences"] = serde_json::json!([
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8f9c", "uid": "1", "controller": true},
    ]);
    owned["metadata"]["labels"]["pod-template-hash"] = "5d8f9c".into();
    server.try_apply(owned)?;
    let (code, said) = run("shop/web")?;
    ensure!(code == Some(0), "{said}");
    let asked = server.requests();
    ensure!(asked.iter().any(|r| r.contains("fieldSelector=spec.nodeName%3Dnode-b&labelSelector=")), "{asked:#?}");
    Ok(())
}

#[test]
fn the_kubectl_plugin_gives_back_what_the_command_says_and_how_it_ends() -> Result<()> {
    let runtime = Runtime::new()?;
    let server = runtime.block_on(ApiServer::start())?;
    let pod = |namespace: &str, name: &str, app: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/name": app}},
            "spec": {"nodeName": "node-a", "containers": [{"name": "weir", "image": "weir"}]},
            "status": {"phase": "Running"},
        })
    };
    server.try_apply(pod("shop", "cart", "cart"))?;
    server.try_apply(pod("weir-system", "weir-a", "weir"))?;
    // The pod's command is the real one, here without a pod around it.
    let binary = agent::binary()?;
    server.run_with(move |exec: &Exec| {
        assert_eq!((&*exec.namespace, &*exec.pod, &*exec.container), ("weir-system", "weir-a", "weir"));
        assert_eq!(exec.command[0], "weir");
        if exec.command[1] == "run" {
            return Ran { code: 137, ..Ran::default() };
        }
        let said = Command::new(&binary).args(&exec.command[1..]).output().expect("weir runs");
        Ran { stdout: said.stdout, stderr: said.stderr, code: said.status.code().unwrap_or(-1) }
    });
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    let plugin = folder.path().join("kubectl-weir");
    std::os::unix::fs::symlink(agent::binary()?, &plugin)?;
    let scenario = fixture::fixtures_dir().join(SCENARIO);
    let before = scenario.join("policies-before.yaml");
    let cluster = scenario.join("cluster.yaml");
    let check = ["check", "-f", text(&before)?, "--cluster", text(&cluster)?, "--output", "json"];
    let commands: [(&[&str], i32); 4] =
        [(&["flows", "--output", "json"], 0), (&check, 1), (&["status", "--socket", "/nowhere"], 2), (&["run"], 2)];
    for (command, code) in commands {
        let there =
            Command::new(&plugin).arg("--kubeconfig").arg(&kubeconfig).arg("shop/cart").args(command).output()?;
        ensure!(there.status.code() == Some(code), "{command:?}: {:?}", there);
        if command == ["run"] {
            continue;
        }
        let here = Command::new(agent::binary()?).args(command).output()?;
        ensure!(here.status.code() == Some(code), "{command:?}: {:?}", here.status);
        ensure!(there.stdout == here.stdout, "{command:?}: {}", String::from_utf8_lossy(&there.stdout));
        ensure!(there.stderr == here.stderr, "{command:?}: {}", String::from_utf8_lossy(&there.stderr));
    }
    Ok(())
}
