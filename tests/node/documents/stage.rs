//! Where the documents' commands run: a folder with the files that they name, the fake API server as their cluster, an agent.

use std::path::PathBuf;

use clap::error::ErrorKind;
use harness::apiserver::Type;
use serde_json::json;

use super::super::*;
use super::ACCOUNTED;

/// How long a command may run that does not end by itself.
const SPAN: &str = "3";
/// Names that the documents use as examples or as placeholders, and what stands for them here.
const NAMES: [(&str, &str); 14] = [
    ("shop/cart", "my-namespace/httpbin"),
    ("shop/stock", "client-ns/curl"),
    ("istio-ingress/gateway", "istio-system/istio-ingressgateway-6c7d8f9b4-h7q2m"),
    ("monitoring/prometheus ", "monitoring/prometheus-0 "),
    (" apiserver 6443", " apiserver 443"),
    ("worker-1", "node-a"),
    ("NODE", "node-a"),
    ("POD", "weir-a"),
    ("NAMESPACE", "my-namespace"),
    ("WORDS OF THE ERROR", "config not received"),
    ("NEW.yaml", "changed-policy.yaml"),
    ("FLOW", "sidecar-xds"),
    (" --for 2m", " --for 2s"),
    (" --for 5m", " --for 2s"),
];
/// Kinds of what is deployed.
const KINDS: [(&str, &str, &str, &str, bool); 8] = [
    ("", "v1", "ServiceAccount", "serviceaccounts", true),
    ("apps", "v1", "DaemonSet", "daemonsets", true),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors", true),
    ("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules", true),
];
const NO_KUBECTL: &str = "kubectl is not installed: its commands were only read";
const OLD_KUBECTL: &str = "this kubectl speaks SPDY, which the fake API server does not: nothing was run in pods by it";
const OLD_KUSTOMIZE: &str = "this kubectl's kustomize takes no folder as a resource";
const NO_HELM: &str = "helm is not installed: charts and values in its commands were looked up";

pub struct Stage<'a> {
    rehearsal: &'a Rehearsal,
    server: ApiServer,
    _runtime: Runtime,
    folder: tempfile::TempDir,
    path: String,
    kubectl: bool,
    /// The server's protocol for commands in pods is spoken.
    executes: bool,
    /// kubectl's kustomize takes folders as resources, as it does from 1.21 on.
    kustomizes: bool,
}

impl<'a> Stage<'a> {
    pub fn build(rehearsal: &'a Rehearsal) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let stage = folder.path();
        let scenario = fixture::fixtures_dir().join(SCENARIO);
        fs::create_dir_all(stage.join("policies"))?;
        for (from, to) in [
            ("cluster.yaml", "cluster.yaml"),
            ("policies-before.yaml", "policies/before.yaml"),
            ("policies-after.yaml", "changed-policy.yaml"),
            // As `helm template` would leave it.
            ("policies-after.yaml", "istiod.yaml"),
        ] {
            fs::copy(scenario.join(from), stage.join(to))?;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        std::os::unix::fs::symlink(root.join("deploy"), stage.join("deploy"))?;
        let runtime = Runtime::new()?;
        let server = runtime.block_on(ApiServer::start())?;
        for (group, version, kind, plural, namespaced) in KINDS {
            server.install(Type::new(group, version, kind, plural, namespaced));
        }
        for mut object in rehearsal.mesh.manifests() {
            if object["kind"] == "Pod" {
                object["spec"]["nodeName"] = "node-a".into();
            }
            // Kinds that this server does not have are none that are asked for.
            drop(server.try_apply(object));
        }
        server.try_apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "weir-system", "name": "weir-a", "labels": {"app.kubernetes.io/name": "weir"}},
            "spec": {"nodeName": "node-a", "containers": [{"name": "weir", "image": "weir"}]},
            "status": {"phase": "Running"},
        }))?;
        server.try_apply(json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"namespace": "my-namespace", "name": "refused"},
            "involvedObject": {"kind": "ReplicaSet", "namespace": "my-namespace", "name": "httpbin-686d9dbbf6"},
            "reason": "FailedCreate", "type": "Warning", "message": "Internal error: failed calling webhook",
        }))?;
        let (binary, its_socket) = (agent::binary()?, rehearsal.agent.socket());
        let inside = binary.clone();
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
        server.write_kubeconfig(&stage.join("kubeconfig"), None, None)?;
        let bin = stage.join("bin");
        fs::create_dir(&bin)?;
        std::os::unix::fs::symlink(&binary, bin.join("weir"))?;
        std::os::unix::fs::symlink(&binary, bin.join("kubectl-weir"))?;
        let kubectl = program("kubectl");
        if let Some(kubectl) = &kubectl {
            // The fake API server has no schema to validate with; the tests of what is deployed validate it.
            let script = format!(
                "#!/bin/sh\ncase \"$1\" in apply) shift; set -- apply --validate=false \"$@\";; esac\nexec {} \"$@\"\n",
                kubectl.display()
            );
            fs::write(bin.join("kubectl"), script)?;
            fs::set_permissions(bin.join("kubectl"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let kubectl = kubectl.is_some();
        let mut this =
            Self { rehearsal, server, _runtime: runtime, folder, path, kubectl, executes: false, kustomizes: false };
        if kubectl {
            let said = this.shell("kubectl -n weir-system exec weir-a -c weir -- weir --version", "60")?;
            this.executes = said.status.success();
            this.kustomizes = this.shell("kubectl kustomize deploy/monitoring", "60")?.status.success();
            eprint!("{}", String::from_utf8_lossy(&said.stderr));
        }
        Ok(this)
    }

    /// Forgets what the commands of another document made.
    pub fn anew(&self) -> Result<()> {
        for (plural, namespace, name) in [("configmaps", "weir-system", "next"), ("namespaces", "", "weir-system")] {
            let of = (String::new(), plural.to_owned());
            let there = self.server.read(|s| s.object(&of, &(namespace.to_owned(), name.to_owned())).is_some());
            if there {
                self.server.delete("", plural, namespace, name);
            }
        }
        Ok(())
    }

    /// Runs a command; the reason where it cannot be run. What is only named is held against the command line.
    pub fn run(&self, line: &str, named: bool, functions: &str) -> Result<Option<&'static str>> {
        if ACCOUNTED.iter().any(|(known, _)| *known == line) {
            return Ok(None);
        }
        if let Some(rest) = line.strip_prefix("helm ") {
            return self.helm(rest);
        }
        if line.starts_with("cargo xtask ") {
            return Ok(None);
        }
        let own = line.starts_with("weir ") || line.starts_with("kubectl weir ");
        if own && named {
            let line = line.replace('…', "");
            // Every second part is within quotes.
            let parts = line.split('"').enumerate();
            let words = parts.flat_map(|(at, part)| match at % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
            let words: Vec<&str> = words.collect();
            let parsed = match words.strip_prefix(&["kubectl"]) {
                Some(plugin) => weir::cli::kubectl_command().try_get_matches_from(plugin),
                None => weir::cli::command().try_get_matches_from(&words),
            };
            // A sentence about an option need not spell the others out.
            return match parsed {
                Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => Err(error.into()),
                _ => Ok(None),
            };
        }
        let function = functions.contains(&format!("{}() {{", line.split_whitespace().next().unwrap_or_default()));
        let known = ["kubectl ", "nft list ", "iptables-save "].iter().any(|program| line.starts_with(program));
        ensure!(own || function || known, "no rule runs this command");
        if !own && line.starts_with("kubectl ") && !self.kubectl {
            return Ok(Some(NO_KUBECTL));
        }
        if line.contains(" -k ") && !self.kustomizes {
            return Ok(Some(OLD_KUSTOMIZE));
        }
        if function && !self.executes {
            return Ok(Some(if self.kubectl { OLD_KUBECTL } else { NO_KUBECTL }));
        }
        if line.starts_with("iptables-save ") && program("iptables-save").is_none() {
            return Ok(Some("iptables is not installed"));
        }
        self.execute(line, own, function.then_some(functions))?;
        Ok(None)
    }

    fn execute(&self, line: &str, own: bool, functions: Option<&str>) -> Result<()> {
        let (rehearsal, stage) = (self.rehearsal, self.folder.path());
        let (binary, socket) = (agent::binary()?, rehearsal.agent.socket());
        // The agent's process is the one of this test, whatever else runs here; its socket is where it was put.
        let line = line.replace("$(pgrep -xo weir)", &rehearsal.agent.pid().to_string());
        let line = line.replace("/run/weir/weir.sock", text(&socket)?).replace("kubectl weir ", "kubectl-weir ");
        let line = NAMES.iter().fold(line, |line, (name, here)| line.replace(name, here));
        let line = match line.strip_prefix("weir run ") {
            Some(rest) => format!("weir run {rest} --listen 127.0.0.1:0 --socket {}/own.sock", stage.display()),
            None => line,
        };
        if line.starts_with("weir top") {
            let Some(terminal) = Terminal::open()? else { return Ok(()) };
            terminal.keys(&[&format!("{} {} --socket {}", binary.display(), &line[5..], socket.display()), "Enter"])?;
            terminal.until("the screen", |screen| screen.contains("q quit"))?;
            return Ok(());
        }
        let ends = !own || ["kubectl-weir", "probe", " > ", "record"].iter().any(|part| line.contains(part));
        let said = match (ends, functions) {
            (_, Some(functions)) => self.shell(&format!("{functions}{line}"), "60")?,
            (true, None) => self.shell(&line, "60")?,
            (false, None) => self.shell(&format!("exec {line}"), SPAN)?,
        };
        let told = String::from_utf8_lossy(&said.stderr).into_owned();
        // 124: it did not end by itself, and ended when it was told to. 2 is a failure, but of a watch that was cut.
        let fine = match said.status.code() {
            Some(0) => true,
            // grep's answer, or weir's.
            Some(1) => own || functions.is_some() || line.contains("| grep "),
            Some(124) => own,
            Some(2) => line.contains("watch"),
            _ => false,
        };
        ensure!(fine, "{line}: {:?}\n{}{told}", said.status, String::from_utf8_lossy(&said.stdout));
        let code = functions.is_some() && told.contains("command terminated with exit code 1");
        ensure!(code || !told.contains("error:") && !told.contains("no agent answers"), "{line}: {told}");
        Ok(())
    }

    fn shell(&self, line: &str, span: &str) -> Result<std::process::Output> {
        let stage = self.folder.path();
        let mut command = Command::new("timeout");
        command.args(["--signal", "INT", "--kill-after", "60", span, "bash", "-c", line]);
        command.current_dir(stage).env("PATH", &self.path).env("WEIR_SOCKET", self.rehearsal.agent.socket());
        command.env("KUBECONFIG", stage.join("kubeconfig")).env("HOME", stage);
        Ok(command.output()?)
    }

    /// Charts and values that a command of helm names are there; with helm the chart is rendered with them.
    fn helm(&self, line: &str) -> Result<Option<&'static str>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let verb = words.first().copied().unwrap_or_default();
        ensure!(matches!(verb, "install" | "template" | "upgrade") && words.len() > 2, "no rule runs this command");
        let chart = self.folder.path().join(words[2]);
        let values: Value = serde_saphyr::from_str(&fs::read_to_string(chart.join("values.yaml"))?)?;
        for pair in words.windows(2).filter(|pair| pair[0] == "--set") {
            let name = pair[1].split('=').next().unwrap_or_default();
            let pointer = format!("/{}", name.replace('.', "/"));
            ensure!(values.pointer(&pointer).is_some(), "the chart has no value {name}");
        }
        if program("helm").is_none() {
            return Ok(Some(NO_HELM));
        }
        let said = self.shell(&format!("helm template {}", &line[verb.len()..]), "60")?;
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        Ok(None)
    }
}

/// A program in the PATH, or below `target/tools`.
fn program(name: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let path = std::env::var_os("PATH")?;
    let mut folders = std::env::split_paths(&path).chain([tools]);
    folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()))
}
