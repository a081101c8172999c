//! Label and field selectors, as query parameters of the API spell them.

use anyhow::bail;
use serde_json::Value;

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// A label selector and a field selector, both of which an object must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
}

/// Fields that the API server can select pods by (`pkg/registry/core/pod/strategy.go`, `ToSelectableFields`); every other kind
/// has name and namespace only.
const POD_FIELDS: [(&str, &str); 7] = [
    ("spec.nodeName", "/spec/nodeName"),
    ("spec.restartPolicy", "/spec/restartPolicy"),
    ("spec.schedulerName", "/spec/schedulerName"),
    ("spec.serviceAccountName", "/spec/serviceAccountName"),
    ("status.phase", "/status/phase"),
    ("status.podIP", "/status/podIP"),
    ("status.nominatedNodeName", "/status/nominatedNodeName"),
];

impl Selector {
    /// Reads both selectors.
    ///
    /// # Errors
    /// When the API server would answer 400.
    pub fn parse(plural: &str, labels: &str, fields: &str) -> anyhow::Result<Self> {
        let mut selector = Self::default();
        for part in split(labels) {
            selector.labels.push(requirement(part)?);
        }
        for part in fields.split(',').filter(|p| !p.is_empty()) {
            let (field, value, equal) = match (part.split_once("!="), part.split_once("==").or(part.split_once('='))) {
                (Some((field, value)), _) => (field, value, false),
                (None, Some((field, value))) => (field, value, true),
                (None, None) => bail!("invalid field selector {part}"),
            };
            let Some(path) = path(plural, field) else {
                bail!("field label not supported: {field}");
            };
            selector.fields.push((path.to_owned(), value.to_owned(), equal));
        }
        Ok(selector)
    }

    /// Whether an object is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        }) && self.fields.iter().all(|(path, value, equal)| {
            let own = object.pointer(path).and_then(Value::as_str).unwrap_or_default();
            (own == value) == *equal
        })
    }
}

fn path(plural: &str, field: &str) -> Option<&'static str> {
    match field {
        "metadata.name" => Some("/metadata/name"),
        "metadata.namespace" => Some("/metadata/namespace"),
        _ if plural == "pods" => POD_FIELDS.iter().find(|(name, _)| *name == field).map(|(_, path)| *path),
        _ => None,
    }
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn requirement(part: &str) -> anyhow::Result<Requirement> {
    let set = |text: &str| text.trim().trim_start_matches('(').trim_end_matches(')').split(',').map(own).collect();
    if let Some((key, values)) = part.split_once(" notin ") {
        return Ok(Requirement::NotIn(own(key), set(values)));
    }
    if let Some((key, values)) = part.split_once(" in ") {
        return Ok(Requirement::In(own(key), set(values)));
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(own(key), vec![own(value)]));
    }
    if let Some((key, value)) = part.split_once("==").or(part.split_once('=')) {
        return Ok(Requirement::In(own(key), vec![own(value)]));
    }
    match part.strip_prefix('!') {
        _ if part.contains(char::is_whitespace) => bail!("invalid label selector {part}"),
        Some(key) => Ok(Requirement::Absent(own(key))),
        None => Ok(Requirement::Exists(own(part))),
    }
}

fn own(text: &str) -> String {
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selects_as_the_api_does() {
        let pod = json!({"metadata": {"name": "a", "labels": {"app": "istiod", "istio": "pilot"}},
                         "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.1"}});
        let cases = [
            ("", "", true),
            ("app=istiod", "", true),
            ("app in (ztunnel,istiod),istio", "", true),
            ("app in (ztunnel, prometheus)", "", false),
            ("app notin (istiod)", "", false),
            ("istio!=pilot", "", false),
            ("!istio", "", false),
            ("!gone", "spec.nodeName=n1", true),
            ("", "spec.nodeName=n2", false),
            ("", "status.podIP=10.0.0.1,metadata.name=a", true),
            ("", "metadata.name!=a", false),
        ];
        for (labels, fields, expected) in cases {
            let selector = Selector::parse("pods", labels, fields).unwrap();
            assert_eq!(selector.matches(&pod), expected, "{labels:?} {fields:?}");
        }
        assert!(Selector::parse("services", "", "spec.nodeName=n1").is_err());
        assert!(Selector::parse("pods", "", "status.hostIP=10.0.0.1").is_err());
    }
}
