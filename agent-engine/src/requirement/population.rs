//! Who is there: the pods by role and workload, and which of them run on the own nodes. Follows the cluster pod by pod, so that
//! making pairs looks at the pods that matter and never at all of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::pair::End;
use super::role::{Role, Roles, roles};
use crate::cluster::{Cluster, Pod};
use crate::policy::Endpoint;
use crate::words::{Name, Workload};

/// Every pod and template known, by role and workload.
#[derive(Clone, Debug, Default)]
pub(super) struct Population {
    /// Nodes whose pairs are wanted; empty for all.
    nodes: BTreeSet<Arc<str>>,
    members: BTreeMap<Name, Member>,
    groups: BTreeMap<Workload, Group>,
    /// Workloads with a pod on an own node.
    local: BTreeSet<Workload>,
    /// How many pods of each workload have a role.
    by_role: BTreeMap<Role, BTreeMap<Workload, u32>>,
    node_local_dns: BTreeSet<Name>,
}

#[derive(Clone, Debug)]
struct Member {
    /// None where it has ended.
    roles: Roles,
    workload: Workload,
    local: bool,
}

#[derive(Clone, Debug, Default)]
struct Group {
    /// In order.
    pods: Vec<Name>,
    local: u32,
}

impl Population {
    /// Nobody yet. With nodes named, only ends on these are [local](Self::is_local).
    pub fn new(nodes: &[String]) -> Self {
        Self { nodes: nodes.iter().map(|node| node.as_str().into()).collect(), ..Self::default() }
    }

    /// Looks at a pod or template anew.
    pub fn update(&mut self, cluster: &Cluster, name: &Name) {
        self.remove(name);
        let Some(pod) = cluster.pod(name) else { return };
        let member = Member {
            roles: if pod.finished() { Roles::empty() } else { roles(cluster, pod) },
            workload: pod.workload.clone(),
            local: pod.node.as_ref().is_some_and(|node| self.nodes.contains(node)),
        };
        let group = self.groups.entry(member.workload.clone()).or_default();
        if let Err(at) = group.pods.binary_search(name) {
            group.pods.insert(at, name.clone());
        }
        if member.local {
            group.local += 1;
            self.local.insert(member.workload.clone());
        }
        for role in member.roles {
            *self.by_role.entry(role).or_default().entry(member.workload.clone()).or_default() += 1;
        }
        if !pod.finished() && pod.labels.get("k8s-app").is_some_and(|v| &**v == "node-local-dns") {
            self.node_local_dns.insert(name.clone());
        }
        self.members.insert(name.clone(), member);
    }

    fn remove(&mut self, name: &Name) {
        let Some(member) = self.members.remove(name) else { return };
        self.node_local_dns.remove(name);
        for role in member.roles {
            let workloads = self.by_role.entry(role).or_default();
            if let Entry::Occupied(mut count) = workloads.entry(member.workload.clone()) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        let Entry::Occupied(mut group) = self.groups.entry(member.workload.clone()) else { return };
        if let Ok(at) = group.get().pods.binary_search(name) {
            group.get_mut().pods.remove(at);
        }
        group.get_mut().local -= u32::from(member.local);
        if group.get().local == 0 {
            self.local.remove(&member.workload);
        }
        if group.get().pods.is_empty() {
            group.remove();
        }
    }

    /// What a pod is to the mesh; none for a pod that is not known or has ended.
    pub fn roles(&self, pod: &Name) -> Roles {
        self.members.get(pod).map(|member| member.roles).unwrap_or_default()
    }

    /// Whether a workload has a pod on an own node.
    pub fn is_local(&self, workload: &Workload) -> bool {
        self.nodes.is_empty() || self.local.contains(workload)
    }

    /// Whether every node is an own one.
    pub fn is_everywhere(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether a node is an own one.
    pub fn is_own_node(&self, node: &Arc<str>) -> bool {
        self.nodes.is_empty() || self.nodes.contains(node)
    }

    /// Whether anybody has a role.
    pub fn has(&self, role: Role) -> bool {
        self.by_role.get(&role).is_some_and(|workloads| !workloads.is_empty())
    }

    /// The workloads with a role: all of them, or those with a pod on an own node.
    pub fn workloads(&self, role: Role, whose: Whose) -> impl Iterator<Item = &Workload> {
        let with_role = self.by_role.get(&role);
        let few = (whose == Whose::Local && !self.nodes.is_empty()).then_some(&self.local);
        let all = with_role.filter(|_| few.is_none()).into_iter().flatten().map(|(workload, _)| workload);
        let has = move |w: &&Workload| with_role.is_some_and(|workloads| workloads.contains_key(*w));
        all.chain(few.into_iter().flatten().filter(has))
    }

    /// The pods of a workload with a role, in order; templates only where there are no pods.
    pub fn pods_of<'a>(
        &'a self,
        cluster: &'a Cluster,
        workload: &Workload,
        role: Role,
    ) -> impl Iterator<Item = &'a Pod> {
        let names = self.groups.get(workload).into_iter().flat_map(|group| &group.pods);
        let with_role = names.filter(move |name| self.roles(name).contains(role));
        with_role.filter_map(|name| cluster.pod(name)).filter(|pod| cluster.stands(pod))
    }

    /// The pods with a role, workload by workload.
    pub fn pods<'a>(&'a self, cluster: &'a Cluster, role: Role, whose: Whose) -> impl Iterator<Item = &'a Pod> {
        self.workloads(role, whose).flat_map(move |workload| self.pods_of(cluster, workload, role))
    }

    /// The ends with a role, with the pods behind them.
    pub fn ends(&self, cluster: &Cluster, role: Role, whose: Whose) -> impl Iterator<Item = (End, Vec<Endpoint>)> {
        self.workloads(role, whose).filter_map(move |workload| {
            let pods = self.endpoints(cluster, workload, role);
            (!pods.is_empty()).then(|| (End::Workload(workload.clone()), pods))
        })
    }

    /// The pods of a workload with a role.
    pub fn endpoints(&self, cluster: &Cluster, workload: &Workload, role: Role) -> Vec<Endpoint> {
        let pods = self.pods_of(cluster, workload, role);
        pods.map(|pod| Endpoint::Pod { name: pod.name.clone(), address: None }).collect()
    }

    /// Whether a DNS cache runs on nodes.
    pub fn has_node_local_dns(&self, cluster: &Cluster) -> bool {
        self.node_local_dns.iter().filter_map(|name| cluster.pod(name)).any(|pod| cluster.stands(pod))
    }
}

/// Which workloads are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// All.
    All,
    /// Those with a pod on an own node.
    Local,
}

impl Whose {
    /// Those that matter beside the other ends of their pairs.
    pub fn beside(other_is_local: bool) -> Self {
        if other_is_local { Self::All } else { Self::Local }
    }
}
