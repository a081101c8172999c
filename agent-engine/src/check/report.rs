//! What a check says. Field names are an interface: they change only with [`VERSION`].

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Mutation;
use crate::policy::lint::Lint;
use crate::policy::{Admission, Decision, Endpoint, Profile, Side};
use crate::requirement::Severity;
use crate::snapshot::{EndView, ObjectCount};
use crate::words::{Direction, Protocol};

/// Version of the report's shape.
pub const VERSION: u32 = 1;

/// Everything that a check found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Whose reading of the specification decided.
    pub engine: Profile,
    /// The worst of all pairs.
    pub verdict: Verdict,
    /// How many of what.
    pub counts: Counts,
    /// Every required flow between two ends: what needs attention first, then by severity, flow, source and destination.
    pub pairs: Vec<PairReport>,
    /// What is probably not meant in the policies.
    pub lints: Vec<Finding>,
    /// What each rule is needed for, where that was asked.
    pub mutation: Option<Mutation>,
    /// Objects that the report stands on, by kind.
    pub objects: Vec<ObjectCount>,
    /// Workloads whose proxy was simulated: the injector would add it, nobody has yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub simulated: Vec<String>,
}

/// What policies say of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// At least one instance is not admitted.
    Denied,
    /// At least one instance cannot be decided, and none is denied.
    Undecidable,
    /// All are admitted. Of a report: or there are none.
    Admitted,
}

impl Verdict {
    /// `denied`, `undecidable` or `admitted`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Undecidable => "undecidable",
            Self::Admitted => "admitted",
        }
    }

    pub(super) fn of(pairs: &[PairReport]) -> Self {
        pairs.iter().map(|p| p.verdict).min().unwrap_or(Self::Admitted)
    }
}

impl From<Admission> for Verdict {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Admitted => Self::Admitted,
            Admission::NotAdmitted => Self::Denied,
            Admission::Undecidable => Self::Undecidable,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many of what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Pairs.
    pub pairs: usize,
    /// Pairs of which all instances are admitted.
    pub admitted: usize,
    /// Pairs of which an instance is denied.
    pub denied: usize,
    /// Pairs of which an instance cannot be decided, and none is denied.
    pub undecidable: usize,
    /// Concrete sources and destinations of all pairs.
    pub instances: usize,
    /// By severity, the worst first; those without pairs left out.
    pub by_severity: Vec<SeverityCount>,
}

/// Pairs of one severity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeverityCount {
    /// How bad it is when blocked.
    pub severity: Severity,
    /// Pairs admitted.
    pub admitted: usize,
    /// Pairs denied.
    pub denied: usize,
    /// Pairs undecidable.
    pub undecidable: usize,
}

impl Counts {
    pub(super) fn of(pairs: &[PairReport]) -> Self {
        let count = |verdict: Verdict, severity: Option<Severity>| {
            let of = |p: &&PairReport| p.verdict == verdict && severity.is_none_or(|s| p.severity == s);
            pairs.iter().filter(of).count()
        };
        let by_severity = Severity::ALL.into_iter().filter(|s| pairs.iter().any(|p| p.severity == *s));
        Self {
            pairs: pairs.len(),
            admitted: count(Verdict::Admitted, None),
            denied: count(Verdict::Denied, None),
            undecidable: count(Verdict::Undecidable, None),
            instances: pairs.iter().map(|p| p.instances).sum(),
            by_severity: by_severity
                .map(|severity| SeverityCount {
                    severity,
                    admitted: count(Verdict::Admitted, Some(severity)),
                    denied: count(Verdict::Denied, Some(severity)),
                    undecidable: count(Verdict::Undecidable, Some(severity)),
                })
                .collect(),
        }
    }
}

/// One required flow between two ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// The worst of its instances.
    pub verdict: Verdict,
    /// How bad it is when blocked.
    pub severity: Severity,
    /// The catalogue's id: `sidecar-xds`.
    pub flow: Arc<str>,
    /// The catalogue's code: `SC-XDS`.
    pub code: Arc<str>,
    /// `sidecar`, `gateway`, `control-plane`, …
    pub profile: Arc<str>,
    /// Who connects.
    pub source: EndView,
    /// To whom.
    pub destination: EndView,
    /// Transport.
    pub protocol: Protocol,
    /// The destination's pod port: what policies see.
    pub port: u16,
    /// What clients dial, where the catalogue knows of another port.
    pub service_port: Option<u16>,
    /// What it is for.
    pub purpose: Arc<str>,
    /// What is seen when it is blocked.
    pub symptom: Arc<str>,
    /// Policies that select the ends on the sides that do not admit, `namespace/name`, sorted. None of them alone denies.
    pub policies: Vec<String>,
    /// Concrete sources and destinations.
    pub instances: usize,
    /// Instances by what the same policies say of them, what needs attention first.
    pub cases: Vec<Case>,
}

impl PairReport {
    /// What reports are ordered by.
    pub(super) fn rank(&self) -> impl Ord + '_ {
        let ends = (&self.source, &self.destination, self.protocol, self.port);
        (self.verdict, self.severity, &self.flow, ends)
    }

    /// Instances that are not admitted.
    #[must_use]
    pub fn denied(&self) -> usize {
        self.cases.iter().filter(|c| c.verdict == Verdict::Denied).map(|c| c.count).sum()
    }
}

/// Instances of a pair that fare alike: by the same policies and rules on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Both sides together.
    pub verdict: Verdict,
    /// At the source: of the first instance. What the others lack may differ in value.
    pub egress: Side,
    /// At the destination, likewise.
    pub ingress: Side,
    /// How many instances.
    pub count: usize,
    /// The first of them.
    pub instances: Vec<InstanceView>,
}

impl Case {
    /// Egress, then ingress.
    pub fn sides(&self) -> impl Iterator<Item = (Direction, &Side)> {
        [(Direction::Egress, &self.egress), (Direction::Ingress, &self.ingress)].into_iter()
    }

    /// The sides that do not admit.
    pub fn denying(&self) -> impl Iterator<Item = (Direction, &Side)> {
        self.sides().filter(|(_, side)| side.admission() == Admission::NotAdmitted)
    }
}

pub use crate::snapshot::InstanceView;

/// A concrete source and destination, as text.
#[must_use]
pub fn instance(source: &Endpoint, destination: &Endpoint) -> InstanceView {
    let text = |e: &Endpoint| match e {
        Endpoint::Pod { name, .. } => name.to_string(),
        Endpoint::Node { name, address: Some(address) } => format!("node {name} ({address})"),
        Endpoint::Node { name, address: None } => format!("node {name}"),
        Endpoint::Address(address) => address.to_string(),
        Endpoint::External => "outside".to_owned(),
    };
    InstanceView { source: text(source), destination: text(destination) }
}

/// A lint, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The lint.
    #[serde(flatten)]
    pub lint: Lint,
    /// Denied required flows that the rule would admit if it were not for this, by id.
    pub blocks: Vec<Arc<str>>,
}

/// What a side is, without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SideKind {
    /// [`Side::NotAdmitted`]
    NotAdmitted,
    /// [`Side::DeniedBy`]
    DeniedBy,
    /// [`Side::Undecidable`]
    Undecidable,
    /// [`Side::Admitted`]
    Admitted,
    /// [`Side::NotIsolated`]
    NotIsolated,
    /// [`Side::NodeLocal`]
    NodeLocal,
    /// [`Side::NotApplicable`]
    NotApplicable,
}

/// What makes two instances fare alike on a side: its kind, and the policies and rules that it names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Brief(SideKind, Vec<crate::policy::RuleRef>, Vec<crate::words::Name>);

impl Brief {
    /// Of one side.
    #[must_use]
    pub fn of(side: &Side) -> Self {
        match side {
            // Asked for the policies alone, a side need not find out why none of their rules admits.
            Side::NotAdmitted { .. } => {
                let mut policies: Vec<_> = side.selecting().into_iter().cloned().collect();
                policies.sort_unstable();
                Self(SideKind::NotAdmitted, Vec::new(), policies)
            }
            Side::DeniedBy { by } => Self(SideKind::DeniedBy, vec![by.clone()], Vec::new()),
            Side::Undecidable { .. } => Self(SideKind::Undecidable, Vec::new(), Vec::new()),
            Side::Admitted { by, selecting } => Self(SideKind::Admitted, by.clone(), selecting.to_vec()),
            Side::NotIsolated => Self(SideKind::NotIsolated, Vec::new(), Vec::new()),
            Side::NodeLocal => Self(SideKind::NodeLocal, Vec::new(), Vec::new()),
            Side::NotApplicable => Self(SideKind::NotApplicable, Vec::new(), Vec::new()),
        }
    }

    /// Of both sides, the one that needs attention first in front.
    pub(super) fn both(decision: &Decision) -> (Verdict, Self, Self) {
        (decision.admission().into(), Self::of(&decision.egress), Self::of(&decision.ingress))
    }
}
