//! Events → observations: numbers of this kernel become names that mean the same on all.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use weir_common::{Event, udp_flags};
use weir_engine::observation::{Observation, Stack, Symbols as Names};

use super::{cgroup::Pods, symbols::Symbols};

/// A connected UDP socket that lived shorter than this and got nothing was not necessarily sent from: name resolution opens
/// and closes such sockets only to learn the source address of a route. Nanoseconds.
const INSTANT: u64 = 100_000_000;

/// Different stacks kept to be shared: a machine drops in few ways.
const STACKS: usize = 256;

/// Names of drop reasons and of drop locations. Shared freely between tasks.
#[derive(Debug)]
pub struct Decoder {
    reasons: BTreeMap<u32, String>,
    symbols: Mutex<Symbols>,
    pods: Mutex<Pods>,
    stacks: Mutex<BTreeSet<Stack>>,
}

impl Decoder {
    /// `reasons` from the kernel's BTF, locations from `kallsyms`.
    #[must_use]
    pub fn new(reasons: BTreeMap<u32, String>, kallsyms: &Path) -> Self {
        Self { reasons, symbols: Mutex::new(Symbols::read(kallsyms)), pods: Mutex::default(), stacks: Mutex::default() }
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
        if let Observation::Drop(drop) = &mut seen
            && !drop.stack.is_empty()
        {
            drop.stack = self.shared(&drop.stack);
        }
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

    /// The same stack, in memory once.
    fn shared(&self, stack: &Stack) -> Stack {
        let mut known = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= STACKS && !known.contains(stack) {
            known.clear();
        }
        known.get(stack).cloned().unwrap_or_else(|| {
            known.insert(stack.clone());
            stack.clone()
        })
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
    use std::{io::Write as _, sync::Arc};

    use weir_common::{DropStack, Header, Owner, PacketDrop, STACK_FRAMES, Tuple, UdpEnd, kind};
    use weir_engine::observation::Hook;

    use super::*;

    #[test]
    fn stacks_get_names_and_are_kept_once() {
        let mut kallsyms = tempfile::NamedTempFile::new().unwrap();
        let functions = ["bpf_prog_1", "sk_skb_reason_drop", "nft_do_chain", "nf_hook_slow", "ip_forward", "ip_rcv"];
        let address = |index: usize| 0xffff_ffff_8100_0000 + index as u64 * 0x100;
        for (index, name) in functions.iter().enumerate() {
            writeln!(kallsyms, "{:x} t {name}.isra.0", address(index)).unwrap();
        }
        let decoder = Decoder::new(BTreeMap::new(), kallsyms.path());
        let mut frames = [0; STACK_FRAMES];
        // The last call of each function: it returns to where the next one begins.
        frames.iter_mut().zip(1..=functions.len()).for_each(|(frame, index)| *frame = address(index));
        let header = Header { kind: kind::DROP_STACK, padding: [0; 3], cpu: 0, timestamp: 1 };
        let tuple = Tuple { protocol: 6, destination_port: 15012, ..Tuple::default() };
        let drop = PacketDrop {
            header,
            tuple,
            original: tuple,
            socket: 0,
            location: frames[2],
            count: 1,
            reason: 0,
            netns: 1,
            interface: 2,
            tcp_flags: 2,
            flags: 0,
            padding: [0; 2],
        };
        let stack = || match decoder.decode(&Event::DropStack(DropStack { drop, frames })) {
            Some(Observation::Drop(drop)) => drop.stack,
            other => panic!("{other:?}"),
        };
        let (one, two) = (stack(), stack());
        assert_eq!(one.join(" "), "nft_do_chain nf_hook_slow ip_forward ip_rcv");
        assert_eq!(Hook::of(&one), Some(Hook::Forward));
        assert!(Arc::ptr_eq(&one, &two));
    }

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
