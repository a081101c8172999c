//! The page of `weir explain`: the verdict, then each side with its nearest miss, then what to do.

use weir_engine::check::{Case, Repair, Verdict};
use weir_engine::cluster::Cluster;
use weir_engine::policy::Side;
use weir_engine::words::{Direction, Name};

use super::{Answer, Explanation, ends_of};
use crate::report::table::Page;
use crate::report::{Inputs, patches, words};

/// Misses told beside the nearest.
const MAX_MISSES: usize = 8;

/// The page; `arguments` are those that name the manifests, empty where an agent was asked.
///
/// # Errors
/// When a proposed policy cannot be written as YAML.
pub fn render(
    explanation: &Explanation,
    cluster: &Cluster,
    inputs: &Inputs,
    arguments: &str,
) -> anyhow::Result<String> {
    let mut page = Page::default();
    for answer in &explanation.targets {
        page.gap();
        one(&mut page, explanation, answer, cluster);
    }
    page.gap();
    if inputs.broken() > 0 {
        let broken = words::count(inputs.broken(), "document was", "documents were");
        page.line(0, &format!("Weakened: {broken} not read; a policy in it could change this."));
    }
    match explanation.verdict {
        Verdict::Denied => {
            if let Some(fix) = &explanation.fix {
                mended(&mut page, fix)?;
            }
            page.line(0, "Next: review it, kubectl apply -f FILE, ask again. For all that the mesh needs:");
            if explanation.live {
                let command = "kubectl get -A -o yaml ns,nodes,po,svc,endpointslices,netpol | weir fix";
                page.command(command, "-f - > fixes.yaml");
            } else {
                page.command("weir fix", arguments);
            }
        }
        Verdict::Undecidable => {
            page.line(0, "Next: name the engine that enforces your policies: --engine calico, cilium or ovn.");
        }
        Verdict::Admitted => {
            page.line(0, "Policies are not in the way. If it fails all the same: weir status, weir watch on its node.");
        }
    }
    Ok(page.text)
}

/// The fix, ready to be copied, with all that it opens beside.
fn mended(page: &mut Page, fix: &Repair) -> anyhow::Result<()> {
    for left in &fix.unfixable {
        page.line(0, &format!("No fix: {}: {}", left.flow, left.why));
    }
    if !fix.policies.is_empty() {
        page.line(0, if fix.denied_after == 0 { "The fix, tried out:" } else { "A part of the fix, tried out:" });
        page.text.push_str(&patches::yaml(&fix.policies)?);
        page.gap();
    }
    if !fix.beyond.is_empty() {
        page.line(0, "Besides, this changes:");
        for d in fix.beyond.iter().take(MAX_MISSES) {
            page.line(2, &words::difference(d));
        }
        if fix.beyond.len() > MAX_MISSES {
            page.line(2, &format!("and {} more; --output json has them all", fix.beyond.len() - MAX_MISSES));
        }
        page.gap();
    }
    Ok(())
}

fn one(page: &mut Page, explanation: &Explanation, answer: &Answer, cluster: &Cluster) {
    let Some(worst) = answer.cases.first() else { return };
    let (word, style) = match answer.verdict {
        Verdict::Denied => ("DENIED", Page::RED),
        Verdict::Undecidable => ("UNDECIDABLE", Page::YELLOW),
        Verdict::Admitted => ("ADMITTED", Page::GREEN),
    };
    page.styled(0, word, style, &format!("{}, {} {}", ends_of(worst), explanation.protocol, answer.port));
    if worst.count < answer.instances {
        page.line(2, &format!("so are {} of {} connections between these ends", worst.count, answer.instances));
    } else if answer.instances > 1 {
        page.line(2, &format!("so are all {} connections between these ends", answer.instances));
    }
    if let Some(service) = &answer.service {
        let text = if answer.port == explanation.port {
            format!("through Service {service}")
        } else {
            format!(
                "{} is the port of Service {service}; its backends listen on {}, and policies see that port",
                explanation.port, answer.port
            )
        };
        page.line(2, &text);
    }
    for required in &answer.required {
        page.line(
            2,
            &format!("required: {} ({}, {}): {}", required.flow, required.code, required.severity, required.purpose),
        );
        if answer.verdict == Verdict::Denied {
            page.line(4, &format!("seen as: {}", required.symptom));
        }
    }
    if explanation.live {
        observed(page, answer);
    }
    page.gap();
    sides(page, worst, cluster);
    for case in answer.cases.iter().skip(1) {
        page.gap();
        page.line(
            2,
            &format!(
                "{} differ, such as {}: {}",
                words::count(case.count, "connection", "connections"),
                ends_of(case),
                case.verdict
            ),
        );
        sides(page, case, cluster);
    }
}

/// What the agent's kernel saw, and since when the decision is as it is.
fn observed(page: &mut Page, answer: &Answer) {
    page.gap();
    if answer.required.is_empty() {
        if answer.attempts.is_empty() {
            let port = answer.port;
            let next = "shows attempts as they come, where the port is watched";
            page.line(2, &format!("seen: no attempt lately; weir watch --port {port} {next}"));
        }
    } else if answer.observed.is_empty() {
        page.line(2, "seen: nothing; neither end is on this agent's node, or the pair is new");
    }
    for pair in &answer.observed {
        page.line(2, &format!("{}: {}, {}", pair.flow, pair.state, pair.why));
        if let Some(evidence) = &pair.evidence {
            let at = words::time(evidence.at_unix_ns);
            page.line(4, &format!("last seen {at}: {}", words::evidence(evidence)));
            if let Some(stack) = words::stack(evidence) {
                page.line(6, &format!("kernel stack, from the drop outwards: {stack}"));
            }
        }
        if let Some(edit) = &pair.since_edit {
            let what = if edit.deleted { "was deleted" } else { "was applied" };
            let file = edit.origin.file.as_deref().map(|f| format!(" from {f}")).unwrap_or_default();
            let at = words::time(edit.at_unix_ns);
            page.line(4, &format!("the decision last changed at {at}, when {}{file} {what}", edit.object));
        }
    }
    if !answer.attempts.is_empty() {
        page.line(2, "newest attempts:");
    }
    for line in &answer.attempts {
        let still = if line.provisional { ", still trying" } else { "" };
        page.line(4, &format!("{} {}{still}", words::time(line.at_unix_ns), words::attempt(line)));
    }
}

fn sides(page: &mut Page, case: &Case, cluster: &Cluster) {
    let ends = case.instances.first();
    for (direction, side) in case.sides() {
        let end = ends.map(|i| match direction {
            Direction::Egress => &i.source,
            Direction::Ingress => &i.destination,
        });
        let text = words::side(direction, side);
        let text = text.strip_prefix(direction.as_str()).unwrap_or(&text);
        let end = end.map(|e| format!(" at {e}")).unwrap_or_default();
        page.line(2, &format!("{direction}{end}:{text}"));
        if let Side::NotAdmitted { .. } = side {
            misses(page, direction, side, cluster);
        }
    }
}

fn misses(page: &mut Page, direction: Direction, side: &Side, cluster: &Cluster) {
    let Side::NotAdmitted { selecting } = side else { return };
    let mut told = 0;
    let total: usize = selecting.iter().map(|s| s.misses.len()).sum();
    for s in selecting {
        for miss in &s.misses {
            if told == MAX_MISSES {
                page.line(6, &format!("and {} more rules", total - told));
                return;
            }
            let near = if told == 0 { "nearest: " } else { "" };
            let peer = miss.peer.map(|p| format!(" peer {p}")).unwrap_or_default();
            page.line(
                4,
                &format!("{near}{} rule {}{peer} {}{}", s.policy, miss.rule, miss.why, place(cluster, &s.policy)),
            );
            if told == 0 && !miss.port_matches && !words::about_port(&miss.why) {
                page.line(6, "its ports do not match either, once that is mended");
            }
            told += 1;
        }
    }
    for s in selecting.iter().filter(|s| s.misses.is_empty()) {
        page.line(4, &format!("{} admits nothing: it has no {direction} rule{}", s.policy, place(cluster, &s.policy)));
    }
}

/// ` (policies.yaml:12)`.
fn place(cluster: &Cluster, policy: &Name) -> String {
    let origin = cluster.policy(policy).map(|p| &p.origin);
    let Some(file) = origin.and_then(|o| o.file.as_deref()) else { return String::new() };
    let line = origin.and_then(|o| o.line).map(|l| format!(":{l}")).unwrap_or_default();
    format!(" ({file}{line})")
}
