//! The dashboard: its queries parse, its series exist, its panels lie side by side.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use regex::Regex;
use serde_json::Value;

use super::rules;

fn dashboard() -> Value {
    let text = super::read(&super::root().join("deploy/dashboards/weir.json"));
    serde_json::from_str(&text).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|p| p["type"] != "row").collect()
}

/// Every query, with what Grafana would put in for its variables.
fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            found.push((panel["title"].as_str().unwrap().to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        found.push(("annotation".to_owned(), annotation["expr"].as_str().unwrap().to_owned()));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap().iter().filter(|v| v["type"] == "query") {
        let query = variable["definition"].as_str().unwrap();
        let series = query.strip_prefix("label_values(").and_then(|q| q.split_once(',')).unwrap().0;
        found.push((format!("variable {}", variable["name"]), series.to_owned()));
    }
    for (_, query) in &mut found {
        for (variable, value) in [("$__rate_interval", "5m"), ("$__range", "3h"), ("$flow", ".*"), ("$namespace", ".*")]
        {
            *query = query.replace(variable, value);
        }
        assert!(!query.contains('$'), "{query}: a variable that the test does not know");
    }
    found
}

#[test]
fn queries_parse() {
    let mut file = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (i, (_, query)) in queries().iter().enumerate() {
        writeln!(file, "  - record: query:{i}\n    expr: {}", Value::from(query.as_str())).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dashboard.yaml");
    std::fs::write(&path, file).unwrap();
    super::assert_promtool(&["check", "rules", path.to_str().unwrap()]);
}

#[test]
fn series_exist() {
    let mut known = super::exported::series();
    known.extend(rules::rules()["groups"].as_array().unwrap().iter().flat_map(|g| {
        let records = g["rules"].as_array().unwrap().iter().filter_map(|r| r["record"].as_str());
        records.map(str::to_owned).collect::<Vec<_>>()
    }));
    let other = Regex::new(r"(up|ALERTS)\{").unwrap();
    for (title, query) in queries() {
        let used = rules::series(&query);
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{title}: {unknown:?} are not exported");
        assert!(!used.is_empty() || other.is_match(&query), "{title}: {query} asks for nothing of Weir's");
    }
}

/// What the alerts and the states stand on, the four questions of traffic, and the agents' own health.
#[test]
fn every_exported_metric_that_people_ask_for_is_shown() {
    let shown: BTreeSet<String> = queries().iter().flat_map(|(_, q)| rules::series(q)).collect();
    for series in [
        "weir:required_flow_state",
        "weir:required_flow_blocked",
        "weir_required_flow_denied",
        "weir_attempts_total",
        "weir_drops_total",
        "weir_connect_latency_seconds_bucket",
        "weir_events_lost_total",
        "weir_probe_active",
        "weir_cluster_objects",
    ] {
        assert!(shown.contains(series), "{series} is on no panel");
    }
}

#[test]
fn panels_are_described_and_do_not_overlap() {
    let dashboard = dashboard();
    let all = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<i64> = all.iter().map(|p| p["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), all.len(), "ids are unique");
    let mut taken = BTreeSet::new();
    for panel in all {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|k| panel["gridPos"][k].as_u64().unwrap());
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} overlaps", panel["title"]);
        }
    }
    for panel in panels(&dashboard) {
        assert!(panel["description"].as_str().is_some_and(|d| !d.is_empty()), "{}", panel["title"]);
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
    }
}
