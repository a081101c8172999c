//! Cluster-wide policies of policy.networking.k8s.io: only the fields that decide a flow.
//!
//! Read from network-policy-api: AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1), and ClusterNetworkPolicy
//! (v1alpha2), which replaces both: tier `Admin` is the former, tier `Baseline` the latter, `Accept` was `Allow`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

/// AdminNetworkPolicy, BaselineAdminNetworkPolicy or ClusterNetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminPolicy {
    /// `apiVersion`
    #[serde(default)]
    pub api_version: String,
    /// `kind`
    #[serde(default)]
    pub kind: String,
    /// `metadata`
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// `spec`
    #[serde(default)]
    pub spec: AdminSpec,
}

/// `spec`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminSpec {
    /// `Admin` or `Baseline`; only ClusterNetworkPolicy has it.
    pub tier: Option<String>,
    /// 0 to 1000, lower first; BaselineAdminNetworkPolicy has none.
    pub priority: Option<i64>,
    /// Whom the policy is about.
    #[serde(default)]
    pub subject: AdminPods,
    /// Ordered rules, first match wins.
    #[serde(default)]
    pub ingress: Vec<AdminRule>,
    /// Ordered rules, first match wins.
    #[serde(default)]
    pub egress: Vec<AdminRule>,
}

/// A subject, or the pod part of a peer: exactly one of the two is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminPods {
    /// All pods of the selected namespaces.
    pub namespaces: Option<LabelSelector>,
    /// Selected pods of the selected namespaces.
    pub pods: Option<NamespacedPods>,
}

/// Pods by namespace and label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespacedPods {
    /// Empty selects all.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
    /// Empty selects all.
    #[serde(default)]
    pub pod_selector: LabelSelector,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminRule {
    /// For people.
    pub name: Option<String>,
    /// `Accept` (formerly `Allow`), `Deny` or `Pass`.
    #[serde(default)]
    pub action: String,
    /// Sources.
    #[serde(default)]
    pub from: Vec<AdminPeer>,
    /// Destinations.
    #[serde(default)]
    pub to: Vec<AdminPeer>,
    /// v1alpha1; absent means every port.
    pub ports: Option<Vec<AdminPort>>,
    /// v1alpha2; absent means every protocol and port.
    pub protocols: Option<Vec<AdminProtocol>>,
}

/// One protocol of v1alpha2: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminProtocol {
    /// TCP.
    pub tcp: Option<AdminDestination>,
    /// UDP.
    pub udp: Option<AdminDestination>,
    /// SCTP.
    pub sctp: Option<AdminDestination>,
    /// A container port's name, whatever its protocol.
    pub destination_named_port: Option<String>,
}

/// Ports of one protocol; every port where nothing is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminDestination {
    /// Number or range.
    pub destination_port: Option<AdminDestinationPort>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminDestinationPort {
    /// One port.
    pub number: Option<i64>,
    /// First to last.
    pub range: Option<PortRange>,
}

/// One peer: exactly one field is set. None set means a field that this version does not know: the rule then fails closed,
/// as the API's documentation asks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminPeer {
    /// All pods of the selected namespaces.
    pub namespaces: Option<LabelSelector>,
    /// Selected pods of the selected namespaces.
    pub pods: Option<NamespacedPods>,
    /// Egress only: nodes by label.
    pub nodes: Option<LabelSelector>,
    /// Egress only: CIDRs.
    pub networks: Option<Vec<String>>,
    /// Egress only, `Accept` only: names that the engine resolves.
    pub domain_names: Option<Vec<String>>,
}

/// One port of v1alpha1: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminPort {
    /// By number.
    pub port_number: Option<NumberedPort>,
    /// By container port name.
    pub named_port: Option<String>,
    /// By range.
    pub port_range: Option<PortRange>,
}

/// Protocol and number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumberedPort {
    /// TCP where absent.
    pub protocol: Option<String>,
    /// 1 to 65535.
    pub port: i64,
}

/// Protocol and range, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortRange {
    /// TCP where absent.
    pub protocol: Option<String>,
    /// First.
    pub start: i64,
    /// Last.
    pub end: i64,
}
