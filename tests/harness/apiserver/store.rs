//! The objects of the fake API server, their versions, and what happened to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// A kind that the server serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Type {
    /// Empty for the core group.
    pub group: String,
    /// The one version that is served.
    pub version: String,
    /// As manifests spell it.
    pub kind: String,
    /// As paths spell it.
    pub plural: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
}

impl Type {
    /// A kind. The plural of a CRD need not follow from its kind, so it is given.
    #[must_use]
    pub fn new(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool) -> Self {
        let own = str::to_owned;
        Self { group: own(group), version: own(version), kind: own(kind), plural: own(plural), namespaced }
    }

    /// `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Lists of built-in kinds leave `apiVersion` and `kind` out of their items, lists of custom resources don't.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        !self.group.contains('.') || self.group.ends_with(".k8s.io") && BUILT_IN_GROUPS.contains(&&*self.group)
    }
}

const BUILT_IN_GROUPS: [&str; 3] = ["discovery.k8s.io", "networking.k8s.io", "admissionregistration.k8s.io"];

/// What every API server serves, as far as tests need it.
#[must_use]
pub fn built_in() -> Vec<Type> {
    let core = |kind, plural, namespaced| Type::new("", "v1", kind, plural, namespaced);
    vec![
        core("Namespace", "namespaces", false),
        core("Node", "nodes", false),
        core("Pod", "pods", true),
        core("Service", "services", true),
        core("ConfigMap", "configmaps", true),
        core("Secret", "secrets", true),
        core("Event", "events", true),
        Type::new("events.k8s.io", "v1", "Event", "events", true),
        Type::new("apps", "v1", "Deployment", "deployments", true),
        Type::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true),
        Type::new("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true),
        Type::new("networking.k8s.io", "v1", "Ingress", "ingresses", true),
        Type::new(
            "admissionregistration.k8s.io",
            "v1",
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
            false,
        ),
    ]
}

/// `(namespace, name)`; the namespace is empty for cluster-scoped objects.
pub type Name = (String, String);

/// Group and plural.
pub type TypeKey = (String, String);

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Happened {
    /// `metadata.resourceVersion` of the change.
    pub version: u64,
    /// Of what kind.
    pub of: TypeKey,
    /// The object before.
    pub before: Option<Arc<Value>>,
    /// The object after; at a deletion its last state with the version of the deletion.
    pub after: Arc<Value>,
    /// It is gone.
    pub deleted: bool,
}

/// Everything that the server knows.
#[derive(Debug, Default)]
pub struct Store {
    types: BTreeMap<TypeKey, Type>,
    objects: BTreeMap<TypeKey, BTreeMap<Name, Arc<Value>>>,
    version: u64,
    history: VecDeque<Happened>,
    forgotten: u64,
}

/// Changes remembered for watches that begin at an older version.
const HISTORY: usize = 100_000;

impl Store {
    /// A store that serves some kinds.
    #[must_use]
    pub fn new(types: impl IntoIterator<Item = Type>) -> Self {
        let mut store = Self { version: 1000, forgotten: 999, ..Self::default() };
        types.into_iter().for_each(|t| store.install(t));
        store
    }

    /// Serves one more kind.
    pub fn install(&mut self, new: Type) {
        self.types.insert((new.group.clone(), new.plural.clone()), new);
    }

    /// Serves a kind no longer; its objects are gone.
    pub fn uninstall(&mut self, group: &str, plural: &str) {
        let key = (group.to_owned(), plural.to_owned());
        self.types.remove(&key);
        self.objects.remove(&key);
    }

    /// The kinds served.
    pub fn types(&self) -> impl Iterator<Item = &Type> {
        self.types.values()
    }

    /// One kind.
    #[must_use]
    pub fn served(&self, group: &str, plural: &str) -> Option<&Type> {
        self.types.get(&(group.to_owned(), plural.to_owned()))
    }

    /// The newest version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Objects of a kind, by namespace and name.
    pub fn objects(&self, of: &TypeKey) -> impl Iterator<Item = (&Name, &Arc<Value>)> {
        self.objects.get(of).into_iter().flatten()
    }

    /// One object.
    #[must_use]
    pub fn object(&self, of: &TypeKey, name: &Name) -> Option<&Arc<Value>> {
        self.objects.get(of)?.get(name)
    }

    /// Adds or replaces an object, whatever is in it: only `apiVersion`, `kind` and `metadata.name` must be right.
    ///
    /// # Errors
    /// When they aren't, or the kind is not served.
    pub fn apply(&mut self, mut object: Value) -> anyhow::Result<Arc<Value>> {
        let (of, name) = self.identify(&object)?;
        self.version += 1;
        let before = self.objects.get(&of).and_then(|all| all.get(&name)).cloned();
        let meta = object["metadata"].as_object_mut().context("metadata is not an object")?;
        meta.insert("resourceVersion".to_owned(), self.version.to_string().into());
        let uid = before.as_ref().and_then(|b| b.pointer("/metadata/uid").cloned());
        meta.insert(
            "uid".to_owned(),
            uid.unwrap_or_else(|| format!("00000000-0000-4000-8000-{:012}", self.version).into()),
        );
        if !meta.contains_key("creationTimestamp") {
            meta.insert("creationTimestamp".to_owned(), "2026-01-01T00:00:00Z".into());
        }
        let after = Arc::new(object);
        self.objects.entry(of.clone()).or_default().insert(name, after.clone());
        self.happened(Happened { version: self.version, of, before, after: after.clone(), deleted: false });
        Ok(after)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&mut self, group: &str, plural: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let of = (group.to_owned(), plural.to_owned());
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.objects.get_mut(&of).and_then(|all| all.remove(&key));
        let before = before.with_context(|| format!("there is no {plural} {namespace}/{name}"))?;
        self.version += 1;
        let mut last = Value::clone(&before);
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        let after = Arc::new(last);
        self.happened(Happened { version: self.version, of, before: Some(before), after, deleted: true });
        Ok(())
    }

    /// Forgets what happened so far: a watch from an older version is answered by 410.
    pub fn compact(&mut self) {
        self.history.clear();
        self.version += 1;
        self.forgotten = self.version;
    }

    /// What happened to a kind after a version; none when that is forgotten.
    #[must_use]
    pub fn since(&self, of: &TypeKey, version: u64) -> Option<Vec<Happened>> {
        if version < self.forgotten {
            return None;
        }
        let from = self.history.partition_point(|h| h.version <= version);
        Some(self.history.range(from..).filter(|h| h.of == *of).cloned().collect())
    }

    fn identify(&self, object: &Value) -> anyhow::Result<(TypeKey, Name)> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("/apiVersion"), text("/kind"));
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let found = self.types.values().find(|t| t.group == group && t.kind == kind);
        let found = found.with_context(|| format!("{api_version} {kind} is not served"))?;
        let name = text("/metadata/name");
        ensure!(!name.is_empty(), "{kind} without a name");
        let namespace = if found.namespaced { text("/metadata/namespace") } else { String::new() };
        let namespace = if found.namespaced && namespace.is_empty() { "default".to_owned() } else { namespace };
        Ok(((found.group.clone(), found.plural.clone()), (namespace, name)))
    }

    fn happened(&mut self, what: Happened) {
        if self.history.len() == HISTORY {
            self.forgotten = self.history.pop_front().map_or(self.forgotten, |h| h.version);
        }
        self.history.push_back(what);
    }
}

/// A `metav1.Status` of a failure.
#[must_use]
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": message, "reason": reason, "code": code})
}
