//! The label sets, one struct each, in the order in which they are printed.

use prometheus_client::encoding::EncodeLabelSet;
use weir_engine::policy::Side;
use weir_engine::snapshot::{
    AttemptCount, CandidateView, DropCount, Effect, EndView, PairView, StateCount, TrafficView,
};
use weir_engine::words::{Direction, Protocol};

use crate::outputs::log;
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
    // Labels of a pair of ends stand between the others.
    ($(#[$doc:meta])* $name:ident { $($field:ident),+; ends$(; $after:ident)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
        pub struct $name {
            $(pub $field: String,)+
            #[prometheus(flatten)]
            pub ends: Ends,
            $(pub $after: String,)?
        }

        impl Labels for $name {
            fn overflow() -> Self {
                Self { $($field: OVERFLOW.to_owned(),)+ ends: Ends::overflow(), $($after: OVERFLOW.to_owned(),)? }
            }
        }
    };
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
    /// Two workloads and the port between them: equal in every metric of a pair, so that they can be joined.
    Ends { source_namespace, source_workload, destination_namespace, destination_workload, port, protocol }
}
labels! {
    /// `weir_required_flow_denied`, `weir_candidate_denied`
    Denied { flow, severity, direction; ends; policies }
}
labels! {
    /// `weir_required_flow_closed_timestamp_seconds`
    Closed { flow, severity; ends; edit }
}
labels! {
    /// `weir_required_flow_state`
    StateOf { flow, severity, state; ends }
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

impl Ends {
    fn of((source, destination): (&EndView, &EndView), port: u16, protocol: Protocol) -> Self {
        Self {
            source_namespace: name(&source.namespace),
            source_workload: name(&source.workload),
            destination_namespace: name(&destination.namespace),
            destination_workload: name(&destination.workload),
            port: port.to_string(),
            protocol: protocol.to_string(),
        }
    }
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
    let of =
        Of { flow: &pair.flow, severity: pair.severity.as_str(), source: &pair.source, destination: &pair.destination };
    let refusal = Refusal {
        directions: &pair.directions,
        policies: (&pair.policies, pair.policies_left_out),
        egress: &pair.egress,
        ingress: &pair.ingress,
    };
    of.series(pair.port, pair.protocol, &refusal)
}

/// One series per side of a pair that candidates would close.
pub fn broken_pair(pair: &PairView) -> Vec<Denied> {
    let of =
        Of { flow: &pair.flow, severity: pair.severity.as_str(), source: &pair.source, destination: &pair.destination };
    let broken = pair.candidate.as_ref().filter(|c| c.effect == Effect::Breaks);
    broken.map(|c| of.series(pair.port, pair.protocol, &Refusal::of(c))).unwrap_or_default()
}

/// One series per side of observed traffic that candidates would close; no flow of the catalogue, so no severity either.
pub fn broken_traffic(seen: &TrafficView) -> Vec<Denied> {
    let of = Of { flow: "none", severity: "none", source: &seen.source, destination: &seen.destination };
    let broken = seen.candidate.as_ref().filter(|c| c.effect == Effect::Breaks);
    broken.map(|c| of.series(seen.port, seen.protocol, &Refusal::of(c))).unwrap_or_default()
}

/// Whose flow it is.
struct Of<'a> {
    flow: &'a str,
    severity: &'a str,
    source: &'a EndView,
    destination: &'a EndView,
}

/// What does not admit it.
struct Refusal<'a> {
    directions: &'a [Direction],
    policies: (&'a [String], usize),
    egress: &'a Side,
    ingress: &'a Side,
}

impl<'a> Refusal<'a> {
    fn of(c: &'a CandidateView) -> Self {
        Self {
            directions: &c.directions,
            policies: (&c.policies, c.policies_left_out),
            egress: &c.egress,
            ingress: &c.ingress,
        }
    }

    /// All policies of the pair, where one side is denied; with two sides denied, those of the side.
    fn policies(&self, side: &Side) -> String {
        let (mut names, mut more) = match self.directions {
            [_, _, ..] => side.some_selecting(MAX_POLICIES),
            [] | [_] => (Vec::new(), 0),
        };
        if names.is_empty() {
            let (all, left_out) = self.policies;
            names = all.iter().take(MAX_POLICIES).cloned().collect();
            more = left_out + all.len() - names.len();
        }
        let mut text = names.join(",");
        if more > 0 {
            text.push_str(&format!(",+{more}"));
        }
        name(&text)
    }
}

impl Of<'_> {
    fn series(&self, port: u16, protocol: Protocol, refusal: &Refusal<'_>) -> Vec<Denied> {
        let series = |direction: Direction| {
            let side = match direction {
                Direction::Egress => refusal.egress,
                Direction::Ingress => refusal.ingress,
            };
            Denied {
                flow: name(self.flow),
                severity: self.severity.to_owned(),
                direction: direction.to_string(),
                ends: Ends::of((self.source, self.destination), port, protocol),
                policies: refusal.policies(side),
            }
        };
        refusal.directions.iter().copied().map(series).collect()
    }
}

/// Names are written by strangers, and metrics are read in terminals too.
pub fn name(text: &str) -> String {
    clean(text).into_owned()
}

/// A pair that policies do not admit since an edit, and when that was.
pub fn closed(pair: &PairView) -> Option<(Closed, u64)> {
    let edit = pair.since_edit.as_ref().filter(|_| pair.not_admitted_count > 0)?;
    let labels = Closed {
        flow: name(&pair.flow),
        severity: pair.severity.to_string(),
        ends: Ends::of((&pair.source, &pair.destination), pair.port, pair.protocol),
        edit: name(&log::edit(edit)),
    };
    Some((labels, u64::try_from(edit.at_unix_ns).unwrap_or(0) / 1_000_000_000))
}

pub fn state_of(pair: &PairView) -> StateOf {
    StateOf {
        flow: name(&pair.flow),
        severity: pair.severity.to_string(),
        state: pair.state.to_string(),
        ends: Ends::of((&pair.source, &pair.destination), pair.port, pair.protocol),
    }
}
