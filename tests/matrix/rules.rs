//! Causes made of netfilter rules.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Result;

use super::Held;
use super::nfq::Dropper;
use super::world::Site;
use crate::ipv6::Family;

/// Numbers of netfilter queues: any that nobody else uses in a node of the mesh.
static QUEUE: AtomicU16 = AtomicU16::new(7000);

const REQUEST: &str = "drop";

pub fn forward(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook forward priority filter", REQUEST, false)
}

pub fn postrouting(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook postrouting priority 90", REQUEST, false)
}

pub fn output(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook output priority filter", REQUEST, false)
}

pub fn input(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook input priority filter", REQUEST, false)
}

pub fn answer(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook forward priority filter", REQUEST, true)
}

pub fn reject_port(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook forward priority filter", "reject with icmpx port-unreachable", false)
}

pub fn reject_admin(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook forward priority filter", "reject with icmpx admin-prohibited", false)
}

pub fn reject_reset(site: &Site<'_>) -> Result<Held> {
    chain(site, "hook forward priority filter", "meta l4proto tcp reject with tcp reset", false)
}

pub fn iptables_legacy(site: &Site<'_>) -> Result<Held> {
    iptables(site, "legacy", &["-A", "FORWARD"], &["-j", "DROP"])
}

pub fn iptables_nft(site: &Site<'_>) -> Result<Held> {
    iptables(site, "nft", &["-A", "FORWARD"], &["-j", "DROP"])
}

pub fn nfqueue(site: &Site<'_>) -> Result<Held> {
    let queue = QUEUE.fetch_add(1, Ordering::Relaxed);
    let reader = Dropper::start(site.here()?, queue)?;
    to_queue(site, queue)?;
    Ok(Some(Box::new(reader)))
}

pub fn nfqueue_unheard(site: &Site<'_>) -> Result<Held> {
    to_queue(site, QUEUE.fetch_add(1, Ordering::Relaxed))
}

/// The SYN passes conntrack by, so that the SYN-ACK belongs to no connection it knows, as on an asymmetric route.
pub fn invalid(site: &Site<'_>) -> Result<Held> {
    let (requests, answers) = (site.matches(false), site.matches(true));
    let name = site.table();
    let untracked: String = requests.iter().map(|rule| format!("{rule} notrack\n")).collect();
    let dropped: String = answers.iter().map(|rule| format!("{rule} ct state invalid drop\n")).collect();
    site.here()?.nft(&format!(
        "table inet {name} {{\nchain raw {{ type filter hook prerouting priority raw\n{untracked}}}\n\
         chain forward {{ type filter hook forward priority filter\n{dropped}}}\n}}\n"
    ))?;
    Ok(None)
}

/// The way behind the node takes smaller packets than the client knows, and nobody may tell it so.
pub fn mtu_black_hole(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.server)?;
    node.ip(&format!("link set dev {device} mtu 1280\n"))?;
    let name = site.table();
    let client = |family| site.address(&site.lane.client, family);
    node.nft(&format!(
        "table inet {name} {{ chain o {{ type filter hook output priority filter\n\
         ip daddr {} icmp type destination-unreachable drop\n\
         ip6 daddr {} icmpv6 type packet-too-big drop\n}}\n}}\n",
        client(Family::V4)?,
        client(Family::V6)?,
    ))?;
    Ok(None)
}

/// A chain of the namespace the cause sits in, with one rule for each family.
fn chain(site: &Site<'_>, hook: &str, verdict: &str, answers: bool) -> Result<Held> {
    let rules: String = site.matches(answers).iter().map(|rule| format!("{rule} {verdict}\n")).collect();
    let name = site.table();
    site.here()?.nft(&format!("table inet {name} {{ chain c {{ type filter {hook}\n{rules}}}\n}}\n"))?;
    Ok(None)
}

fn to_queue(site: &Site<'_>, queue: u16) -> Result<Held> {
    let number = queue.to_string();
    iptables(site, "legacy", &["-t", "mangle", "-A", "POSTROUTING"], &["-j", "NFQUEUE", "--queue-num", &number])
}

fn iptables(site: &Site<'_>, variant: &str, chain: &[&str], target: &[&str]) -> Result<Held> {
    for family in [Family::V4, Family::V6] {
        let program = match family {
            Family::V4 => format!("iptables-{variant}"),
            Family::V6 => format!("ip6tables-{variant}"),
        };
        let ends: [IpAddr; 2] = [site.address(&site.lane.client, family)?, site.address(&site.lane.server, family)?];
        let [source, destination] = ends.map(|address| address.to_string());
        let mut arguments = vec!["--wait"];
        arguments.extend(chain);
        arguments.extend(["--source", &source, "--destination", &destination]);
        arguments.extend(target);
        site.here()?.tool(&program, &arguments, "")?;
    }
    Ok(None)
}
