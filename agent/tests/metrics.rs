//! The metrics' text, and its bounds.

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{busy, denied, empty, pair, workload};
use serde_json::json;
use snapbox::{assert_data_eq, file};
use weir::outputs::View;
use weir::outputs::metrics::{Caps, Format, Metrics};
use weir_engine::cluster::{Key, Kind, Origin};
use weir_engine::snapshot::Edit;
use weir_engine::time::Time;
use weir_engine::verdict::State;
use weir_engine::words::Name;

fn text(view: View, format: Format) -> String {
    Metrics::default().encode(&Arc::new(view), format).unwrap()
}

#[test]
fn openmetrics_text() {
    assert_data_eq!(text(busy(), Format::OpenMetrics), file!["golden/metrics.openmetrics.txt"]);
}

#[test]
fn prometheus_text() {
    assert_data_eq!(text(busy(), Format::Prometheus), file!["golden/metrics.prometheus.txt"]);
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    for view in [empty(), busy(), hostile()] {
        let promtool =
            Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut promtool = match promtool {
            Ok(promtool) => promtool,
            Err(error) => {
                eprintln!("skipped: promtool (Debian package prometheus) does not run: {error}");
                return;
            }
        };
        promtool.stdin.take().unwrap().write_all(text(view, Format::Prometheus).as_bytes()).unwrap();
        let ended = promtool.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
}

fn hostile() -> View {
    let mut view = busy();
    let name = "a\"b\\c\nd\u{1b}[2J{}=, é";
    view.snapshot.pairs.push(denied(
        pair("sidecar-xds", State::Denied, workload(name, name), workload(name, name), 15012),
        &["x/deny\"\n"],
        &[],
    ));
    view
}

#[test]
fn hostile_names_stay_inside_their_quotes() {
    let text = text(hostile(), Format::OpenMetrics);
    let line = text.lines().find(|l| l.contains("denied{") && l.contains("a\\\"b")).expect("one line");
    assert!(line.contains(r#"source_workload="a\"b\\c\\u{a}d\\u{1b}[2J{}=, é""#) && line.ends_with(" 1"), "{line}");
    assert!(!text.contains('\u{1b}'), "no control character");
}

fn crowd(pairs: u16) -> View {
    let mut view = empty();
    let one = |i: u16| {
        let source = workload("shop", &format!("w{i}"));
        denied(
            pair("sidecar-xds", State::Denied, source, workload("istio-system", "istiod"), 15012),
            &["shop/deny"],
            &[],
        )
    };
    view.snapshot.pairs = (0..pairs).map(one).collect();
    view
}

#[test]
fn what_does_not_fit_goes_to_one_overflow_series() {
    let metrics = Metrics::with_caps(Caps { denied: 3, state: 5, other: 10 });
    let encode = |pairs| metrics.encode(&Arc::new(crowd(pairs)), Format::OpenMetrics).unwrap();
    let lines = |text: &str, metric: &str| text.lines().filter(|l| l.starts_with(&format!("{metric}{{"))).count();
    let value = |text: &str, start: &str| {
        text.lines().find(|l| l.starts_with(start)).and_then(|l| l.rsplit(' ').next()).map(str::to_owned)
    };

    let text = encode(3);
    assert_eq!((lines(&text, "weir_required_flow_denied"), lines(&text, "weir_required_flow_state")), (3, 3));
    assert!(!text.contains("overflow\""), "nothing to leave out");
    assert_eq!(value(&text, "weir_series_overflow_total").as_deref(), Some("0"));

    let text = encode(100);
    assert_eq!((lines(&text, "weir_required_flow_denied"), lines(&text, "weir_required_flow_state")), (4, 6));
    assert_eq!(value(&text, "weir_required_flow_denied{flow=\"overflow\"").as_deref(), Some("97"));
    assert_eq!(value(&text, "weir_series_overflow_total").as_deref(), Some("192"), "97 denied and 95 states");

    let text = encode(1);
    assert_eq!(value(&text, "weir_series_overflow_total").as_deref(), Some("192"), "a counter does not fall");
}

#[test]
fn no_series_occurs_twice() {
    let mut view = busy();
    // A StatefulSet and a Deployment of one name differ in nothing that is a label.
    let mut twin = view.snapshot.pairs[0].clone();
    twin.source.workload_kind = "StatefulSet".into();
    view.snapshot.pairs.push(twin);
    let text = text(view, Format::OpenMetrics);
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        assert!(seen.insert(series.to_owned()), "{series}");
    }
}

#[test]
fn the_format_follows_what_the_reader_accepts() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
    assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
    assert_eq!(Format::accepted(None), Format::Prometheus);
}

#[test]
fn the_edit_that_closed_a_flow_is_named_with_its_time() {
    let mut closed =
        pair("sidecar-xds", State::AtRisk, workload("shop", "cart"), workload("istio-system", "istiod"), 15012);
    closed.not_admitted_count = 1;
    closed.since_edit = Some(Edit {
        object: Key { kind: Kind::NetworkPolicy, name: Name::new("shop", "deny") },
        deleted: false,
        origin: Origin { file: Some("mesh.yaml".into()), line: Some(7), resource_version: None },
        at: Time(0),
        at_unix_ns: 1_700_000_000_000_000_000,
    });
    let mut view = empty();
    view.snapshot.pairs.push(closed);
    let text = Metrics::default().encode(&Arc::new(view), Format::Prometheus).unwrap();
    let line = text.lines().find(|l| l.starts_with("weir_required_flow_closed_timestamp_seconds{")).expect("a series");
    assert!(line.contains("edit=\"NetworkPolicy shop/deny (mesh.yaml:7)\"") && line.ends_with(" 1700000000"), "{line}");
}

#[test]
fn the_newest_attempt_is_an_exemplar_where_the_format_has_them() {
    let seen = |at: u64, source: &str| {
        json!({
            "at": at, "at_unix_ns": 1_700_000_000_000_000_000_i64 + i64::try_from(at).unwrap(), "outcome": "dropped",
            "provisional": false, "reply": false, "retransmits": 0,
            "dialled": {"source": "192.0.2.1", "source_port": 40000, "destination": "192.0.2.2", "destination_port": 15012,
                        "protocol": "TCP"},
            "instance": {"source": source, "destination": "istio-system/istiod-5d5-x"},
        })
    };
    let with = |sources: [&str; 2]| {
        let mut view = busy();
        let mut pairs = view.snapshot.pairs.iter_mut().filter(|p| &*p.flow == "sidecar-xds");
        for (at, source) in [500_000_000, 250_000_000].into_iter().zip(sources) {
            pairs.next().unwrap().evidence = Some(serde_json::from_value(seen(at, source)).unwrap());
        }
        view
    };
    let attempts = r#"weir_attempts_total{flow="sidecar-xds",outcome="dropped"} 7"#;
    let line = |text: &str| text.lines().find(|l| l.starts_with(attempts)).unwrap().to_owned();
    let two = || with(["shop/cart-7c7-a", "shop/web-1"]);
    assert_eq!(
        line(&text(two(), Format::OpenMetrics)),
        format!(
            "{attempts} # {{source=\"shop/cart-7c7-a\",destination=\"istio-system/istiod-5d5-x\"}} 1.0 1700000000.5"
        )
    );
    assert_eq!(line(&text(two(), Format::Prometheus)), attempts);
    // Longer ones are forbidden by the format.
    let long = "x".repeat(100);
    assert_eq!(line(&text(with([&long, "shop/web-1"]), Format::OpenMetrics)), attempts);
}
