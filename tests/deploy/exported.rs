//! Names of the series that the agent exports, read from what it exports.

use std::collections::BTreeSet;
use std::sync::Arc;

use weir::outputs::metrics::{Format, Metrics};
use weir::outputs::{AgentView, PartView, View};
use weir_engine::engine::{Engine, Settings};
use weir_engine::time::Time;

/// Every name that a query may use, with the suffixes of counters and histograms.
pub fn series() -> BTreeSet<String> {
    let view = View { snapshot: Engine::new(Settings::default()).snapshot(Time(0)), agent: AgentView::default() };
    let text = Metrics::default().encode(&Arc::new(view), Format::OpenMetrics).unwrap();
    let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .flat_map(|(name, kind)| {
            let suffixes: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "gauge" => &[""],
                other => panic!("{name}: {other} is not a kind that Weir exports"),
            };
            suffixes.iter().map(move |s| format!("{name}{s}"))
        })
        .collect()
}

#[test]
fn the_names_of_the_documentation_are_exported() {
    let exported = series();
    for name in [
        "weir_required_flow_denied",
        "weir_required_flow_state",
        "weir_required_flows",
        "weir_attempts_total",
        "weir_drops_total",
        "weir_connect_latency_seconds_bucket",
        "weir_events_lost_total",
        "weir_probe_active",
        "weir_cluster_objects",
        "weir_series_overflow_total",
        "weir_build_info",
    ] {
        assert!(exported.contains(name), "{name} is not among {exported:?}");
    }
}

#[test]
fn the_age_of_the_view_is_exported_by_part() {
    let part = PartView {
        part: "networkpolicies.networking.k8s.io".into(),
        state: "stale".to_owned(),
        reason: None,
        undecodable: 0,
        age_seconds: 42,
    };
    let agent = AgentView { parts: vec![part], ..AgentView::default() };
    let view = View { snapshot: Engine::new(Settings::default()).snapshot(Time(0)), agent };
    let text = Metrics::default().encode(&Arc::new(view), Format::Prometheus).unwrap();
    let wanted = "weir_cluster_view_age_seconds{part=\"networkpolicies.networking.k8s.io\"} 42\n";
    assert!(text.contains(wanted), "{text}");
}

/// What the end-to-end test of the alerts serves is what an agent could serve.
#[test]
fn the_recorded_texts_are_metrics_of_this_version() {
    let exported = series();
    for file in ["denied.metrics", "fixed.metrics"] {
        let text = crate::read(&crate::root().join("tests/deploy").join(file));
        assert!(text.ends_with("# EOF\n"));
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let (name, _) = line.split_once('{').unwrap();
            assert!(exported.contains(name), "{file}: {name}");
        }
    }
}
