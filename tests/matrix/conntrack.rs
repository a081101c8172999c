//! A connection table that is full: filled over netlink with entries that count as assured, which are never evicted early.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, send, setsockopt, socket, sockopt,
};

use super::Held;
use super::world::Site;

/// Messages per send.
const BATCH: u32 = 200;

/// Makes the namespace track connections and fills its table. The limit is the machine's, the count each namespace's own.
pub fn full(site: &Site<'_>) -> Result<Held> {
    let name = site.table();
    let namespace = site.here()?;
    namespace.nft(&format!(
        "table inet {name} {{ chain p {{ type filter hook prerouting priority filter\nct state new counter\n}}\n}}\n"
    ))?;
    let limit: u32 = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?.trim().parse()?;
    // The count may pass the limit only by what comes over netlink.
    namespace.run(|| fill(limit + 64)).context("cannot fill the connection table")?;
    Ok(None)
}

fn fill(entries: u32) -> Result<()> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&netlink, sockopt::SndBufForce, &(1 << 20))?;
    connect(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut next = 0;
    while next < entries {
        let mut batch = Vec::with_capacity(BATCH as usize * 128);
        let end = entries.min(next + BATCH);
        for number in next..end {
            batch.extend(entry(number));
        }
        next = end;
        let sent = send(netlink.as_raw_fd(), &batch, MsgFlags::empty()).map_err(io::Error::from)?;
        anyhow::ensure!(sent == batch.len(), "netlink took {sent} of {} bytes", batch.len());
    }
    Ok(())
}

/// `IPCTNL_MSG_CT_NEW` for a UDP flow of its own (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
fn entry(number: u32) -> Vec<u8> {
    let [_, b, c, d] = number.to_be_bytes();
    let (one, other) = ([10, b, c, d], [192, 0, 2, 1]);
    let mut body = vec![2, 0, 0, 0]; // nfgenmsg: AF_INET, version 0
    body.extend(nested(1, &tuple(one, other))); // CTA_TUPLE_ORIG
    body.extend(nested(2, &tuple(other, one))); // CTA_TUPLE_REPLY
    body.extend(attribute(3, &14u32.to_be_bytes())); // CTA_STATUS: seen reply, assured, confirmed
    body.extend(attribute(7, &600u32.to_be_bytes())); // CTA_TIMEOUT, seconds
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend((1u16 << 8).to_ne_bytes()); // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
    message.extend(0x601u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_EXCL | NLM_F_CREATE
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn tuple(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let addresses = [attribute(1, &source), attribute(2, &destination)].concat();
    let ports = [attribute(1, &[17]), attribute(2, &[0, 7]), attribute(3, &[0, 7])].concat();
    [nested(1, &addresses), nested(2, &ports)].concat()
}

fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | 0x8000, content)
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = 4 + content.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}
