//! What one watch is about: a resource, where, and which of its objects.

use std::sync::Arc;

use weir_engine::cluster::Kind;

use super::settings::{Nodes, Pods, Settings};

/// A resource as the API server serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    pub kind: Kind,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub plural: String,
    /// `kind` as the API spells it.
    pub api_kind: String,
}

/// A resource and the part of it that is followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub resource: Resource,
    pub namespace: Option<String>,
    pub labels: Option<String>,
    pub fields: Option<String>,
    /// Without it no decision can be trusted.
    pub essential: bool,
}

impl Resource {
    fn new(kind: Kind, group: &str, plural: &str) -> Self {
        Self {
            kind,
            group: group.to_owned(),
            version: "v1".to_owned(),
            plural: plural.to_owned(),
            api_kind: kind.as_str().to_owned(),
        }
    }

    pub(super) fn pods() -> Self {
        Self::new(Kind::Pod, "", "pods")
    }

    pub(super) fn nodes() -> Self {
        Self::new(Kind::Node, "", "nodes")
    }

    pub(super) fn endpoint_slices() -> Self {
        Self::new(Kind::EndpointSlice, "discovery.k8s.io", "endpointslices")
    }

    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(super) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        let place = namespace.map(|n| format!("/namespaces/{n}")).unwrap_or_default();
        format!("{root}/{}{place}/{}", self.version, self.plural)
    }
}

impl Target {
    fn all_of(resource: Resource, essential: bool) -> Self {
        Self { resource, namespace: None, labels: None, fields: None, essential }
    }

    /// A kind that discovery has found. Cluster-wide policies decide flows, the rest only adds required ones.
    pub(super) fn optional(resource: Resource) -> Self {
        let decides = matches!(
            resource.kind,
            Kind::AdminNetworkPolicy | Kind::BaselineAdminNetworkPolicy | Kind::ClusterNetworkPolicy
        );
        Self::all_of(resource, decides)
    }

    /// One node, or all of them.
    pub(super) fn nodes(only: Option<&str>) -> Self {
        let fields = only.map(|name| format!("metadata.name={name}"));
        Self { fields, ..Self::all_of(Resource::nodes(), true) }
    }

    /// All EndpointSlices, or those of some Services.
    pub(super) fn slices(only: Option<&str>) -> Self {
        Self { labels: only.map(str::to_owned), ..Self::all_of(Resource::endpoint_slices(), true) }
    }

    pub(super) fn path(&self) -> String {
        self.resource.path(self.namespace.as_deref())
    }

    /// Few objects of many: to be taken from the API server's cache, which has indices, and never from etcd, which has to read
    /// all of them.
    pub(super) fn is_selective(&self) -> bool {
        self.labels.is_some() || self.fields.is_some()
    }

    pub(super) fn title(&self) -> Arc<str> {
        let mut title = self.resource.plural.clone();
        if !self.resource.group.is_empty() {
            title = format!("{title}.{}", self.resource.group);
        }
        let parts =
            [self.namespace.as_ref().map(|n| format!("namespace {n}")), self.fields.clone(), self.labels.clone()];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { title.into() } else { format!("{title} ({})", parts.join(", ")).into() }
    }
}

/// What every API server has.
pub(super) fn built_in(settings: &Settings) -> Vec<Target> {
    let mut targets = vec![
        Target::all_of(Resource::new(Kind::Namespace, "", "namespaces"), true),
        Target::all_of(Resource::new(Kind::Service, "", "services"), true),
        Target::all_of(Resource::new(Kind::NetworkPolicy, "networking.k8s.io", "networkpolicies"), true),
        Target::all_of(
            Resource::new(
                Kind::MutatingWebhookConfiguration,
                "admissionregistration.k8s.io",
                "mutatingwebhookconfigurations",
            ),
            false,
        ),
    ];
    match &settings.nodes {
        Nodes::All => targets.extend([Target::nodes(None), Target::slices(None)]),
        Nodes::Only(name) => {
            targets.extend([Target::nodes(Some(name)), Target::slices(Some(&settings.services))]);
        }
        // Known when they have been counted.
        Nodes::UpTo(..) => {}
    }
    let pods = Target::all_of(Resource::pods(), true);
    match &settings.pods {
        Pods::All => targets.push(pods),
        Pods::OfNode(node) => {
            targets.push(Target { fields: Some(format!("spec.nodeName={node}")), ..pods.clone() });
            targets.extend(settings.ends.iter().map(|ends| Target {
                namespace: ends.namespace.clone(),
                labels: Some(ends.labels.clone()),
                essential: false,
                ..pods.clone()
            }));
        }
    }
    targets.extend(settings.config_maps.iter().map(|maps| Target {
        namespace: Some(maps.namespace.clone()),
        labels: maps.labels.clone(),
        fields: maps.name.as_ref().map(|n| format!("metadata.name={n}")),
        ..Target::all_of(Resource::new(Kind::ConfigMap, "", "configmaps"), false)
    }));
    targets
}
