//! From a packet to a page and back: a real drop, the real agent's metrics, the alert at the webhook, the fix, its end. And
//! every query of the dashboard against what Prometheus has by then.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::{DriveOptions, Enforcement, Fixture, Rehearsal, agent, fixture};
use serde_json::Value;

use super::{PATIENCE, Stack, webhook};

/// Panels that have nothing to show while all is well with the agents themselves and there is no other trouble.
const MAY_BE_EMPTY: [&str; 2] = ["weir_events_lost_total", "weir_cluster_view_age_seconds"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_drop_is_told_to_the_webhook_and_the_fix_too() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::load(&fixture::fixtures_dir().join("scenarios/01-sidecar-injection")).unwrap();
    let rehearsal = tokio::task::block_in_place(|| {
        let rehearsal = Rehearsal::begin(fixture, agent::binary().unwrap(), Enforcement::Drop).unwrap();
        rehearsal.enter("before", Enforcement::Drop).unwrap();
        rehearsal
    });
    let (address, mut notified) = webhook().await;
    let stack = Stack::start(folder.path(), rehearsal.agent.address(), address).await;
    let drive_flow = |id: &str, state: &str| {
        let flow = rehearsal.flow(id).unwrap();
        tokio::task::block_in_place(|| rehearsal.drive_until(flow, &DriveOptions::default(), state, PATIENCE)).unwrap();
    };
    let drive = |state: &str| drive_flow("sc-02-xds-ca", state);

    drive("denied");
    let firing = notified.wait_for("firing", "WeirXdsBlocked", folder.path()).await;
    for (name, value) in [
        ("severity", "critical"),
        ("flow", "sidecar-xds"),
        ("source_namespace", "my-namespace"),
        ("source_workload", "httpbin"),
        ("destination_namespace", "istio-system"),
        ("destination_workload", "istiod"),
        ("port", "15012"),
        ("protocol", "TCP"),
    ] {
        assert_eq!(firing["labels"][name], value, "{name}: {:#}", firing["labels"]);
    }
    let summary = firing["annotations"]["summary"].as_str().unwrap();
    assert!(summary.contains("my-namespace/default-deny"), "{summary}");

    for (title, query) in dashboard() {
        // Rates want counters that move, of what fails and of what is established.
        let more = || {
            drive("denied");
            drive_flow("sc-01-injection-webhook", "verified");
        };
        ask(&stack, &title, &query, more).await;
    }

    tokio::task::block_in_place(|| rehearsal.enter("after", Enforcement::Drop)).unwrap();
    drive("verified");
    notified.wait_for("resolved", "WeirXdsBlocked", folder.path()).await;
    // It has a runtime of its own, which may not end within this one.
    tokio::task::block_in_place(|| drop(rehearsal));
}

/// Until Prometheus has something for it, or at once where that may be nothing.
async fn ask(stack: &Stack, title: &str, query: &str, more: impl Fn()) {
    let path = format!("/api/v1/query?query={}", encoded(query));
    let begin = Instant::now();
    loop {
        let (status, body) = tokio::task::block_in_place(|| agent::get(stack.prometheus, &path)).unwrap();
        assert_eq!(status, 200, "{title}: {query}: {body}");
        // An answer may come in chunks; what matters stands in one of them.
        let is_empty = body.contains("\"result\":[]");
        if !is_empty || MAY_BE_EMPTY.iter().any(|series| query.contains(series)) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{title}: nothing for {query}");
        more();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The dashboard's queries with what Grafana would put in for its variables.
fn dashboard() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dashboards/weir.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|p| p["type"] != "row");
    let queries = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(|t| (panel["title"].to_string(), t["expr"].as_str().unwrap().to_owned()))
    });
    let filled = |query: String| {
        let query = query.replace("$__rate_interval", "1m").replace("$__range", "5m");
        query.replace("$flow", ".*").replace("$namespace", ".*")
    };
    queries.map(|(title, query)| (title, filled(query))).collect()
}

fn encoded(query: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    query.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
