//! `weir fix`.

use anyhow::bail;
use clap::{Args, ValueEnum};
use weir_engine::check::{Repair, repair};

use super::connections::Seen;
use super::manifests::Source;
use super::{Exit, out, progress};
use crate::outputs::text::clean;
use crate::report::patches;
use crate::report::words::{self, count};

/// Propose the smallest policies that open what is denied
///
/// Proposes the smallest policies that open the denied flows which the mesh needs.
///
/// Each is tried out first; what else opens is told on standard error. Policies that Helm, an operator or Kyma manage are never
/// edited.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Fix {
    #[command(flatten)]
    source: Source,

    #[command(flatten)]
    seen: Seen,

    /// Only these flows, by id or code
    #[arg(long, value_name = "ID")]
    flow: Vec<String>,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

const EXAMPLES: &str = "Examples:
  weir fix -f policies/ --cluster cluster.yaml > fixes.yaml
  weir fix -f policies/ --cluster cluster.yaml --flow sidecar-xds | kubectl diff -f -

Exit codes: 0 nothing to fix, 1 fixes proposed, 2 could not tell, or some cannot be fixed.";

/// How patches are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Ready for kubectl apply
    #[default]
    Yaml,
    /// For programs; versioned
    Json,
}

/// Lines of what else opens.
const MAX_BEYOND: usize = 20;

impl Fix {
    /// Reads, patches, prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { source, seen, flow, output } = self;
        let mut loaded = source.load()?;
        seen.observe(&mut loaded.model)?;
        let catalogue = loaded.model.resolver.catalogue();
        if let Some(unknown) = flow.iter().find(|id| catalogue.flow(id).is_none()) {
            bail!("there is no flow {unknown:?}; `weir flows` lists them");
        }
        let bar = progress::working("making and trying out policies");
        let repair = repair(&mut loaded.model, |pair| {
            flow.is_empty() || flow.iter().any(|id| **id == *pair.requirement.id || **id == *pair.requirement.code)
        });
        bar.finish_and_clear();
        match output {
            Format::Yaml => out::print(&patches::yaml(&repair.policies)?)?,
            Format::Json => out::json(&repair)?,
        }
        tell(&repair);
        let broken = loaded.inputs.broken();
        if broken > 0 {
            anstream::eprintln!("weir: weakened: {} not read", count(broken, "document was", "documents were"));
        }
        Ok(if repair.denied_after > 0 || broken > 0 || loaded.model.pairs().is_empty() {
            Exit::Failed
        } else if repair.denied_before > 0 {
            Exit::Findings
        } else {
            Exit::Fine
        })
    }
}

fn tell(repair: &Repair) {
    let opened = repair.denied_before - repair.denied_after;
    match (repair.denied_before, repair.policies.len()) {
        (0, _) => {
            anstream::eprintln!("weir: no required flow is denied; there is nothing to fix; next: weir check --all")
        }
        (before, policies) => anstream::eprintln!(
            "weir: {opened} of {} opened by {}",
            count(before, "denied flow", "denied flows"),
            count(policies, "policy", "policies")
        ),
    }
    for left in &repair.unfixable {
        anstream::eprintln!("weir: not fixed: {}: {}", clean(&left.flow), clean(&left.why));
    }
    if repair.left_out > 0 {
        anstream::eprintln!("weir: {} more are left; apply these, then run it again", repair.left_out);
    }
    if !repair.beyond.is_empty() {
        anstream::eprintln!("weir: besides the required flows this changes:");
        for d in repair.beyond.iter().take(MAX_BEYOND) {
            anstream::eprintln!("  {}", clean(&words::difference(d)));
        }
        if repair.beyond.len() > MAX_BEYOND {
            anstream::eprintln!("  and {} more; --output json has them all", repair.beyond.len() - MAX_BEYOND);
        }
    }
    if !repair.policies.is_empty() {
        anstream::eprintln!("weir: next: review, then kubectl apply -f FILE, then weir check again");
    } else if repair.denied_after > 0 {
        anstream::eprintln!("weir: next: weir explain FROM TO PORT names the policies to change by hand");
    }
}
