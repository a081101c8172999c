//! policyTypes: what they default to, and what that isolates.

use super::facts::{Facts, holds_all, wants};
use super::{Level, LintId, Place, Sink, View};
use crate::words::Direction;

pub(super) fn check(facts: &Facts<'_>, view: &View<'_>, out: &mut Sink<'_>) {
    match view.written_types() {
        Some(_) => ignored(view, out),
        None => defaulted(facts, view, out),
    }
}

fn ignored(view: &View<'_>, out: &mut Sink<'_>) {
    for (direction, word) in [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")] {
        let rules = view.rules(direction).len();
        if rules == 0 || view.isolates(direction) {
            continue;
        }
        let message =
            format!("has {rules} {direction} {}, and policyTypes leaves {word} out: no effect", rule_s(rules));
        let hint = format!("add {word} to policyTypes, or remove the rules");
        out.push(LintId::RulesIgnored, Level::Warning, Place::direction(direction), message, hint);
    }
}

fn defaulted(facts: &Facts<'_>, view: &View<'_>, out: &mut Sink<'_>) {
    let (ingress, egress) = (view.spec.ingress.as_deref(), view.spec.egress.as_deref());
    match (ingress, egress) {
        // With `ingress: []` the author has thought of ingress.
        (None, Some([_, ..])) => {
            let selector = wants(view.spec.pod_selector.as_ref());
            let pods = facts.pods(&view.name.namespace);
            let selected = pods.iter().filter(|g| !g.host_network && holds_all(&selector, g.labels));
            // No pod read: what it would isolate is not known, what it says is.
            if !pods.is_empty() && selected.clone().count() == 0 {
                return;
            }
            if selected.clone().count() > 0
                && selected.clone().all(|g| facts.others_isolate(view, g, Direction::Ingress))
            {
                return;
            }
            let message = "has egress rules and no policyTypes: it isolates its pods for ingress too, and admits nothing \
                           to them";
            let hint = "add policyTypes: [Egress]";
            let place = Place::direction(Direction::Ingress);
            out.push(LintId::PolicyTypesIngress, Level::Warning, place, message.to_owned(), hint.to_owned());
        }
        (_, Some([])) => {
            let message = "has an empty list of egress rules and no policyTypes: it does not isolate for egress";
            let hint = "add Egress to policyTypes to deny all egress, or remove the empty list";
            let place = Place::direction(Direction::Egress);
            out.push(LintId::PolicyTypesEgress, Level::Warning, place, message.to_owned(), hint.to_owned());
        }
        (_, None) | (Some(_), Some([_, ..])) => {}
    }
}

fn rule_s(count: usize) -> &'static str {
    if count == 1 { "rule" } else { "rules" }
}
