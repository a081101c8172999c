//! How many SYNs the listeners of a network namespace had no room for: `ListenDrops` of its `/proc/net/netstat`.
//!
//! The kernel frees such a SYN without a word to any probe. Which namespace has an address is found by asking each, through a
//! process that is in it (any may read, but in a container only `hostPID` shows the node's processes) or by entering it under
//! its name (which takes CAP_SYS_ADMIN). Where neither is possible there is no answer, and the attempt just timed out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::netns;

/// An address that no namespace had is not looked for again for so long: looking takes a walk through all processes.
const MISSING: Duration = Duration::from_secs(10);
/// Addresses remembered at most.
const MAX: usize = 4_096;
/// Questions that wait; of more than these some get lost, and come again with the next SYN.
const WAITING: usize = 256;

/// Asks for `ListenDrops` by address, on a thread of its own.
#[derive(Debug)]
pub struct Listeners {
    questions: mpsc::Sender<IpAddr>,
    answers: mpsc::Receiver<(IpAddr, u64)>,
}

impl Listeners {
    /// Starts the thread; it ends when this is dropped.
    ///
    /// # Errors
    /// When the machine refuses a thread.
    pub fn start() -> anyhow::Result<Self> {
        let (questions, mut asked) = mpsc::channel(WAITING);
        let (answer, answers) = mpsc::channel(WAITING);
        let answered = move || {
            let mut places = Places::default();
            while let Some(address) = asked.blocking_recv() {
                if let Some(count) = places.listen_drops(address)
                    && answer.blocking_send((address, count)).is_err()
                {
                    break;
                }
            }
        };
        thread::Builder::new().name("listeners".to_owned()).spawn(answered).context("cannot start a thread")?;
        Ok(Self { questions, answers })
    }

    /// Never waits.
    pub fn ask(&self, address: IpAddr) {
        let _ = self.questions.try_send(address);
    }

    /// The next address and its count. Cancel safe.
    pub async fn answer(&mut self) -> Option<(IpAddr, u64)> {
        self.answers.recv().await
    }
}

/// Where the namespace of each address was found.
#[derive(Debug, Default)]
struct Places {
    known: BTreeMap<IpAddr, Place>,
    missing: BTreeMap<IpAddr, Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The folder `net` of a process.
    Process(PathBuf),
    /// A file that stands for the namespace.
    Named(PathBuf),
}

impl Places {
    fn listen_drops(&mut self, address: IpAddr) -> Option<u64> {
        // Processes end, and addresses get another owner: both are asked each time.
        let known = self.known.get(&address).and_then(|place| place.listen_drops(address));
        if known.is_some() {
            return known;
        }
        self.known.remove(&address);
        if self.missing.get(&address).is_some_and(|at| at.elapsed() < MISSING) {
            return None;
        }
        let Some((place, count)) = find(address) else {
            if self.missing.len() >= MAX {
                self.missing.clear();
            }
            self.missing.insert(address, Instant::now());
            return None;
        };
        if self.known.len() >= MAX {
            self.known.clear();
        }
        self.known.insert(address, place);
        Some(count)
    }
}

/// Where the namespace is that has the address, and its count.
fn find(address: IpAddr) -> Option<(Place, u64)> {
    among(processes(), address).or_else(|| among(names(), address))
}

/// The one of these that has the address; none if two have it.
fn among(places: impl Iterator<Item = Place>, address: IpAddr) -> Option<(Place, u64)> {
    let mut seen = BTreeSet::new();
    let mut found = None;
    for place in places {
        // The files below /proc are each namespace's own, as the file is that a name stands for.
        let Ok(meta) = fs::metadata(place.file()) else { continue };
        if seen.insert(meta.ino())
            && let Some(count) = place.listen_drops(address)
            && found.replace((place, count)).is_some()
        {
            return None;
        }
    }
    found
}

fn processes() -> impl Iterator<Item = Place> {
    let is_number = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter(move |e| is_number(&e.file_name())).map(|e| Place::Process(e.path().join("net")))
}

fn names() -> impl Iterator<Item = Place> {
    let entries = netns::FOLDERS.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    entries.map(|e| Place::Named(e.path()))
}

impl Place {
    /// Tells the namespace from others.
    fn file(&self) -> PathBuf {
        match self {
            Self::Process(net) => net.join("netstat"),
            Self::Named(name) => name.clone(),
        }
    }

    /// The count, if the namespace has the address.
    fn listen_drops(&self, address: IpAddr) -> Option<u64> {
        match self {
            Self::Process(net) => count_of(net, address),
            Self::Named(name) => {
                let namespace = File::open(name).ok()?;
                netns::inside(&namespace, || count_of(Path::new("/proc/thread-self/net"), address)).ok()?
            }
        }
    }
}

/// From a folder `net` of /proc.
fn count_of(net: &Path, address: IpAddr) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(net.join(file)).ok();
    let has = match address {
        IpAddr::V4(address) => has_v4(&read("fib_trie")?, address),
        IpAddr::V6(address) => has_v6(&read("if_inet6")?, address),
    };
    if has { listen_drops(&read("netstat")?) } else { None }
}

/// A leaf `|-- 10.0.0.1` with `/32 host LOCAL` below it (net/ipv4/fib_trie.c `fib_trie_seq_show`).
fn has_v4(fib_trie: &str, address: Ipv4Addr) -> bool {
    let leaf = format!("|-- {address}");
    let mut lines = fib_trie.lines().map(str::trim);
    while lines.by_ref().any(|line| line == leaf) {
        let below = lines.clone().take_while(|line| line.starts_with('/'));
        if below.into_iter().any(|line| line == "/32 host LOCAL") {
            return true;
        }
    }
    false
}

/// The first word of a line, in hexadecimal (net/ipv6/addrconf.c `if6_seq_show`).
fn has_v6(if_inet6: &str, address: Ipv6Addr) -> bool {
    let wanted = format!("{:032x}", address.to_bits());
    if_inet6.lines().any(|line| line.split(' ').next() == Some(&wanted))
}

/// `TcpExt: NAME …`, then `TcpExt: VALUE …` (net/ipv4/proc.c `netstat_seq_show`).
fn listen_drops(netstat: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|name| name == "ListenDrops")?;
    values.split(' ').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB_TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.0\n        /24 link UNICAST\n     |-- 10.1.0.7\n        \
                            /32 link UNICAST\nLocal:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.4\n        /32 host LOCAL\n     \
                            |-- 10.1.0.255\n        /32 link BROADCAST\n";

    #[test]
    fn an_address_is_of_the_namespace_where_it_is_local() {
        for (address, expected) in
            [("10.1.0.4", true), ("10.1.0.7", false), ("10.1.0.255", false), ("10.1.0.0", false), ("10.1.0.40", false)]
        {
            assert_eq!(has_v4(FIB_TRIE, address.parse().unwrap()), expected, "{address}");
        }
        let if_inet6 = "fd000000000000000000000000000009 01 80 00 80       lo\n";
        assert!(has_v6(if_inet6, "fd00::9".parse().unwrap()));
        assert!(!has_v6(if_inet6, "fd00::90".parse().unwrap()));
    }

    #[test]
    fn the_count_is_found_by_its_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPRcvQDrop\nTcpExt: 1 2 345 6\n\
                       IpExt: InNoRoutes ListenDrops\nIpExt: 7 8\n";
        assert_eq!(listen_drops(netstat), Some(345));
        assert_eq!(listen_drops("TcpExt: SyncookiesSent\nTcpExt: 1\n"), None);
        assert_eq!(listen_drops(""), None);
    }

    /// Every machine has a loopback address in the namespace of the process that asks.
    #[test]
    fn the_own_namespace_is_read() {
        let own = Place::Process("/proc/self/net".into());
        assert!(own.listen_drops(IpAddr::V4(Ipv4Addr::LOCALHOST)).is_some());
        assert_eq!(own.listen_drops("192.0.2.77".parse().unwrap()), None);
    }
}
