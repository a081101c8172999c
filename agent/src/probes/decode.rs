//! Events → observations: numbers of this kernel become names that mean the same on all.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use weir_common::{Event, udp_flags};
use weir_engine::observation::{Observation, Symbols as Names};

use super::{cgroup::Pods, symbols::Symbols};

/// A connected UDP socket that lived shorter than this and got nothing was not necessarily sent from: name resolution opens
/// and closes such sockets only to learn the source address of a route. Nanoseconds.
const INSTANT: u64 = 100_000_000;

/// Names of drop reasons and of drop locations. Shared freely between tasks.
#[derive(Debug)]
pub struct Decoder {
    reasons: BTreeMap<u32, String>,
    symbols: Mutex<Symbols>,
    pods: Mutex<Pods>,
}

impl Decoder {
    /// `reasons` from the kernel's BTF, locations from `kallsyms`.
    #[must_use]
    pub fn new(reasons: BTreeMap<u32, String>, kallsyms: &Path) -> Self {
        Self { reasons, symbols: Mutex::new(Symbols::read(kallsyms)), pods: Mutex::default() }
    }

    /// With the mount of the cgroup v2 hierarchy, where there is one: tasks' pods are known by it.
    #[must_use]
    pub fn with_cgroups(self, mount: Option<PathBuf>) -> Self {
        Self { pods: Mutex::new(Pods::new(mount)), ..self }
    }

    /// The observation, or `None` where the event says nothing about a connection.
    #[must_use]
    pub fn decode(&self, event: &Event) -> Option<Observation> {
        if let Event::UdpEnd(end) = event
            && end.flags & udp_flags::REPLIED == 0
            && end.error == 0
            && (end.created == 0 || end.header.timestamp.saturating_sub(end.created) < INSTANT)
        {
            return None;
        }
        let mut seen = Observation::from_event(event, self)?;
        let owner = match &mut seen {
            Observation::AttemptStart(start) => Some(&mut start.owner),
            Observation::UdpEnd(end) => Some(&mut end.owner),
            _ => None,
        };
        if let Some(owner) = owner.filter(|owner| owner.pid != 0) {
            owner.pod = self.pods.lock().unwrap_or_else(PoisonError::into_inner).uid(owner.cgroup, owner.pid);
        }
        Some(seen)
    }
}

impl Names for Decoder {
    fn reason(&self, value: u32) -> Option<String> {
        self.reasons.get(&value).cloned()
    }

    fn location(&self, address: u64) -> Option<String> {
        let mut symbols = self.symbols.lock().unwrap_or_else(PoisonError::into_inner);
        symbols.name(address).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use weir_common::{Header, Owner, Tuple, UdpEnd, kind};

    use super::*;

    #[test]
    fn a_socket_that_lived_for_an_instant_is_no_evidence() {
        let decoder = Decoder::new(BTreeMap::new(), Path::new("/dev/null"));
        let said = |created, timestamp, flags, error| {
            let header = Header { kind: kind::UDP_END, padding: [0; 3], cpu: 0, timestamp };
            let tuple = Tuple { protocol: 17, destination_port: 53, ..Tuple::default() };
            let owner = Owner::default();
            let end = UdpEnd { header, tuple, socket: 1, netns: 1, error, flags, padding: [0; 7], created, owner };
            decoder.decode(&Event::UdpEnd(end)).is_some()
        };
        let start = 1_000_000_000;
        assert!(!said(start, start + INSTANT - 1, 0, 0), "nothing came, but nothing need have been sent");
        assert!(said(start, start + INSTANT, 0, 0), "waited and got nothing");
        assert!(!said(0, start, 0, 0), "age unknown");
        assert!(said(start, start + 1, udp_flags::REPLIED, 0));
        assert!(said(start, start + 1, 0, 111));
    }
}
