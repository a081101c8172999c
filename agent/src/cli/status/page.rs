//! The table of `weir status`, what follows it, and what to do next.

use std::fmt::Write as _;
use std::time::Duration;

use weir_engine::snapshot::{Effect, PairView, TrafficView, names_line};
use weir_engine::time::Time;
use weir_engine::verdict::State;

use super::super::table::{self, Cell, Table, wrap};
use super::needs_attention;
use crate::cluster::manifests::Severity;
use crate::outputs::text::clean;
use crate::outputs::{View, log};
use crate::report::words;

/// Observed connections that candidates would deny: lines of them.
const MAX_TRAFFIC: usize = 20;

/// The wanted pairs, and all that weakens what is said of them.
pub fn page(view: &View, wanted: impl Fn(&PairView) -> bool, more: bool) -> String {
    let shown: Vec<&PairView> = view.snapshot.pairs.iter().filter(|p| wanted(p)).collect();
    let mut out = String::new();
    let audited = audited(view);
    if !shown.is_empty() {
        let headings = ["state", "flow", "source → destination", "port", "since", "candidates"];
        let mut table = Table::new(&headings[..headings.len() - usize::from(!audited)], 2);
        for pair in shown {
            let mut cells = vec![
                Cell::state(pair.state),
                Cell::from(&*pair.flow),
                format!("{} → {}", log::end(&pair.source), log::end(&pair.destination)).into(),
                port(pair).into(),
                age(view.snapshot.at.since(pair.since)).into(),
            ];
            if audited {
                cells.push(pair.candidate.as_ref().map_or("", |c| words::effect(c.effect)).into());
            }
            let notes: Vec<String> =
                [note(pair), closed(pair, view.snapshot.at), tried(pair)].into_iter().flatten().collect();
            table.row(cells, (!notes.is_empty()).then(|| notes.join("; ")).as_deref());
        }
        out.push_str(&table.render());
        out.push('\n');
    }
    out.push_str(&broken_traffic(view));
    out.push_str(&wrap(&summary(view, more)));
    if let Some(candidates) = &view.snapshot.candidates {
        out.push_str(&wrap(&clean(&words::candidates(candidates))));
    }
    let broken = view.agent.problems.iter().filter(|p| p.severity == Severity::Error).count();
    if broken > 0 {
        let first = view.agent.problems.iter().find(|p| p.severity == Severity::Error);
        let text = first.map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(out, "{broken} manifest documents were not read, the first:");
        out.push_str(&wrap(&format!("    {}", clean(&text))));
    }
    let lost: u64 = view.snapshot.lost.iter().map(|l| l.count).sum();
    if lost > 0 {
        let _ = writeln!(out, "{lost} kernel events were lost since the start; what they concern is unknown");
    }
    out
}

/// Whether there are candidates to tell of.
fn audited(view: &View) -> bool {
    view.snapshot.candidates.is_some() || view.snapshot.pairs.iter().any(|p| p.candidate.is_some())
}

/// The candidates that would deny it.
fn tried(pair: &PairView) -> Option<String> {
    let candidate = pair.candidate.as_ref().filter(|c| c.effect == Effect::Breaks)?;
    Some(format!("with the candidates: {}", names_line(&candidate.policies, candidate.policies_left_out)))
}

/// What no required flow explains and the candidates would deny.
fn broken_traffic(view: &View) -> String {
    let breaks = |t: &&TrafficView| t.candidate.as_ref().is_some_and(|c| c.effect == Effect::Breaks);
    let all: Vec<&TrafficView> = view.snapshot.traffic.iter().filter(breaks).collect();
    if all.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["observed, and denied with the candidates", "port", "attempts"], 0);
    for seen in all.iter().take(MAX_TRAFFIC) {
        let ends = format!("{} → {}", log::end(&seen.source), log::end(&seen.destination));
        let policies =
            seen.candidate.as_ref().map(|c| format!("policies: {}", names_line(&c.policies, c.policies_left_out)));
        let port = format!("{}/{}", seen.port, seen.protocol);
        table.row([ends.into(), port.into(), seen.attempts.to_string().into()], policies.as_deref());
    }
    let more = all.len().saturating_sub(MAX_TRAFFIC);
    let more = if more > 0 { format!("and {more} more\n") } else { String::new() };
    format!("{}{more}\n", table.render())
}

fn summary(view: &View, more: bool) -> String {
    let count = |state: State| view.snapshot.pairs.iter().filter(|p| p.state == state).count();
    let parts: Vec<String> = State::ALL
        .into_iter()
        .map(|state| (state, count(state)))
        .filter(|(_, n)| *n > 0)
        .map(|(state, n)| format!("{n} {}", table::state(state)))
        .collect();
    if parts.is_empty() {
        return "no required flows: no mesh workloads are known; check what `weir run --manifests` reads".to_owned();
    }
    format!("{}{}", parts.join(", "), if more { " (--all shows every pair)" } else { "" })
}

/// The command that leads on from the first pair that needs attention.
pub fn next_step(view: &View) -> String {
    let Some(first) = view.snapshot.pairs.iter().find(|p| needs_attention(p.state)) else {
        let breaks = view.snapshot.candidates.as_ref().map_or(0, |c| c.breaks + c.traffic_breaks);
        if breaks > 0 {
            return "next: open in the candidates what they would deny, before they are applied\n".to_owned();
        }
        let fine = view.not_ready().is_none() && !view.snapshot.pairs.is_empty();
        let next = if fine { "nothing to do; `weir status --all` shows every pair" } else { "`weir doctor`" };
        return format!("next: {next}\n");
    };
    let (source, destination) = (log::end(&first.source), log::end(&first.destination));
    let next = match first.state {
        State::Denied | State::Predicted | State::AtRisk | State::Unenforced | State::Silent | State::Verified => {
            let udp = if first.protocol == weir_engine::words::Protocol::Udp { "/udp" } else { "" };
            format!(
                "`weir explain {source} {destination} {}{udp}` says why, `weir fix -f MANIFESTS` opens it",
                first.port
            )
        }
        State::Unexplained | State::Failing => {
            format!("`weir watch --flow {}` shows its attempts as they come", first.flow)
        }
        State::Unknown => "`weir doctor` says what this node can and cannot see".to_owned(),
    };
    wrap(&format!("next: {}", clean(&next)))
}

/// The pod port, and the Service's where that is dialled.
pub fn port(pair: &PairView) -> String {
    match pair.service_port.filter(|p| *p != pair.port) {
        Some(dialled) => format!("{dialled}→{}/{}", pair.port, pair.protocol),
        None => format!("{}/{}", pair.port, pair.protocol),
    }
}

/// The policies where some deny, else why; nothing below what is fine.
pub fn note(pair: &PairView) -> Option<String> {
    match pair.state {
        State::Silent | State::Verified => None,
        State::Denied | State::Predicted | State::AtRisk | State::Unenforced if !pair.policies.is_empty() => {
            Some(format!("policies: {}", names_line(&pair.policies, pair.policies_left_out)))
        }
        State::Denied
        | State::Predicted
        | State::AtRisk
        | State::Unenforced
        | State::Unexplained
        | State::Failing
        | State::Unknown => Some(pair.why.clone()),
    }
}

/// Since which edit the policies do not admit it.
fn closed(pair: &PairView, now: Time) -> Option<String> {
    let edit = pair.since_edit.as_ref().filter(|_| pair.not_admitted_count > 0)?;
    Some(format!("since {}, {} ago", log::edit(edit), age(now.since(edit.at))))
}

/// The two largest units: `12s`, `3m05s`, `2h10m`, `4d03h`.
pub fn age(age: Duration) -> String {
    let s = age.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}
