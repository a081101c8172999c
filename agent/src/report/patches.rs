//! Patches as documents for `kubectl apply`, each with what it is for.

use std::fmt::Write as _;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use weir_engine::check::Repaired;

use crate::outputs::text::clean;

/// One YAML document per policy.
///
/// # Errors
/// An object that cannot be written as YAML.
pub fn yaml(policies: &[Repaired]) -> anyhow::Result<String> {
    let mut text = String::new();
    for repaired in policies {
        text.push_str("---\n");
        let name = name(&repaired.policy);
        let _ = if repaired.created {
            writeln!(text, "# {name}: new")
        } else {
            let rules: Vec<String> = repaired.rules.iter().map(|(d, rule)| format!("{d} rule {rule}")).collect();
            writeln!(text, "# {name}: with {} new", rules.join(", "))
        };
        for opens in &repaired.opens {
            let _ = writeln!(text, "# opens {}", clean(opens));
        }
        for (policy, manager) in &repaired.managed {
            let _ = writeln!(text, "# {} is left alone: managed by {}", clean(&policy.to_string()), clean(manager));
        }
        text.push_str(&document(repaired)?);
    }
    Ok(text)
}

fn document(repaired: &Repaired) -> anyhow::Result<String> {
    let mut text = serde_saphyr::to_string(&repaired.policy)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn name(policy: &NetworkPolicy) -> String {
    let (namespace, name) = (policy.metadata.namespace.as_deref(), policy.metadata.name.as_deref());
    clean(&format!("{}/{}", namespace.unwrap_or("default"), name.unwrap_or_default())).into_owned()
}
