//! The log: one line per transition, one per problem, on standard error.

use std::io;
use std::str::FromStr;

use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use weir_engine::snapshot::{Edit, EndView, Transition};
use weir_engine::verdict::State;

use super::text::clean;
use crate::cluster::manifests::{Problem, Severity};

/// Policies named on a line at most; the snapshot has all of them.
const MAX_POLICIES: usize = 20;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging to standard error. The filter comes from `RUST_LOG`, else `info`.
///
/// # Errors
/// When `RUST_LOG` is not a filter.
pub fn init(format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::from_str(&text).map_err(|e| {
            anyhow::anyhow!("RUST_LOG={} is not a log filter: {e}; try RUST_LOG=weir=debug", clean(&text))
        })?,
        Ok(_) | Err(_) => EnvFilter::new("info"),
    };
    install(format, filter, io::stderr);
    Ok(())
}

/// Starts logging of warnings and errors alone to standard error.
pub fn init_quiet() {
    install(LogFormat::Text, EnvFilter::new("warn"), io::stderr);
}

fn install<W: for<'a> MakeWriter<'a> + Send + Sync + 'static>(format: LogFormat, filter: EnvFilter, writer: W) {
    let ansi = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    // A second start (tests) keeps the first.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(ansi).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// One line for a pair that changed its state.
pub fn transition(transition: &Transition) {
    let state = |s: Option<State>| s.map_or("none", State::as_str);
    let source = end(&transition.source);
    let destination = end(&transition.destination);
    let policies = some(&transition.policies);
    let edit = transition.since_edit.as_ref().map(edit).unwrap_or_default();
    info!(
        flow = &*clean(&transition.flow),
        severity = transition.severity.as_str(),
        from = state(transition.from),
        to = state(transition.to),
        source = &*clean(&source),
        destination = &*clean(&destination),
        port = transition.port,
        protocol = transition.protocol.as_str(),
        policies = &*clean(&policies),
        edit = &*clean(&edit),
        why = &*clean(&transition.why),
        "transition"
    );
}

/// The first policies, and how many more there are.
fn some<T: AsRef<str>>(policies: &[T]) -> String {
    let mut text = policies.iter().take(MAX_POLICIES).map(AsRef::as_ref).collect::<Vec<_>>().join(",");
    if let more @ 1.. = policies.len().saturating_sub(MAX_POLICIES) {
        text += &format!(" and {more} more");
    }
    text
}

/// An edit in a few words: the object, and where it came from.
#[must_use]
pub fn edit(edit: &Edit) -> String {
    let origin = match (&edit.origin.file, &edit.origin.line, &edit.origin.resource_version) {
        (Some(file), Some(line), _) => format!(" ({file}:{line})"),
        (Some(file), None, _) => format!(" ({file})"),
        (None, _, Some(version)) => format!(" (resourceVersion {version})"),
        (None, _, None) => String::new(),
    };
    format!("{}{}{origin}", edit.object, if edit.deleted { ", deleted" } else { "" })
}

/// One line for something wrong with the manifests.
pub fn problem(problem: &Problem) {
    let text = problem.to_string();
    match problem.severity {
        Severity::Error => warn!(problem = &*clean(&text), "a manifest was not read"),
        Severity::Warning => warn!(problem = &*clean(&text), "a manifest is doubtful"),
    }
}

/// `namespace/workload`, or what the end is where it is no workload.
#[must_use]
pub fn end(end: &EndView) -> String {
    if end.namespace.is_empty() { end.workload.to_string() } else { format!("{}/{}", end.namespace, end.workload) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_some_policies_and_counts_the_rest() {
        let policies: Vec<String> = (0..22).map(|n| format!("shop/p{n}")).collect();
        assert_eq!(some(&policies[..2]), "shop/p0,shop/p1");
        assert!(some(&policies[..20]).ends_with("shop/p19"));
        assert!(some(&policies).ends_with("shop/p19 and 2 more"), "{}", some(&policies));
    }
}
