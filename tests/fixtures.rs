//! Every fixture against the engine: single flows, and the pairs that are required in each state, both ways. Needs no root.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::fixture;
use snapbox::{Data, assert_data_eq};

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
