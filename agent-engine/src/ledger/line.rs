//! One line of evidence: what was seen, where, and what the policies have to do with it.

use super::entry::{Conditions, Entry, Instance};
use super::slot::Seen;
use crate::attempt::Attempt;
use crate::observation::Tuple;
use crate::policy::{Admission, Endpoint, Side};
use crate::requirement::End;
use crate::snapshot::EndView;
use crate::verdict::State;

/// Policies named in a line; all of them are beside it.
const MAX_NAMED: usize = 10;

/// One end of a pair, for people and labels.
#[must_use]
pub fn end_view(end: &End) -> EndView {
    match end {
        End::Workload(w) => EndView {
            kind: end.kind().to_owned(),
            namespace: w.namespace.clone(),
            workload: w.name.clone(),
            workload_kind: w.kind.clone(),
        },
        End::ApiServer | End::Kubelet | End::Node | End::External | End::NodeLocalDns => EndView {
            kind: end.kind().to_owned(),
            namespace: "".into(),
            workload: end.kind().into(),
            workload_kind: "".into(),
        },
    }
}

/// An endpoint as people name it.
#[must_use]
pub fn endpoint(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Pod { name, .. } => name.to_string(),
        Endpoint::Node { name, .. } => format!("node {name}"),
        Endpoint::Address(address) => address.to_string(),
        Endpoint::External => "anywhere outside".to_owned(),
    }
}

/// Why a pair is in a state, in one line.
#[must_use]
pub fn evidence_line(entry: &Entry, c: &Conditions, state: State, seen: Option<(&Instance, &Seen)>) -> String {
    if !c.synced {
        return "objects are still being read".to_owned();
    }
    let seen_line = seen.map(|(_, seen)| attempt_line(&seen.attempt));
    match (state, seen_line) {
        (State::Denied | State::Predicted | State::Unenforced, Some(seen)) => {
            format!("{seen}; {}", decision_line(entry))
        }
        (State::Unexplained, Some(seen)) => format!("{seen}; the policies admit it"),
        (State::Verified | State::Failing, Some(seen)) => seen,
        (State::Unknown, Some(seen)) if entry.judged.admission != Admission::Undecidable => {
            let why = match c.drops_unseen {
                true => "no probe of this node sees drops, so a rule may be the cause",
                false => "events were lost, so the cause may have been too",
            };
            format!("{seen}; {why}")
        }
        (State::Unknown, _) => unknown_line(entry, c),
        (State::AtRisk, _) => format!("no attempt seen; {}", decision_line(entry)),
        (State::Silent, _) => "admitted; no attempt seen".to_owned(),
        (
            State::Denied
            | State::Predicted
            | State::Unenforced
            | State::Unexplained
            | State::Verified
            | State::Failing,
            None,
        ) => decision_line(entry),
    }
}

fn unknown_line(entry: &Entry, c: &Conditions) -> String {
    if entry.judged.admission == Admission::Undecidable {
        let sides = [&entry.judged.decision.egress, &entry.judged.decision.ingress];
        let why = sides.into_iter().find_map(|side| match side {
            Side::Undecidable { why } => Some(why.to_string()),
            _ => None,
        });
        return why.unwrap_or_else(|| "the policies cannot be decided".to_owned());
    }
    if c.lost_at.is_some_and(|at| at.plus(c.window) > c.now) {
        return "events were lost: that no attempt was seen proves nothing".to_owned();
    }
    if let Err(why) = &entry.observable {
        return why.clone();
    }
    "an attempt was seen whose destination no object explains".to_owned()
}

fn decision_line(entry: &Entry) -> String {
    let sides: Vec<String> = entry
        .judged
        .decision
        .denying()
        .map(|(direction, side)| {
            let (names, more) = side.some_selecting(MAX_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{direction} is not admitted, selected by {}{more}", names.join(", "))
        })
        .collect();
    let instances = match (entry.judged.not_admitted_count, entry.judged.instances) {
        (some, all) if some < all => format!(" ({some} of {all} instances)"),
        _ => String::new(),
    };
    if sides.is_empty() { "admitted".to_owned() } else { format!("{}{instances}", sides.join("; ")) }
}

/// What became of an attempt, with both tuples.
fn attempt_line(a: &Attempt) -> String {
    let owner =
        a.owner.as_ref().filter(|o| !o.comm.is_empty()).map(|o| format!("{}[{}] ", o.comm, o.pid)).unwrap_or_default();
    let port = |t: &Tuple| (t.destination, t.destination_port);
    let via = match &a.translated {
        Some(t) if port(t) != port(&a.dialled) => {
            format!(" via {}", socket(a.dialled.destination, a.dialled.destination_port))
        }
        Some(_) | None => String::new(),
    };
    let to = a.judged();
    let path = format!("{owner}{} → {}{via}", a.dialled.source, socket(to.destination, to.destination_port));
    let how = match (&a.dropped, a.icmp) {
        (Some(d), _) => {
            let reason = d.reason.as_deref().unwrap_or("no reason");
            let place = d.location.as_deref().map(|l| format!(" at {l}")).unwrap_or_default();
            let what = if d.reply { ", the answer" } else { "" };
            let hook = d.hook().map(|hook| format!(" {hook}")).unwrap_or_default();
            format!(" ({}{hook}{what}: {reason}{place})", d.class)
        }
        (None, Some((kind, code))) => format!(" (ICMP {kind}/{code})"),
        (None, None) => String::new(),
    };
    let retransmits = match a.retransmits {
        0 => String::new(),
        1 => ", 1 retransmit".to_owned(),
        n => format!(", {n} retransmits"),
    };
    format!("{path} {}{how}{retransmits}", a.outcome)
}

fn socket(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
