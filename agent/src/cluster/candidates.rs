//! Candidate policies: NetworkPolicies that are not enforced yet, from files and from labelled ConfigMaps.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use weir_engine::cluster::{Key, Kind, Object};
use weir_engine::words::Name;

use super::change::Candidates;
use super::manifests::{Found, Keep, Problem, Severity, Update, parse};
use super::watch::ConfigMaps;

/// Label of a ConfigMap whose keys hold candidates.
pub const LABEL: (&str, &str) = ("weir.io/candidates", "true");

/// The ConfigMaps of a namespace that hold candidates.
#[must_use]
pub fn config_maps(namespace: String) -> ConfigMaps {
    ConfigMaps { namespace, name: None, labels: Some(format!("{}={}", LABEL.0, LABEL.1)) }
}

/// What a ConfigMap holds; none for another kind of object. One without the label holds nothing.
#[must_use]
pub fn of_config_map(object: &Object) -> Option<Candidates> {
    let Object::Raw(Kind::ConfigMap, value) = object else { return None };
    let key = object.key();
    let none = without(&key)?;
    if value["metadata"]["labels"][LABEL.0] != LABEL.1 {
        return Some(none);
    }
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for (file, text) in value["data"].as_object().into_iter().flatten() {
        let name: Arc<str> = format!("{} {file}", none.source).into();
        let manifests = parse(&name, text.as_str().unwrap_or_default().as_bytes(), Keep::Object);
        problems.extend(manifests.problems);
        problems.extend(manifests.ignored.keys().map(|kind| not_a_policy(&name, None, kind)));
        found.extend(manifests.objects);
    }
    let policies = found.into_iter().filter_map(|found| policy(found, &mut problems)).collect();
    Some(Candidates { policies, problems, ..none })
}

/// What is left when an object is gone; none for what never held candidates.
#[must_use]
pub fn without(key: &Key) -> Option<Candidates> {
    (key.kind == Kind::ConfigMap).then(|| Candidates {
        source: format!("ConfigMap {}", key.name).into(),
        policies: Vec::new(),
        problems: Vec::new(),
    })
}

/// The candidates of files, as they change.
#[derive(Debug, Default)]
pub struct Files {
    policies: BTreeMap<Name, NetworkPolicy>,
    others: BTreeMap<Key, Problem>,
}

impl Files {
    /// Takes in what has changed; says all there is.
    pub fn update(&mut self, update: Update) -> Candidates {
        for key in update.delete {
            self.policies.remove(&key.name);
            self.others.remove(&key);
        }
        let mut problems = update.problems;
        for found in update.apply {
            let key = found.key.clone();
            let mut other = Vec::new();
            match policy(found, &mut other) {
                Some(policy) => drop(self.policies.insert(key.name, policy)),
                None => self.others.extend(other.into_iter().map(|problem| (key.clone(), problem))),
            }
        }
        problems.extend(self.others.values().cloned());
        problems.extend(update.ignored.keys().map(|kind| not_a_policy(&"candidates".into(), None, kind)));
        Candidates { source: "files".into(), policies: self.policies.values().cloned().collect(), problems }
    }
}

fn policy(found: Found, problems: &mut Vec<Problem>) -> Option<NetworkPolicy> {
    match found.object {
        Object::NetworkPolicy(policy) => Some(*policy),
        _ => {
            let file = found.origin.file.unwrap_or_else(|| "candidates".into());
            problems.push(not_a_policy(&file, found.origin.line, found.key.kind.as_str()));
            None
        }
    }
}

fn not_a_policy(file: &Arc<str>, line: Option<u32>, kind: &str) -> Problem {
    Problem {
        severity: Severity::Warning,
        file: file.clone(),
        document: None,
        line,
        message: format!("{kind} is left out: candidates are NetworkPolicies of networking.k8s.io"),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn map(labels: Value, data: Value) -> Object {
        let meta = json!({"namespace": "weir", "name": "next", "labels": labels});
        Object::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})).unwrap()
    }

    const DENY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n\
                        spec: {podSelector: {}}\n";

    #[test]
    fn a_labelled_config_map_holds_candidates_in_all_its_keys() {
        let other = DENY.replace("deny", "other");
        let data = json!({"a.yaml": format!("{DENY}---\n{other}"), "b.yaml": "kind: [", "c": "{apiVersion: v1, kind: Pod, metadata: {name: x}}"});
        let read = of_config_map(&map(json!({"weir.io/candidates": "true"}), data.clone())).unwrap();
        assert_eq!(&*read.source, "ConfigMap weir/next");
        let names: Vec<_> = read.policies.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        assert_eq!(names, ["deny", "other"]);
        assert_eq!(read.problems.len(), 2, "{:?}", read.problems);
        assert!(read.problems.iter().any(|p| &*p.file == "ConfigMap weir/next b.yaml"), "{:?}", read.problems);
        assert!(read.problems.iter().any(|p| p.message.starts_with("Pod is left out")), "{:?}", read.problems);

        let read = of_config_map(&map(json!({}), data)).unwrap();
        assert!(read.policies.is_empty() && read.problems.is_empty(), "the label is gone, and so are they");
    }

    #[test]
    fn candidates_of_files_follow_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("next.yaml");
        std::fs::write(&path, format!("{DENY}---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: x}}}}\n"))
            .unwrap();
        let (mut watch, first) = super::super::manifests::Watch::new(vec![folder.path().into()], Keep::Object).unwrap();
        let mut files = Files::default();
        let read = files.update(first);
        assert_eq!((read.policies.len(), read.problems.len()), (1, 1), "{:?}", read.problems);
        std::fs::remove_file(&path).unwrap();
        let read = (0..3).find_map(|_| watch.poll()).map(|update| files.update(update)).unwrap();
        // That the folder is empty may be said; what was in it may not.
        let of_the_file = read.problems.iter().any(|p| p.message.contains("left out"));
        assert!(read.policies.is_empty() && !of_the_file, "{:?}", read.problems);
    }
}
