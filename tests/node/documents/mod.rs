//! Every command of the documents, run: beside an agent what is weir's, against the fake API server what is kubectl's. What needs
//! nothing runs in the tests of the command line; `cargo xtask` is held against its definition by its own tests. A command that
//! no rule below knows is a failure.

mod page;
mod stage;

use super::*;
use stage::Stage;

/// Commands that are not run, each with its reason. Whole lines: another one needs another reason.
const ACCOUNTED: [(&str, &str); 6] = [
    ("cargo build --release", "the toolchain's; what it builds is what all tests run"),
    ("cargo test -p weir-engine requirement::", "a part of the tests, which run as a whole"),
    ("cargo run --release -p weir-tests --example api-load -- --help", "cargo xtask bench api-load runs this example"),
    (
        "helm template istiod istio/istiod --namespace istio-system --set global.networkPolicy.enabled=true > istiod.yaml",
        "needs Istio's chart from elsewhere",
    ),
    ("kubectl rollout restart", "a name, without what it is to restart"),
    ("kubectl delete -f", "a name, without what it is to delete"),
];

#[test]
fn every_command_of_the_documents_runs_beside_an_agent() -> Result<()> {
    let rehearsal = begin()?;
    let stage = Stage::build(&rehearsal)?;
    let documents = documents()?;
    let mut pages = Vec::new();
    let mut functions = String::new();
    for document in &documents {
        let read = page::read(&fs::read_to_string(document)?).with_context(|| document.display().to_string())?;
        functions += &read.functions.concat();
        pages.push((document, read));
    }
    let (mut ran, mut left, mut failed) = (0, BTreeSet::new(), Vec::new());
    for (document, page) in pages {
        stage.anew()?;
        let runbook = document.parent().is_some_and(|folder| folder.ends_with("runbooks"));
        let sentences = page.sentences.iter().map(|line| (line, !runbook));
        for (line, named) in page.blocks.iter().map(|line| (line, false)).chain(sentences) {
            let here = || format!("{}: {line}", document.display());
            match stage.run(line, named, &functions).with_context(here) {
                Ok(None) => ran += 1,
                Ok(Some(why)) => drop(left.insert(why)),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
    }
    for why in left {
        println!("SKIPPED: {why}");
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(ran > 60, "{ran} commands ran");
    println!("{ran} commands of the documents ran");
    Ok(())
}

/// README and every page of the book.
fn documents() -> Result<Vec<std::path::PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = vec![root.join("README.md"), root.join("deploy/README.md"), root.join("SECURITY.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
