//! Ports that are a Service's and not the pods', and names that no pod declares.

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::facts::{Facts, Group};
use super::{Level, LintId, Place, Rule, Sink, View};
use crate::cluster::pod::protocol;
use crate::words::{Direction, Protocol};

pub(super) fn check(facts: &Facts<'_>, view: &View<'_>, out: &mut Sink<'_>) {
    for rule in view.effective() {
        let destinations = facts.destinations(view, &rule);
        for port in rule.ports {
            if let Some((protocol, port)) = number(port)
                && let Some(pods) = &destinations
            {
                service_port(&rule, protocol, port, pods, out);
            }
            if let Some(IntOrString::String(name)) = &port.port {
                named(facts, &rule, port, name, destinations.as_deref(), out);
            }
        }
    }
}

/// Protocol and number of a single port.
pub(super) fn number(port: &NetworkPolicyPort) -> Option<(Protocol, u16)> {
    let Some(IntOrString::Int(first)) = port.port else { return None };
    let single = port.end_port.is_none_or(|last| last == first);
    single.then_some((protocol(port.protocol.as_deref())?, u16::try_from(first).ok()?))
}

/// The rule opens this port, as a number or within a range.
pub(super) fn opens(rule: &Rule<'_>, wanted: Protocol, port: u16) -> bool {
    rule.ports.is_empty()
        || rule.ports.iter().any(|p| {
            protocol(p.protocol.as_deref()) == Some(wanted)
                && match (&p.port, p.end_port) {
                    (None, _) => true,
                    (Some(IntOrString::Int(first)), last) => {
                        (*first..=last.unwrap_or(*first)).contains(&i32::from(port))
                    }
                    (Some(IntOrString::String(_)), _) => false,
                }
        })
}

fn service_port(rule: &Rule<'_>, protocol: Protocol, port: u16, pods: &[&Group<'_>], out: &mut Sink<'_>) {
    if pods.iter().any(|g| g.listens(protocol, port)) {
        return;
    }
    let served = pods.iter().flat_map(|g| g.served.iter().map(move |s| (*g, s)));
    let mut targets = served.filter(|(_, (_, from, to, p))| *p == protocol && *from == port && *to != port);
    let Some((group, (service, _, target, _))) = targets.next() else { return };
    // Both opened, by number or by name: whoever wrote it knows.
    let known = |name: &str| group.ports.iter().any(|p| *p.name == *name && p.port == *target);
    let by_name = rule.ports.iter().any(|p| matches!(&p.port, Some(IntOrString::String(n)) if known(n)));
    if by_name || opens(rule, protocol, *target) {
        return;
    }
    let message = format!(
        "opens {protocol} {port}, the port of Service {}/{service}; its pods listen on {target}, and policies see the \
         pod's port",
        group.example.name.namespace
    );
    let hint = format!("open {target} instead");
    out.push(LintId::ServicePort, Level::Warning, Place::rule(rule), message, hint);
}

fn named(
    facts: &Facts<'_>,
    rule: &Rule<'_>,
    port: &NetworkPolicyPort,
    name: &str,
    destinations: Option<&[&Group<'_>]>,
    out: &mut Sink<'_>,
) {
    let everyone: Vec<&Group<'_>>;
    let pods = match destinations {
        Some(pods) => pods,
        // Egress to anyone, and all there is to reach was read.
        None if rule.direction == Direction::Egress && rule.anyone() && facts.whole_cluster => {
            everyone = facts.all_pods().collect();
            &everyone
        }
        None => return,
    };
    let Some(wanted) = protocol(port.protocol.as_deref()) else { return };
    let declared = |g: &&Group<'_>| g.ports.iter().any(|p| *p.name == *name && p.protocol == wanted);
    // A name of digits alone is reported as invalid.
    if pods.is_empty() || pods.iter().any(declared) || name.bytes().all(|b| b.is_ascii_digit()) {
        return;
    }
    let other = pods.iter().flat_map(|g| g.ports).find(|p| *p.name == *name);
    let other = other.map(|p| format!(" (it is a {} port)", p.protocol)).unwrap_or_default();
    let message = format!("opens the {wanted} port named {name}, which none of the destination pods declares{other}");
    let hint = "use the port's number, or name the container port";
    out.push(LintId::PortNameUnknown, Level::Warning, Place::rule(rule), message, hint.to_owned());
}
