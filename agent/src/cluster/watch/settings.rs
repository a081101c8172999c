//! What is watched, and at which pace.

use std::time::Duration;

use weir_engine::cluster::Kind;

/// How the API server is followed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which pods are watched.
    pub pods: Pods,
    /// Which nodes are watched. With not all of them, EndpointSlices are only watched of [`Settings::services`], and of other
    /// Services looked up when they are dialled: each start of a pod changes one, so that all agents' watches of all of them
    /// would grow with nodes × pods.
    pub nodes: Nodes,
    /// Label selector of the EndpointSlices that are always watched.
    pub services: String,
    /// Pods that many flows lead to, watched wherever they run. Of no use with [`Pods::All`].
    pub ends: Vec<Ends>,
    /// ConfigMaps read, each by name or label in one namespace. No other ConfigMap is ever asked for.
    pub config_maps: Vec<ConfigMaps>,
    /// Kinds that are followed where the API server has them.
    pub optional: Vec<Kind>,
    /// Objects on a page of a list; a page is in memory as a whole.
    pub page: u32,
    /// How long an answer may take.
    pub patience: Duration,
    /// How long the initial events of a streaming list may pause before a list is asked for instead.
    pub stream_patience: Duration,
    /// After how long the server ends a watch. Each one gets up to a quarter more, so that nodes don't come back together.
    pub watch_time: Duration,
    /// How long a watch that has had bookmarks (the API server sends one a minute) may be quiet before it is taken for dead.
    pub quiet: Duration,
    /// First delay after a failure; doubles, with jitter.
    pub delay: Duration,
    /// Longest delay after failures.
    pub max_delay: Duration,
    /// How often discovery is asked for new and gone kinds. Mostly answered by 304 without a body.
    pub rediscover: Duration,
    /// Lookups of peers by address.
    pub lookups: LookupSettings,
}

/// Which pods are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    /// Those of one node, and [`Settings::ends`]; other peers are looked up by address.
    OfNode(String),
    /// All of them: for small clusters, and for views of the whole cluster.
    All,
}

/// Which nodes are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// All of them. Each kubelet writes its node every five minutes, so the load grows with the square of their number.
    All,
    /// One; others are fetched when one of their hostNetwork pods is met.
    Only(String),
    /// All of them in a cluster that has at most so many at the start, else only this one.
    UpTo(u64, String),
}

/// Well-known ends: pods by label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Only in this namespace: such a watch costs the API server next to nothing.
    pub namespace: Option<String>,
    /// A label selector as the API takes it.
    pub labels: String,
}

/// ConfigMaps of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMaps {
    /// Where.
    pub namespace: String,
    /// `metadata.name`, the only form that a Role can grant by `resourceNames`.
    pub name: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
}

/// How peers are looked up by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupSettings {
    /// Requests a second at most, in the long run.
    pub per_second: u32,
    /// Requests at once at most.
    pub burst: u32,
    /// Requests under way at most.
    pub in_flight: usize,
    /// How long "no pod has this address" holds at first; doubles each time.
    pub tombstone: Duration,
    /// How long it holds at most.
    pub max_tombstone: Duration,
    /// A peer that is met again after this long is checked: its address may be another pod's by now.
    pub check: Duration,
    /// A peer that was not met for this long is forgotten.
    pub forget: Duration,
    /// Addresses remembered at most.
    pub capacity: usize,
}

impl Default for LookupSettings {
    fn default() -> Self {
        Self {
            per_second: 2,
            burst: 20,
            in_flight: 4,
            tombstone: Duration::from_secs(5),
            max_tombstone: Duration::from_secs(600),
            check: Duration::from_secs(300),
            forget: Duration::from_secs(900),
            capacity: 16_384,
        }
    }
}

impl Settings {
    /// The settings for one node's agent.
    #[must_use]
    pub fn for_node(node: impl Into<String>) -> Self {
        let node = node.into();
        Self { pods: Pods::OfNode(node.clone()), nodes: Nodes::UpTo(ALL_NODES, node), ..Self::all() }
    }

    /// The settings for a view of everything.
    #[must_use]
    pub fn all() -> Self {
        Self {
            pods: Pods::All,
            nodes: Nodes::All,
            services: "kubernetes.io/service-name in (kubernetes,kube-dns,istiod)".to_owned(),
            ends: well_known(),
            config_maps: vec![ConfigMaps {
                namespace: "istio-system".to_owned(),
                name: Some("istio".to_owned()),
                labels: None,
            }],
            optional: OPTIONAL.to_vec(),
            page: 500,
            patience: Duration::from_secs(60),
            stream_patience: Duration::from_secs(10),
            watch_time: Duration::from_secs(300),
            quiet: Duration::from_secs(150),
            delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            rediscover: Duration::from_secs(120),
            lookups: LookupSettings::default(),
        }
    }
}

/// Up to here all agents' watches of all nodes cost the API server less than 3 MB/s: n² / 300 s × 12 KB.
const ALL_NODES: u64 = 250;

/// istiod and gateways of the charts carry a label `istio`, those of the Gateway API and waypoints the gateway's name; DNS is
/// where kubeadm, k3s and the clouds have it; scrapers go by the names of their charts. ztunnel and node-local DNS run on every
/// node: this node's are among its own pods, and watching everyone's would be nodes × nodes. What is missing here costs one
/// lookup when it is first met.
#[must_use]
pub fn well_known() -> Vec<Ends> {
    let ends = |namespace: Option<&str>, labels: &str| Ends {
        namespace: namespace.map(str::to_owned),
        labels: labels.to_owned(),
    };
    vec![
        ends(Some("kube-system"), "k8s-app in (kube-dns,coredns)"),
        ends(None, "istio"),
        ends(None, "gateway.networking.k8s.io/gateway-name"),
        ends(None, "app.kubernetes.io/name in (prometheus,vmagent,opentelemetry-collector)"),
    ]
}

/// Kinds that come with CRDs.
const OPTIONAL: [Kind; 24] = [
    Kind::AdminNetworkPolicy,
    Kind::BaselineAdminNetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::VirtualService,
    Kind::IstioGateway,
    Kind::ServiceEntry,
    Kind::Sidecar,
    Kind::DestinationRule,
    Kind::WorkloadEntry,
    Kind::WorkloadGroup,
    Kind::ProxyConfig,
    Kind::RequestAuthentication,
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::Telemetry,
    Kind::WasmPlugin,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
    Kind::ReferenceGrant,
    Kind::KymaIstio,
    Kind::ApiRule,
];
