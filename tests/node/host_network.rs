//! Pods that share their node's network: one address, one network namespace, and yet each one's attempts are its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::agent::{Agent, AgentOptions, binary};
use harness::fixture::{End, Protocol};
use harness::mesh::{Mesh, MeshOptions};
use harness::objects::Objects;
use serde_json::{Value, json};

const XDS: u16 = 15012;
const PATIENCE: Duration = Duration::from_secs(60);
const CONTAINER: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// A pod of the node's network: its name, what its cgroup is called by, and how a runtime names that cgroup.
struct HostPod {
    name: &'static str,
    meta: Value,
    cgroup: String,
}

fn host_pods() -> [HostPod; 3] {
    let own = std::process::id();
    let uid = |last: u32| format!("7f3c1a52-90de-4b1b-8c55-{own:08x}{last:04x}");
    let hash = format!("{own:032x}");
    let slice = uid(1).replace('-', "_");
    let mirror = json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
    [
        // containerd and CRI-O with the systemd driver, a static pod with the cgroupfs driver.
        HostPod {
            name: "edge",
            meta: json!({"uid": uid(1)}),
            cgroup: format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{CONTAINER}.scope"
            ),
        },
        HostPod {
            name: "inner",
            meta: json!({"uid": uid(2)}),
            cgroup: format!("kubepods.slice/kubepods-pod{}.slice/crio-{CONTAINER}.scope", uid(2).replace('-', "_")),
        },
        HostPod {
            name: "fixed",
            meta: json!({"uid": uid(3), "annotations": mirror}),
            cgroup: format!("kubepods/besteffort/pod{hash}/{CONTAINER}"),
        },
    ]
}

#[test]
fn host_network_pods_are_told_apart_by_the_names_of_their_cgroups() -> Result<()> {
    let Some(root) = cgroup_root() else {
        println!("SKIPPED: no cgroup2 hierarchy is mounted at its root");
        return Ok(());
    };
    let pods = host_pods();
    let objects = cluster(&pods);
    let mesh = Mesh::with(&Objects::parse(&objects.to_string())?, &[], &MeshOptions::default())?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("cluster.json"), objects.to_string())?;
    let arguments = ["--grace", "300ms", "--ports", &XDS.to_string()].map(str::to_owned).to_vec();
    let agent = Agent::start(&AgentOptions { binary: binary()?, manifests: Some(folder.path().into()), arguments })?;
    let server = End::Pod("istio-system/istiod-5d9c7b-x".to_owned());
    mesh.listen(&server, Protocol::Tcp, XDS)?;
    let address = mesh.addresses(&server)?.first().context("the server has an address")?.to_string();
    let node = mesh.namespace(&End::Node { name: "node-a".to_owned(), ip: None })?.path();
    ensure!(verified(&agent)?.is_empty(), "nothing has been dialled yet");
    let mut expected = Vec::new();
    for pod in &pods {
        let cgroup = Cgroup::new(&root, &pod.cgroup)?;
        expected.push(pod.name.to_owned());
        expected.sort();
        let begin = Instant::now();
        loop {
            cgroup.dial(&node, &address)?;
            let found = verified(&agent)?;
            if found == expected {
                break;
            }
            ensure!(
                found.iter().all(|name| expected.contains(name)) && begin.elapsed() < PATIENCE,
                "dialled by {expected:?}, said to be by {found:?}:\n{}",
                agent.log()
            );
        }
    }
    Ok(())
}

/// Workloads whose required flow to the control plane was seen to work.
fn verified(agent: &Agent) -> Result<Vec<String>> {
    let snapshot = agent.snapshot()?;
    let pairs = snapshot["pairs"].as_array().context("a snapshot without pairs")?.iter();
    let ours = pairs.filter(|pair| pair["flow"] == "gateway-xds" && pair["state"] == "verified");
    let mut names: Vec<String> =
        ours.filter_map(|pair| Some(pair["source"]["workload"].as_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn node_address(index: u32) -> String {
    let own = std::process::id();
    format!("10.{}.{}.{index}", 100 + own % 100, own / 100 % 250)
}

/// Two nodes, the control plane on the second, and gateways in the network of the first.
fn cluster(pods: &[HostPod]) -> Value {
    let own = std::process::id();
    let node = node_address;
    let mut items: Vec<Value> = ["istio-system"]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .to_vec();
    for (index, name) in [(1, "node-a"), (2, "node-b")] {
        items.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                          "status": {"addresses": [{"type": "InternalIP", "address": node(index)}]}}));
    }
    let address = format!("100.{}.{}.9", 64 + own % 63, own / 63 % 250);
    items.push(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "istio-system", "name": "istiod-5d9c7b-x",
                     "labels": {"app": "istiod", "pod-template-hash": "5d9c7b"}},
        "spec": {"nodeName": "node-b", "containers": [{"name": "discovery", "image": "example.invalid/x"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}));
    for pod in pods {
        let mut object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "istio-system", "name": pod.name,
                         "labels": {"app": pod.name, "istio": "ingressgateway"}},
            "spec": {"nodeName": "node-a", "hostNetwork": true,
                     "containers": [{"name": "istio-proxy", "image": "example.invalid/x"}]},
            "status": {"phase": "Running", "podIP": node(1), "podIPs": [{"ip": node(1)}]}});
        for (key, value) in pod.meta.as_object().into_iter().flatten() {
            object["metadata"][key] = value.clone();
        }
        items.push(object);
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Where cgroup2 is mounted: of a hybrid machine, below the v1 hierarchies.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let path = found.into_iter().find(|fields| fields.get(2) == Some(&"cgroup2"))?.get(1).copied()?;
    // Only the root has no type.
    Some(Path::new(path).to_owned()).filter(|path| !path.join("cgroup.type").exists())
}

/// A cgroup, removed with the value together with those above it that it made.
struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    fn new(root: &Path, name: &str) -> Result<Self> {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { root: root.to_owned(), path })
    }

    /// A process inside opens a connection from a network namespace, and ends.
    fn dial(&self, namespace: &Path, address: &str) -> Result<()> {
        let script = format!(
            "echo 0 > {}/cgroup.procs && exec nsenter --net={} bash -c 'exec 3<>/dev/tcp/{address}/{XDS}'",
            self.path.display(),
            namespace.display()
        );
        let said = Command::new("sh").args(["-c", &script]).output().context("cannot start sh")?;
        ensure!(said.status.success(), "{script}: {}", String::from_utf8_lossy(&said.stderr));
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A cgroup above may be somebody else's as well: then it is not empty and stays.
        for folder in self.path.ancestors().take_while(|folder| *folder != self.root) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}
