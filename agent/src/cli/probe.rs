//! `weir probe`.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use weir_engine::policy::Admission;

use super::manifests::{Reading, Source};
use super::out::{self, Output};
use super::run::duration;
use super::{Exit, progress};
use crate::outputs::socket::{self, Question};
use crate::outputs::text::clean;
use crate::probe::plan::{self, Plan};
use crate::probe::{self, Limits};
use crate::report::table::Page;

/// Open the connections that a pod's required flows need, from inside its network namespace
///
/// Opens the connections that the required flows of pods on this node need, from inside each pod's network namespace: a TCP
/// handshake, on 15012 and 15017 also which name the certificate is for, on DNS ports a query, on health and metrics ports a
/// GET. Nothing runs in the pod, and no application data is sent. Needs root.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Probe {
    /// Whose flows: NAMESPACE/POD, NAMESPACE/WORKLOAD or NAMESPACE/KIND/NAME; all pods of this node without it
    from: Option<String>,

    /// Only these flows, by id or code
    flow: Vec<String>,

    /// Manifests to plan from in place of what the agent sees: files, folders, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "PATH", num_args = 1..)]
    files: Vec<PathBuf>,

    #[command(flatten)]
    reading: Reading,

    /// How long to wait for each connection
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    timeout: Duration,

    /// Connections to begin in a second at most
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,

    /// Probe from more than ten pods without asking
    #[arg(long, short)]
    yes: bool,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir probe shop/cart
  weir probe shop/cart sidecar-xds sidecar-dns --timeout 1s --output json

Exit codes: 0 every connection did what its flow needs, 1 some did not, 2 could not tell or failed.";

/// Pods from which connections are opened without asking.
const MAX_PODS: usize = 10;

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    results: &'a [probe::Result],
    left: &'a [String],
}

impl Probe {
    /// Plans, asks, opens, prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { from, flow, files, reading, timeout, rate, yes, output, socket } = self;
        let plan: Plan = if files.is_empty() {
            let said = socket::question(&socket, &Question::Plan { from, flows: flow })?;
            serde_json::from_value(said.json).context("the agent's plan cannot be read; is it of this version?")?
        } else {
            let loaded = Source { files, cluster: Vec::new(), reading }.load()?;
            plan::plan(&loaded.model, from.as_deref(), &flow)?
        };
        let pods = plan.checks.iter().map(|c| &c.source).collect::<BTreeSet<_>>().len();
        if pods > MAX_PODS && !yes {
            confirm(pods, plan.checks.len())?;
        }
        let total = plan.checks.len();
        let left = plan.left.clone();
        let bar = progress::steps(u64::try_from(total).unwrap_or(u64::MAX));
        let results = probe::run(plan, Limits { timeout, rate }, |result| {
            bar.set_message(clean(&result.check.flow).into_owned());
            bar.inc(1);
        });
        drop(bar);
        let results = results?;
        match output {
            Output::Table => out::print(&page(&results, &left, probe::sees_all_processes()))?,
            Output::Json => out::json(&Report { version: plan::VERSION, results: &results, left: &left })?,
        }
        let tried = || results.iter().filter(|r| r.answered.is_some());
        Ok(if tried().next().is_none() {
            Exit::Failed
        } else if tried().all(probe::Result::is_fine) {
            Exit::Fine
        } else {
            Exit::Findings
        })
    }
}

fn confirm(pods: usize, connections: usize) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!(
            "this would open {connections} connections from {pods} pods; name one, or say --yes (in a pod, kubectl exec -it asks)"
        );
    }
    anstream::eprint!("Open {connections} connections from {pods} pods? [y/N] ");
    let mut said = String::new();
    io::stdin().read_line(&mut said)?;
    if !matches!(said.trim(), "y" | "Y" | "yes") {
        bail!("nothing was opened; name one pod to probe from fewer");
    }
    Ok(())
}

fn page(results: &[probe::Result], left: &[String], sees_all: bool) -> String {
    let mut page = Page::default();
    let mut source = "";
    for result in results {
        let check = &result.check;
        let Some(answered) = &result.answered else { continue };
        if check.source != source {
            source = &check.source;
            page.line(0, &format!("from {source} ({})", check.address));
        }
        let (word, style) = match result.is_fine() {
            true => ("ok", Page::GREEN),
            false => (answered.reached.as_str(), Page::RED),
        };
        let through = check.service.as_ref().map(|s| format!(" through Service {s}")).unwrap_or_default();
        let took = format!("{}.{:03} ms", answered.micros / 1000, answered.micros % 1000);
        page.styled(
            2,
            word,
            style,
            &format!(
                "{} → {}{through} {}/{}: {}, {took}",
                check.flow, check.destination, check.to, check.protocol, answered.said
            ),
        );
        let admission = match check.admission {
            Admission::Admitted => "the policies admit it".to_owned(),
            Admission::NotAdmitted => format!("not admitted; selecting policies: {}", check.policies.join(", ")),
            Admission::Undecidable => "whether the policies admit it cannot be decided".to_owned(),
        };
        if !result.is_fine() || check.admission != Admission::Admitted {
            page.line(6, &admission);
        }
    }
    let elsewhere: BTreeSet<&str> =
        results.iter().filter(|r| r.answered.is_none()).map(|r| r.check.source.as_str()).collect();
    if !elsewhere.is_empty() {
        let named = elsewhere.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let more = elsewhere.len().saturating_sub(5);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        page.line(
            0,
            &format!("not on this machine: {named}{more}; probe them where they run: weir probe on their nodes"),
        );
    }
    for left in left {
        page.line(0, &format!("not tried: {left}"));
    }
    page.gap();
    let tried = results.iter().filter(|r| r.answered.is_some()).count();
    let fine = results.iter().filter(|r| r.is_fine()).count();
    let next = match (tried, fine) {
        (0, _) if !sees_all => {
            "Nothing was opened: this container sees its own processes alone, and finds pods' network namespaces through \
             theirs. It takes hostPID and CAP_SYS_ADMIN, which the agent's pod does not have. Next, as root on the node: \
             weir probe --socket /proc/AGENT/root/run/weir/weir.sock, where AGENT is the agent's process"
        }
        (0, _) => "Nothing was opened: no required flow begins at a pod of this machine. Next: weir status --all",
        (tried, fine) if tried == fine => {
            "Every connection did what its flow needs. Next: weir status shows the states as they are now."
        }
        _ => {
            "Next: weir explain FROM TO PORT says why policies do not admit one; weir watch shows where it is dropped."
        }
    };
    page.line(0, &format!("{fine} of {tried} fine. {next}"));
    page.text
}
