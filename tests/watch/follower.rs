//! A source under test and everything that it has said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::apiserver::{ApiServer, Counts, Selector};
use serde_json::{Value, json};
use weir::cluster::change::{Change, Health, State, to_value};
use weir::cluster::watch::{Settings, Source, start};
use weir_engine::cluster::{Cluster, Key, Kind, Object, Origin};
use weir_engine::words::Name;

/// How long anything may take. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Follower {
    pub source: Source,
    pub objects: BTreeMap<Key, Value>,
    pub health: BTreeMap<Arc<str>, Health>,
    /// How many changes of each kind there were.
    pub applied: BTreeMap<Key, usize>,
    pub nobody: BTreeSet<IpAddr>,
    pub synced: bool,
}

/// The settings of a node's agent, at a pace for tests.
pub fn settings() -> Settings {
    let mut settings = Settings::for_node("node-1");
    settings.patience = Duration::from_secs(2);
    settings.stream_patience = Duration::from_millis(500);
    settings.quiet = Duration::from_secs(3);
    settings.delay = Duration::from_millis(50);
    settings.max_delay = Duration::from_millis(400);
    settings.rediscover = Duration::from_millis(300);
    settings.lookups.tombstone = Duration::from_millis(300);
    settings.lookups.check = Duration::from_millis(300);
    settings
}

impl Follower {
    pub fn start(server: &ApiServer, settings: Settings) -> Self {
        let url = server.url().parse().expect("the server's address is a URL");
        Self::start_with(kube::Config::new(url), settings)
    }

    pub async fn start_from(kubeconfig: &Path, settings: Settings) -> Self {
        let file = kube::config::Kubeconfig::read_from(kubeconfig).expect("the kubeconfig can be read");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await;
        Self::start_with(config.expect("the kubeconfig is complete"), settings)
    }

    fn start_with(config: kube::Config, settings: Settings) -> Self {
        let source = start(config, settings).expect("a plain configuration starts");
        let (objects, health, applied) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { source, objects, health, applied, nobody: BTreeSet::new(), synced: false }
    }

    /// Takes in changes until something holds.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left.min(Duration::from_millis(100)), self.source.changes.recv()).await {
                Ok(Some(change)) => self.take(change),
                Ok(None) => panic!("the source ended while waiting: {what}"),
                Err(_) if left.is_zero() => panic!("never happened: {what}\n{}", self.describe()),
                Err(_) => {}
            }
        }
    }

    /// Takes in changes for a while.
    pub async fn for_a_while(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(Some(change)) =
            tokio::time::timeout(end.saturating_duration_since(Instant::now()), self.source.changes.recv()).await
        {
            self.take(change);
        }
    }

    /// Takes in changes until what the source has said is what the server has for this node.
    pub async fn until_converged(&mut self, server: &ApiServer, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let expected = expected(server);
            if self.view() == expected {
                return;
            }
            if Instant::now() > deadline {
                let missing: Vec<_> = expected.iter().filter(|e| self.view().get(e.0) != Some(e.1)).collect();
                let extra: Vec<_> = self.objects.keys().filter(|k| !expected.contains_key(k)).collect();
                panic!("never converged: {what}\nmissing or old: {missing:?}\nextra: {extra:?}\n{}", self.describe());
            }
            self.for_a_while(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_synced(&mut self) {
        self.until("synchronised", |f| f.synced).await;
    }

    /// What the engine would know.
    pub fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::default();
        for object in self.objects.values() {
            let object = Object::from_value(object.clone()).expect("what was said can be read");
            cluster.apply(object, Origin::default());
        }
        cluster
    }

    /// The part that follows a resource, by the beginning of its title.
    pub fn part(&self, title: &str) -> &Health {
        let found = self.health.iter().find(|(part, _)| part.starts_with(title));
        found.unwrap_or_else(|| panic!("no part {title}\n{}", self.describe())).1
    }

    pub fn state(&self, title: &str) -> Option<State> {
        self.health.iter().find(|(part, _)| part.starts_with(title)).map(|(_, h)| h.state)
    }

    pub fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.objects.contains_key(&Key { kind, name: Name::new(namespace, name) })
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Apply { object, origin } => {
                assert!(origin.resource_version.is_some(), "an object without its version: {}", object.key());
                let key = object.key();
                *self.applied.entry(key.clone()).or_default() += 1;
                self.objects.insert(key, to_value(&object).expect("decoded objects can be written"));
            }
            Change::Delete(key) => {
                assert!(self.objects.remove(&key).is_some(), "{key} deleted, and was never there");
            }
            Change::Answered { address, somebody: false } => drop(self.nobody.insert(address)),
            Change::Answered { address, somebody: true } => drop(self.nobody.remove(&address)),
            Change::Read(reading) => panic!("no manifests were given: {reading:?}"),
            Change::Synced => {
                assert!(!self.synced, "synchronised twice");
                self.synced = true;
            }
            Change::Health(health) => drop(self.health.insert(health.part.clone(), health)),
        }
    }

    /// Of each object what tells one version from another in these tests.
    fn view(&self) -> BTreeMap<Key, Value> {
        self.objects.iter().map(|(key, object)| (key.clone(), gist(object))).collect()
    }

    fn describe(&self) -> String {
        let mut text = format!("synced: {}\n", self.synced);
        for h in self.health.values() {
            let reason = h.reason.as_deref().unwrap_or_default();
            let _ = writeln!(text, "{}: {} {reason}", h.part, h.state.as_str());
        }
        text
    }
}

fn gist(object: &Value) -> Value {
    json!({"labels": object.pointer("/metadata/labels"), "ip": object.pointer("/status/podIP"), "spec": object.get("spec").map(|s| &s["podSelector"])})
}

/// What an agent of node-1 must know of the server's objects: pods of the node and well-known ends, and all of the other kinds.
fn expected(server: &ApiServer) -> BTreeMap<Key, Value> {
    let ends: Vec<(Option<String>, Selector)> = weir::cluster::watch::well_known()
        .into_iter()
        .map(|e| (e.namespace, Selector::parse("pods", &e.labels, "").expect("known selectors")))
        .collect();
    server.read(|store| {
        let mut all = BTreeMap::new();
        for served in store.types() {
            let Some(kind) = Kind::of(&served.api_version(), &served.kind) else { continue };
            if matches!(kind, Kind::Ingress | Kind::Deployment) {
                continue;
            }
            for ((namespace, name), object) in store.objects(&(served.group.clone(), served.plural.clone())) {
                let own = object.pointer("/spec/nodeName") == Some(&json!("node-1"));
                let end = ends.iter().any(|(n, s)| n.as_ref().is_none_or(|n| n == namespace) && s.matches(object));
                let wanted = match kind {
                    Kind::Pod => own || end,
                    Kind::ConfigMap => namespace == "istio-system" && name == "istio",
                    _ => true,
                };
                let broken = object.pointer("/metadata/annotations/test~1broken").is_some();
                if wanted && !broken {
                    all.insert(Key { kind, name: Name::new(namespace.as_str(), name.as_str()) }, gist(object));
                }
            }
        }
        all
    })
}

/// Waits until a count of the server stops changing, and returns it.
pub async fn settled(server: &ApiServer) -> Counts {
    let mut counts = server.counts();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = server.counts();
        let of_resources = |c: &Counts| {
            c.by.iter().filter(|((plural, _), _)| !plural.is_empty()).map(|(_, c)| c.requests).sum::<u64>()
        };
        if of_resources(&now) == of_resources(&counts) {
            return now;
        }
        counts = now;
    }
}

pub fn pod(namespace: &str, name: &str, node: &str, ip: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "labels": labels,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6b7c", "uid": "1", "controller": true}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(2000)},
            "managedFields": [{"manager": "kubelet", "operation": "Update"}],
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "app", "image": "example/app:1", "env": [{"name": "SECRET", "value": "hidden"}],
                            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.1",
                   "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

pub fn policy(namespace: &str, name: &str, app: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"namespace": namespace, "name": name},
           "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]}})
}

pub fn virtual_service(name: &str, label: &str) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
           "metadata": {"namespace": "shop", "name": name, "labels": {"v": label}}, "spec": {"hosts": ["a"]}})
}

/// A small cluster of two nodes.
pub async fn cluster() -> ApiServer {
    let server = ApiServer::start().await.expect("the loopback has a free port");
    fill(&server);
    server
}

pub fn fill(server: &ApiServer) {
    server.set_bookmark_every(Duration::from_millis(200));
    for name in ["istio-system", "kube-system", "shop"] {
        server
            .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"n": name}}}));
    }
    for (node, ip) in [("node-1", "192.0.2.1"), ("node-2", "192.0.2.2")] {
        server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}], "images": [{"names": ["big"]}]}}));
    }
    server.apply(pod("shop", "web-1", "node-1", "10.0.1.1", json!({"app": "web"})));
    server.apply(pod("shop", "db-1", "node-2", "10.0.2.1", json!({"app": "db"})));
    server.apply(pod("istio-system", "istiod-1", "node-2", "10.0.2.2", json!({"app": "istiod", "istio": "pilot"})));
    server.apply(pod("istio-system", "gateway-1", "node-1", "10.0.1.2", json!({"istio": "ingressgateway"})));
    server.apply(pod("kube-system", "coredns-1", "node-2", "10.0.2.3", json!({"k8s-app": "kube-dns"})));
    server.apply(policy("shop", "deny", "web"));
    server.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}));
    server.apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["10.0.1.1"]}], "ports": [{"port": 8080}]}));
    server.apply(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "istio"},
        "data": {"mesh": "rootNamespace: istio-system"}}),
    );
    server.apply(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "other"},
        "data": {"password": "never read"}}),
    );
    server.apply(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "injector"}, "webhooks": [{"name": "x", "clientConfig": {"caBundle": "AAAA"}}]}));
}
