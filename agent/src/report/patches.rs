//! Patches as documents for `kubectl apply`, each with what it is for.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use weir_engine::check::Repaired;

use super::table::WIDTH;
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
        if repaired.created {
            comment(&mut text, &format!("{name}: new"));
        } else {
            let rules: Vec<String> = repaired.rules.iter().map(|(d, rule)| format!("{d} rule {rule}")).collect();
            comment(&mut text, &format!("{name}: with {} new", rules.join(", ")));
        }
        for opens in &repaired.opens {
            comment(&mut text, &format!("opens {}", clean(opens)));
        }
        for (policy, manager) in &repaired.managed {
            let (policy, manager) = (policy.to_string(), clean(manager));
            comment(&mut text, &format!("{} is left alone: managed by {manager}", clean(&policy)));
        }
        text.push_str(&document(repaired)?);
    }
    Ok(text)
}

/// A comment on lines that are not too long.
fn comment(text: &mut String, words: &str) {
    let options = textwrap::Options::new(WIDTH)
        .initial_indent("# ")
        .subsequent_indent("#   ")
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .word_separator(textwrap::WordSeparator::AsciiSpace);
    for line in textwrap::wrap(words, options) {
        text.push_str(line.trim_end());
        text.push('\n');
    }
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
