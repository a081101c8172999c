//! Isolations as the nftables table of one node.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cni::Enforcement;
use crate::cni::lower::{Direction, Isolation, Match, Ports, Target};
use crate::ipv6::Family;

/// The name of the table.
pub(super) const TABLE: &str = "weir_policies";
/// nftables takes comments up to this many bytes (NFT_USERDATA: 128 with the terminating zero).
const COMMENT: usize = 120;

/// The table of a node, replacing the one before. Forwarded packets pass the source pod's chain and then the
/// destination pod's, if those pods are on the node; packets to the node itself pass the source pod's. What a pod
/// sends itself through a service always passes.
pub fn rules(isolations: &[Isolation], node: &str, enforcement: Enforcement) -> String {
    let here: Vec<&Isolation> = isolations.iter().filter(|isolation| isolation.node == node).collect();
    let mut rules = clear();
    let _ = writeln!(rules, "table inet {TABLE} {{");
    for (index, isolation) in here.iter().enumerate() {
        chain(&mut rules, index, isolation, enforcement);
    }
    for direction in [Direction::Egress, Direction::Ingress] {
        dispatch(&mut rules, &here, direction);
    }
    rules.push_str("chain itself {\n");
    for (family, ip) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let addresses: BTreeSet<&IpAddr> = here.iter().flat_map(|isolation| &isolation.addresses).collect();
        let addresses = addresses.into_iter().filter(|address| Family::of(**address) == family);
        let pairs: Vec<String> = addresses.map(|address| format!("{address} . {address}")).collect();
        if !pairs.is_empty() {
            let _ = writeln!(rules, "{ip} saddr . {ip} daddr {{ {} }} accept", pairs.join(", "));
        }
    }
    rules.push_str(
        "}\nchain forward { type filter hook forward priority 0; policy accept; ct state established,related accept; \
         jump itself; jump egress; jump ingress; }\n\
         chain input { type filter hook input priority 0; policy accept; ct state established,related accept; \
         jump egress; }\n}\n",
    );
    rules
}

/// Removes the table, whether there is one or not.
pub fn clear() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// The chain of an isolated pod: returns for what is admitted, ends with what happens to the rest.
fn chain(rules: &mut String, index: usize, isolation: &Isolation, enforcement: Enforcement) {
    let direction = word(isolation.direction);
    let _ = writeln!(rules, "chain {direction}{index} {{");
    let mut lines: Vec<String> = Vec::new();
    for admitted in &isolation.admitted {
        for line in matched(admitted, isolation.direction) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    for line in lines {
        let _ = writeln!(rules, "{line} return");
    }
    let comment = comment(isolation);
    let _ = match enforcement {
        Enforcement::Drop => writeln!(rules, "counter drop comment \"{comment}\""),
        Enforcement::Reject => writeln!(rules, "counter reject with icmpx port-unreachable comment \"{comment}\""),
        Enforcement::RejectWithReset => writeln!(
            rules,
            "meta l4proto tcp counter reject with tcp reset comment \"{comment}\"\n\
             counter reject with icmpx port-unreachable comment \"{comment}\""
        ),
    };
    rules.push_str("}\n");
}

/// The chain that leads each isolated pod's packets to its own.
fn dispatch(rules: &mut String, here: &[&Isolation], direction: Direction) {
    let _ = writeln!(rules, "chain {} {{", word(direction));
    let own = if direction == Direction::Egress { "saddr" } else { "daddr" };
    for (family, ip) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let indexed = here.iter().enumerate().filter(|(_, isolation)| isolation.direction == direction);
        let elements: Vec<String> = indexed
            .flat_map(|(index, isolation)| isolation.addresses.iter().map(move |address| (index, *address)))
            .filter(|(_, address)| Family::of(*address) == family)
            .map(|(index, address)| format!("{address} : jump {}{index}", word(direction)))
            .collect();
        if !elements.is_empty() {
            let _ = writeln!(rules, "{ip} {own} vmap {{ {} }}", elements.join(", "));
        }
    }
    rules.push_str("}\n");
}

/// The rule's matching part, once per address family that it can hold for; nothing if it can match nothing.
fn matched(admitted: &Match, direction: Direction) -> Vec<String> {
    let other = if direction == Direction::Egress { "daddr" } else { "saddr" };
    let ports = match admitted.ports {
        Ports::All => String::new(),
        Ports::Protocol(l4) => format!("meta l4proto {l4}"),
        Ports::Range(l4, first, last) if first == last => format!("{l4} dport {first}"),
        Ports::Range(l4, first, last) => format!("{l4} dport {first}-{last}"),
    };
    let targets = match &admitted.target {
        Target::Any => vec![String::new()],
        Target::Addresses(addresses) => [(Family::V4, "ip"), (Family::V6, "ip6")]
            .into_iter()
            .filter_map(|(family, ip)| {
                let list: Vec<String> =
                    addresses.iter().filter(|it| Family::of(**it) == family).map(IpAddr::to_string).collect();
                (!list.is_empty()).then(|| format!("{ip} {other} {{ {} }}", list.join(", ")))
            })
            .collect(),
        Target::Block(cidr, except) => {
            let ip = if cidr.addr().is_ipv4() { "ip" } else { "ip6" };
            let except: Vec<String> = except.iter().map(IpNet::to_string).collect();
            let except: String = except.iter().map(|net| format!(" {ip} {other} != {net}")).collect();
            // `0.0.0.0/0` is no valid operand for nft: the family alone says it.
            let all = if ip == "ip" { "meta nfproto ipv4" } else { "meta nfproto ipv6" };
            let block = if cidr.prefix_len() == 0 { all.to_owned() } else { format!("{ip} {other} {cidr}") };
            vec![format!("{block}{except}")]
        }
    };
    targets.into_iter().map(|target| format!("{target} {ports}").trim().to_owned()).collect()
}

fn comment(isolation: &Isolation) -> String {
    let direction = word(isolation.direction);
    let mut text = format!("{direction} {}: {}", isolation.pod, isolation.policies.join(" "));
    text.retain(|character| character.is_ascii() && character != '"');
    text.truncate(COMMENT);
    text
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}
