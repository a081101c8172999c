//! The result of a check in the formats that people and programs read: table, JSON, SARIF, JUnit, Markdown.

pub mod junit;
pub mod markdown;
pub mod patches;
pub mod sarif;
pub mod table;
pub mod words;

use std::collections::BTreeMap;

use serde::Serialize;
use weir_engine::check::{Report, Verdict};
use weir_engine::policy::lint::Level;
use weir_engine::requirement::Severity;

use crate::cluster::manifests::{Manifests, Problem, Severity as Damage};

/// A report, what it was made from, and what follows.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// What the engine found.
    #[serde(flatten)]
    pub report: Report,
    /// What all of it means for the exit code.
    pub conclusion: Conclusion,
    /// Why the conclusions are weaker than they look; empty where they are not.
    pub weakened: Vec<String>,
    /// What was read.
    pub inputs: Inputs,
}

/// What follows from a report. The exit codes 0, 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Every required flow is admitted.
    Fine,
    /// A required flow is denied, or a lint counts as a finding.
    Findings,
    /// Nothing is known to be denied, and not all could be told.
    CouldNotTell,
}

/// What was read.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inputs {
    /// Files.
    pub files: usize,
    /// Documents that are not empty.
    pub documents: usize,
    /// Objects of kinds that Weir does not read, by `apiVersion kind`.
    pub ignored: BTreeMap<String, usize>,
    /// What could not be read, or only with doubt.
    pub problems: Vec<Problem>,
    /// Problems beyond the loader's bound.
    pub problems_left_out: usize,
}

impl Inputs {
    /// Adds what one set of manifests had beside objects.
    pub fn add(&mut self, manifests: &mut Manifests) {
        self.files += manifests.files;
        self.documents += manifests.documents;
        for (kind, count) in std::mem::take(&mut manifests.ignored) {
            *self.ignored.entry(kind).or_default() += count;
        }
        self.problems.append(&mut manifests.problems);
        self.problems_left_out += manifests.problems_left_out;
    }

    /// Documents or files that were not read.
    #[must_use]
    pub fn broken(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Damage::Error).count() + self.problems_left_out
    }
}

impl Checked {
    /// Draws the conclusion: denied flows of `fail_on` or worse are findings, and with `strict` lints are too.
    #[must_use]
    pub fn new(report: Report, inputs: Inputs, fail_on: Severity, strict: bool) -> Self {
        let weakened = weakened(&report, &inputs);
        let is = |verdict: Verdict| report.pairs.iter().any(|p| p.verdict == verdict && p.severity <= fail_on);
        let lints = strict && report.lints.iter().any(|f| f.lint.level <= Level::Warning);
        let conclusion = if is(Verdict::Denied) || lints {
            Conclusion::Findings
        } else if is(Verdict::Undecidable) || !weakened.is_empty() {
            Conclusion::CouldNotTell
        } else {
            Conclusion::Fine
        };
        Self { report, conclusion, weakened, inputs }
    }
}

fn weakened(report: &Report, inputs: &Inputs) -> Vec<String> {
    let mut reasons = Vec::new();
    match inputs.broken() {
        0 => {}
        1 => reasons.push("1 document was not read; a policy in it could deny more, or admit more".to_owned()),
        n => reasons.push(format!("{n} documents were not read; policies in them could deny more, or admit more")),
    }
    if report.pairs.is_empty() {
        let objects: u64 = report.objects.iter().map(|o| o.count).sum();
        reasons.push(if objects == 0 {
            "no Kubernetes object of a kind that Weir reads was found".to_owned()
        } else {
            "no mesh workload is among the objects, so there is no required flow to judge; add the cluster's objects \
             with --cluster"
                .to_owned()
        });
    }
    reasons
}
