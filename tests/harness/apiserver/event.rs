//! What an API server asks of a new Event in `events.k8s.io/v1`: the rules of Kubernetes' `pkg/apis/core/validation/events.go`.

use serde_json::Value;

/// Bytes of `note` at most.
const NOTE: usize = 1_024;
/// Bytes of `reason`, `action` and `reportingInstance` at most.
const WORD: usize = 128;

/// What is wrong with an Event that is created in a namespace.
pub(super) fn faults(event: &Value, namespace: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |good: bool, what: &str| {
        if !good {
            faults.push(what.to_owned());
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    must(is_subdomain(&text(&event["metadata"]["name"])), "metadata.name is no DNS subdomain");
    must(event["metadata"]["namespace"] == namespace, "metadata.namespace is not that of the request");
    let regarding = text(&event["regarding"]["namespace"]);
    // An object without a namespace has its Events in default or kube-system.
    let fits =
        if regarding.is_empty() { matches!(namespace, "default" | "kube-system") } else { regarding == namespace };
    must(fits, "regarding.namespace does not match the Event's");
    must(is_micro_time(&text(&event["eventTime"])), "eventTime is required: RFC 3339 with six digits of a second");
    let controller = text(&event["reportingController"]);
    must(is_qualified(&controller), "reportingController must be a qualified name");
    for field in ["reportingInstance", "action", "reason"] {
        let word = text(&event[field]);
        must(!word.is_empty(), &format!("{field} is required"));
        must(word.len() <= WORD, &format!("{field} can have at most {WORD} characters"));
    }
    must(text(&event["note"]).len() <= NOTE, &format!("note can have at most {NOTE} characters"));
    must(matches!(event["type"].as_str(), Some("Normal" | "Warning")), "type has to be Normal or Warning");
    for field in ["deprecatedSource", "deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount"] {
        must(event.get(field).is_none_or(Value::is_null), &format!("{field} needs to be unset"));
    }
    if let Some(series) = event.get("series").filter(|s| !s.is_null()) {
        must(series["count"].as_u64() >= Some(2), "series.count should be at least 2");
        must(is_micro_time(&text(&series["lastObservedTime"])), "series.lastObservedTime is required");
    }
    faults
}

fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_qualified(name: &str) -> bool {
    let (prefix, name) = name.split_once('/').map_or((None, name), |(prefix, name)| (Some(prefix), name));
    let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    prefix.is_none_or(is_subdomain)
        && name.len() <= 63
        && outer(name.bytes().next())
        && outer(name.bytes().last())
        && name.bytes().all(inner)
}

/// `2026-01-02T03:04:05.123456Z`
fn is_micro_time(text: &str) -> bool {
    let form = "0000-00-00T00:00:00.000000Z";
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(a, b)| if b == b'0' { a.is_ascii_digit() } else { a == b })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "metadata": {"name": "cart-0.17f2a", "namespace": "shop"}, "eventTime": "2026-01-02T03:04:05.123456Z",
            "type": "Warning", "reason": "RequiredFlowDenied", "action": "Verify", "note": "x",
            "regarding": {"kind": "Pod", "namespace": "shop", "name": "cart-0"},
            "reportingController": "weir.io/agent", "reportingInstance": "weir-x",
        })
    }

    #[test]
    fn each_rule_refuses() {
        assert_eq!(faults(&good(), "shop"), Vec::<String>::new());
        let long = "x".repeat(129);
        for (path, value, word) in [
            ("/metadata/name", json!("cart-.17f2a"), "subdomain"),
            ("/metadata/name", json!("Cart.17f2a"), "subdomain"),
            ("/regarding/namespace", json!("other"), "regarding"),
            ("/regarding/namespace", json!(""), "regarding"),
            ("/eventTime", Value::Null, "eventTime"),
            ("/eventTime", json!("2026-01-02T03:04:05Z"), "eventTime"),
            ("/reportingController", json!(""), "reportingController"),
            ("/reportingController", json!("weir.io/a/b"), "reportingController"),
            ("/reportingInstance", json!(""), "reportingInstance"),
            ("/reason", json!(long), "reason"),
            ("/action", json!(""), "action"),
            ("/note", json!("x".repeat(1_025)), "note"),
            ("/type", json!("Error"), "type"),
        ] {
            let mut event = good();
            *event.pointer_mut(path).unwrap() = value;
            let found = faults(&event, "shop");
            assert!(found.len() == 1 && found[0].contains(word), "{path}: {found:?}");
        }
        let mut event = good();
        event["deprecatedCount"] = 1.into();
        event["series"] = json!({"count": 1, "lastObservedTime": "2026-01-02T03:04:05.123456Z"});
        assert_eq!(faults(&event, "shop").len(), 2);
    }
}
