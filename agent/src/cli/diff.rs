//! `weir diff`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use weir_engine::check::{Changed, Comparison, Model, Options, check, compare};
use weir_engine::policy::diff::{WorkloadDifference, by_workload, diff};

use super::manifests::{Reading, read};
use super::out::{self, Output};
use super::{Exit, manifests, progress};
use crate::report::table::Page;
use crate::report::{Inputs, words};

/// Compare two sets of policies by what opens and what closes
///
/// Says which required flows, and which flows between workloads, change between two sets of policies.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Diff {
    /// Manifests as they are: a file, a folder, or - for standard input
    old: PathBuf,

    /// Manifests as they would be
    new: PathBuf,

    /// Manifests that both sides share, such as the cluster's pods
    #[arg(long, value_name = "PATH", num_args = 1..)]
    cluster: Vec<PathBuf>,

    #[command(flatten)]
    reading: Reading,

    /// Show every difference between workloads
    #[arg(long)]
    all: bool,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
}

const EXAMPLES: &str = "Examples:
  weir diff policies-now/ policies-next/ --cluster cluster.yaml
  helm template my-mesh | weir diff policies-now.yaml - --cluster cluster.yaml --output json

Exit codes: 0 no required flow closes, 1 one closes, 2 could not tell or failed.";

/// What differs.
#[derive(Clone, Debug, Serialize)]
struct Document {
    version: u32,
    /// Required flows.
    required: Comparison,
    /// Flows between workloads, required or not.
    workloads: Vec<WorkloadDifference>,
    inputs: Inputs,
}

/// Pairs of workloads shown.
const MAX_SHOWN: usize = 30;

impl Diff {
    /// Reads both sides, compares, prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { old, new, cluster, reading, all, output } = self;
        manifests::one_standard_input([&old, &new].into_iter().chain(&cluster))?;
        let mut inputs = Inputs::default();
        let shared = read(&cluster, &mut inputs)?;
        let catalogue = reading.catalogue()?;
        let mut model = |path: PathBuf| -> anyhow::Result<Model> {
            let mut objects = shared.clone();
            objects.extend(read(&[path], &mut inputs)?);
            Ok(Model::new(objects, catalogue.clone(), reading.engine))
        };
        let (before, after) = (model(old)?, model(new)?);
        let options = Options { profile: reading.engine, ..Options::default() };
        let bar = progress::working("judging both");
        let required = compare(&check(&before, &options), &check(&after, &options));
        let differences = diff((&before.cluster, &before.policies), (&after.cluster, &after.policies));
        let workloads = by_workload(&after.cluster, &differences);
        bar.finish_and_clear();
        let document = Document { version: 1, required, workloads, inputs };
        match output {
            Output::Table => out::print(&page(&document, all))?,
            Output::Json => out::json(&document)?,
        }
        Ok(if !document.required.closed.is_empty() {
            Exit::Findings
        } else if !document.required.unsure.is_empty() || document.inputs.broken() > 0 {
            Exit::Failed
        } else {
            Exit::Fine
        })
    }
}

fn page(document: &Document, all: bool) -> String {
    let mut page = Page::default();
    let required = &document.required;
    for (word, style, list) in [
        ("closes", Page::RED, &required.closed),
        ("unsure", Page::YELLOW, &required.unsure),
        ("opens", Page::GREEN, &required.opened),
    ] {
        for changed in list {
            page.styled(0, word, style, &line(changed));
            if word != "opens" {
                let reasons = changed.pair.cases.first().map(words::reasons).unwrap_or_default();
                reasons.iter().for_each(|reason| page.line(4, reason));
            }
        }
    }
    if !document.workloads.is_empty() {
        page.gap();
        page.line(0, "Between workloads:");
        let shown = if all { document.workloads.len() } else { MAX_SHOWN };
        document.workloads.iter().take(shown).for_each(|d| page.line(2, &words::difference(d)));
        if document.workloads.len() > shown {
            page.line(2, &format!("and {} more (--all shows them)", document.workloads.len() - shown));
        }
    }
    page.gap();
    page.line(
        0,
        &format!(
            "Required flows: {} closed, {} unsure, {} opened, {} as before",
            required.closed.len(),
            required.unsure.len(),
            required.opened.len(),
            required.unchanged
        ),
    );
    if document.inputs.broken() > 0 {
        let broken = words::count(document.inputs.broken(), "document was", "documents were");
        page.styled(0, "Weakened:", Page::YELLOW, &format!("{broken} not read; a policy in it could change this"));
    }
    if required.closed.is_empty() {
        page.line(
            0,
            "No required flow closes. Next: kubectl apply -f FILE; then weir status shows what the kernel sees.",
        );
    } else {
        page.line(0, "Next: weir check on the new manifests says why, weir fix proposes what to add.");
    }
    page.text
}

fn line(changed: &Changed) -> String {
    let pair = &changed.pair;
    let part = match (changed.denied_before, changed.denied_now) {
        (0, now) | (now, 0) if now == pair.instances => String::new(),
        (before, now) => format!(" ({before} of {} instances denied before, {now} now)", pair.instances),
    };
    format!("{} {} {}{part}", pair.severity, pair.flow, words::pair(pair))
}
