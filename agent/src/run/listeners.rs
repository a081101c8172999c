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

/// An address that no namespace had is not looked for again for so long: it takes a walk through all processes.
const WALK: Duration = Duration::from_secs(10);
/// Addresses remembered at most.
const MAX: usize = 16_384;
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

/// Where each address of the namespaces was found.
#[derive(Debug, Default)]
struct Places {
    /// None: several namespaces have it.
    known: BTreeMap<IpAddr, Option<Place>>,
    walked: Option<Instant>,
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
        self.read(address).or_else(|| {
            if self.walked.is_some_and(|at| at.elapsed() < WALK) {
                return None;
            }
            self.walk();
            self.walked = Some(Instant::now());
            self.read(address)
        })
    }

    /// Processes end, and addresses get another owner: both are asked each time.
    fn read(&self, address: IpAddr) -> Option<u64> {
        let place = self.known.get(&address)?.as_ref()?;
        place.look(|net| if addresses(net).contains(&address) { count(net) } else { None })?
    }

    fn walk(&mut self) {
        self.known.clear();
        // The same namespace may have both, by another number: what processes show is not looked for by name.
        for places in [&mut processes() as &mut dyn Iterator<Item = Place>, &mut names()] {
            let mut found: BTreeMap<IpAddr, Option<Place>> = BTreeMap::new();
            let mut seen = BTreeSet::new();
            for place in places {
                // The files below /proc are each namespace's own, as the file is that a name stands for.
                let Ok(meta) = fs::metadata(place.file()) else { continue };
                if !seen.insert(meta.ino()) {
                    continue;
                }
                for address in place.look(addresses).unwrap_or_default() {
                    found.entry(address).and_modify(|several| *several = None).or_insert_with(|| Some(place.clone()));
                }
            }
            for (address, place) in found.into_iter().take(MAX) {
                self.known.entry(address).or_insert(place);
            }
        }
    }
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

    /// What its folder `net` of /proc says; none if it cannot be reached.
    fn look<T: Send>(&self, at: impl FnOnce(&Path) -> T + Send) -> Option<T> {
        match self {
            Self::Process(net) => Some(at(net)),
            Self::Named(name) => {
                let namespace = File::open(name).ok()?;
                netns::inside(&namespace, || at(Path::new("/proc/thread-self/net"))).ok()
            }
        }
    }
}

fn addresses(net: &Path) -> BTreeSet<IpAddr> {
    let read = |file: &str| fs::read_to_string(net.join(file)).unwrap_or_default();
    let (v4, v6) = (read("fib_trie"), read("if_inet6"));
    local_v4(&v4).map(IpAddr::V4).chain(local_v6(&v6).map(IpAddr::V6)).collect()
}

fn count(net: &Path) -> Option<u64> {
    listen_drops(&fs::read_to_string(net.join("netstat")).ok()?)
}

/// Leaves `|-- 10.0.0.1` with `/32 host LOCAL` below them (net/ipv4/fib_trie.c `fib_trie_seq_show`).
fn local_v4(fib_trie: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut leaf = None;
    fib_trie.lines().map(str::trim).filter_map(move |line| {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        }
        leaf.filter(|_| line == "/32 host LOCAL")
    })
}

/// The first word of each line, in hexadecimal (net/ipv6/addrconf.c `if6_seq_show`).
fn local_v6(if_inet6: &str) -> impl Iterator<Item = Ipv6Addr> {
    let bits = |line: &str| u128::from_str_radix(line.split(' ').next()?, 16).ok();
    if_inet6.lines().filter_map(bits).map(Ipv6Addr::from_bits)
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
        let found: Vec<Ipv4Addr> = local_v4(FIB_TRIE).collect();
        assert_eq!(found, ["10.1.0.4".parse::<Ipv4Addr>().unwrap()]);
        let found: Vec<Ipv6Addr> = local_v6("fd000000000000000000000000000009 01 80 00 80       lo\n").collect();
        assert_eq!(found, ["fd00::9".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(local_v4("").count() + local_v6("no address\n").count(), 0);
    }

    #[test]
    fn the_count_is_found_by_its_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPRcvQDrop\nTcpExt: 1 2 345 6\n\
                       IpExt: InNoRoutes ListenDrops\nIpExt: 7 8\n";
        assert_eq!(listen_drops(netstat), Some(345));
        assert_eq!(listen_drops("TcpExt: SyncookiesSent\nTcpExt: 1\n"), None);
        assert_eq!(listen_drops(""), None);
    }

    /// Every machine has the loopback address in the namespace of the process that asks.
    #[test]
    fn the_own_namespace_is_read() {
        let own = Place::Process("/proc/self/net".into());
        assert!(own.look(addresses).unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(own.look(count).unwrap().is_some());
    }

    #[test]
    fn whoever_has_an_address_is_asked_again_each_time() {
        let own = Some(Place::Process("/proc/self/net".into()));
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let elsewhere = "192.0.2.77".parse().unwrap();
        let known = BTreeMap::from([(localhost, own.clone()), (elsewhere, own)]);
        let mut places = Places { known, walked: Some(Instant::now()) };
        assert!(places.listen_drops(localhost).is_some());
        assert_eq!(places.listen_drops(elsewhere), None, "it had it once");
        places.known.insert(localhost, None);
        assert_eq!(places.listen_drops(localhost), None, "several have it");
    }
}
