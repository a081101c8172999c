//! What the index holds: pods, the groups that policies cannot tell apart further, namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::decide::family;
use super::lower::Lowered;
use super::program::Program;
use super::selector::{LabelSet, Set};
use crate::cluster::{Labels, Pod, Service};
use crate::words::Direction;

pub(super) type GroupId = u32;
pub(super) type SpaceId = u32;

/// A pod, as policies see it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub pod: Arc<Pod>,
    pub group: GroupId,
    /// What decisions ask first, so that most of them need not look at the pod.
    pub host_network: bool,
    pub template: bool,
    one: Option<IpAddr>,
    /// 1 for IPv4, 2 for IPv6, 3 for both or not known.
    pub families: u8,
}

/// Pods of one namespace with one label set. What every decision reads comes first and fills one cache line.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Group {
    /// Labels of the namespace, then of the pods, side by side.
    pub set: LabelSet,
    /// NetworkPolicies that select these pods, per direction; none where there are none.
    pub selecting: [Option<Arc<Program>>; 2],
    /// Cluster-wide policies that select these pods, if any.
    pub admin: Option<Box<Admin>>,
    /// Where the labels of the pods begin.
    pub split: u32,
    pub space: SpaceId,
    pub namespace: Arc<str>,
    pub labels: Labels,
    pub namespace_labels: Labels,
    pub services: Box<[Arc<ServiceEntry>]>,
    pub uses: u32,
}

/// Cluster-wide policies in the order in which they are asked, per direction.
pub(super) type Admin = [Box<[Arc<Lowered>]>; 2];

/// A Service with a selector: what its ports are on the pods.
#[derive(Clone, Debug)]
pub(super) struct ServiceEntry {
    pub service: Service,
    pub selector: LabelSet,
}

/// A namespace, known or only referred to.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub name: Arc<str>,
    pub set: LabelSet,
    pub labels: Labels,
    pub known: bool,
    pub policies: BTreeMap<Arc<str>, Arc<Lowered>>,
    pub services: BTreeMap<Arc<str>, Arc<ServiceEntry>>,
    pub groups: BTreeSet<GroupId>,
    /// Programs of its groups; those that no group uses any longer go with the next change of a policy.
    pub programs: Vec<Arc<Program>>,
}

impl Group {
    /// The NetworkPolicies that select it; none: not isolated.
    pub fn selecting(&self, direction: Direction) -> Option<&Arc<Program>> {
        self.selecting[direction as usize].as_ref()
    }

    /// Labels of its namespace.
    pub fn namespace_set(&self) -> &Set {
        &self.set[..self.split as usize]
    }

    /// Labels of its pods.
    pub fn pod_set(&self) -> &Set {
        &self.set[self.split as usize..]
    }

    pub fn admin(&self, direction: Direction) -> &[Arc<Lowered>] {
        self.admin.as_ref().map_or(&[], |admin| &admin[direction as usize])
    }
}

impl Facts {
    pub fn new(pod: Arc<Pod>, group: GroupId) -> Self {
        let families = pod.addresses.iter().map(family).fold(0, |a, b| a | b);
        Self {
            host_network: pod.host_network,
            template: pod.template,
            one: match *pod.addresses {
                [one] => Some(one),
                _ => None,
            },
            families: if families == 0 { 3 } else { families },
            group,
            pod,
        }
    }

    /// Addresses of the pod; of most it is one, and kept here.
    pub fn addresses(&self) -> &[IpAddr] {
        self.one.as_ref().map_or(&*self.pod.addresses, std::slice::from_ref)
    }
}

pub(super) fn len(set: &Set) -> u32 {
    u32::try_from(set.len()).expect("fewer than 2^32 labels fit in memory")
}

/// Values under small numbers that are used again.
#[derive(Clone, Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.entries[id as usize] = Some(value);
            return id;
        }
        self.entries.push(Some(value));
        u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 entries fit in memory")
    }

    pub fn remove(&mut self, id: u32) -> T {
        self.free.push(id);
        self.entries[id as usize].take().expect("ids are removed once")
    }

    pub fn get(&self, id: u32) -> &T {
        self.entries[id as usize].as_ref().expect("ids are of live entries")
    }

    pub fn get_mut(&mut self, id: u32) -> &mut T {
        self.entries[id as usize].as_mut().expect("ids are of live entries")
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }
}
