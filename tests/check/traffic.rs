//! `weir check --traffic`: candidates judged by a recording and by a snapshot, and the page as a golden file.

use std::path::{Path, PathBuf};

use weir::cluster::change::to_value;
use weir::cluster::manifests;
use weir::run::Recorder;
use weir_engine::cluster::Origin;
use weir_engine::engine::{Engine, Input, Settings};
use weir_engine::observation::{AttemptEnd, AttemptStart, Observation, Owner, Tuple};
use weir_engine::policy::Admission;
use weir_engine::snapshot::{EndView, InstanceView, Snapshot, TrafficView};
use weir_engine::time::Time;
use weir_engine::words::Protocol;

use super::golden::{page, run};

const MILLISECOND: u64 = 1_000_000;

fn mesh() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/input/mesh.yaml")
}

/// What an agent records of the mesh while `cart-0` connects three times to each of these addresses and ports.
fn recording(path: &Path, connections: &[(&str, u16)]) {
    let mut recorder = Recorder::create(path, &Settings::default(), 1 << 20, false).expect("a recording");
    let found = manifests::load(&[mesh()]).expect("the mesh");
    for object in found.objects {
        let object = to_value(&object.object).expect("an object");
        recorder.write(Time(1), &Input::Apply { object, origin: Origin::default() }).expect("a line");
    }
    recorder.write(Time(1), &Input::Synced).expect("a line");
    let mut at = 30_000 * MILLISECOND;
    for (address, port) in connections.iter().cycle().take(3 * connections.len()) {
        at += 1_000 * MILLISECOND;
        let tuple = Tuple {
            source: "10.0.0.3".parse().expect("an address"),
            source_port: 40_000,
            destination: address.parse().expect("an address"),
            destination_port: *port,
            protocol: Protocol::Tcp,
        };
        let owner = Owner { pid: 7, comm: "cart".into(), cgroup: 1, pod: None };
        let start = AttemptStart { at: Time(at), tuple, socket: at, netns: 1, owner };
        let end = AttemptEnd {
            at: Time(at + MILLISECOND),
            tuple,
            socket: at,
            started: Time(at),
            established: true,
            reset: false,
            cause_unknown: false,
            error: 0,
            soft_error: 0,
            queued: None,
            retransmits: 0,
            netns: 1,
        };
        recorder.write(Time(at), &Input::Observe(Observation::AttemptStart(start))).expect("a line");
        recorder.write(Time(at + MILLISECOND), &Input::Observe(Observation::AttemptEnd(end))).expect("a line");
    }
    recorder.write(Time(at + 1_000 * MILLISECOND), &Input::Timeout).expect("a line");
    recorder.flush().expect("written");
}

/// What an agent shows that saw these connections and no required flow.
fn snapshot(path: &Path, instances: &[(&str, &str, u16)]) {
    let mut snapshot: Snapshot = Engine::new(Settings::default()).snapshot(Time(1));
    let end = |pod: &str| {
        let (namespace, pod) = pod.split_once('/').expect("a name");
        EndView {
            kind: "workload".to_owned(),
            namespace: namespace.into(),
            workload: pod.into(),
            workload_kind: "Pod".into(),
        }
    };
    snapshot.traffic = instances
        .iter()
        .map(|(source, destination, port)| TrafficView {
            source: end(source),
            destination: end(destination),
            protocol: Protocol::Tcp,
            port: *port,
            instance: InstanceView { source: (*source).to_owned(), destination: (*destination).to_owned() },
            attempts: 12,
            established: 12,
            last: Time(1),
            last_unix_ns: 0,
            admission: Admission::Admitted,
            candidate: None,
        })
        .collect();
    std::fs::write(path, serde_json::to_vec(&snapshot).expect("JSON")).expect("a file");
}

fn check(file: &Path, more: &[&str]) -> (Option<i32>, String) {
    let file = file.to_str().expect("text");
    let output = run(&[&["check", "--traffic", file][..], more].concat());
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn a_recording_tells_what_candidates_would_break() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording.jsonl");
    recording(&file, &[("10.0.0.2", 9153), ("10.0.0.2", 53)]);
    let name = file.to_str().expect("text");
    page(&["check", "--traffic", name, "-f", "closed.yaml"], 1, "traffic-closed.txt");
    // DNS is open in this one, the port that no required flow explains is not.
    page(&["check", "--traffic", name, "-f", "open.yaml"], 1, "traffic-open.txt");
    let (code, json) = check(&file, &["-f", "open.yaml", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((code, json["version"].as_u64()), (Some(1), Some(1)));
    let breaks = json["breaks"].as_array().expect("a list");
    let told: Vec<_> = breaks.iter().map(|b| (b["port"].as_u64(), b["attempts"].as_u64())).collect();
    assert_eq!(told, [(Some(9153), Some(3))], "{json}");
}

#[test]
fn where_nothing_breaks_it_says_that_they_can_be_applied() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording.jsonl");
    recording(&file, &[("10.0.0.2", 53)]);
    let (code, text) = check(&file, &["-f", "open.yaml"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("0 of ") && text.contains("next: nothing that was observed would be denied"), "{text}");
}

#[test]
fn a_snapshot_is_judged_on_the_clusters_objects() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("snapshot.json");
    let known = ("shop/cart-0", "kube-system/coredns-0", 9153);
    snapshot(&file, &[known, ("shop/gone-0", "kube-system/coredns-0", 9153)]);
    let objects = ["-f", "open.yaml", "--cluster", "mesh.yaml"];
    page(
        &[&["check", "--traffic", file.to_str().expect("text")][..], &objects[..]].concat(),
        1,
        "traffic-snapshot.txt",
    );
    // What cannot be judged is no good news.
    snapshot(&file, &[("shop/gone-0", "kube-system/coredns-0", 9153)]);
    let (code, text) = check(&file, &objects);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("1 observed flows cannot be judged") && text.contains("next: take the snapshot"), "{text}");
    // Without objects there is nothing to judge by.
    assert_eq!(check(&file, &["-f", "open.yaml"]), (Some(2), String::new()));
}
