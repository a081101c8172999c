//! Whose listeners an attempt may have found without room: what a dialled address leads to on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Engine;
use crate::identity::Identity;
use crate::time::Time;
use crate::words::Protocol;

/// Addresses asked about at once; of more than these nothing is known.
const MAX: usize = 1_024;

/// Destinations as dialled, by the address that they lead to.
#[derive(Clone, Debug, Default)]
pub(super) struct Listeners {
    asked: BTreeMap<IpAddr, BTreeSet<(IpAddr, u16)>>,
}

impl Engine {
    /// The next address of this machine whose network namespace should be asked for its `ListenDrops`: an attempt to it hangs.
    /// To be answered soon by [`Input::ListenDrops`](super::Input::ListenDrops), or not at all.
    pub fn poll_listener(&mut self) -> Option<IpAddr> {
        while let Some(dialled) = self.attempts.poll_listener() {
            let Some(address) = self.leads_to(dialled) else { continue };
            if self.listeners.asked.len() >= MAX {
                self.listeners.asked.clear();
            }
            self.listeners.asked.entry(address).or_default().insert(dialled);
            return Some(address);
        }
        None
    }

    /// A network namespace was asked; the same as [`Input::ListenDrops`](super::Input::ListenDrops).
    pub fn listen_drops(&mut self, now: Time, address: IpAddr, count: u64) {
        self.handle_timeout(now);
        for dialled in self.listeners.asked.remove(&address).unwrap_or_default() {
            self.attempts.listen_drops(dialled, count);
        }
        self.drain(now);
    }

    /// The one address of this machine that is reached by dialling this one; none if there are several or it is elsewhere.
    fn leads_to(&self, (address, port): (IpAddr, u16)) -> Option<IpAddr> {
        let address = match Identity::translate(&self.cluster, address, Protocol::Tcp, port)[..] {
            [] => address,
            [(only, _)] => only,
            _ => return None,
        };
        let pod = self.cluster.pod_by_address(address).and_then(|pod| pod.node.as_deref());
        let node = pod.or_else(|| self.cluster.node_by_address(address).map(|node| &*node.name))?;
        let own = &self.settings.nodes;
        (own.is_empty() || own.iter().any(|name| name == node)).then_some(address)
    }
}
