//! The container of the DaemonSet as an OCI runtime gets it from a kubelet: its image's files, its security context, its mounts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::seccomp::Runtime;

/// What the kubelet and a runtime mask in each container that is not privileged.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What is shipped for `kubectl apply -k`.
pub fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/weir.yaml")
}

/// The shipped DaemonSet.
pub fn daemon_set() -> Result<Value> {
    let file = manifests();
    let documents = harness::objects::documents(&fs::read_to_string(&file)?)?;
    documents.into_iter().find(|d| d["kind"] == "DaemonSet").with_context(|| format!("none in {}", file.display()))
}

/// How this container differs from the shipped one, and what a cluster would give it.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// In place of the DaemonSet's arguments.
    pub arguments: Option<Vec<String>>,
    /// Capabilities that it does not get.
    pub without: Vec<&'static str>,
    /// Capabilities that the value `legacyCapabilities` adds.
    pub legacy: bool,
    /// The pod's network namespace; a new one unless given.
    pub network: Option<PathBuf>,
    /// What the kubelet adds to the environment, and answers of `fieldRef`.
    pub environment: BTreeMap<String, String>,
    /// The folder with the service account's token.
    pub account: Option<PathBuf>,
}

/// A container that runs or may be started. Dropping it removes all of it.
pub struct Container {
    bundle: TempDir,
    id: String,
    run: Option<Child>,
}

impl Container {
    /// Files and configuration of the container; nothing runs yet.
    pub fn new(given: &Given, profile: Runtime) -> Result<Self> {
        let bundle = tempfile::Builder::new().prefix("weir-container-").tempdir()?;
        // All that the image has.
        let root = bundle.path().join("rootfs");
        for folder in ["usr/bin", "run/weir"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy(static_binary()?, root.join("usr/bin/weir"))?;
        let name = bundle.path().file_name().context("a folder without a name")?;
        let id = format!("{}-{}", name.to_string_lossy().replace('.', ""), std::process::id());
        fs::write(bundle.path().join("config.json"), config(&id, given, profile)?.to_string())?;
        Ok(Self { bundle, id, run: None })
    }

    /// Runs it to its end.
    pub fn finish(&self) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120", "runc", "--root"]).arg(self.state());
        let output = command.args(["run", "--bundle"]).arg(self.bundle.path()).arg(&self.id).output()?;
        ensure!(!output.stdout.is_empty(), "runc: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        let log = File::create(self.bundle.path().join("log"))?;
        let mut command = self.runc("run");
        let child = command.arg("--bundle").arg(self.bundle.path()).arg(&self.id);
        self.run = Some(child.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start runc")?);
        Ok(())
    }

    /// What it and runc have written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.bundle.path().join("log")).unwrap_or_default()
    }

    /// The number of its first process, outside.
    pub fn pid(&self) -> Result<u32> {
        let output = self.runc("state").arg(&self.id).output()?;
        let state: Value = serde_json::from_slice(&output.stdout).context("runc state")?;
        state["pid"].as_u64().and_then(|pid| pid.try_into().ok()).with_context(|| format!("no process: {state}"))
    }

    /// `kubectl exec`.
    pub fn exec(&self, arguments: &[&str]) -> Result<Output> {
        self.runc("exec").arg(&self.id).args(arguments).output().context("runc exec")
    }

    /// What the kubelet does to end it: SIGTERM, and patience until the grace period is over.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        let told = self.runc("kill").args([&self.id, "TERM"]).output()?;
        let child = self.run.as_mut().context("it does not run")?;
        ensure!(told.status.success(), "runc kill: {}", String::from_utf8_lossy(&told.stderr));
        let begin = Instant::now();
        while begin.elapsed() < patience {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("it goes on {patience:?} after SIGTERM: {}", self.log())
    }

    fn state(&self) -> PathBuf {
        self.bundle.path().join("state")
    }

    fn runc(&self, verb: &str) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.state()).arg(verb);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.runc("delete").args(["--force", &self.id]).output());
        if let Some(child) = &mut self.run {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The agent linked as the image's is, from the same source; less optimised, which is no concern of a container.
pub fn static_binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|e| format!("{e:#}"))).clone().map_err(anyhow::Error::msg)
}

/// `WEIR_STATIC`, or as it is built for the guests of `cargo xtask vm-test`.
fn build() -> Result<PathBuf> {
    let binary = match std::env::var_os("WEIR_STATIC") {
        Some(path) => path.into(),
        None => cargo()?,
    };
    let wanted = interpreter(&fs::read(&binary)?)?;
    ensure!(!wanted, "{} wants a dynamic linker", binary.display());
    Ok(binary)
}

fn cargo() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let version = Command::new("rustc").arg("-vV").current_dir(&root).output().context("rustc")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let target = version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc names no host")?;
    let folder = root.join("target/static");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(&root).args(["build", "--locked", "--quiet", "--package", "weir", "--bin", "weir"]);
    cargo.args(["--profile", "static", "--target", target, "--target-dir"]).arg(&folder);
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let built = cargo.output().context("cargo")?;
    ensure!(built.status.success(), "no static binary: {}", String::from_utf8_lossy(&built.stderr));
    Ok(folder.join(target).join("static/weir"))
}

/// Does a 64-bit ELF file ask for a dynamic linker (a program header PT_INTERP)?
pub fn interpreter(elf: &[u8]) -> Result<bool> {
    let at = |offset: usize, bytes: usize| -> Result<usize> {
        let field = elf.get(offset..offset + bytes).context("a file that is too short")?;
        Ok(field.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "no 64-bit little-endian ELF file");
    let (table, size, count) = (at(0x20, 8)?, at(0x36, 2)?, at(0x38, 2)?);
    for header in 0..count {
        if at(table + header * size, 4)? == 3 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn config(id: &str, given: &Given, profile: Runtime) -> Result<Value> {
    let daemon_set = daemon_set()?;
    let pod = &daemon_set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    ensure!(context["capabilities"]["drop"] == json!(["ALL"]), "{context}");
    ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "{pod}");
    ensure!(context["privileged"] == false, "{context}");
    let added = context["capabilities"]["add"].as_array().context("no capabilities")?;
    let added = added.iter().filter_map(Value::as_str).filter(|c| !given.without.contains(c));
    // Where this process lacks the second one it has nothing to give, and the kernel is new enough to do without.
    let legacy = [("SYS_ADMIN", 21), ("SYS_RESOURCE", 24)];
    let own = own_capabilities()?;
    let legacy = legacy.iter().filter(|(_, number)| given.legacy && own & 1 << number != 0).map(|(name, _)| *name);
    let capabilities: Vec<String> = added.chain(legacy).map(|c| format!("CAP_{c}")).collect();
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut arguments = vec!["/usr/bin/weir".to_owned()];
    arguments.extend(given.arguments.clone().unwrap_or_else(|| strings(&container["args"])));
    let mut environment = vec!["PATH=/usr/bin".to_owned()];
    let mut answers = given.environment.clone();
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("a variable without a name")?;
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = field.map_or_else(|| variable["value"].as_str().map(str::to_owned), |field| answers.remove(field));
        environment.extend(value.map(|value| format!("{name}={value}")));
    }
    environment
        .extend(answers.iter().filter(|(name, _)| !name.contains('.')).map(|(name, value)| format!("{name}={value}")));

    // `host*: true` would leave the namespace out.
    let mut namespaces = vec![json!({"type": "uts"}), json!({"type": "mount"}), json!({"type": "cgroup"})];
    for (kind, shared) in [("pid", "hostPID"), ("ipc", "hostIPC")] {
        ensure!(pod[shared] == false, "{shared} is not what these tests are about");
        namespaces.push(json!({"type": kind}));
    }
    ensure!(pod["hostNetwork"] == false, "hostNetwork is not what these tests are about");
    namespaces.push(match &given.network {
        Some(path) => json!({"type": "network", "path": path}),
        None => json!({"type": "network"}),
    });
    let mut config = json!({
        "ociVersion": "1.0.2",
        "hostname": "weir-test",
        "process": {
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "args": arguments,
            "env": environment,
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
        },
        "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
        "mounts": mounts(pod, given)?,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/{id}"),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    config["linux"]["seccomp"] = profile.profile(&capabilities)?;
    Ok(config)
}

/// The capabilities that this process may hand on, a bit each.
fn own_capabilities() -> Result<u64> {
    let process = fs::read_to_string("/proc/self/status")?;
    let set = process.lines().find_map(|l| l.strip_prefix("CapPrm:")).context("no CapPrm")?;
    Ok(u64::from_str_radix(set.trim(), 16)?)
}

/// What every container gets, and the DaemonSet's volumes.
fn mounts(pod: &Value, given: &Given) -> Result<Vec<Value>> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for mount in pod["containers"][0]["volumeMounts"].as_array().context("no mounts")? {
        let volumes = pod["volumes"].as_array().context("no volumes")?;
        let volume = volumes.iter().find(|v| v["name"] == mount["name"]).context("a mount without its volume")?;
        let path = &mount["mountPath"];
        mounts.push(match volume["hostPath"]["path"].as_str() {
            Some(source) => {
                let access = if mount["readOnly"] == true { "ro" } else { "rw" };
                json!({"destination": path, "type": "bind", "source": source, "options": ["rbind", access]})
            }
            None => {
                ensure!(volume["emptyDir"]["medium"] == "Memory", "{volume}");
                let options = ["nosuid", "nodev", "mode=777", "size=1m"];
                json!({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options})
            }
        });
    }
    if let Some(account) = &given.account {
        ensure!(pod["automountServiceAccountToken"] == true, "it would have no token");
        let options = ["rbind", "ro"];
        mounts.push(json!({"destination": ACCOUNT, "type": "bind", "source": account, "options": options}));
    }
    Ok(mounts)
}
