//! Every fixture against the engine: single flows, and the pairs that are required in each state, both ways. Needs no root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::fixture;
use snapbox::{Data, assert_data_eq};
use weir::cluster::manifests;
use weir_engine::cluster::Cluster;
use weir_engine::engine::{Engine, Settings};
use weir_engine::policy::Endpoint;
use weir_engine::requirement::Pair;
use weir_engine::time::Time;

/// Every row of every state has its pair with the right verdict, and nothing is denied that neither rows nor objects speak for.
#[test]
fn pairs_both_ways() {
    let mut folders: Vec<PathBuf> = vec![fixture::fixtures_dir()];
    for name in ["istio-upstream", "kyma-managed"] {
        match fixture::shared_dir(name) {
            Some(folder) => folders.push(folder),
            None => println!("SKIPPED: the fixture {name} is not part of the source; WEIR_SHARED says where it is"),
        }
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_weir-conformance")).args(&folders).output().expect("weir-conformance");
    let page = String::from_utf8_lossy(&output.stdout);
    println!("{page}");
    assert!(output.status.success(), "{page}{}", String::from_utf8_lossy(&output.stderr));
    assert!(page.contains(", 0 without a pair"), "{page}");
}

/// Objects require more than the rows: a second DNS pod, other scraped ports, other nodes. Each pair of those that is denied was
/// read and is right; one more or one less is a change of what Weir accuses.
#[test]
fn denied_pairs_without_a_row() {
    let mut conformance = Command::new(env!("CARGO_BIN_EXE_weir-conformance"));
    let output = conformance.arg("--list-denied").arg(fixture::fixtures_dir()).output().expect("weir-conformance");
    let page = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{page}");
    let denied: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("denied: ")).collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/denied-without-a-row.txt");
    assert_data_eq!(denied.join("\n") + "\n", Data::read_from(&golden, None));
}

/// An agent's pairs are those of the whole cluster that have an end on its node, whatever came and went before.
#[test]
fn an_agents_pairs_are_those_that_touch_its_node() {
    let mut compared = 0;
    for folder in ["scenarios", "gotchas"] {
        for entry in fs::read_dir(fixture::fixtures_dir().join(folder)).expect("the folder") {
            let files = [entry.expect("an entry").path().join("cluster.yaml")];
            if !files[0].is_file() {
                continue;
            }
            let objects = manifests::load(&files).expect("objects").objects;
            let whole = engine(&[], &objects);
            let nodes: Vec<String> = whole.cluster().nodes().map(|node| node.name.to_string()).collect();
            for node in nodes {
                let own = engine(std::slice::from_ref(&node), &objects);
                let touching = whole.pairs().filter(|pair| touches(whole.cluster(), &node, pair));
                let touching: BTreeMap<_, _> = touching.map(|pair| (&pair.key, pair)).collect();
                let found: BTreeMap<_, _> = own.pairs().map(|pair| (&pair.key, pair)).collect();
                assert_eq!(found, touching, "{}, {node}", files[0].display());
                compared += found.len();
            }
        }
    }
    assert!(compared > 500, "{compared} pairs compared");
}

/// Objects come in the wrong order, every third goes and comes back.
fn engine(nodes: &[String], objects: &[manifests::Found]) -> Engine {
    let mut engine = Engine::new(Settings { nodes: nodes.to_vec(), ..Settings::default() });
    for found in objects.iter().rev() {
        engine.apply(Time(1), found.object.clone(), found.origin.clone());
    }
    for found in objects.iter().step_by(3) {
        engine.delete(Time(2), &found.object.key());
    }
    for found in objects.iter().step_by(3) {
        engine.apply(Time(3), found.object.clone(), found.origin.clone());
    }
    engine.synced(Time(4));
    engine
}

fn touches(cluster: &Cluster, node: &str, pair: &Pair) -> bool {
    pair.sources.iter().chain(pair.destinations.iter()).any(|end| match end {
        Endpoint::Pod { name, .. } => cluster.pod(name).and_then(|pod| pod.node.as_deref()) == Some(node),
        Endpoint::Node { name, .. } => **name == *node,
        Endpoint::Address(_) | Endpoint::External => false,
    })
}
