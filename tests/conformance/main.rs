//! `weir-conformance PATH…`: judges published NetworkPolicy cases and fixtures with the engine and compares.
//!
//! A folder is searched for `*.json`, `*.json.gz`, `*.ndjson.gz` (cases and sequences of cases) and `expected*.yaml`
//! (fixtures: single flows, and the pairs that are required in each state). One line per file: passed, failed; how the rows of
//! required flows are covered; then the first failing cases. With `--list-denied` also each denied pair of the fixtures that
//! no row is about. Exit 0: all passed; 1: some failed; 2: nothing could be judged.

mod cases;
mod fixtures;
mod pairs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// Failures that are printed in full.
const SHOWN: usize = 10;
const LIST_DENIED: &str = "--list-denied";

/// What one file came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Cases, sequences or flows of fixtures, whichever the file holds, that are right throughout.
    pub passed: usize,
    /// Those that are not.
    pub failed: usize,
    /// Single verdicts compared.
    pub verdicts: usize,
    /// Remarks, such as verdicts that mean something else than usual.
    pub notes: Vec<String>,
    /// What is wrong, one line each.
    pub failures: Vec<String>,
}

impl Tally {
    /// Counts one case with what is wrong in it.
    pub fn count(&mut self, failures: Vec<String>) {
        if failures.is_empty() {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.extend(failures);
        }
    }
}

fn main() -> ExitCode {
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let given = paths.len();
    paths.retain(|path| path.as_os_str() != LIST_DENIED);
    match run(&paths, paths.len() < given) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("weir-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(paths: &[PathBuf], list_denied: bool) -> Result<bool> {
    let mut files = Vec::new();
    for path in paths {
        find(path, &mut files).with_context(|| format!("cannot read {}", path.display()))?;
    }
    files.sort();
    // Sequences name cases of other files: cases are read first.
    let mut known = cases::Known::new();
    let mut tallies = Vec::new();
    let mut coverage = pairs::Coverage::default();
    let name = |f: &Path| f.file_name().unwrap_or_default().to_string_lossy().into_owned();
    files.sort_by_key(|f| name(f).contains("sequences"));
    for file in &files {
        let tally = match name(file).ends_with(".yaml") {
            true => fixtures::judge(file, &mut coverage),
            false => cases::judge(file, &mut known),
        };
        tallies.push((file, tally.with_context(|| format!("in {}", file.display()))?));
    }
    if tallies.iter().map(|(_, t)| t.verdicts).sum::<usize>() == 0 {
        bail!("no cases or fixtures found; name a folder that holds *.json, *.ndjson.gz or expected*.yaml");
    }
    println!("{:>7} {:>7} {:>9}  file", "passed", "failed", "verdicts");
    for (file, tally) in &tallies {
        println!("{:>7} {:>7} {:>9}  {}", tally.passed, tally.failed, tally.verdicts, file.display());
        tally.notes.iter().for_each(|note| println!("{:27}{note}", ""));
    }
    if coverage.rows > 0 {
        println!("{coverage}");
    }
    if list_denied {
        coverage.beyond.iter().for_each(|pair| println!("denied: {pair}"));
    }
    let failures: Vec<&String> = tallies.iter().flat_map(|(_, t)| &t.failures).collect();
    for failure in failures.iter().take(SHOWN) {
        println!("FAILED {failure}");
    }
    if failures.len() > SHOWN {
        println!("… and {} more", failures.len() - SHOWN);
    }
    Ok(failures.is_empty())
}

fn find(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cases = [".json", ".json.gz", ".ndjson", ".ndjson.gz"].iter().any(|end| name.ends_with(end));
        if path.is_dir() {
            find(&path, files)?;
        } else if cases || (name.starts_with("expected") && name.ends_with(".yaml")) {
            files.push(path);
        }
    }
    Ok(())
}
