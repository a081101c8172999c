//! The label sets, one struct each, in the order in which they are printed.

use prometheus_client::encoding::EncodeLabelSet;
use weir_engine::policy::Side;
use weir_engine::snapshot::{AttemptCount, DropCount, PairView, StateCount};
use weir_engine::words::Direction;

use crate::outputs::text::clean;

/// What replaces every label of the series for the rest.
const OVERFLOW: &str = "overflow";
/// Policies named in one label; more are counted.
const MAX_POLICIES: usize = 16;

/// A label set with an overflow series.
pub trait Labels: EncodeLabelSet + Clone + Ord {
    /// The labels of the overflow series.
    fn overflow() -> Self;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($field:ident),+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
        pub struct $name {
            $(pub $field: String,)+
        }

        impl Labels for $name {
            fn overflow() -> Self {
                Self { $($field: OVERFLOW.to_owned(),)+ }
            }
        }
    };
}

labels! {
    /// `weir_required_flow_denied`
    Denied {
        flow, severity, direction, source_namespace, source_workload, destination_namespace, destination_workload, port,
        protocol, policies
    }
}
labels! {
    /// `weir_required_flow_state`
    StateOf {
        flow, severity, state, source_namespace, source_workload, destination_namespace, destination_workload, port, protocol
    }
}
labels! {
    /// `weir_required_flows`
    Count { flow, severity, state }
}
labels! {
    /// `weir_attempts_total`
    Attempts { flow, outcome }
}
labels! {
    /// `weir_drops_total`
    Drops { class, reason, port, protocol }
}
labels! {
    /// `weir_connect_latency_seconds`
    Flow { flow }
}
labels! {
    /// `weir_events_lost_total`
    Stage { stage }
}
labels! {
    /// `weir_probe_active`
    Probe { probe }
}
labels! {
    /// `weir_cluster_objects`
    Object { kind }
}
labels! {
    /// `weir_cluster_view_age_seconds`
    Part { part }
}
labels! {
    /// `weir_build_info`
    Build { version }
}

impl Count {
    pub fn of(c: &StateCount) -> Self {
        Self { flow: name(&c.flow), severity: c.severity.to_string(), state: c.state.to_string() }
    }
}

impl Attempts {
    pub fn of(a: &AttemptCount) -> Self {
        Self { flow: name(&a.flow), outcome: a.outcome.to_string() }
    }
}

impl Drops {
    pub fn of(d: &DropCount) -> Self {
        // The engine has a cap of its own, and port 0 for the rest.
        let port = if d.port == 0 { OVERFLOW.to_owned() } else { d.port.to_string() };
        let reason = if d.reason.is_empty() { "unknown".to_owned() } else { name(&d.reason) };
        Self { class: d.class.as_str().to_owned(), reason, port, protocol: d.protocol.to_string() }
    }
}

/// One series per side that does not admit, each with the policies that select its pod.
pub fn denied(pair: &PairView) -> Vec<Denied> {
    let series = |direction: Direction| {
        let side = match direction {
            Direction::Egress => &pair.egress,
            Direction::Ingress => &pair.ingress,
        };
        Denied {
            flow: name(&pair.flow),
            severity: pair.severity.to_string(),
            direction: direction.to_string(),
            source_namespace: name(&pair.source.namespace),
            source_workload: name(&pair.source.workload),
            destination_namespace: name(&pair.destination.namespace),
            destination_workload: name(&pair.destination.workload),
            port: pair.port.to_string(),
            protocol: pair.protocol.to_string(),
            policies: policies(pair, side),
        }
    };
    pair.directions.iter().copied().map(series).collect()
}

/// All policies of the pair, where one side is denied; with two sides denied, those of the side.
fn policies(pair: &PairView, side: &Side) -> String {
    let mut names: Vec<String> = match pair.directions.as_slice() {
        [_, _, ..] => side.selecting().iter().map(ToString::to_string).collect(),
        [] | [_] => Vec::new(),
    };
    if names.is_empty() {
        names.clone_from(&pair.policies);
    }
    names.sort_unstable();
    names.dedup();
    let more = names.len().saturating_sub(MAX_POLICIES);
    names.truncate(MAX_POLICIES);
    let mut text = names.join(",");
    if more > 0 {
        text.push_str(&format!(",+{more}"));
    }
    name(&text)
}

/// Names are written by strangers, and metrics are read in terminals too.
fn name(text: &str) -> String {
    clean(text).into_owned()
}

pub fn state_of(pair: &PairView) -> StateOf {
    StateOf {
        flow: name(&pair.flow),
        severity: pair.severity.to_string(),
        state: pair.state.to_string(),
        source_namespace: name(&pair.source.namespace),
        source_workload: name(&pair.source.workload),
        destination_namespace: name(&pair.destination.namespace),
        destination_workload: name(&pair.destination.workload),
        port: pair.port.to_string(),
        protocol: pair.protocol.to_string(),
    }
}
