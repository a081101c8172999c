//! SARIF 2.1.0, for code scanning: lints and broken documents at their lines, denied flows at the policy that comes nearest to
//! admitting them.
//!
//! Only the few objects that are used are written down here; the whole format has hundreds.

use std::collections::BTreeMap;

use serde::Serialize;
use weir_engine::check::{PairReport, Verdict};
use weir_engine::cluster::{Cluster, Origin};
use weir_engine::policy::lint::{Level, LintId};
use weir_engine::requirement::Severity;
use weir_engine::words::Name;

use super::{Checked, words};
use crate::cluster::manifests::{Problem, Severity as Damage};
use crate::outputs::text::clean;

/// The document.
#[derive(Clone, Debug, Serialize)]
pub struct Sarif {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: Vec<Run>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    tool: Tool,
    column_kind: &'static str,
    results: Vec<SarifResult>,
}

#[derive(Clone, Debug, Serialize)]
struct Tool {
    driver: Driver,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Driver {
    name: &'static str,
    version: &'static str,
    information_uri: &'static str,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    id: String,
    short_description: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<Text>,
}

#[derive(Clone, Debug, Serialize)]
struct Text {
    text: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SarifResult {
    rule_id: String,
    rule_index: usize,
    level: &'static str,
    message: Text,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    locations: Vec<Location>,
    partial_fingerprints: BTreeMap<&'static str, String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    physical_location: PhysicalLocation,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PhysicalLocation {
    artifact_location: ArtifactLocation,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<Region>,
}

#[derive(Clone, Debug, Serialize)]
struct ArtifactLocation {
    uri: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: u32,
}

/// The document of a report; `cluster` tells where policies stand.
#[must_use]
pub fn render(checked: &Checked, cluster: &Cluster) -> Sarif {
    let mut rules = Rules::default();
    let mut results = Vec::new();
    for pair in checked.report.pairs.iter().filter(|p| p.verdict != Verdict::Admitted) {
        results.push(flow(pair, cluster, &mut rules));
    }
    for finding in &checked.report.lints {
        let lint = &finding.lint;
        let level = match lint.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        let blocks = words::blocks(finding).map(|b| format!(" ({b})")).unwrap_or_default();
        let text = format!("{}: {}{blocks}. {}.", words::place(lint), lint.message, capital(&lint.hint));
        let index = rules.index(&format!("lint/{}", lint.id), || describe(lint.id));
        results.push(rules.result(index, level, text, at(&lint.origin), words::place(lint)));
    }
    for problem in &checked.inputs.problems {
        results.push(broken(problem, &mut rules));
    }
    let driver = Driver {
        name: "weir",
        version: env!("CARGO_PKG_VERSION"),
        information_uri: env!("CARGO_PKG_REPOSITORY"),
        rules: rules.rules,
    };
    Sarif {
        schema: "https://json.schemastore.org/sarif-2.1.0.json",
        version: "2.1.0",
        runs: vec![Run { tool: Tool { driver }, column_kind: "unicodeCodePoints", results }],
    }
}

/// Every rule once, in order of appearance.
#[derive(Default)]
struct Rules {
    rules: Vec<Rule>,
    known: BTreeMap<String, usize>,
}

impl Rules {
    fn index(&mut self, id: &str, describe: impl FnOnce() -> (String, Option<String>)) -> usize {
        if let Some(index) = self.known.get(id) {
            return *index;
        }
        let (short, help) = describe();
        let help = help.map(|text| Text { text: clean(&text).into_owned() });
        let short_description = Text { text: clean(&short).into_owned() };
        self.rules.push(Rule { id: id.to_owned(), short_description, help });
        self.known.insert(id.to_owned(), self.rules.len() - 1);
        self.rules.len() - 1
    }

    fn result(
        &self,
        index: usize,
        level: &'static str,
        text: String,
        locations: Vec<Location>,
        what: String,
    ) -> SarifResult {
        let rule_id = self.rules[index].id.clone();
        let fingerprint = clean(&format!("{rule_id} {what}")).into_owned();
        SarifResult {
            rule_id,
            rule_index: index,
            level,
            message: Text { text: clean(&text).into_owned() },
            locations,
            partial_fingerprints: [("weir/v1", fingerprint)].into(),
        }
    }
}

fn describe(id: LintId) -> (String, Option<String>) {
    (id.describe().to_owned(), None)
}

fn flow(pair: &PairReport, cluster: &Cluster, rules: &mut Rules) -> SarifResult {
    let index = rules.index(&format!("flow/{}", pair.flow), || {
        (format!("{} ({})", pair.purpose, pair.code), Some(format!("When it is blocked: {}.", pair.symptom)))
    });
    let level = match (pair.verdict, pair.severity) {
        (Verdict::Denied, Severity::Critical | Severity::High) => "error",
        (Verdict::Denied, Severity::Medium | Severity::Low) => "warning",
        (Verdict::Denied, Severity::Info) | (Verdict::Undecidable | Verdict::Admitted, _) => "note",
    };
    let reasons = pair.cases.first().map(words::reasons).unwrap_or_default();
    let text = format!("{} is {}: {}.", words::pair(pair), pair.verdict, reasons.join("; "));
    // The rule that comes nearest to admitting is where a change is most likely wanted.
    let sides = || pair.cases.iter().flat_map(|c| c.denying());
    let near = sides().find_map(|(_, side)| Some(&words::nearest(side)?.0.policy));
    let policy = near.or_else(|| sides().find_map(|(_, side)| side.selecting().into_iter().next()));
    let locations = policy.map(|name| policy_at(cluster, name)).unwrap_or_default();
    rules.result(index, level, text, locations, words::pair(pair))
}

fn policy_at(cluster: &Cluster, name: &Name) -> Vec<Location> {
    let own = cluster.policy(name).map(|p| &p.origin);
    let wide = || cluster.cluster_policies().find(|p| p.object.metadata.name.as_deref() == Some(&*name.name));
    own.or_else(|| wide().map(|p| &p.origin)).map(at).unwrap_or_default()
}

fn broken(problem: &Problem, rules: &mut Rules) -> SarifResult {
    let (id, text, level) = match problem.severity {
        Damage::Error => ("manifest/not-read", "A document could not be read.", "error"),
        Damage::Warning => {
            ("manifest/doubtful", "A document was read, and may not mean what it looks like.", "warning")
        }
    };
    let index = rules.index(id, || (text.to_owned(), None));
    let hint = problem.hint.as_ref().map(|h| format!("; {h}")).unwrap_or_default();
    let origin = Origin { file: Some(problem.file.clone()), line: problem.line, ..Origin::default() };
    rules.result(index, level, format!("{}{hint}", problem.message), at(&origin), problem.to_string())
}

/// A place in a file. What came from standard input or an API server has none.
fn at(origin: &Origin) -> Vec<Location> {
    let Some(file) = origin.file.as_deref().filter(|f| *f != "-") else { return Vec::new() };
    let region = origin.line.filter(|l| *l > 0).map(|start_line| Region { start_line });
    vec![Location {
        physical_location: PhysicalLocation { artifact_location: ArtifactLocation { uri: uri(file) }, region },
    }]
}

/// A path as a URI reference: RFC 3986 allows these characters in a path as they are, `:` only behind the first slash.
fn uri(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'@' | b'+' | b'=' | b',' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
