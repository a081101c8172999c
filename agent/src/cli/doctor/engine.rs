//! Which network plugin and policy engine this node has, as far as files, processes and interfaces tell; and which of that
//! engine's drops the kernel reports.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

/// What was recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Types of the plugins in `/etc/cni/net.d`, in their order; none where the folder cannot be read.
    pub plugins: Vec<String>,
    /// Engines that enforce NetworkPolicies, each with what it was recognised by.
    pub engines: Vec<Engine>,
}

/// A policy engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Engine {
    /// Its name.
    pub name: &'static str,
    /// `plugin`, `process` or `interface`, and which.
    pub seen: Vec<String>,
    /// How its drops show here.
    pub shows: &'static str,
    /// What does not.
    pub hides: &'static str,
    /// The kernel of this node reports them.
    pub visible: bool,
}

/// By what an engine is known.
struct Known {
    name: &'static str,
    plugins: &'static [&'static str],
    /// As the kernel cuts them: 15 bytes.
    processes: &'static [&'static str],
    /// Beginnings of names.
    interfaces: &'static [&'static str],
    drops: Drops,
}

/// Where an engine drops.
#[derive(Clone, Copy)]
enum Drops {
    Netfilter,
    Queue,
    Tc,
    Cilium,
    OpenVSwitch,
}

/// Specific before general: Calico's eBPF data plane also has the interfaces of its other one.
const KNOWN: [Known; 9] = [
    Known {
        name: "calico (eBPF)",
        plugins: &[],
        processes: &[],
        interfaces: &["bpfin.cali", "bpfout.cali"],
        drops: Drops::Tc,
    },
    Known {
        name: "calico",
        plugins: &["calico"],
        processes: &["calico-node"],
        interfaces: &["cali", "vxlan.calico"],
        drops: Drops::Netfilter,
    },
    Known {
        name: "cilium",
        plugins: &["cilium-cni"],
        processes: &["cilium-agent"],
        interfaces: &["cilium_host"],
        drops: Drops::Cilium,
    },
    Known {
        name: "kindnet or kube-network-policies",
        plugins: &[],
        processes: &["kindnetd", "kube-network-po"],
        interfaces: &[],
        drops: Drops::Queue,
    },
    Known {
        name: "kube-router",
        plugins: &[],
        processes: &["kube-router"],
        interfaces: &["kube-bridge"],
        drops: Drops::Netfilter,
    },
    Known {
        name: "antrea",
        plugins: &["antrea"],
        processes: &["antrea-agent"],
        interfaces: &["antrea-gw"],
        drops: Drops::OpenVSwitch,
    },
    Known {
        name: "ovn-kubernetes",
        plugins: &["ovn-k8s-cni-overlay"],
        processes: &["ovnkube", "ovnkube-node"],
        interfaces: &["ovn-k8s-mp"],
        drops: Drops::OpenVSwitch,
    },
    Known {
        name: "aws vpc network policy agent",
        plugins: &["aws-cni"],
        processes: &[],
        interfaces: &[],
        drops: Drops::Tc,
    },
    Known {
        name: "weave",
        plugins: &["weave-net"],
        processes: &["weave-npc", "weaver"],
        interfaces: &["weave"],
        drops: Drops::Netfilter,
    },
];

/// What of the kernel decides whether drops are seen.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// It has names for drop reasons.
    pub reasons: bool,
    /// Open vSwitch reports its drops: since 6.6.
    pub open_vswitch: bool,
}

impl Network {
    /// Looks below `/`, or below another folder in tests.
    #[must_use]
    pub fn look(root: &Path, kernel: Kernel) -> Self {
        let plugins = plugins(&root.join("etc/cni/net.d"));
        let processes = names(&root.join("proc"), |folder| {
            let number = folder.file_name()?.to_str()?.bytes().all(|b| b.is_ascii_digit());
            let comm = number.then(|| fs::read_to_string(folder.join("comm")).ok()).flatten()?;
            Some(comm.trim().to_owned())
        });
        let interfaces = names(&root.join("sys/class/net"), |path| Some(path.file_name()?.to_str()?.to_owned()));
        let mut engines: Vec<Engine> = Vec::new();
        for known in &KNOWN {
            let plugin = plugins.iter().filter(|p| known.plugins.contains(&p.as_str())).map(|p| format!("plugin {p}"));
            let process = processes.iter().filter(|p| known.processes.contains(&p.as_str()));
            let begins = |i: &&String| known.interfaces.iter().any(|begin| i.starts_with(begin));
            // One of a kind will do: there is one for each pod.
            let interface = interfaces.iter().find(begins).map(|_| {
                let which = known.interfaces.iter().find(|b| interfaces.iter().any(|i| i.starts_with(*b)));
                format!("interface {}*", which.copied().unwrap_or_default())
            });
            let seen: Vec<String> = plugin.chain(process.map(|p| format!("process {p}"))).chain(interface).collect();
            let replaced = known.name == "calico" && engines.iter().any(|e| e.name == "calico (eBPF)");
            if !seen.is_empty() && !replaced {
                engines.push(known.found(seen, kernel));
            }
        }
        Self { plugins, engines }
    }
}

impl Known {
    fn found(&self, seen: Vec<String>, kernel: Kernel) -> Engine {
        let (shows, hides, visible) = match self.drops {
            Drops::Netfilter => {
                ("drops and rejections, as class netfilter", "nothing that is dropped on this node", true)
            }
            Drops::Queue => (
                "drops, as class netfilter-queue, known by the kernel's function alone",
                "nothing that is dropped on this node",
                true,
            ),
            Drops::Tc if kernel.reasons => ("drops, as class tc", "what a native XDP program drops", true),
            Drops::Tc => {
                ("drops, as class tc, known by the kernel's function alone", "what a native XDP program drops", true)
            }
            Drops::Cilium => (
                "drops, as class tc or netkit",
                "what its XDP prefilter drops, and what it answers with ICMP (policyDenyResponse: icmp)",
                true,
            ),
            Drops::OpenVSwitch if kernel.open_vswitch => (
                "drops, as class open-vswitch, from the second packet of a flow",
                "the first packet of a flow, and what the agent answers itself (Reject)",
                true,
            ),
            Drops::OpenVSwitch => (
                "nothing: before Linux 6.6 Open vSwitch reports no drop, so what policies deny stays `predicted`",
                "every drop",
                false,
            ),
        };
        Engine { name: self.name, seen, shows, hides, visible }
    }
}

/// Types of the plugins in the configurations of a folder. Runtimes take the first file by name; a chain has several.
fn plugins(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json"));
    files.sort();
    let mut found: Vec<String> = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let Ok(config) = serde_json::from_str::<Value>(&text) else { continue };
        let chain = config["plugins"].as_array().into_iter().flatten().chain([&config]);
        for kind in chain.filter_map(|plugin| plugin["type"].as_str()) {
            // Foreign text, and this is printed: a type is the name of a binary.
            let kind: String = kind.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
            if !found.contains(&kind) {
                found.push(kind);
            }
        }
    }
    found
}

fn names(folder: &Path, name: impl Fn(&Path) -> Option<String>) -> BTreeSet<String> {
    fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| name(&entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Kernel = Kernel { reasons: true, open_vswitch: true };

    fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn engines(files: &[(&str, &str)], kernel: Kernel) -> Vec<Engine> {
        Network::look(node(files).path(), kernel).engines
    }

    #[test]
    fn a_chain_of_plugins_names_its_engine_and_not_what_is_chained() {
        let chain = r#"{"name": "k8s-pod-network", "plugins": [{"type": "calico"}, {"type": "portmap"}, {"type": "istio-cni"}]}"#;
        let root = node(&[("etc/cni/net.d/10-calico.conflist", chain), ("etc/cni/net.d/readme", "{\"type\": \"x\"}")]);
        let network = Network::look(root.path(), NEW);
        assert_eq!(network.plugins, ["calico", "portmap", "istio-cni"]);
        let names: Vec<&str> = network.engines.iter().map(|e| e.name).collect();
        assert_eq!(names, ["calico"]);
        assert_eq!(network.engines[0].seen, ["plugin calico"]);
    }

    #[test]
    fn processes_and_interfaces_tell_where_files_do_not() {
        let queue = engines(&[("proc/12/comm", "kube-network-po\n"), ("proc/self/comm", "antrea-agent\n")], NEW);
        assert_eq!((queue.len(), queue[0].name), (1, "kindnet or kube-network-policies"));
        assert_eq!(queue[0].seen, ["process kube-network-po"]);
        let ebpf = engines(&[("sys/class/net/bpfout.cali", ""), ("sys/class/net/cali1234", "")], NEW);
        assert_eq!((ebpf.len(), ebpf[0].name), (1, "calico (eBPF)"), "the other data plane is not in force");
        assert!(engines(&[("sys/class/net/eth0", ""), ("proc/1/comm", "systemd")], NEW).is_empty());
    }

    #[test]
    fn old_kernels_hide_what_open_vswitch_drops() {
        let files = [("sys/class/net/antrea-gw0", "")];
        let old = Kernel { open_vswitch: false, ..NEW };
        assert!(engines(&files, NEW)[0].visible && !engines(&files, old)[0].visible);
        assert!(engines(&files, old)[0].shows.contains("predicted"));
    }

    #[test]
    fn hostile_configurations_are_harmless() {
        let files = [("etc/cni/net.d/1.conf", "{\"type\": \"a\\u001b[31m\\nb\"}"), ("etc/cni/net.d/2.conf", "[")];
        assert_eq!(Network::look(node(&files).path(), NEW).plugins, ["a[31mb"]);
    }
}
