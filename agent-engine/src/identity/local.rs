//! What is known of sockets of this node alone: whose their network namespace is, and whose cgroup their task is in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Peer;
use crate::attempt::Attempt;
use crate::cluster::Cluster;
use crate::words::Name;

/// Network namespaces kept at most: several times the pods of the largest node.
const MAX_NAMESPACES: usize = 4_096;

/// Pods and nodes by what only their own node sees of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    namespaces: BTreeMap<u32, Namespace>,
    /// Pods by what their cgroup is called by.
    pub(super) uids: BTreeMap<Arc<str>, Name>,
    names: BTreeMap<Name, Arc<str>>,
}

#[derive(Clone, Debug)]
struct Namespace {
    /// Whose it is; none if it was seen with two owners.
    owner: Option<Owner>,
    /// The address it was last seen with.
    address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Pod(Name),
    Node(Arc<str>),
}

impl Local {
    pub(super) fn pod(&mut self, cluster: &Cluster, name: &Name) {
        let pod = cluster.pod(name).filter(|pod| !pod.finished());
        let uid = pod.and_then(|pod| pod.uid.clone());
        if self.names.get(name) != uid.as_ref() {
            if let Some(old) = self.names.remove(name) {
                self.uids.remove(&old);
            }
            if let Some(uid) = uid {
                self.uids.insert(uid.clone(), name.clone());
                self.names.insert(name.clone(), uid);
            }
            // Another pod of the same name has another namespace, and its inode may become another's.
            self.forget(name);
        } else if pod.is_none() {
            self.forget(name);
        }
    }

    fn forget(&mut self, name: &Name) {
        self.namespaces.retain(|_, known| !matches!(&known.owner, Some(Owner::Pod(pod)) if pod == name));
    }

    /// Nothing new is to be learnt from this attempt.
    pub(super) fn knows(&self, attempt: &Attempt) -> bool {
        self.namespaces.get(&attempt.netns).is_some_and(|known| known.address == attempt.dialled.source)
    }

    pub(super) fn learn(&mut self, attempt: &Attempt, peer: Peer) {
        let owner = match peer {
            Peer::Pod { name, .. } => Owner::Pod(name),
            Peer::Node { name, .. } => Owner::Node(name),
            _ => return,
        };
        let address = attempt.dialled.source;
        if let Some(known) = self.namespaces.get_mut(&attempt.netns) {
            // Inodes are used again: whoever was not told that the first owner is gone believes neither.
            known.owner = known.owner.take().filter(|known| *known == owner);
            known.address = address;
        } else if self.namespaces.len() < MAX_NAMESPACES {
            self.namespaces.insert(attempt.netns, Namespace { owner: Some(owner), address });
        }
    }

    pub(super) fn by_namespace(&self, cluster: &Cluster, netns: u32) -> Option<Peer> {
        match self.namespaces.get(&netns)?.owner.as_ref()? {
            Owner::Pod(name) => {
                let pod = cluster.pod(name).filter(|pod| !pod.host_network && !pod.finished())?;
                Some(Peer::Pod { name: name.clone(), workload: pod.workload.clone() })
            }
            Owner::Node(name) => Some(Peer::Node { name: name.clone(), api_server: false }),
        }
    }
}
