//! The status page: one document without scripts or anything to load, that reads on a phone. Every name in it is escaped.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use weir_engine::check::Repair;
use weir_engine::snapshot::{Effect, PairView, Snapshot, TrafficView, names_line};
use weir_engine::verdict::State;

use super::text::html;
use super::{View, log};
use crate::report::{patches, words};

/// Pairs in full; what is beyond is in `/snapshot`.
const MAX_PAIRS: usize = 1_000;
/// Flows that stay closed, and what else opens: lines of each.
const MAX_LEFT: usize = 20;

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>Weir</title><style>\
body{font:16px/1.4 sans-serif;margin:1rem auto;padding:0 1rem;max-width:60rem;overflow-wrap:anywhere}\
.wide{overflow-x:auto}table{border-collapse:collapse}td,th{text-align:left;padding:.2rem .8rem .2rem 0}\
details{border-top:1px solid #ccc;padding:.3rem 0}summary{cursor:pointer}pre{overflow-x:auto;background:#f4f4f4;padding:.6rem;font-size:14px}\
dt{font-weight:bold;margin-top:.4rem}dd{margin:0}b{display:inline-block;min-width:6.5rem}\
.denied,.predicted,.unexplained,.failing{color:#b00020}.at-risk,.unenforced,.unknown{color:#8a5a00}\
.verified{color:#1b6e1b}.silent{color:#666}</style><h1>Weir</h1>";

/// The required flows of this node: how many are in which state, and each pair with what its state stands on.
///
/// # Errors
/// Never in practice: writing to a `String` cannot fail.
pub fn page(view: &View, repair: Option<&Repair>) -> Result<String, fmt::Error> {
    let mut out = HEAD.to_owned();
    match view.not_ready() {
        None => out.push_str("<p>Ready."),
        Some(reason) => write!(out, "<p class=\"unknown\">Not ready: {}", html(&reason))?,
    }
    let lost: u64 = view.snapshot.lost.iter().map(|l| l.count).sum();
    if lost > 0 {
        write!(
            out,
            "<p class=\"unknown\">{lost} kernel events were lost since the start; what they concern is unknown."
        )?;
    }
    if let Some(problem) = view.agent.problems.first() {
        write!(out, "<p class=\"unknown\">Manifests: {}", html(&problem.to_string()))?;
        if view.agent.problems.len() > 1 {
            write!(out, " (and {} more)", view.agent.problems.len() - 1)?;
        }
    }
    matrix(&mut out, &view.snapshot.pairs)?;
    candidates(&mut out, &view.snapshot)?;
    out.push_str("<h2>Pairs</h2>");
    if view.snapshot.pairs.is_empty() {
        out.push_str("<p>No mesh workloads are known.");
    }
    for pair in view.snapshot.pairs.iter().take(MAX_PAIRS) {
        details(&mut out, pair)?;
    }
    if view.snapshot.pairs.len() > MAX_PAIRS {
        let more = view.snapshot.pairs.len() - MAX_PAIRS;
        write!(out, "<p>{more} more pairs are in <a href=\"/snapshot\">the snapshot</a>.")?;
    }
    match repair {
        Some(repair) => fix(&mut out, repair)?,
        None => out.push_str(
            "<h2>Proposed fix</h2><p>This cluster is too large to work it out here: <code>weir fix</code> does.",
        ),
    }
    out.push_str("<p><a href=\"/metrics\">metrics</a> <a href=\"/snapshot\">snapshot</a></html>\n");
    Ok(out)
}

/// Flows down, states across.
fn matrix(out: &mut String, pairs: &[PairView]) -> fmt::Result {
    let mut flows: BTreeMap<&str, [usize; State::ALL.len()]> = BTreeMap::new();
    for pair in pairs {
        let counts = flows.entry(&pair.flow).or_default();
        for (count, state) in counts.iter_mut().zip(State::ALL) {
            *count += usize::from(state == pair.state);
        }
    }
    let used: Vec<usize> = (0..State::ALL.len()).filter(|i| flows.values().any(|counts| counts[*i] > 0)).collect();
    if used.is_empty() {
        return Ok(());
    }
    let audited = pairs.iter().any(|p| p.candidate.is_some());
    out.push_str("<h2>Required flows</h2><div class=\"wide\"><table><tr><th>Flow");
    for index in &used {
        write!(out, "<th class=\"{0}\">{0}", State::ALL[*index])?;
    }
    if audited {
        out.push_str("<th class=\"at-risk\">denied by candidates");
    }
    for (flow, counts) in &flows {
        write!(out, "<tr><td>{}", html(flow))?;
        for index in &used {
            let count = if counts[*index] == 0 { String::new() } else { counts[*index].to_string() };
            write!(out, "<td class=\"{}\">{count}", State::ALL[*index])?;
        }
        if audited {
            let count = pairs.iter().filter(|p| *p.flow == **flow && effect(p) == Some(Effect::Breaks)).count();
            write!(out, "<td class=\"at-risk\">{}", if count == 0 { String::new() } else { count.to_string() })?;
        }
    }
    out.push_str("</table></div>");
    Ok(())
}

fn effect(pair: &PairView) -> Option<Effect> {
    pair.candidate.as_ref().map(|c| c.effect)
}

/// Policies that are not enforced, and what they would deny of what no required flow explains.
fn candidates(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    let Some(candidates) = &snapshot.candidates else { return Ok(()) };
    write!(out, "<h2>Candidates</h2><p>{}<ul>", html(&words::candidates(candidates)))?;
    for candidate in candidates.policies.iter().take(MAX_LEFT) {
        write!(out, "<li>{} ({})", html(&candidate.policy), html(&candidate.source))?;
        if !candidate.replaces.is_empty() {
            write!(out, ", in place of {}", html(&candidate.replaces.join(", ")))?;
        }
    }
    if candidates.policies.len() > MAX_LEFT {
        write!(out, "<li>and {} more", candidates.policies.len() - MAX_LEFT)?;
    }
    out.push_str("</ul>");
    let breaks = |t: &&TrafficView| t.candidate.as_ref().is_some_and(|c| c.effect == Effect::Breaks);
    for seen in snapshot.traffic.iter().filter(breaks).take(MAX_LEFT) {
        let policies =
            seen.candidate.as_ref().map(|c| names_line(&c.policies, c.policies_left_out)).unwrap_or_default();
        write!(
            out,
            "<p class=\"at-risk\">Observed {} times, and denied with the candidates: {} → {} {}/{}: {}",
            seen.attempts,
            html(&log::end(&seen.source)),
            html(&log::end(&seen.destination)),
            seen.port,
            seen.protocol,
            html(&policies),
        )?;
    }
    Ok(())
}

fn details(out: &mut String, pair: &PairView) -> fmt::Result {
    let (source, destination) = (html(&log::end(&pair.source)), html(&log::end(&pair.destination)));
    write!(
        out,
        "<details><summary><b class=\"{0}\">{0}</b> {1} {source} → {destination} {2}/{3}",
        pair.state,
        html(&pair.flow),
        pair.port,
        pair.protocol,
    )?;
    match effect(pair) {
        Some(effect @ (Effect::Breaks | Effect::Opens)) => {
            write!(out, " <span class=\"at-risk\">(candidates: {})</span>", words::effect(effect))?;
        }
        Some(Effect::Same) | None => {}
    }
    out.push_str("</summary><dl>");
    item(out, "Why", &pair.why)?;
    if !pair.policies.is_empty() {
        let sides: Vec<&str> = pair.directions.iter().map(|d| d.as_str()).collect();
        item(out, "Policies that select it and do not admit it", &names_line(&pair.policies, pair.policies_left_out))?;
        item(out, "Side", &sides.join(", "))?;
    }
    if let Some(candidate) = pair.candidate.as_ref().filter(|c| c.effect == Effect::Breaks) {
        item(
            out,
            "Policies that would select it and not admit it, with the candidates",
            &names_line(&candidate.policies, candidate.policies_left_out),
        )?;
    }
    item(out, "For", &pair.purpose)?;
    item(out, "When blocked", &pair.symptom)?;
    if !pair.policies.is_empty() {
        out.push_str("<dt>What to do<dd><a href=\"#fix\">the proposed fix</a>");
    }
    for instance in pair.not_admitted.iter().take(5) {
        item(out, "Not admitted", &format!("{} → {}", instance.source, instance.destination))?;
    }
    if pair.not_admitted_count > 5 {
        item(out, "Not admitted in all", &format!("{} of {}", pair.not_admitted_count, pair.instances))?;
    }
    if let Some(edit) = &pair.since_edit {
        let deleted = if edit.deleted { " (deleted)" } else { "" };
        item(out, "Decision last changed by", &format!("{}{deleted}", edit.object))?;
    }
    match &pair.evidence {
        Some(evidence) => item(out, "Last seen", &words::evidence(evidence))?,
        None => item(out, "Last seen", "nothing")?,
    }
    out.push_str("</dl></details>");
    Ok(())
}

/// Policies to apply, tried out before they are shown.
fn fix(out: &mut String, repair: &Repair) -> fmt::Result {
    if repair.denied_before == 0 {
        return Ok(());
    }
    let opened = repair.denied_before - repair.denied_after;
    write!(
        out,
        "<h2 id=\"fix\">Proposed fix</h2><p>Opens {opened} of {} required flows that the policies do not admit, by \
         re-evaluation. Review it, then <code>kubectl apply -f</code>.",
        repair.denied_before
    )?;
    for left in repair.unfixable.iter().take(MAX_LEFT) {
        write!(out, "<p class=\"unknown\">Not fixed: {}: {}", html(&left.flow), html(&left.why))?;
    }
    if !repair.beyond.is_empty() {
        out.push_str("<p>Besides the required flows this changes:<ul>");
        for difference in repair.beyond.iter().take(MAX_LEFT) {
            write!(out, "<li>{}", html(&words::difference(difference)))?;
        }
        out.push_str("</ul>");
    }
    let yaml = patches::yaml(&repair.policies).unwrap_or_else(|error| error.to_string());
    out.push_str("<pre>");
    for line in yaml.lines() {
        writeln!(out, "{}", html(line))?;
    }
    out.push_str("</pre>");
    Ok(())
}

fn item(out: &mut String, name: impl Display, value: &str) -> fmt::Result {
    if value.is_empty() { Ok(()) } else { write!(out, "<dt>{name}<dd>{}", html(value)) }
}
