//! Label selectors, and the namespaces and pods they select.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::objects::{Objects, namespace_of};
use crate::topology::plan::{is_alive, is_host_network};

type Labels = BTreeMap<String, String>;

/// Whether labels satisfy every requirement of a selector; an empty selector has none.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> Result<bool> {
    let equal = selector.match_labels.iter().flatten().all(|(name, value)| labels.get(name) == Some(value));
    for requirement in selector.match_expressions.iter().flatten() {
        let value = labels.get(&requirement.key);
        let listed = || requirement.values.iter().flatten().any(|candidate| Some(candidate) == value);
        let holds = match requirement.operator.as_str() {
            "In" => listed(),
            // Also true of an object without the label (labels.Requirement of apimachinery).
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => bail!("label selector operator {other:?} does not exist"),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(equal)
}

/// The pods that policies apply to: alive, with a network of their own.
pub fn policy_pods(cluster: &Objects) -> impl Iterator<Item = &Pod> {
    cluster.pods.iter().filter(|pod| is_alive(pod) && !is_host_network(pod))
}

/// The pods of a peer: `namespaces` none means the policy's own namespace, `pods` none means all pods.
pub fn peers<'a>(
    cluster: &'a Objects,
    own_namespace: &str,
    namespaces: Option<&LabelSelector>,
    pods: Option<&LabelSelector>,
) -> Result<Vec<&'a Pod>> {
    let mut selected = Vec::new();
    for pod in policy_pods(cluster) {
        let namespace = namespace_of(&pod.metadata);
        let in_namespace = match namespaces {
            None => namespace == own_namespace,
            Some(selector) => matches(selector, &namespace_labels(cluster, namespace))?,
        };
        if in_namespace && pods.map_or(Ok(true), |selector| matches(selector, labels(pod)))? {
            selected.push(pod);
        }
    }
    Ok(selected)
}

/// The labels of a pod.
pub fn labels(pod: &Pod) -> &Labels {
    static NONE: Labels = Labels::new();
    pod.metadata.labels.as_ref().unwrap_or(&NONE)
}

/// The labels of a namespace, with the one that the API server always sets.
fn namespace_labels(cluster: &Objects, name: &str) -> Labels {
    let object = cluster.namespaces.iter().find(|namespace| namespace.metadata.name.as_deref() == Some(name));
    let mut labels = object.and_then(|object| object.metadata.labels.clone()).unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    labels
}
