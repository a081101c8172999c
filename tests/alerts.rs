//! The alerts for real: Prometheus scrapes what an agent would say, evaluates the shipped rules, and Alertmanager tells a
//! webhook that a pair is blocked, and later that it no longer is. Debian's packages `prometheus` and `prometheus-alertmanager`,
//! on loopback, in a folder that goes away; every process is ended by the test that started it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use regex::Regex;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// For each of the two notifications.
const PATIENCE: Duration = Duration::from_secs(25);

/// What an agent says while policies deny a pair, and after they were fixed.
const DENIED: &str = include_str!("deploy/denied.metrics");
const FIXED: &str = include_str!("deploy/fixed.metrics");

#[tokio::test]
async fn a_denied_pair_is_told_to_the_webhook_and_its_end_too() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::serve(DENIED).await;
    let (webhook, mut notified) = webhook().await;

    let alertmanager = free_port().await;
    let config = format!(
        "route: {{receiver: hook, group_by: ['...'], group_wait: 100ms, group_interval: 1s, repeat_interval: 1h}}\n\
         receivers: [{{name: hook, webhook_configs: [{{url: 'http://{webhook}/', send_resolved: true}}]}}]\n"
    );
    fs::write(folder.path().join("alertmanager.yml"), config).unwrap();
    let _alertmanager = Process::start(
        &["prometheus-alertmanager", "alertmanager"],
        &[
            "--config.file=alertmanager.yml",
            "--storage.path=alertmanager",
            "--cluster.listen-address=",
            &format!("--web.listen-address={alertmanager}"),
        ],
        folder.path(),
    );

    fs::write(folder.path().join("weir.rules.yaml"), hasty_rules()).unwrap();
    let config = format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
         rule_files: [weir.rules.yaml]\n\
         alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n\
         scrape_configs: [{{job_name: weir, static_configs: [{{targets: ['{}'], labels: {{node: worker-1}}}}]}}]\n",
        agent.address
    );
    fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let _prometheus = Process::start(
        &["prometheus"],
        &[
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            &format!("--web.listen-address={}", free_port().await),
        ],
        folder.path(),
    );

    let firing = notified.wait_for("firing", "WeirXdsBlocked", folder.path()).await;
    let labels = firing["labels"].as_object().unwrap();
    for (name, value) in [
        ("severity", "critical"),
        ("flow", "sidecar-xds"),
        ("source_namespace", "shop"),
        ("source_workload", "cart"),
        ("destination_namespace", "istio-system"),
        ("destination_workload", "istiod"),
        ("port", "15012"),
        ("protocol", "TCP"),
    ] {
        assert_eq!(labels.get(name).and_then(Value::as_str), Some(value), "{labels:?}");
    }
    let summary = firing["annotations"]["summary"].as_str().unwrap();
    assert_eq!(
        summary,
        "sidecar-xds is blocked by NetworkPolicies: shop/cart to istio-system/istiod, TCP port 15012; \
         ingress not admitted by istio-system/default-deny"
    );
    assert!(firing["annotations"]["runbook_url"].as_str().unwrap().ends_with("/docs/runbooks/WeirXdsBlocked.md"));

    agent.say(FIXED);
    notified.wait_for("resolved", "WeirXdsBlocked", folder.path()).await;
    assert_eq!(notified.names(), ["WeirXdsBlocked"], "nothing else was wrong");
}

/// The shipped rules with no more than a second to wait.
fn hasty_rules() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weir/rules/weir.rules.yaml");
    let rules = fs::read_to_string(path).unwrap();
    let hasty = Regex::new("(?m)^        for: .+$").unwrap().replace_all(&rules, "        for: 1s").into_owned();
    assert_ne!(hasty, rules);
    hasty
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address that nobody listens on a moment from now.
async fn free_port() -> SocketAddr {
    listener().await.1
}

/// Says what it was told to say.
struct Agent {
    address: SocketAddr,
    text: Arc<Mutex<&'static str>>,
}

impl Agent {
    async fn serve(text: &'static str) -> Self {
        let (listener, address) = listener().await;
        let text = Arc::new(Mutex::new(text));
        let answer = |State(text): State<Arc<Mutex<&'static str>>>| async move {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], *text.lock().unwrap())
        };
        let router = Router::new().route("/metrics", get(answer)).with_state(text.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, text }
    }

    fn say(&self, text: &'static str) {
        *self.text.lock().unwrap() = text;
    }
}

/// Where notifications arrive, and all of them so far.
struct Notified {
    receiver: mpsc::UnboundedReceiver<Value>,
    seen: Vec<Value>,
}

async fn webhook() -> (SocketAddr, Notified) {
    let (listener, address) = listener().await;
    let (sender, receiver) = mpsc::unbounded_channel();
    let take = move |body: String| {
        let sender = sender.clone();
        async move {
            for alert in serde_json::from_str::<Value>(&body).unwrap()["alerts"].as_array().unwrap() {
                sender.send(alert.clone()).ok();
            }
            StatusCode::OK
        }
    };
    let router = Router::new().route("/", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, Notified { receiver, seen: Vec::new() })
}

impl Notified {
    async fn wait_for(&mut self, status: &str, name: &str, folder: &Path) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(Some(alert)) = tokio::time::timeout(left, self.receiver.recv()).await else {
                let logs = ["prometheus", "prometheus-alertmanager", "alertmanager"].map(|name| log(folder, name));
                panic!("no {name} {status} within {PATIENCE:?}; seen {:#?}\n{}", self.seen, logs.concat());
            };
            self.seen.push(alert.clone());
            if alert["status"] == status && alert["labels"]["alertname"] == name {
                return alert;
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.seen.iter().filter_map(|a| a["labels"]["alertname"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// A child that does not outlive this value.
struct Process(Child);

impl Process {
    /// The first of the programs that is installed; distributions name them differently.
    fn start(programs: &[&str], arguments: &[&str], folder: &Path) -> Self {
        for program in programs {
            let log = File::create(folder.join(format!("{program}.log"))).unwrap();
            let mut command = Command::new(program);
            command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            match command.spawn() {
                Ok(child) => return Self(child),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => panic!("{program}: {e}"),
            }
        }
        panic!("{programs:?} is not installed; Debian has the packages prometheus and prometheus-alertmanager");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn log(folder: &Path, program: &str) -> String {
    fs::read_to_string(folder.join(format!("{program}.log"))).unwrap_or_default()
}
