//! Values that the API server refuses. They reach Weir in manifests that were never applied.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::facts::{Wish, wants};
use super::{Level, LintId, Place, Rule, Sink, View};
use crate::words::Direction;

pub(super) fn check(view: &View<'_>, out: &mut Sink<'_>) {
    let mut refuse = |place: Place, message: String, hint: &str| {
        out.push(LintId::Invalid, Level::Error, place, message, hint.to_owned());
    };
    for kind in view.written_types().unwrap_or_default() {
        if kind != "Ingress" && kind != "Egress" {
            refuse(Place::POLICY, format!("policyTypes has {kind:?}"), "it takes Ingress and Egress");
        }
    }
    for wanted in wants(view.spec.pod_selector.as_ref()) {
        selector(&wanted, "spec.podSelector", Place::POLICY, &mut refuse);
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        for rule in view.rules(direction) {
            rule.ports.iter().for_each(|p| port(p, Place::rule(&rule), &mut refuse));
            for (index, p) in rule.peers.unwrap_or_default().iter().enumerate() {
                peer(&rule, index, p, &mut refuse);
            }
        }
    }
}

fn selector(wanted: &Wish, field: &str, place: Place, refuse: &mut impl FnMut(Place, String, &str)) {
    if let Wish::Invalid { key, operator } = wanted {
        let hint = "In and NotIn take values, Exists and DoesNotExist take none; there is no other operator";
        refuse(place, format!("{field} has the expression {key} {operator}, which is not valid"), hint);
    }
}

fn port(port: &NetworkPolicyPort, place: Place, refuse: &mut impl FnMut(Place, String, &str)) {
    if let Some(protocol) = &port.protocol
        && !matches!(protocol.as_str(), "TCP" | "UDP" | "SCTP")
    {
        refuse(place, format!("protocol {protocol:?} does not exist"), "it takes TCP, UDP and SCTP");
    }
    let range = 1..=65535;
    match (&port.port, port.end_port) {
        (Some(IntOrString::Int(first)), _) if !range.contains(first) => {
            refuse(place, format!("port {first} does not exist"), "ports are 1 to 65535");
        }
        (Some(IntOrString::Int(first)), Some(last)) if last < *first || !range.contains(&last) => {
            refuse(place, format!("endPort {last} with port {first} is no range"), "endPort is port or more");
        }
        (Some(IntOrString::String(name)), Some(_)) => {
            refuse(place, format!("endPort with the named port {name}"), "endPort needs a port number");
        }
        (Some(IntOrString::String(name)), None) if name.bytes().all(|b| b.is_ascii_digit()) => {
            let hint = "write the number without quotes; a quoted one is a port's name";
            refuse(place, format!("port {name:?} is a text, and no name of a port"), hint);
        }
        (None, Some(last)) => refuse(place, format!("endPort {last} without port"), "endPort needs a port number"),
        (Some(_), _) | (None, None) => {}
    }
}

fn peer(rule: &Rule<'_>, index: usize, peer: &NetworkPolicyPeer, refuse: &mut impl FnMut(Place, String, &str)) {
    let place = Place::peer(rule, index);
    let selectors = [("namespaceSelector", &peer.namespace_selector), ("podSelector", &peer.pod_selector)];
    for (field, sel) in selectors {
        wants(sel.as_ref()).iter().for_each(|wanted| selector(wanted, field, place, refuse));
    }
    let selects = peer.namespace_selector.is_some() || peer.pod_selector.is_some();
    match &peer.ip_block {
        Some(_) if selects => {
            refuse(place, "a peer has ipBlock and selectors".to_owned(), "make it two peers");
        }
        Some(block) => addresses(block, place, refuse),
        None if !selects => {
            refuse(place, "a peer is empty".to_owned(), "it needs podSelector, namespaceSelector or ipBlock");
        }
        None => {}
    }
}

fn addresses(block: &IPBlock, place: Place, refuse: &mut impl FnMut(Place, String, &str)) {
    let Ok(cidr) = block.cidr.parse::<IpNet>() else {
        let hint = "write an address, a slash and a prefix length, as in 10.0.0.0/8";
        return refuse(place, format!("{:?} is no address block", block.cidr), hint);
    };
    for text in block.except.iter().flatten() {
        match text.parse::<IpNet>() {
            Ok(except) if cidr.contains(&except) && except.prefix_len() > cidr.prefix_len() => {}
            Ok(_) => {
                refuse(place, format!("except {text} is not inside {cidr}"), "an exception is a part of its block")
            }
            Err(_) => refuse(place, format!("except {text:?} is no address block"), "write it as 10.1.0.0/16"),
        }
    }
}
