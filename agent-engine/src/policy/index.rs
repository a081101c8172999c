//! The index: pods that no policy can tell apart by labels share a group, and a group knows which policies select it.
//!
//! Every update looks the object up in the cluster and brings its own entry in line with it, whatever it was before. What an
//! update costs depends on what the object touches: a pod its group; a policy the groups of its namespace; a namespace's
//! labels the cluster-wide policies' subjects in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::admin;
use super::decision::Tier;
use super::group::{Admin, Facts, Group, GroupId, ServiceEntry, Slab, Space, SpaceId, len};
use super::lower::Lowered;
use super::program::Program;
use super::selector::{Selector, Set, Symbols};
use crate::cluster::{Change, Cluster, Key, Kind, Labels, Pod};
use crate::words::{Direction, Name};

type Map<K, V> = HashMap<K, V, FixedState>;

/// Everything that a decision looks up.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub symbols: Symbols,
    pods: Map<Name, Facts>,
    groups: Slab<Arc<Group>>,
    group_ids: Map<(SpaceId, Labels), GroupId>,
    spaces: Slab<Space>,
    space_ids: Map<Arc<str>, SpaceId>,
    /// Cluster-wide policies, in the order in which they are asked.
    cluster_wide: BTreeMap<(Tier, i64, Kind, Arc<str>), Arc<Lowered>>,
    cluster_wide_keys: BTreeMap<(Kind, Arc<str>), (Tier, i64)>,
    /// Selectors of namespaces: how many policies use them, how many namespaces they match.
    counts: Map<Selector, Count>,
    /// Pod addresses by family: which of them the cluster has.
    families: [usize; 2],
    /// Policies that stand in for the cluster's of the same name; none where that one is taken away.
    overlay: BTreeMap<Name, Option<Arc<NetworkPolicy>>>,
}

/// A selector of namespaces in use.
#[derive(Clone, Debug, Default)]
struct Count {
    /// Namespaces it matches.
    matching: u32,
    /// How many policies of a namespace use it; cluster-wide policies are of none.
    uses: BTreeMap<Option<SpaceId>, u32>,
}

impl Index {
    pub fn pod(&self, name: &Name) -> Option<&Facts> {
        self.pods.get(name)
    }

    pub fn group(&self, id: GroupId) -> &Arc<Group> {
        self.groups.get(id)
    }

    /// Whether pods have addresses of `[IPv4, IPv6]`; IPv4 where no pod has any.
    pub fn families(&self) -> [bool; 2] {
        match self.families {
            [0, 0] => [true, false],
            [v4, v6] => [v4 > 0, v6 > 0],
        }
    }

    pub fn count_in(&self, namespace: &str) -> usize {
        self.space_ids.get(namespace).map_or(0, |id| self.spaces.get(*id).policies.len())
    }

    /// Every policy, in no order.
    pub fn all_policies(&self) -> impl Iterator<Item = &Arc<Lowered>> {
        self.spaces.iter().flat_map(|s| s.policies.values()).chain(self.cluster_wide.values())
    }

    /// Takes in a whole cluster: policies and Services before pods, so that each group is made up once.
    pub fn load(&mut self, cluster: &Cluster) {
        cluster.namespaces().for_each(|n| self.sync_namespace(cluster, &n.name));
        self.sync_policies(cluster, cluster.policies_by_name());
        cluster.cluster_policies().for_each(|p| {
            let name = p.object.metadata.name.as_deref().unwrap_or("").into();
            self.sync_cluster_policy(cluster, p.kind, &name);
        });
        cluster.services().for_each(|s| self.sync_service(cluster, &s.name));
        cluster.all_pods().for_each(|p| self.sync_pod(cluster, &p.name));
    }

    /// Puts policies in place of the cluster's, and takes back what was put there before.
    pub fn overlay(&mut self, cluster: &Cluster, overlay: BTreeMap<Name, Option<Arc<NetworkPolicy>>>) {
        let old = std::mem::replace(&mut self.overlay, overlay);
        let differs = |name: &&Name| old.get(*name) != self.overlay.get(*name);
        let names: BTreeSet<Name> = old.keys().chain(self.overlay.keys()).filter(differs).cloned().collect();
        self.sync_policies(cluster, &names);
    }

    /// Takes in that these NetworkPolicies have changed, all at once: each group is brought in line once, however many of
    /// them select it.
    pub fn sync_policies<'a>(&mut self, cluster: &Cluster, names: impl IntoIterator<Item = &'a Name>) {
        let mut names = names.into_iter().peekable();
        while let Some(first) = names.next() {
            let (space, mut touched) = (&first.namespace, BTreeSet::new());
            let mut old = vec![self.put_policy(cluster, first, &mut touched)];
            while let Some(name) = names.next_if(|n| n.namespace == *space) {
                old.push(self.put_policy(cluster, name, &mut touched));
            }
            self.selected_anew(space, touched, old);
        }
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
            Kind::Namespace => {
                self.sync_namespace(cluster, &name.name);
                // Its labels say whether templates are injected, and with that what labels those have.
                for template in cluster.templates_in(&name.name) {
                    self.sync_pod(cluster, &template.name);
                }
            }
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
            self.pods.insert(name.clone(), Facts::new(pod.clone(), group));
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
            self.group_mut(id).uses += 1;
            return id;
        }
        let own = self.symbols.take_set(labels);
        let of_space = self.spaces.get(space);
        let group = Group {
            space,
            namespace: of_space.name.clone(),
            labels: labels.clone(),
            namespace_labels: of_space.labels.clone(),
            set: of_space.set.iter().chain(&own).copied().collect(),
            split: len(&of_space.set),
            selecting: Default::default(),
            admin: None,
            services: Box::default(),
            uses: 1,
        };
        let id = self.groups.insert(Arc::new(group));
        self.group_ids.insert(key, id);
        self.spaces.get_mut(space).groups.insert(id);
        self.select_policies(id);
        self.select_cluster_policies(id);
        self.select_services(id);
        id
    }

    fn release_group(&mut self, id: GroupId) {
        let group = self.group_mut(id);
        group.uses -= 1;
        if group.uses > 0 {
            return;
        }
        let group = self.groups.remove(id);
        self.symbols.release_set(group.pod_set());
        self.spaces.get_mut(group.space).groups.remove(&id);
        self.group_ids.remove(&(group.space, group.labels.clone()));
    }

    /// A group to be changed; reasons not yet read keep the old one.
    fn group_mut(&mut self, id: GroupId) -> &mut Group {
        Arc::make_mut(self.groups.get_mut(id))
    }

    fn take_space(&mut self, cluster: &Cluster, name: &Arc<str>) -> SpaceId {
        if let Some(&id) = self.space_ids.get(name) {
            return id;
        }
        let labels = namespace_labels(cluster, name);
        let set = self.symbols.take_set(&labels);
        let space = Space {
            name: name.clone(),
            set,
            labels,
            known: cluster.namespace(name).is_some(),
            policies: BTreeMap::new(),
            services: BTreeMap::new(),
            groups: BTreeSet::new(),
            programs: Vec::new(),
        };
        let id = self.spaces.insert(space);
        self.space_ids.insert(name.clone(), id);
        self.count_namespace(&self.spaces.get(id).set.clone(), true);
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

    /// Counts a namespace in or out. Where a selector comes to match none, or no longer none, the reasons that name it change.
    fn count_namespace(&mut self, set: &Set, added: bool) {
        let mut turned = BTreeSet::new();
        for (selector, count) in &mut self.counts {
            if selector.matches(set) {
                let before = count.matching;
                count.matching = if added { before + 1 } else { before - 1 };
                if before == 0 || count.matching == 0 {
                    turned.extend(count.uses.keys().flatten());
                }
            }
        }
        for space in turned {
            self.spaces.get_mut(space).programs.clear();
            for group in self.spaces.get(space).groups.clone() {
                self.select_policies(group);
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
                self.relabel(group);
                self.select_cluster_policies(group);
            }
        }
        self.forget_space(name);
    }

    /// Takes over the labels of the namespace.
    fn relabel(&mut self, id: GroupId) {
        let group = self.groups.get(id);
        let space = self.spaces.get(group.space);
        let set = space.set.iter().chain(group.pod_set()).copied().collect();
        let (split, namespace_labels) = (len(&space.set), space.labels.clone());
        let group = self.group_mut(id);
        (group.set, group.split, group.namespace_labels) = (set, split, namespace_labels);
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
        self.sync_policies(cluster, [name]);
    }

    /// Puts the policy as it is now in place of what it was, and notes the groups that either selects. What it was is still
    /// walked until they are brought in line.
    fn put_policy(&mut self, cluster: &Cluster, name: &Name, touched: &mut BTreeSet<GroupId>) -> Option<Arc<Lowered>> {
        let new = match self.overlay.get(name) {
            Some(other) => other.clone(),
            None => cluster.policy(name).map(|p| p.object.clone()),
        };
        if new.is_none() && !self.space_ids.contains_key(&name.namespace) {
            return None;
        }
        let id = self.take_space(cluster, &name.namespace);
        let lowered = new.map(|p| Arc::new(Lowered::network_policy(name.clone(), &p, &mut self.symbols)));
        if let Some(lowered) = &lowered {
            self.take_selectors(lowered, Some(id));
        }
        let policies = &mut self.spaces.get_mut(id).policies;
        let old = match lowered.clone() {
            Some(lowered) => policies.insert(name.name.clone(), lowered),
            None => policies.remove(&name.name),
        };
        let space = self.spaces.get(id);
        touched.extend(space.groups.iter().copied().filter(|group| {
            let set = self.groups.get(*group).pod_set();
            [&old, &lowered].into_iter().flatten().any(|p| p.subject.pods.matches(set))
        }));
        old
    }

    /// Brings groups of a namespace in line with its policies, and lets go of what these were.
    fn selected_anew(&mut self, space: &Arc<str>, touched: BTreeSet<GroupId>, old: Vec<Option<Arc<Lowered>>>) {
        let Some(&id) = self.space_ids.get(space) else { return };
        touched.into_iter().for_each(|group| self.select_policies(group));
        self.spaces.get_mut(id).programs.retain(|p| Arc::strong_count(p) > 1);
        for old in old.into_iter().flatten() {
            self.release_selectors(&old, Some(id));
        }
        self.forget_space(space);
    }

    fn sync_cluster_policy(&mut self, cluster: &Cluster, kind: Kind, name: &Arc<str>) {
        let old = self.cluster_wide_keys.remove(&(kind, name.clone()));
        let old = old.and_then(|(tier, priority)| self.cluster_wide.remove(&(tier, priority, kind, name.clone())));
        if let Some(policy) = cluster.cluster_policy(kind, name) {
            let lowered = Arc::new(admin::lower(kind, &policy.object, &mut self.symbols));
            self.take_selectors(&lowered, None);
            let (tier, priority) = (lowered.tier, lowered.priority);
            self.cluster_wide_keys.insert((kind, name.clone()), (tier, priority));
            self.cluster_wide.insert((tier, priority, kind, name.clone()), lowered);
        }
        if let Some(old) = old {
            self.release_selectors(&old, None);
        }
        let groups: Vec<GroupId> = self.spaces.iter().flat_map(|s| s.groups.iter().copied()).collect();
        for group in groups {
            self.select_cluster_policies(group);
        }
    }

    fn take_selectors(&mut self, policy: &Lowered, space: Option<SpaceId>) {
        for selector in policy.namespace_selectors() {
            if !self.counts.contains_key(selector) {
                let matching = self.spaces.iter().filter(|s| selector.matches(&s.set)).count();
                let count = Count { matching: u32::try_from(matching).unwrap_or(u32::MAX), uses: BTreeMap::new() };
                self.counts.insert(selector.clone(), count);
            }
            if let Some(count) = self.counts.get_mut(selector) {
                *count.uses.entry(space).or_default() += 1;
            }
        }
    }

    fn release_selectors(&mut self, policy: &Lowered, space: Option<SpaceId>) {
        for selector in policy.namespace_selectors() {
            let Some(count) = self.counts.get_mut(selector) else { continue };
            if let Some(uses) = count.uses.get_mut(&space) {
                *uses -= 1;
                if *uses == 0 {
                    count.uses.remove(&space);
                }
            }
            if count.uses.is_empty() {
                self.counts.remove(selector);
            }
        }
        policy.release(&mut self.symbols);
    }

    fn select_policies(&mut self, id: GroupId) {
        let (space, set) = (self.groups.get(id).space, self.groups.get(id).pod_set());
        let selecting = [Direction::Egress, Direction::Ingress].map(|direction| -> Box<[Arc<Lowered>]> {
            let policies = self.spaces.get(space).policies.values();
            policies.filter(|p| p.affects(direction) && p.subject.pods.matches(set)).cloned().collect()
        });
        let [egress, ingress] = selecting;
        let egress = self.program(space, egress, Direction::Egress);
        let ingress = self.program(space, ingress, Direction::Ingress);
        self.group_mut(id).selecting = [egress, ingress];
    }

    /// The program of these policies: the one that other groups have already, or a new one.
    fn program(&mut self, space: SpaceId, policies: Box<[Arc<Lowered>]>, direction: Direction) -> Option<Arc<Program>> {
        if policies.is_empty() {
            return None;
        }
        let known = &self.spaces.get(space).programs;
        if let Some(program) = known.iter().find(|p| p.direction == direction && p.is_of(&policies)) {
            return Some(program.clone());
        }
        let matches_none = |selector: &Selector| self.counts.get(selector).is_some_and(|c| c.matching == 0);
        let program = Arc::new(Program::new(policies, direction, space, matches_none));
        self.spaces.get_mut(space).programs.push(program.clone());
        Some(program)
    }

    fn select_cluster_policies(&mut self, id: GroupId) {
        let group = self.groups.get(id);
        let space = group.namespace_set();
        let selects = |p: &Lowered| {
            p.subject.namespaces.as_ref().is_some_and(|s| s.matches(space)) && p.subject.pods.matches(group.pod_set())
        };
        let admin: Admin = [Direction::Egress, Direction::Ingress].map(|direction| {
            self.cluster_wide.values().filter(|p| p.affects(direction) && selects(p)).cloned().collect()
        });
        let any = admin.iter().any(|policies| !policies.is_empty());
        self.group_mut(id).admin = any.then(|| Box::new(admin));
    }

    fn select_services(&mut self, id: GroupId) {
        let group = self.groups.get(id);
        let services = self.spaces.get(group.space).services.values();
        let selects = |s: &&Arc<ServiceEntry>| s.selector.iter().all(|label| group.pod_set().contains(label));
        let services = services.filter(selects).cloned().collect();
        self.group_mut(id).services = services;
    }
}

/// Labels of a namespace; of one that is only referred to, the label that every namespace has.
fn namespace_labels(cluster: &Cluster, name: &Arc<str>) -> Labels {
    let by_reference = || [(Arc::from("kubernetes.io/metadata.name"), name.clone())].into_iter().collect();
    cluster.namespace(name).map_or_else(by_reference, |n| n.labels.clone())
}
