//! What the engine shows: one ordered, serialisable view for `weir status`, the metrics and the pages.
//!
//! Field names are an interface: they change only with [`VERSION`]. Everything is ordered, so equal states give equal bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::attempt::Outcome;
use crate::cluster::{Key, Kind, Origin};
use crate::observation::{DropClass, Hook, Owner, Stack, Tuple};
use crate::policy::{Admission, Side};
use crate::requirement::Severity;
use crate::time::Time;
use crate::verdict::State;
use crate::words::{Direction, Protocol};

/// Version of the snapshot's shape.
pub const VERSION: u32 = 1;

/// Upper bounds of the connect latency histogram's buckets, seconds; one more bucket counts what is above the last.
pub const LATENCY_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 3.0, 10.0];

/// Everything the engine knows, at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// When it was taken.
    pub at: Time,
    /// The same, nanoseconds since the Unix epoch; 0 where the engine was not told the offset.
    pub at_unix_ns: i64,
    /// All initial objects have been applied.
    pub synced: bool,
    /// Every pair, by state (the one that needs attention most first), flow, source, destination, protocol, port.
    pub pairs: Vec<PairView>,
    /// Pairs by flow and state; never capped.
    pub counts: Vec<StateCount>,
    /// Attempts by flow and outcome; flow `none` for those that belong to no required flow.
    pub attempts: Vec<AttemptCount>,
    /// Dropped packets.
    pub drops: Vec<DropCount>,
    /// Time to ESTABLISHED by flow.
    pub latencies: Vec<Latency>,
    /// Events lost by stage.
    pub lost: Vec<Loss>,
    /// Objects known, by kind.
    pub objects: Vec<ObjectCount>,
    /// What did not fit in.
    pub overflow: Overflow,
    /// Attempts that are still open.
    pub pending_attempts: usize,
    /// Attempts one end of which no object explains, since the start.
    pub unattributed_attempts: u64,
    /// Newest transitions, newest last; bounded.
    pub transitions: Vec<Transition>,
    /// Policies that are not enforced yet and judged all the same; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<CandidatesView>,
    /// Attempts between known ends that belong to no required flow, by ends, protocol and port; bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficView>,
}

/// Policies that are not enforced yet, and what enforcing them would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidatesView {
    /// Each of them, by name.
    pub policies: Vec<CandidatePolicy>,
    /// Required flows between two workloads that they would deny and today's policies don't.
    pub breaks: u64,
    /// Required flows between two workloads that they would open.
    pub opens: u64,
    /// Observed traffic of no required flow that they would deny and today's policies don't.
    pub traffic_breaks: u64,
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidatePolicy {
    /// `namespace/name`.
    pub policy: String,
    /// Enforced policies that it takes the place of, `namespace/name`, its own name included.
    pub replaces: Vec<String>,
    /// Where it was read: the file, or the ConfigMap.
    pub source: String,
}

/// What enforcing the candidates does to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It is denied then, at least between some pods, and is not now.
    Breaks,
    /// It is denied now and not then.
    Opens,
    /// What is said of it stays the same.
    Same,
}

/// What the policies would say with the candidates in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateView {
    /// What that changes.
    pub effect: Effect,
    /// The verdict of the policies.
    pub admission: Admission,
    /// Sides that would not admit.
    pub directions: Vec<Direction>,
    /// Policies, candidates among them, that would select the ends on the sides that would not admit. The first thousand.
    pub policies: Vec<String>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policies_left_out: usize,
    /// The source's side.
    pub egress: Side,
    /// The destination's side.
    pub ingress: Side,
    /// Instances that would not be admitted; bounded, see `not_admitted_count`.
    pub not_admitted: Vec<InstanceView>,
    /// How many would not.
    pub not_admitted_count: usize,
}

/// Attempts between two ends that no required flow is between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Who connects.
    pub source: EndView,
    /// To whom.
    pub destination: EndView,
    /// Transport.
    pub protocol: Protocol,
    /// The destination's pod port.
    pub port: u16,
    /// The newest instance.
    pub instance: InstanceView,
    /// How many.
    pub attempts: u64,
    /// How many of them succeeded.
    pub established: u64,
    /// When the last one was seen.
    pub last: Time,
    /// The same, nanoseconds since the Unix epoch; 0 where unknown.
    pub last_unix_ns: i64,
    /// What the policies say of the newest instance.
    pub admission: Admission,
    /// What they would say with the candidates in force, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<CandidateView>,
}

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndView {
    /// `workload`, `api-server`, `kubelet`, `node`, `external`, `node-local-dns`.
    pub kind: String,
    /// Namespace of a workload, else empty.
    pub namespace: Arc<str>,
    /// Name of a workload, else the same as `kind`.
    pub workload: Arc<str>,
    /// `Deployment`, `DaemonSet`, …; empty for what is no workload.
    pub workload_kind: Arc<str>,
}

/// One required flow between two ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairView {
    /// The catalogue's id: `sidecar-xds`.
    pub flow: Arc<str>,
    /// The catalogue's code: `SC-XDS`.
    pub code: Arc<str>,
    /// `sidecar`, `gateway`, `control-plane`, …
    pub profile: Arc<str>,
    /// How bad it is when blocked.
    pub severity: Severity,
    /// What it is for.
    pub purpose: Arc<str>,
    /// What is seen when it is blocked.
    pub symptom: Arc<str>,
    /// Who connects.
    pub source: EndView,
    /// To whom.
    pub destination: EndView,
    /// Transport.
    pub protocol: Protocol,
    /// The destination's pod port.
    pub port: u16,
    /// What clients dial, where that is another port.
    pub service_port: Option<u16>,
    /// The verdict.
    pub state: State,
    /// Why, in one line.
    pub why: String,
    /// Since when it is in this state.
    pub since: Time,
    /// The same, nanoseconds since the Unix epoch; 0 where unknown.
    pub since_unix_ns: i64,
    /// Sides that do not admit.
    pub directions: Vec<Direction>,
    /// Policies that select the ends on the sides that do not admit, `namespace/name`, sorted. None of them alone denies. The
    /// first thousand.
    pub policies: Vec<String>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policies_left_out: usize,
    /// The source's side, of the first instance that is not admitted, else of the first.
    pub egress: Side,
    /// The destination's side, likewise.
    pub ingress: Side,
    /// Instances: pairs of a source pod and a destination pod.
    pub instances: usize,
    /// Instances that are not admitted; bounded, see `not_admitted_count`.
    pub not_admitted: Vec<InstanceView>,
    /// How many are not admitted.
    pub not_admitted_count: usize,
    /// The newest evidence that the verdict stands on.
    pub evidence: Option<EvidenceView>,
    /// The policy edit at which the decision last flipped.
    pub since_edit: Option<Edit>,
    /// Attempts seen of this pair since it is known.
    pub attempts: u64,
    /// What the policies would say with the candidates in force, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<CandidateView>,
}

/// A concrete source and destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceView {
    /// Pod, node or address.
    pub source: String,
    /// Pod, node or address.
    pub destination: String,
}

/// What was seen of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvidenceView {
    /// When the outcome was seen.
    pub at: Time,
    /// The same, nanoseconds since the Unix epoch; 0 where unknown.
    pub at_unix_ns: i64,
    /// What became of it.
    pub outcome: Outcome,
    /// The socket still tries.
    pub provisional: bool,
    /// Class of the drop.
    pub class: Option<DropClass>,
    /// Reason of the drop, by name.
    pub reason: Option<String>,
    /// Function of the drop.
    pub location: Option<String>,
    /// At which hook of netfilter it was, where the stack shows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// How the kernel came to `location`, that first; empty where the stack was not taken.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub stack: Stack,
    /// The answer was dropped, not the request.
    pub reply: bool,
    /// ICMP type and code of the answer.
    pub icmp: Option<(u8, u8)>,
    /// As the client dialled it.
    pub dialled: Tuple,
    /// As it left service translation, where that is known and different.
    pub translated: Option<Tuple>,
    /// Retransmits of the SYN.
    pub retransmits: u32,
    /// Time to ESTABLISHED, nanoseconds.
    pub latency_ns: Option<u64>,
    /// Who connected.
    pub owner: Option<Owner>,
    /// Which instance.
    pub instance: InstanceView,
}

/// An edit of the policies (or of what they select).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// The object that was edited.
    pub object: Key,
    /// It was deleted.
    pub deleted: bool,
    /// File and line, or resourceVersion.
    pub origin: Origin,
    /// When the engine was told.
    pub at: Time,
    /// The same, nanoseconds since the Unix epoch; 0 where unknown.
    pub at_unix_ns: i64,
}

/// A pair changed its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// When.
    pub at: Time,
    /// The same, nanoseconds since the Unix epoch; 0 where unknown.
    pub at_unix_ns: i64,
    /// The catalogue's id.
    pub flow: Arc<str>,
    /// How bad it is when blocked.
    pub severity: Severity,
    /// Who connects.
    pub source: EndView,
    /// To whom.
    pub destination: EndView,
    /// Transport.
    pub protocol: Protocol,
    /// The destination's pod port.
    pub port: u16,
    /// Before; `None` for a pair that is new.
    pub from: Option<State>,
    /// Now; `None` for a pair that is gone.
    pub to: Option<State>,
    /// Why, in one line.
    pub why: String,
    /// Policies that select the ends on the sides that do not admit.
    pub policies: Vec<String>,
    /// The policy edit at which the decision last flipped.
    pub since_edit: Option<Edit>,
}

/// Pairs by flow and state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StateCount {
    /// The catalogue's id.
    pub flow: Arc<str>,
    /// How bad it is when blocked.
    pub severity: Severity,
    /// The verdict.
    pub state: State,
    /// How many pairs.
    pub count: u64,
}

/// Attempts by flow and outcome.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptCount {
    /// The catalogue's id, or `none`.
    pub flow: Arc<str>,
    /// What became of them.
    pub outcome: Outcome,
    /// How many.
    pub count: u64,
}

/// Dropped packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DropCount {
    /// Which part of the kernel.
    pub class: DropClass,
    /// Name of the reason, or empty.
    pub reason: String,
    /// Destination port; 0 in the overflow entry.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// How many packets.
    pub count: u64,
}

/// Connect latency of one flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The catalogue's id, or `none`.
    pub flow: Arc<str>,
    /// Attempts per bucket of [`LATENCY_BUCKETS`], not cumulated; the last entry is above all bounds.
    pub buckets: Vec<u64>,
    /// Sum, nanoseconds.
    pub sum_ns: u64,
    /// How many.
    pub count: u64,
}

/// Events lost at one stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Loss {
    /// Where.
    pub stage: String,
    /// How many, since the start.
    pub count: u64,
    /// When the engine was last told.
    pub last: Time,
}

/// Objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCount {
    /// What they are.
    pub kind: Kind,
    /// How many.
    pub count: u64,
}

/// What did not fit into the engine's caps, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overflow {
    /// Pairs left out.
    pub pairs: u64,
    /// Open attempts thrown out to make room.
    pub attempts: u64,
    /// Drop counters that went to the overflow entry.
    pub drop_series: u64,
    /// Transitions nobody fetched in time.
    pub transitions: u64,
    /// Ends learnt from traffic that were left out.
    pub learnt: u64,
}

/// Names as they are told to people: between commas, and how many more there are.
#[must_use]
pub fn names_line(names: &[String], left_out: usize) -> String {
    let mut line = names.join(", ");
    if left_out > 0 {
        line.push_str(&format!(" and {left_out} more"));
    }
    line
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}
