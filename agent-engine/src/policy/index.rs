//! The index: pods that no policy can tell apart by labels share a group, and a group knows which policies select it.
//!
//! Every update looks the object up in the cluster and brings its own entry in line with it, whatever it was before. What an
//! update costs depends on what the object touches: a pod its group; a policy the groups of its namespace; a namespace's
//! labels the cluster-wide policies' subjects in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::admin;
use super::decision::Tier;
use super::lower::Lowered;
use super::selector::{LabelSet, Selector, Symbols};
use crate::cluster::{Change, Cluster, Key, Kind, Labels, Pod, Service};
use crate::words::{Direction, Name};

type Map<K, V> = HashMap<K, V, FixedState>;
pub(super) type GroupId = u32;
type SpaceId = u32;

/// Everything that a decision looks up.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub symbols: Symbols,
    pods: Map<Name, Facts>,
    groups: Slab<Group>,
    group_ids: Map<(SpaceId, Labels), GroupId>,
    spaces: Slab<Space>,
    space_ids: Map<Arc<str>, SpaceId>,
    /// Cluster-wide policies, in the order in which they are asked.
    cluster_wide: BTreeMap<(Tier, i64, Kind, Arc<str>), Arc<Lowered>>,
    cluster_wide_keys: BTreeMap<(Kind, Arc<str>), (Tier, i64)>,
    /// Selectors of namespaces: how many policies use them, how many namespaces they match.
    counts: Map<Selector, (u32, u32)>,
    /// Pod addresses by family: which of them the cluster has.
    families: [usize; 2],
}

/// A pod, as policies see it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub pod: Arc<Pod>,
    pub group: GroupId,
}

/// Pods of one namespace with one label set.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub space: SpaceId,
    pub labels: Labels,
    pub set: LabelSet,
    /// NetworkPolicies that select these pods, per direction.
    selecting: [Arc<Selected>; 2],
    /// Cluster-wide policies that select these pods, in the order in which they are asked, per direction.
    admin: [Arc<[Arc<Lowered>]>; 2],
    pub services: Box<[Arc<ServiceEntry>]>,
    uses: u32,
}

/// Policies that select a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Selected {
    pub policies: Box<[Arc<Lowered>]>,
    pub names: Arc<[Name]>,
}

/// A Service with a selector: what its ports are on the pods.
#[derive(Clone, Debug)]
pub(super) struct ServiceEntry {
    pub service: Service,
    selector: LabelSet,
}

/// A namespace, known or only referred to.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub name: Arc<str>,
    pub set: LabelSet,
    labels: Labels,
    known: bool,
    policies: BTreeMap<Arc<str>, Arc<Lowered>>,
    services: BTreeMap<Arc<str>, Arc<ServiceEntry>>,
    groups: BTreeSet<GroupId>,
}

impl Group {
    pub fn selecting(&self, direction: Direction) -> &Selected {
        &self.selecting[direction as usize]
    }

    pub fn admin(&self, direction: Direction) -> &[Arc<Lowered>] {
        &self.admin[direction as usize]
    }
}

impl Index {
    pub fn pod(&self, name: &Name) -> Option<&Facts> {
        self.pods.get(name)
    }

    pub fn group(&self, id: GroupId) -> &Group {
        self.groups.get(id)
    }

    pub fn space(&self, group: &Group) -> &Space {
        self.spaces.get(group.space)
    }

    /// Whether no namespace of the cluster matches.
    pub fn matches_no_namespace(&self, selector: &Selector) -> bool {
        self.counts.get(selector).is_some_and(|(_, matching)| *matching == 0)
    }

    /// Whether pods have addresses of `[IPv4, IPv6]`; IPv4 where no pod has any.
    pub fn families(&self) -> [bool; 2] {
        match self.families {
            [0, 0] => [true, false],
            [v4, v6] => [v4 > 0, v6 > 0],
        }
    }

    /// All pods and templates, in no order.
    pub fn all_pods(&self) -> impl Iterator<Item = &Facts> {
        self.pods.values()
    }

    /// Every policy, in no order.
    pub fn all_policies(&self) -> impl Iterator<Item = &Arc<Lowered>> {
        self.spaces.iter().flat_map(|s| s.policies.values()).chain(self.cluster_wide.values())
    }

    pub fn policy(&self, name: &Name) -> Option<&Arc<Lowered>> {
        let space = self.space_ids.get(&name.namespace)?;
        self.spaces.get(*space).policies.get(&name.name)
    }

    /// Takes in a whole cluster: policies and Services before pods, so that each group is made up once.
    pub fn load(&mut self, cluster: &Cluster) {
        cluster.namespaces().for_each(|n| self.sync_namespace(cluster, &n.name));
        cluster.policies_by_name().for_each(|name| self.sync_policy(cluster, name));
        cluster.cluster_policies().for_each(|p| {
            let name = p.object.metadata.name.as_deref().unwrap_or("").into();
            self.sync_cluster_policy(cluster, p.kind, &name);
        });
        cluster.services().for_each(|s| self.sync_service(cluster, &s.name));
        cluster.all_pods().for_each(|p| self.sync_pod(cluster, &p.name));
    }

    pub fn update(&mut self, cluster: &Cluster, change: &Change) {
        match change {
            Change::None => {}
            Change::Applied(key) | Change::Deleted(key) => self.sync(cluster, key),
        }
    }

    fn sync(&mut self, cluster: &Cluster, key: &Key) {
        let name = &key.name;
        match key.kind {
            Kind::Namespace => self.sync_namespace(cluster, &name.name),
            Kind::Pod => self.sync_pod(cluster, name),
            Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet | Kind::ReplicaSet | Kind::Job | Kind::CronJob => {
                self.sync_pod(cluster, &Name::new(name.namespace.clone(), Pod::template_name(key.kind, &name.name)));
            }
            Kind::Service => self.sync_service(cluster, name),
            Kind::NetworkPolicy => self.sync_policy(cluster, name),
            Kind::AdminNetworkPolicy | Kind::BaselineAdminNetworkPolicy | Kind::ClusterNetworkPolicy => {
                self.sync_cluster_policy(cluster, key.kind, &name.name);
            }
            // Node addresses and endpoints are read from the cluster when a decision needs them; the rest decides nothing.
            _ => {}
        }
    }

    fn sync_pod(&mut self, cluster: &Cluster, name: &Name) {
        let new = cluster.shared_pod(name);
        let old = self.pods.remove(name);
        if let Some(facts) = &old {
            self.count_addresses(&facts.pod, false);
        }
        // The new group first: an unchanged one must not die in between.
        let group = new.map(|pod| {
            let group = self.take_group(cluster, &pod.name.namespace, &pod.labels);
            self.count_addresses(pod, true);
            self.pods.insert(name.clone(), Facts { pod: pod.clone(), group });
            group
        });
        if let Some(facts) = old {
            self.release_group(facts.group);
        }
        if group.is_none() {
            self.forget_space(&name.namespace);
        }
    }

    fn count_addresses(&mut self, pod: &Pod, added: bool) {
        for address in pod.addresses.iter().filter(|_| !pod.host_network) {
            let count = &mut self.families[usize::from(matches!(address, IpAddr::V6(_)))];
            *count = if added { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    fn take_group(&mut self, cluster: &Cluster, namespace: &Arc<str>, labels: &Labels) -> GroupId {
        let space = self.take_space(cluster, namespace);
        let key = (space, labels.clone());
        if let Some(&id) = self.group_ids.get(&key) {
            self.groups.get_mut(id).uses += 1;
            return id;
        }
        let set = self.symbols.take_set(labels);
        let group = Group {
            space,
            labels: labels.clone(),
            set,
            selecting: Default::default(),
            admin: [Arc::from([]), Arc::from([])],
            services: Box::default(),
            uses: 1,
        };
        let id = self.groups.insert(group);
        self.group_ids.insert(key, id);
        self.spaces.get_mut(space).groups.insert(id);
        self.select_policies(id);
        self.select_cluster_policies(id);
        self.select_services(id);
        id
    }

    fn release_group(&mut self, id: GroupId) {
        let group = self.groups.get_mut(id);
        group.uses -= 1;
        if group.uses > 0 {
            return;
        }
        let group = self.groups.remove(id);
        self.symbols.release_set(&group.set);
        self.spaces.get_mut(group.space).groups.remove(&id);
        self.group_ids.remove(&(group.space, group.labels));
    }

    fn take_space(&mut self, cluster: &Cluster, name: &Arc<str>) -> SpaceId {
        if let Some(&id) = self.space_ids.get(name) {
            return id;
        }
        let labels = namespace_labels(cluster, name);
        let set = self.symbols.take_set(&labels);
        self.count_namespace(&set, true);
        let space = Space {
            name: name.clone(),
            set,
            labels,
            known: cluster.namespace(name).is_some(),
            policies: BTreeMap::new(),
            services: BTreeMap::new(),
            groups: BTreeSet::new(),
        };
        let id = self.spaces.insert(space);
        self.space_ids.insert(name.clone(), id);
        id
    }

    /// Drops a namespace that is neither known nor referred to any longer.
    fn forget_space(&mut self, name: &Arc<str>) {
        let Some(&id) = self.space_ids.get(name) else { return };
        let space = self.spaces.get(id);
        if space.known || !space.policies.is_empty() || !space.services.is_empty() || !space.groups.is_empty() {
            return;
        }
        self.space_ids.remove(name);
        let space = self.spaces.remove(id);
        self.count_namespace(&space.set, false);
        self.symbols.release_set(&space.set);
    }

    fn count_namespace(&mut self, set: &LabelSet, added: bool) {
        for (selector, (_, matching)) in &mut self.counts {
            if selector.matches(set) {
                *matching = if added { *matching + 1 } else { *matching - 1 };
            }
        }
    }

    fn sync_namespace(&mut self, cluster: &Cluster, name: &Arc<str>) {
        let known = cluster.namespace(name).is_some();
        if !known && !self.space_ids.contains_key(name) {
            return;
        }
        let id = self.take_space(cluster, name);
        let labels = namespace_labels(cluster, name);
        self.spaces.get_mut(id).known = known;
        if self.spaces.get(id).labels != labels {
            let set = self.symbols.take_set(&labels);
            let space = self.spaces.get_mut(id);
            space.labels = labels;
            let old = std::mem::replace(&mut space.set, set.clone());
            self.count_namespace(&old, false);
            self.count_namespace(&set, true);
            self.symbols.release_set(&old);
            for group in self.spaces.get(id).groups.clone() {
                self.select_cluster_policies(group);
            }
        }
        self.forget_space(name);
    }

    fn sync_service(&mut self, cluster: &Cluster, name: &Name) {
        let new = cluster.service(name).filter(|s| !s.selector.is_empty());
        if new.is_none() && !self.space_ids.contains_key(&name.namespace) {
            return;
        }
        let id = self.take_space(cluster, &name.namespace);
        let entry = new.map(|service| {
            Arc::new(ServiceEntry { selector: self.symbols.take_set(&service.selector), service: service.clone() })
        });
        let services = &mut self.spaces.get_mut(id).services;
        let old = match entry {
            Some(entry) => services.insert(name.name.clone(), entry),
            None => services.remove(&name.name),
        };
        if let Some(old) = old {
            self.symbols.release_set(&old.selector);
        }
        for group in self.spaces.get(id).groups.clone() {
            self.select_services(group);
        }
        self.forget_space(&name.namespace);
    }

    fn sync_policy(&mut self, cluster: &Cluster, name: &Name) {
        let new = cluster.policy(name);
        if new.is_none() && !self.space_ids.contains_key(&name.namespace) {
            return;
        }
        let id = self.take_space(cluster, &name.namespace);
        let lowered = new.map(|p| Arc::new(Lowered::network_policy(name.clone(), &p.object, &mut self.symbols)));
        if let Some(lowered) = &lowered {
            self.take_selectors(lowered);
        }
        let policies = &mut self.spaces.get_mut(id).policies;
        let old = match lowered.clone() {
            Some(lowered) => policies.insert(name.name.clone(), lowered),
            None => policies.remove(&name.name),
        };
        for group in self.spaces.get(id).groups.clone() {
            let set = &self.groups.get(group).set;
            let selects = |p: &Option<Arc<Lowered>>| p.as_ref().is_some_and(|p| p.subject.pods.matches(set));
            if selects(&old) || selects(&lowered) {
                self.select_policies(group);
            }
        }
        if let Some(old) = old {
            self.release_selectors(&old);
        }
        self.forget_space(&name.namespace);
    }

    fn sync_cluster_policy(&mut self, cluster: &Cluster, kind: Kind, name: &Arc<str>) {
        let old = self.cluster_wide_keys.remove(&(kind, name.clone()));
        let old = old.and_then(|(tier, priority)| self.cluster_wide.remove(&(tier, priority, kind, name.clone())));
        if let Some(policy) = cluster.cluster_policy(kind, name) {
            let lowered = Arc::new(admin::lower(kind, &policy.object, &mut self.symbols));
            self.take_selectors(&lowered);
            let (tier, priority) = (lowered.tier, lowered.priority);
            self.cluster_wide_keys.insert((kind, name.clone()), (tier, priority));
            self.cluster_wide.insert((tier, priority, kind, name.clone()), lowered);
        }
        if let Some(old) = old {
            self.release_selectors(&old);
        }
        let groups: Vec<GroupId> = self.spaces.iter().flat_map(|s| s.groups.iter().copied()).collect();
        for group in groups {
            self.select_cluster_policies(group);
        }
    }

    fn take_selectors(&mut self, policy: &Lowered) {
        for selector in policy.namespace_selectors() {
            if let Some((uses, _)) = self.counts.get_mut(selector) {
                *uses += 1;
                continue;
            }
            let matching = self.spaces.iter().filter(|s| selector.matches(&s.set)).count();
            self.counts.insert(selector.clone(), (1, u32::try_from(matching).unwrap_or(u32::MAX)));
        }
    }

    fn release_selectors(&mut self, policy: &Lowered) {
        for selector in policy.namespace_selectors() {
            if let Some((uses, _)) = self.counts.get_mut(selector) {
                *uses -= 1;
                if *uses == 0 {
                    self.counts.remove(selector);
                }
            }
        }
        policy.release(&mut self.symbols);
    }

    fn select_policies(&mut self, id: GroupId) {
        let group = self.groups.get(id);
        let policies = &self.spaces.get(group.space).policies;
        let selecting = [Direction::Egress, Direction::Ingress].map(|direction| {
            let policies: Box<[Arc<Lowered>]> = policies
                .values()
                .filter(|p| p.affects(direction) && p.subject.pods.matches(&group.set))
                .cloned()
                .collect();
            let names = policies.iter().map(|p| p.name.clone()).collect();
            Arc::new(Selected { policies, names })
        });
        self.groups.get_mut(id).selecting = selecting;
    }

    fn select_cluster_policies(&mut self, id: GroupId) {
        let group = self.groups.get(id);
        let space = &self.spaces.get(group.space).set;
        let selects = |p: &Lowered| {
            p.subject.namespaces.as_ref().is_some_and(|s| s.matches(space)) && p.subject.pods.matches(&group.set)
        };
        let admin = [Direction::Egress, Direction::Ingress].map(|direction| {
            self.cluster_wide.values().filter(|p| p.affects(direction) && selects(p)).cloned().collect()
        });
        self.groups.get_mut(id).admin = admin;
    }

    fn select_services(&mut self, id: GroupId) {
        let group = self.groups.get(id);
        let services = self.spaces.get(group.space).services.values();
        let selects = |s: &&Arc<ServiceEntry>| s.selector.iter().all(|label| group.set.contains(label));
        let services = services.filter(selects).cloned().collect();
        self.groups.get_mut(id).services = services;
    }
}

/// Labels of a namespace; of one that is only referred to, the label that every namespace has.
fn namespace_labels(cluster: &Cluster, name: &Arc<str>) -> Labels {
    let by_reference = || [(Arc::from("kubernetes.io/metadata.name"), name.clone())].into_iter().collect();
    cluster.namespace(name).map_or_else(by_reference, |n| n.labels.clone())
}

/// Values under small numbers that are used again.
#[derive(Clone, Debug)]
struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn insert(&mut self, value: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.entries[id as usize] = Some(value);
            return id;
        }
        self.entries.push(Some(value));
        u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 entries fit in memory")
    }

    fn remove(&mut self, id: u32) -> T {
        self.free.push(id);
        self.entries[id as usize].take().expect("ids are removed once")
    }

    fn get(&self, id: u32) -> &T {
        self.entries[id as usize].as_ref().expect("ids are of live entries")
    }

    fn get_mut(&mut self, id: u32) -> &mut T {
        self.entries[id as usize].as_mut().expect("ids are of live entries")
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }
}
