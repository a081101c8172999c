//! Every fixture against the engine: single flows, and the pairs that are required in each state, both ways. Needs no root.

use std::path::PathBuf;
use std::process::Command;

use harness::fixture;

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
