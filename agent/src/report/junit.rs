//! For CI systems: one suite per catalogue profile, one case per pair, and one suite for the policies.

use std::collections::BTreeMap;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use weir_engine::check::{PairReport, Verdict};
use weir_engine::policy::lint::Level;

use super::{Checked, words};
use crate::outputs::text::clean;

/// The document.
///
/// # Errors
/// When the document cannot be written, which no input causes.
pub fn render(checked: &Checked) -> anyhow::Result<String> {
    let mut report = Report::new("weir check");
    let mut suites: BTreeMap<&str, Vec<&PairReport>> = BTreeMap::new();
    for pair in &checked.report.pairs {
        suites.entry(&pair.profile).or_default().push(pair);
    }
    for (profile, pairs) in suites {
        let mut suite = TestSuite::new(clean(profile).into_owned());
        suite.add_test_cases(pairs.into_iter().map(case));
        report.add_test_suite(suite);
    }
    let mut suite = TestSuite::new("policies");
    suite.add_test_cases(checked.report.lints.iter().map(|finding| {
        let lint = &finding.lint;
        let mut status = match lint.level {
            Level::Error => TestCaseStatus::non_success(NonSuccessKind::Failure),
            Level::Warning | Level::Note => TestCaseStatus::skipped(),
        };
        status.set_message(clean(&format!("{}; {}", lint.message, lint.hint)).into_owned());
        status.set_type(lint.id.as_str());
        let mut case = TestCase::new(clean(&format!("{} {}", lint.id, words::place(lint))).into_owned(), status);
        case.set_classname("policies");
        case
    }));
    suite.add_test_cases(checked.inputs.problems.iter().map(|problem| {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(clean(&problem.message).into_owned());
        let mut case = TestCase::new(clean(&problem.to_string()).into_owned(), status);
        case.set_classname("manifests");
        case
    }));
    if !suite.test_cases.is_empty() {
        report.add_test_suite(suite);
    }
    Ok(report.to_string()?)
}

fn case(pair: &PairReport) -> TestCase {
    let reasons = || pair.cases.first().map(words::reasons).unwrap_or_default().join("\n");
    let status = match pair.verdict {
        Verdict::Admitted => TestCaseStatus::success(),
        Verdict::Denied => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_type("denied");
            status.set_message(clean(&format!("{}: {}", pair.severity, pair.symptom)).into_owned());
            status.set_description(lines(&reasons()));
            status
        }
        Verdict::Undecidable => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(lines(&reasons()));
            status
        }
    };
    let mut case = TestCase::new(clean(&format!("{} {}", pair.flow, words::pair(pair))).into_owned(), status);
    case.set_classname(clean(&pair.profile).into_owned());
    case
}

fn lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|l| clean(l).into_owned()).collect();
    lines.join("\n")
}
