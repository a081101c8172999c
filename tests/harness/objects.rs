//! The cluster objects that a topology and its policies are made from, read from YAML files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Objects of one cluster, typed by upstream's schema, in the order of their file.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Vec<Service>,
    /// Endpoint slices, as written: those that a controller would make from selectors are not added.
    pub slices: Vec<EndpointSlice>,
    /// Network policies.
    pub policies: Vec<NetworkPolicy>,
    /// Objects of kinds that mean nothing to the harness, untouched.
    pub other: Vec<Value>,
}

impl Objects {
    /// Reads every document of a YAML file. Fails with the file, document and field that is wrong.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", file.display()))
    }

    /// Reads every document of a YAML text. A key that stands twice in a map counts as written last, as the
    /// Kubernetes API server takes it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut objects = Self::default();
        for (index, document) in documents(text)?.into_iter().enumerate() {
            objects.add(document).with_context(|| format!("document {}", index + 1))?;
        }
        Ok(objects)
    }

    /// Takes in one object, or each of a List.
    pub fn add(&mut self, document: Value) -> Result<()> {
        let kind = match document.get("kind").and_then(Value::as_str) {
            Some(kind) => kind.to_owned(),
            None if document.is_null() => return Ok(()),
            None => bail!("object without a kind"),
        };
        match kind.as_str() {
            "Namespace" => self.namespaces.push(typed(document)?),
            "Node" => self.nodes.push(typed(document)?),
            "Pod" => self.pods.push(typed(document)?),
            "Service" => self.services.push(typed(document)?),
            "EndpointSlice" => self.slices.push(typed(document)?),
            "NetworkPolicy" => self.policies.push(typed(document)?),
            "List" => {
                let items = document.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
                for item in items {
                    self.add(item)?;
                }
            }
            _ => self.other.push(document),
        }
        Ok(())
    }

    /// Every object as Kubernetes JSON with `apiVersion` and `kind`, ready to be written as a manifest.
    pub fn to_json(&self) -> Vec<Value> {
        let mut all = Vec::new();
        all.extend(self.namespaces.iter().map(json));
        all.extend(self.nodes.iter().map(json));
        all.extend(self.services.iter().map(json));
        all.extend(self.slices.iter().map(json));
        all.extend(self.pods.iter().map(json));
        all.extend(self.policies.iter().map(json));
        all.extend(self.other.iter().cloned());
        all
    }

    /// A pod by `namespace/name`.
    pub fn pod(&self, key: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| key_of(&pod.metadata) == key)
    }

    /// A service by `namespace/name`.
    pub fn service(&self, key: &str) -> Option<&Service> {
        self.services.iter().find(|service| key_of(&service.metadata) == key)
    }
}

/// The documents of a YAML text as JSON values; empty ones are left out.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins };
    let all: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// `namespace/name` of an object; an object without a namespace is in `default`.
pub fn key_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
    format!("{}/{}", namespace_of(meta), meta.name.as_deref().unwrap_or_default())
}

/// The namespace of an object, `default` when none is written.
pub fn namespace_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or("default")
}

fn typed<T: DeserializeOwned>(document: Value) -> Result<T> {
    let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?").to_owned();
    serde_json::from_value(document).with_context(|| format!("object {name}"))
}

fn json<T: serde::Serialize>(object: &T) -> Value {
    // k8s-openapi writes plain maps with string keys; nothing in them can fail to become JSON.
    serde_json::to_value(object).expect("a Kubernetes object is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let text = "kind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress: [{}]\n  ingress: []\n";
        let objects = Objects::parse(text).unwrap();
        assert_eq!(objects.policies[0].spec.as_ref().unwrap().ingress, Some(Vec::new()));
    }

    #[test]
    fn comments_empty_documents_and_lists() {
        let text = "# nothing\n---\n---\nkind: List\nitems: [{kind: Pod, metadata: {name: a}}]\n---\nkind: Gateway\n";
        let objects = Objects::parse(text).unwrap();
        assert_eq!((objects.pods.len(), objects.other.len()), (1, 1));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let error = Objects::parse("kind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: {name: b, labels: 7}\n");
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("document 2") && error.contains("object b"), "{error}");
    }
}
