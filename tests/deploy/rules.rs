//! The alerts: promtool's unit tests, and what promtool cannot know: that every flow of the catalogue has one alert, that the
//! metrics exist, that runbooks are there, that no alert is untested.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::Value;
use weir_engine::requirement::Catalogue;

use super::{assert_promtool, chart};

pub const RULES: &str = "deploy/helm/weir/rules/weir.rules.yaml";

/// The rules, as their file has them.
pub fn rules() -> Value {
    super::yaml(&super::read(&super::root().join(RULES)))
}

/// Every alert, by name.
pub fn alerts() -> BTreeMap<String, Value> {
    let rules = rules();
    let all = rules["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap());
    all.filter_map(|r| Some((r["alert"].as_str()?.to_owned(), r.clone()))).collect()
}

fn tests() -> Vec<(String, Value)> {
    let files = super::files(&super::root().join("deploy/alerts"));
    files.iter().map(|f| (f.display().to_string(), super::yaml(&super::read(f)))).collect()
}

#[test]
fn promtool_passes() {
    assert_promtool(&["check", "rules", RULES]);
    let files = tests();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(files.iter().map(|(name, _)| name.as_str()));
    assert_promtool(&arguments);
}

#[test]
fn the_prometheus_rule_is_the_rules_file() {
    let documents = chart::render("{prometheusRule: {enabled: true}}", "Helm");
    let (_, text) = documents.iter().find(|(file, _)| file == "prometheusrule.yaml").unwrap();
    let object = super::yaml(text);
    assert_eq!(object["spec"], rules());
}

/// The flows that an alert on `weir:required_flow_blocked` stands for: all of its matchers must hold.
struct Blocked(Vec<(bool, Regex)>);

impl Blocked {
    /// `None` for an alert on something else.
    fn of(alert: &Value) -> Option<Self> {
        let expression = alert["expr"].as_str().unwrap();
        expression.starts_with("weir:required_flow_blocked{").then_some(())?;
        let matcher = Regex::new(r#"flow(=~|!~)"([^"]+)""#).unwrap();
        // PromQL's regular expressions are anchored at both ends.
        let anchored = |pattern: &str| Regex::new(&format!("^(?:{pattern})$")).unwrap();
        let matchers: Vec<_> = matcher.captures_iter(expression).map(|m| (&m[1] == "=~", anchored(&m[2]))).collect();
        assert!(!matchers.is_empty(), "{expression}");
        Some(Self(matchers))
    }

    fn stands_for(&self, flow: &str) -> bool {
        self.0.iter().all(|(wanted, pattern)| pattern.is_match(flow) == *wanted)
    }
}

/// Of every alert that has flows.
fn blocked() -> BTreeMap<String, Blocked> {
    alerts().iter().filter_map(|(name, alert)| Some((name.clone(), Blocked::of(alert)?))).collect()
}

#[test]
fn each_flow_of_the_catalogue_has_one_alert() {
    let alerts = blocked();
    let mut used = BTreeSet::new();
    for flow in Catalogue::built_in().flows() {
        let names: Vec<&String> = alerts.iter().filter(|(_, a)| a.stands_for(&flow.id)).map(|(name, _)| name).collect();
        assert_eq!(names.len(), 1, "{}: {names:?}", flow.id);
        used.insert(names[0]);
    }
    assert!(used.into_iter().eq(alerts.keys()), "an alert stands for no flow");
}

#[test]
fn flows_go_to_the_alert_that_is_named_after_them() {
    let (alerts, catalogue) = (blocked(), Catalogue::built_in());
    for (flow, alert) in [
        ("sidecar-xds", "WeirXdsBlocked"),
        ("gateway-xds", "WeirXdsBlocked"),
        ("ztunnel-xds", "WeirXdsBlocked"),
        ("control-plane-webhook", "WeirWebhookBlocked"),
        ("control-plane-metrics", "WeirMetricsBlocked"),
        ("ambient-dns", "WeirDnsBlocked"),
        ("cni-api", "WeirApiServerBlocked"),
        ("control-plane-jwks", "WeirJwksBlocked"),
        ("gateway-ingress", "WeirGatewayIngressBlocked"),
        ("gateway-backend", "WeirGatewayBackendBlocked"),
        ("ambient-hbone", "WeirHboneBlocked"),
        ("waypoint-in", "WeirHboneBlocked"),
        ("sidecar-data", "WeirRequiredFlowBlocked"),
    ] {
        assert!(catalogue.flow(flow).is_some(), "{flow} is not in the catalogue");
        assert!(alerts[alert].stands_for(flow), "{flow}");
    }
}

#[test]
fn alerts_are_complete() {
    for (name, alert) in alerts() {
        assert!(name.starts_with("Weir"), "{name}");
        assert!(alert["for"].is_string(), "{name} has no `for`");
        assert!(alert["labels"]["severity"].is_string(), "{name} has no severity");
        let text =
            |key: &str| alert["annotations"][key].as_str().unwrap_or_else(|| panic!("{name} has no {key}")).to_owned();
        assert!(!text("description").is_empty());
        let expected = format!("https://github.com/weir-dev/weir/blob/main/docs/runbooks/{name}.md");
        assert_eq!(text("runbook_url"), expected);
        if Blocked::of(&alert).is_some() {
            let summary = text("summary");
            for label in ["flow", "source_workload", "destination_workload", "port", "policies"] {
                assert!(summary.contains(label), "{name}: the summary does not name {label}");
            }
        }
    }
}

#[test]
fn each_alert_is_tested_to_fire_and_not_to_fire() {
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for (_, file) in tests() {
        for test in file["tests"].as_array().unwrap() {
            for case in test["alert_rule_test"].as_array().into_iter().flatten() {
                let name = case["alertname"].as_str().unwrap().to_owned();
                let expected = case["exp_alerts"].as_array().is_some_and(|a| !a.is_empty());
                if expected {
                    fires.insert(name)
                } else {
                    silent.insert(name)
                };
            }
        }
    }
    let all: BTreeSet<String> = alerts().into_keys().collect();
    assert_eq!(fires, all);
    assert_eq!(silent, all);
}

/// Names of Weir's series in an expression.
pub fn series(expression: &str) -> BTreeSet<String> {
    let name = Regex::new("weir[_:][a-z_:]+").unwrap();
    name.find_iter(expression).map(|m| m.as_str().to_owned()).collect()
}

#[test]
fn expressions_use_series_that_exist() {
    let mut known = super::exported::series();
    let rules = rules();
    for rule in rules["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap()) {
        if let Some(record) = rule["record"].as_str() {
            known.insert(record.to_owned());
        }
        let used = series(rule["expr"].as_str().unwrap());
        assert!(used.is_subset(&known), "{used:?} are not all exported");
    }
}
