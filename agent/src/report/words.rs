//! The sentences that all formats share.

use weir_engine::attempt::Outcome;
use weir_engine::check::{Case, Finding, PairReport};
use weir_engine::observation::{DropClass, Hook, Owner, Tuple};
use weir_engine::policy::diff::WorkloadDifference;
use weir_engine::policy::lint::Lint;
use weir_engine::policy::{Admission, Miss, Selecting, Side, Why};
use weir_engine::snapshot::{CandidatesView, Effect, EndView, EvidenceView};
use weir_engine::words::{Direction, Workload};

use crate::outputs::live::Line;

/// One end: `app/web`, or what it is where it is no workload.
#[must_use]
pub fn end(end: &EndView) -> String {
    if end.namespace.is_empty() { end.workload.to_string() } else { format!("{}/{}", end.namespace, end.workload) }
}

/// `2026-01-31T12:00:00Z`; a dash where it is not known.
#[must_use]
pub fn time(unix_ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(unix_ns.into()) {
        Ok(time) if unix_ns != 0 => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Ok(_) | Err(_) => "-".to_owned(),
    }
}

/// What was seen of an attempt, in one line.
#[must_use]
pub fn evidence(evidence: &EvidenceView) -> String {
    let EvidenceView { class, hook, location, reason, reply, .. } = evidence;
    let drop = class.map(|class| (*reply, class, parts(*hook, location.as_deref(), reason.as_deref())));
    outcome(evidence.outcome, (&evidence.dialled, evidence.translated.as_ref()), drop, evidence.owner.as_ref())
}

/// Where in the kernel, from the wide to the narrow, and its reason.
fn parts<'a>(hook: Option<Hook>, location: Option<&'a str>, reason: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    hook.map(Hook::as_str).into_iter().chain(location).chain(reason)
}

/// The way to a drop, from the function of the drop outwards.
#[must_use]
pub fn stack(evidence: &EvidenceView) -> Option<String> {
    (!evidence.stack.is_empty()).then(|| evidence.stack.join(" < "))
}

fn outcome<'a>(
    outcome: Outcome,
    (dialled, translated): (&Tuple, Option<&Tuple>),
    drop: Option<(bool, DropClass, impl Iterator<Item = &'a str>)>,
    owner: Option<&Owner>,
) -> String {
    let tuple =
        |t: &Tuple| format!("{} port {} → {} port {}", t.source, t.source_port, t.destination, t.destination_port);
    let mut text = format!("{outcome}: {}", tuple(dialled));
    if let Some(translated) = translated {
        text += &format!(", translated to {}", tuple(translated));
    }
    if let Some((reply, class, parts)) = drop {
        let of = if reply { "the answer was dropped" } else { "dropped" };
        text += &format!(", {of} in {class}");
        for part in parts {
            text += &format!(" {part}");
        }
    }
    if let Some(owner) = owner {
        text += &format!(", by {}[{}]", owner.comm, owner.pid);
    }
    text
}

/// An attempt in one line, in the words of [`evidence`].
#[must_use]
pub fn attempt(line: &Line) -> String {
    let Line { class, hook, location, reason, reply, .. } = line;
    let drop = class.map(|class| (*reply, class, parts(*hook, location.as_deref(), reason.as_deref())));
    outcome(line.outcome, (&line.dialled, line.translated.as_ref()), drop, line.owner.as_ref())
}

/// `TCP 15017 (Service port 443)`.
#[must_use]
pub fn port(pair: &PairReport) -> String {
    match pair.service_port.filter(|p| *p != pair.port) {
        Some(dialled) => format!("{} {} (Service port {dialled})", pair.protocol, pair.port),
        None => format!("{} {}", pair.protocol, pair.port),
    }
}

/// `app/web → mesh/istiod TCP 15012`.
#[must_use]
pub fn pair(pair: &PairReport) -> String {
    format!("{} → {} {}", end(&pair.source), end(&pair.destination), port(pair))
}

/// What a side says, in one sentence, without a full stop.
#[must_use]
pub fn side(direction: Direction, side: &Side) -> String {
    let what = match side {
        Side::NotIsolated => "open: no policy selects the pod".to_owned(),
        Side::Admitted { by, .. } => {
            let by: Vec<String> = by.iter().map(ToString::to_string).collect();
            format!("admitted by {}", by.join(", "))
        }
        Side::NotAdmitted { selecting } => match &**selecting {
            [one] => format!("not admitted: {} selects the pod, and no rule admits it", one.policy),
            many => {
                let mut names: Vec<String> = many.iter().map(|s| s.policy.to_string()).collect();
                names.sort_unstable();
                format!("not admitted: {} select the pod, and no rule admits it", names.join(", "))
            }
        },
        Side::DeniedBy { by } => format!("denied by {by}"),
        Side::NodeLocal => "open: traffic of the pod's own node is always admitted".to_owned(),
        Side::NotApplicable => "open: NetworkPolicies do not apply to this end".to_owned(),
        Side::Undecidable { why } => format!("cannot be decided: {why}"),
    };
    format!("{direction} {what}")
}

/// The rule that comes nearest to admitting, and why it does not.
#[must_use]
pub fn nearest(side: &Side) -> Option<(&Selecting, &Miss)> {
    let Side::NotAdmitted { selecting } = side else { return None };
    selecting.iter().find_map(|s| Some((s, s.misses.first()?)))
}

/// `nearest: app/to-istiod rule 0 opens TCP 443, not 15012`.
#[must_use]
pub fn nearest_text(side: &Side) -> Option<String> {
    nearest(side).map(|(selecting, miss)| format!("nearest: {} rule {} {}", selecting.policy, miss.rule, miss.why))
}

/// The peer matches, and the port does not.
#[must_use]
pub fn about_port(why: &Why) -> bool {
    match why {
        Why::ServicePort { .. } | Why::Port { .. } | Why::Protocol { .. } | Why::PortName { .. } => true,
        Why::PodLabel { .. }
        | Why::NamespaceLabel { .. }
        | Why::OtherNamespace { .. }
        | Why::OutsideBlock { .. }
        | Why::Excepted { .. }
        | Why::NotAPod { .. }
        | Why::BlockNotCompared { .. }
        | Why::BlockElsewhere { .. }
        | Why::OtherKind
        | Why::Invalid { .. } => false,
    }
}

/// Every sentence about the sides that do not admit, or cannot be decided.
#[must_use]
pub fn reasons(case: &Case) -> Vec<String> {
    let mut lines = Vec::new();
    for (direction, s) in case.sides() {
        match s {
            Side::NotAdmitted { .. } => {
                lines.push(side(direction, s));
                lines.extend(nearest_text(s));
            }
            Side::DeniedBy { .. } | Side::Undecidable { .. } => lines.push(side(direction, s)),
            Side::NotIsolated | Side::Admitted { .. } | Side::NodeLocal | Side::NotApplicable => {}
        }
    }
    lines
}

/// Where a lint points: `app/to-istiod egress rule 0 peer 1`.
#[must_use]
pub fn place(lint: &Lint) -> String {
    let mut text = lint.policy.to_string();
    if let Some(direction) = lint.direction {
        text.push_str(&format!(" {direction}"));
    }
    if let Some(rule) = lint.rule {
        text.push_str(&format!(" rule {rule}"));
    }
    if let Some(peer) = lint.peer {
        text.push_str(&format!(" peer {peer}"));
    }
    text
}

/// `policies.yaml:12`, or nothing.
#[must_use]
pub fn origin(lint: &Lint) -> Option<String> {
    let file = lint.origin.file.as_deref()?;
    Some(lint.origin.line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}")))
}

/// What a finding costs: `blocks sidecar-xds, sidecar-dns`.
#[must_use]
pub fn blocks(finding: &Finding) -> Option<String> {
    let flows: Vec<&str> = finding.blocks.iter().map(|f| &**f).collect();
    (!flows.is_empty()).then(|| format!("blocks {}", flows.join(", ")))
}

/// `opens shop/cart → shop/stock TCP 80, 8080-8090`.
#[must_use]
pub fn difference(d: &WorkloadDifference) -> String {
    let end = |w: &Option<Workload>| w.as_ref().map_or_else(|| "outside".to_owned(), ToString::to_string);
    let what = match d.after {
        Admission::Admitted => "opens",
        Admission::NotAdmitted => "closes",
        Admission::Undecidable => "becomes undecidable:",
    };
    let ports: Vec<String> = d.ports.iter().map(ToString::to_string).collect();
    let pairs = if d.pairs > 1 { format!(" ({} pairs of pods)", d.pairs) } else { String::new() };
    format!("{what} {} → {} {} {}{pairs}", end(&d.source), end(&d.destination), d.protocol, ports.join(", "))
}

/// `1 pair`, `2 pairs`.
#[must_use]
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// What the candidates do to one flow, in a word; nothing where they change nothing.
#[must_use]
pub fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Breaks => "deny",
        Effect::Opens => "open",
        Effect::Same => "",
    }
}

/// What enforcing the candidates would change, in one line.
#[must_use]
pub fn candidates(view: &CandidatesView) -> String {
    let CandidatesView { policies, breaks, opens, traffic_breaks } = view;
    let policies =
        if policies.len() == 1 { "1 candidate".to_owned() } else { format!("{} candidates", policies.len()) };
    format!(
        "{policies}, not enforced: would deny {breaks} required flows and {traffic_breaks} observed connections, and open \
         {opens} required flows"
    )
}
