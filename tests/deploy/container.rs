//! The shipped security context for real: `weir doctor` in a container started by runc with the DaemonSet's user, capabilities,
//! privileges, root file system, namespaces and mounts. It loads and attaches every probe and takes it off again.
//!
//! Not covered: the runtime's default seccomp profile, which is part of each runtime. Needs root, runc, and a `weir` binary with
//! probes; that binary is linked dynamically, so its libraries are mounted beside it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::chart::render;

/// Which probes are attached, by name.
type Probes = BTreeMap<String, bool>;

#[test]
fn all_probes_attach_with_what_the_daemon_set_grants() {
    let Some(outside) = doctor_outside() else { return };
    let Some(inside) = doctor_inside(|_| true) else { return };
    assert_eq!(inside, outside, "left in the container, right as root outside");
}

/// The reason that the manifest gives for a capability is the truth.
#[test]
fn without_net_admin_only_the_udp_probes_are_missing() {
    let Some(outside) = doctor_outside() else { return };
    let Some(inside) = doctor_inside(|capability| capability != "NET_ADMIN") else { return };
    let missing: Vec<&String> =
        inside.iter().filter(|(name, active)| outside[*name] && !**active).map(|(n, _)| n).collect();
    assert_eq!(missing, ["udp_create", "udp_release"]);
}

fn probes(report: &[u8]) -> Probes {
    let report: Value =
        serde_json::from_slice(report).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(report)));
    let probes = report["probes"].as_array().unwrap().iter();
    probes.map(|p| (p["name"].as_str().unwrap().to_owned(), p["active"] == true)).collect()
}

/// What root gets on this machine; `None` where nothing can be compared.
fn doctor_outside() -> Option<Probes> {
    let Ok(program) = harness::agent::binary() else {
        eprintln!("skipped: no weir binary; `cargo build` makes one");
        return None;
    };
    let output = Command::new(program).args(["doctor", "--output", "json"]).output().unwrap();
    let probes = probes(&output.stdout);
    if !probes.values().any(|active| *active) {
        eprintln!("skipped: no probe works on this machine, or the binary has none (`cargo xtask build-ebpf`)");
        return None;
    }
    Some(probes)
}

/// The same in the container, with the capabilities that `keep` keeps.
fn doctor_inside(keep: impl Fn(&str) -> bool) -> Option<Probes> {
    if Command::new("runc").arg("--version").output().is_err() {
        eprintln!("skipped: runc is not installed");
        return None;
    }
    let bundle = tempfile::tempdir().unwrap();
    let root = bundle.path().join("rootfs");
    for folder in ["usr/bin", "proc", "dev", "sys", "run/weir", "lib", "lib64"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(harness::agent::binary().unwrap(), root.join("usr/bin/weir")).unwrap();
    let id = format!("weir-test-{}-{}", std::process::id(), bundle.path().file_name().unwrap().to_string_lossy());
    let id = id.replace('.', "");
    fs::write(bundle.path().join("config.json"), config(&id, keep).to_string()).unwrap();
    let output = Command::new("timeout")
        .args(["--kill-after=5", "60", "runc", "--root"])
        .arg(bundle.path().join("state"))
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(&id)
        .output()
        .unwrap();
    assert!(!output.stdout.is_empty(), "runc: {}", String::from_utf8_lossy(&output.stderr));
    Some(probes(&output.stdout))
}

/// The container of the rendered DaemonSet as the OCI runtime specification has it.
fn config(id: &str, keep: impl Fn(&str) -> bool) -> Value {
    let documents = render("", "Helm");
    let daemon_set = super::yaml(&documents.iter().find(|(file, _)| file == "daemonset.yaml").unwrap().1);
    let pod = &daemon_set["spec"]["template"]["spec"];
    let context = &pod["containers"][0]["securityContext"];
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    let added = context["capabilities"]["add"].as_array().unwrap().iter().map(|c| c.as_str().unwrap());
    let capabilities: Vec<String> = added.filter(|c| keep(c)).map(|c| format!("CAP_{c}")).collect();

    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for library in ["/lib", "/lib64"] {
        mounts.push(json!({"destination": library, "type": "bind", "source": library, "options": ["rbind", "ro"]}));
    }
    for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
        let volume = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == mount["name"]).unwrap();
        mounts.push(match volume["hostPath"]["path"].as_str() {
            Some(path) => {
                let access = if mount["readOnly"] == true { "ro" } else { "rw" };
                json!({"destination": mount["mountPath"], "type": "bind", "source": path, "options": ["rbind", access]})
            }
            None => json!({"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs"}),
        });
    }
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "args": ["/usr/bin/weir", "doctor", "--output", "json"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
        },
        "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
        "mounts": mounts,
        "linux": {"namespaces": namespaces, "cgroupsPath": format!("/{id}")},
    })
}
