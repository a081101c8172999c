//! What an account may do: rules of ClusterRoles and Roles, as the API server's authorizer reads them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::fault::Verb;
use super::request::Asked;

/// One rule of a role.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    /// Of a Role: only there.
    namespace: Option<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    verbs: Vec<String>,
}

/// The rules of all roles in a file of manifests; each is taken as bound to the account.
pub(super) fn read(file: &Path) -> Result<Vec<Grant>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut grants = Vec::new();
    for object in crate::objects::documents(&text)? {
        let namespace = match object["kind"].as_str() {
            Some("ClusterRole") => None,
            Some("Role") => Some(object["metadata"]["namespace"].as_str().context("a Role without one")?.to_owned()),
            _ => continue,
        };
        let strings = |rule: &Value, field: &str| -> Vec<String> {
            let listed = rule[field].as_array().into_iter().flatten();
            listed.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        for rule in object["rules"].as_array().context("a role without rules")? {
            grants.push(Grant {
                namespace: namespace.clone(),
                groups: strings(rule, "apiGroups"),
                resources: strings(rule, "resources"),
                names: strings(rule, "resourceNames"),
                verbs: strings(rule, "verbs"),
            });
        }
    }
    ensure!(!grants.is_empty(), "no roles in {}", file.display());
    Ok(grants)
}

impl Grant {
    /// Is this request one that the rule is about?
    pub(super) fn covers(&self, asked: &Asked) -> bool {
        let verb = match asked.verb {
            // Whoever is authenticated may ask what is served.
            Verb::Discovery => return true,
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Delete => "delete",
        };
        let has = |listed: &[String], wanted: &str| listed.iter().any(|l| l == wanted || l == "*");
        // A list or a watch of one object by its name counts as one of that name.
        let field = asked.parameter("fieldSelector").strip_prefix("metadata.name=");
        let name = asked.name.as_deref().or(field);
        self.namespace.as_ref().is_none_or(|own| asked.namespace.as_ref() == Some(own))
            && has(&self.groups, &asked.group)
            && has(&self.resources, &asked.plural)
            && has(&self.verbs, verb)
            && (self.names.is_empty() || name.is_some_and(|name| has(&self.names, name)))
    }
}
