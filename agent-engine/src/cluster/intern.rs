//! Shares what many pods have in common: label sets, names, ports. A hundred thousand pods carry a few thousand label sets.

use std::collections::HashSet;
use std::sync::Arc;

use super::labels::Labels;
use super::pod::{ContainerPort, Pod};

type Pair = (Arc<str>, Arc<str>);

/// Pools of shared values. What no pod uses any longer is dropped when a pool has doubled.
#[derive(Clone, Debug, Default)]
pub(super) struct Interner {
    text: Pool<str>,
    labels: Pool<[Pair]>,
    ports: Pool<[ContainerPort]>,
    containers: Pool<[Arc<str>]>,
}

impl Interner {
    /// Replaces the pod's values by the shared ones.
    pub fn share(&mut self, pod: &mut Pod) {
        pod.name.namespace = self.text.get(&pod.name.namespace);
        pod.workload.namespace = pod.name.namespace.clone();
        pod.workload.kind = self.text.get(&pod.workload.kind);
        pod.workload.name =
            if pod.workload.name == pod.name.name { pod.name.name.clone() } else { self.text.get(&pod.workload.name) };
        if let Some(node) = &mut pod.node {
            *node = self.text.get(node);
        }
        pod.labels = self.set(&pod.labels);
        pod.annotations = self.set(&pod.annotations);
        pod.settings = self.set(&pod.settings);
        pod.ports = match self.ports.find(&pod.ports) {
            Some(known) => known,
            None => {
                let named = |p: &ContainerPort| ContainerPort { name: self.text.get(&p.name), ..*p };
                let ports: Arc<[ContainerPort]> = pod.ports.iter().map(named).collect();
                self.ports.get(&ports)
            }
        };
        pod.containers = match self.containers.find(&pod.containers) {
            Some(known) => known,
            None => {
                let containers: Arc<[Arc<str>]> = pod.containers.iter().map(|c| self.text.get(c)).collect();
                self.containers.get(&containers)
            }
        };
    }

    fn set(&mut self, labels: &Labels) -> Labels {
        Labels::from_slice(match self.labels.find(labels.slice()) {
            Some(known) => known,
            None => {
                let set: Arc<[Pair]> = labels.iter().map(|(k, v)| (self.text.get(k), self.text.get(v))).collect();
                self.labels.get(&set)
            }
        })
    }
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self { known: self.known.clone(), sweep_at: self.sweep_at }
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: 1024 }
    }
}

impl<T: ?Sized + std::hash::Hash + Eq> Pool<T> {
    fn find(&self, value: &Arc<T>) -> Option<Arc<T>> {
        self.known.get(&**value).cloned()
    }

    fn get(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.find(value) {
            return known;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|v| Arc::strong_count(v) > 1);
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        self.known.insert(value.clone());
        value.clone()
    }
}
