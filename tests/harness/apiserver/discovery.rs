//! Discovery documents: group by group, and aggregated.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

use super::store::{Store, Type};

/// A discovery document, or none where the API server would answer 404.
pub(super) fn document(store: &Store, path: &[&str], aggregated: bool) -> Option<Value> {
    match path {
        ["api"] if aggregated => Some(aggregate(store, |t| t.group.is_empty())),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        ["api", version] => resources(store, "", version),
        ["apis"] if aggregated => Some(aggregate(store, |t| !t.group.is_empty())),
        ["apis"] => {
            let groups: Vec<Value> = groups(store).into_iter().filter_map(|g| group(store, &g)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let mut found = group(store, name)?;
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            Some(found)
        }
        ["apis", name, version] => resources(store, name, version),
        _ => None,
    }
}

/// A tag that changes with the document.
pub(super) fn tag(document: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    document.to_string().hash(&mut hasher);
    format!("\"{:016X}\"", hasher.finish())
}

fn groups(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store.types().map(|t| t.group.clone()).filter(|g| !g.is_empty()).collect();
    names.dedup();
    names
}

fn versions(store: &Store, group: &str) -> Vec<String> {
    let mut versions: Vec<String> = store.types().filter(|t| t.group == group).map(|t| t.version.clone()).collect();
    // By stability and age, as the API server orders them: v1 before v1beta1 before v1alpha3.
    versions.sort_by_key(|v| (v.contains("alpha"), v.contains("beta"), std::cmp::Reverse(v.clone())));
    versions.dedup();
    versions
}

fn group(store: &Store, name: &str) -> Option<Value> {
    let versions: Vec<Value> = versions(store, name)
        .into_iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({"name": name, "versions": versions, "preferredVersion": preferred}))
}

fn resources(store: &Store, group: &str, version: &str) -> Option<Value> {
    let found: Vec<&Type> = store.types().filter(|t| t.group == group && t.version == version).collect();
    let api_version = found.first()?.api_version();
    let resources: Vec<Value> = found
        .into_iter()
        .map(|t| {
            json!({"name": t.plural, "singularName": t.kind.to_lowercase(), "namespaced": t.namespaced,
                   "kind": t.kind, "verbs": VERBS, "shortNames": short_names(&t.plural)})
        })
        .collect();
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources}))
}

/// As people abbreviate the kinds that every API server has.
fn short_names(plural: &str) -> &'static [&'static str] {
    match plural {
        "namespaces" => &["ns"],
        "nodes" => &["no"],
        "pods" => &["po"],
        "services" => &["svc"],
        "configmaps" => &["cm"],
        "networkpolicies" => &["netpol"],
        "deployments" => &["deploy"],
        "daemonsets" => &["ds"],
        _ => &[],
    }
}

const VERBS: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];

fn aggregate(store: &Store, of: impl Fn(&Type) -> bool) -> Value {
    let mut names: Vec<&str> = store.types().filter(|t| of(t)).map(|t| &*t.group).collect();
    names.dedup();
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = versions(store, name)
                .into_iter()
                .map(|version| {
                    let of_version = store.types().filter(|t| t.group == name && t.version == version);
                    let resources: Vec<Value> = of_version.map(resource).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn resource(t: &Type) -> Value {
    json!({"resource": t.plural, "singularResource": t.kind.to_lowercase(),
           "responseKind": {"group": t.group, "version": t.version, "kind": t.kind},
           "scope": if t.namespaced { "Namespaced" } else { "Cluster" }, "verbs": VERBS,
           "shortNames": short_names(&t.plural)})
}
