//! The metrics, computed from a view when they are asked for: the hot path counts in the engine and never touches them.
//!
//! Every label set has a hard cap; what does not fit is counted in one series whose labels all say `overflow`. No address is
//! ever a label: workloads are.

mod exemplar;
mod labels;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::exemplar::CounterWithExemplar;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use weir_engine::snapshot::{LATENCY_BUCKETS, Latency};
use weir_engine::verdict::State;

use super::View;
use labels::{
    Attempts, Build, Count, Drops, Flow, Labels, Object, Part, Probe, Stage, broken_pair, broken_traffic, closed,
    denied, state_of,
};

/// Series of one metric at most, the overflow series not counted.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// `weir_required_flow_denied`, `weir_required_flow_closed_timestamp_seconds`, `weir_candidate_denied`.
    pub denied: usize,
    /// `weir_required_flow_state`.
    pub state: usize,
    /// Each of the others.
    pub other: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { denied: 1_000, state: 5_000, other: 1_000 }
    }
}

/// Text formats that Prometheus reads. They differ in how counters are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4, for readers that don't ask for OpenMetrics (`curl`, `promtool`).
    Prometheus,
}

impl Format {
    /// What a request's `Accept` asks for.
    #[must_use]
    pub fn accepted(header: Option<&str>) -> Self {
        if header.is_some_and(|h| h.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes views as metrics.
#[derive(Debug, Default)]
pub struct Metrics {
    caps: Caps,
    /// The most series that ever had to be left out: a counter must not fall.
    left_out: Arc<AtomicU64>,
}

impl Metrics {
    /// With caps of one's own.
    #[must_use]
    pub fn with_caps(caps: Caps) -> Self {
        Self { caps, left_out: Arc::default() }
    }

    /// All metrics of a view.
    ///
    /// # Errors
    /// Never in practice: writing to a `String` can't fail.
    pub fn encode(&self, view: &Arc<View>, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("weir");
        registry.register_collector(Box::new(ViewCollector {
            view: view.clone(),
            caps: self.caps,
            left_out: self.left_out.clone(),
            exemplars: format == Format::OpenMetrics,
        }));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(match format {
            Format::OpenMetrics => out,
            Format::Prometheus => prometheus(&out),
        })
    }
}

/// OpenMetrics announces a counter by its name without `_total`; Prometheus' own format by the name of its samples, and it
/// knows neither units nor an end mark.
fn prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    // HELP stands before TYPE, and only TYPE tells that it is a counter.
    let counters: Vec<&str> =
        openmetrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in openmetrics.lines() {
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        let described = ["# HELP ", "# TYPE "].iter().find_map(|word| {
            let (name, rest) = line.strip_prefix(word)?.split_once(' ')?;
            counters.contains(&name).then_some((word, name, rest))
        });
        match described {
            Some((word, name, rest)) => out.extend([word, name, "_total ", rest]),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[derive(Debug)]
struct ViewCollector {
    view: Arc<View>,
    caps: Caps,
    left_out: Arc<AtomicU64>,
    /// Prometheus' own format has none.
    exemplars: bool,
}

impl Collector for ViewCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let snapshot = &self.view.snapshot;
        let agent = &self.view.agent;
        let mut left_out = snapshot.overflow.pairs + snapshot.overflow.drop_series;

        let denied_pairs = snapshot.pairs.iter().filter(|p| p.state == State::Denied).flat_map(denied);
        let series = Series::unique(denied_pairs.map(|l| (l, 1)), self.caps.denied);
        let help = "Required flows that policies deny: 1 while denied; policies are those that select the denied side";
        left_out += series.gauge(encoder, "required_flow_denied", help)?;

        let broken =
            snapshot.pairs.iter().flat_map(broken_pair).chain(snapshot.traffic.iter().flat_map(broken_traffic));
        let series = Series::unique(broken.map(|l| (l, 1)), self.caps.denied);
        let help =
            "Required flows, and traffic of no flow (none), that candidate policies would deny and today's don't: 1";
        left_out += series.gauge(encoder, "candidate_denied", help)?;
        let series = Series::unique(snapshot.pairs.iter().filter_map(closed), self.caps.denied);
        let help = "When the policy edit was made since which policies do not admit a required flow, Unix time";
        left_out += series.gauge_in(encoder, "required_flow_closed_timestamp", help, Some(&Unit::Seconds))?;

        let series = Series::unique(snapshot.pairs.iter().map(|p| (state_of(p), 1)), self.caps.state);
        left_out +=
            series.gauge(encoder, "required_flow_state", "State of each required flow between two workloads: 1")?;

        let counts = snapshot.counts.iter().map(|c| (Count::of(c), c.count));
        left_out += Series::sum(counts, self.caps.other).gauge(encoder, "required_flows", "Required flows by state")?;

        let attempts = snapshot.attempts.iter().map(|a| (Attempts::of(a), a.count));
        let exemplars = if self.exemplars { exemplar::newest(&snapshot.pairs) } else { BTreeMap::new() };
        let help = "Connection attempts by outcome";
        left_out += Series::sum(attempts, self.caps.other).counter_with(encoder, "attempts", help, &exemplars)?;

        let drops = snapshot.drops.iter().map(|d| (Drops::of(d), d.count));
        let help = "Dropped packets of connection attempts on watched ports";
        left_out += Series::sum(drops, self.caps.other).counter(encoder, "drops", help)?;

        latency(encoder, &snapshot.latencies)?;

        let lost = snapshot.lost.iter().map(|l| (Stage { stage: l.stage.clone() }, l.count));
        let help = "Kernel events that never reached the engine";
        left_out += Series::sum(lost, self.caps.other).counter(encoder, "events_lost", help)?;

        let held_back = ConstCounter::new(agent.suppressed_stacks);
        let help = "Drops whose kernel stack its rate limit held back: told, but without their netfilter hook";
        held_back.encode(encoder.encode_descriptor("stacks_suppressed", help, None, MetricType::Counter)?)?;

        let probes = agent.probes.iter().map(|p| (Probe { probe: p.name.clone() }, u64::from(p.active)));
        let help = "Whether the probe is attached";
        left_out += Series::sum(probes, self.caps.other).gauge(encoder, "probe_active", help)?;

        let ages = agent.parts.iter().map(|p| (Part { part: p.part.to_string() }, p.age_seconds));
        let help = "How long the API server has not confirmed a part of the view of the cluster";
        let ages = Series::unique(ages, self.caps.other);
        left_out += ages.gauge_in(encoder, "cluster_view_age", help, Some(&Unit::Seconds))?;

        let objects = snapshot.objects.iter().map(|o| (Object { kind: o.kind.as_str().to_owned() }, o.count));
        left_out += Series::sum(objects, self.caps.other).gauge(encoder, "cluster_objects", "Cluster objects known")?;

        let most = self.left_out.fetch_max(left_out, Ordering::Relaxed).max(left_out);
        let counter = ConstCounter::new(most);
        let help = "Series left out because a metric was at its cap: the most at any one time";
        counter.encode(encoder.encode_descriptor("series_overflow", help, None, MetricType::Counter)?)?;

        let build = Build { version: agent.version.clone() };
        let mut family = encoder.encode_descriptor("build_info", "What runs here", None, MetricType::Gauge)?;
        ConstGauge::new(1u64).encode(family.encode_family(&build)?)
    }
}

/// The series of one metric, below its cap, and what went over it.
struct Series<L> {
    kept: BTreeMap<L, u64>,
    over: Option<u64>,
    left_out: u64,
}

impl<L: Labels> Series<L> {
    /// Equal label sets (a Deployment and a StatefulSet of one name) are one series; the overflow series says how many.
    fn unique(series: impl Iterator<Item = (L, u64)>, cap: usize) -> Self {
        Self::collect(series, cap, |kept, value| *kept = value)
    }

    /// Equal label sets are added up, and so is what overflows.
    fn sum(series: impl Iterator<Item = (L, u64)>, cap: usize) -> Self {
        Self::collect(series, cap, |kept, value| *kept = kept.saturating_add(value))
    }

    fn collect(series: impl Iterator<Item = (L, u64)>, cap: usize, join: impl Fn(&mut u64, u64)) -> Self {
        let mut this = Self { kept: BTreeMap::new(), over: None, left_out: 0 };
        for (labels, value) in series {
            if let Some(kept) = this.kept.get_mut(&labels) {
                join(kept, value);
            } else if this.kept.len() < cap {
                this.kept.insert(labels, value);
            } else {
                this.over = Some(this.over.unwrap_or(0).saturating_add(value));
                this.left_out += 1;
            }
        }
        this
    }

    fn all(&self) -> impl Iterator<Item = (L, u64)> {
        let over = self.over.map(|value| (L::overflow(), value));
        self.kept.iter().map(|(l, v)| (l.clone(), *v)).chain(over)
    }

    fn gauge(&self, encoder: &mut DescriptorEncoder, name: &str, help: &str) -> Result<u64, fmt::Error> {
        self.gauge_in(encoder, name, help, None)
    }

    fn gauge_in(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
    ) -> Result<u64, fmt::Error> {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in self.all() {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(self.left_out)
    }

    fn counter(&self, encoder: &mut DescriptorEncoder, name: &str, help: &str) -> Result<u64, fmt::Error> {
        self.counter_with(encoder, name, help, &BTreeMap::new())
    }

    fn counter_with(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        exemplars: &BTreeMap<L, exemplar::Seen>,
    ) -> Result<u64, fmt::Error> {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in self.all() {
            let encoder = family.encode_family(&labels)?;
            match exemplars.get(&labels) {
                Some((exemplar, at)) if value > 0 => {
                    let counter = CounterWithExemplar::<exemplar::Exemplar>::default();
                    counter.inc_by(value - 1, None, None);
                    counter.inc_by(1, Some(exemplar.clone()), Some(*at));
                    counter.encode(encoder)?;
                }
                Some(_) | None => ConstCounter::new(value).encode(encoder)?,
            }
        }
        Ok(self.left_out)
    }
}

fn latency(encoder: &mut DescriptorEncoder, latencies: &[Latency]) -> Result<(), fmt::Error> {
    let help = "Time from connect() to the completed handshake";
    let mut family = encoder.encode_descriptor("connect_latency", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for latency in latencies {
        let bounds = LATENCY_BUCKETS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(latency.buckets.iter().copied().chain(std::iter::repeat(0))).collect();
        let flow = Flow { flow: latency.flow.to_string() };
        let seconds = std::time::Duration::from_nanos(latency.sum_ns).as_secs_f64();
        let none: Option<&HashMap<usize, _>> = None;
        family.encode_family(&flow)?.encode_histogram::<NoExemplar>(seconds, latency.count, &buckets, none)?;
    }
    Ok(())
}

type NoExemplar = [(&'static str, &'static str); 0];
