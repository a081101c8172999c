//! What is counted for the metrics, with hard caps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::attempt::Outcome;
use crate::observation::{DropClass, PacketDrop};
use crate::snapshot::{AttemptCount, DropCount, LATENCY_BUCKETS, Latency, Loss};
use crate::time::Time;
use crate::words::Protocol;

/// Flow of attempts that belong to no pair.
pub const NO_FLOW: &str = "none";

#[derive(Clone, Debug, Default)]
struct Histogram {
    buckets: [u64; LATENCY_BUCKETS.len() + 1],
    sum_ns: u64,
    count: u64,
}

/// Counters since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    attempts: BTreeMap<(Arc<str>, Outcome), u64>,
    latencies: BTreeMap<Arc<str>, Histogram>,
    drops: BTreeMap<(DropClass, String, u16, Protocol), u64>,
    lost: BTreeMap<String, (u64, Time)>,
    drop_overflow: u64,
    /// Attempts one end of which no object explains.
    pub unattributed: u64,
}

impl Counters {
    /// One attempt, when its outcome is final.
    pub fn attempt(&mut self, flow: &Arc<str>, outcome: Outcome, latency: Option<Duration>) {
        *self.attempts.entry((flow.clone(), outcome)).or_default() += 1;
        if let Some(latency) = latency {
            let histogram = self.latencies.entry(flow.clone()).or_default();
            let seconds = latency.as_secs_f64();
            let bucket = LATENCY_BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(LATENCY_BUCKETS.len());
            histogram.buckets[bucket] += 1;
            histogram.sum_ns = histogram.sum_ns.saturating_add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
            histogram.count += 1;
        }
    }

    /// Dropped packets; beyond `max` series they are counted without reason and port.
    pub fn dropped(&mut self, drop: &PacketDrop, max: usize) {
        let class = drop.class();
        if class == DropClass::Normal {
            return;
        }
        let reason = drop.reason.clone().unwrap_or_default();
        let mut key = (class, reason, drop.tuple.destination_port, drop.tuple.protocol);
        if !self.drops.contains_key(&key) && self.drops.len() >= max {
            self.drop_overflow += 1;
            key = (DropClass::Other, "overflow".to_owned(), 0, drop.tuple.protocol);
        }
        *self.drops.entry(key).or_default() += drop.count.max(1);
    }

    /// Events lost at a stage.
    pub fn lost(&mut self, stage: &str, count: u64, now: Time) {
        let (total, last) = self.lost.entry(stage.to_owned()).or_default();
        *total += count;
        *last = now;
    }

    /// Drops counted in the overflow series.
    #[must_use]
    pub fn drop_overflow(&self) -> u64 {
        self.drop_overflow
    }

    /// For the snapshot.
    #[must_use]
    pub fn attempts(&self) -> Vec<AttemptCount> {
        let all = self.attempts.iter();
        all.map(|((flow, outcome), count)| AttemptCount { flow: flow.clone(), outcome: *outcome, count: *count })
            .collect()
    }

    /// For the snapshot.
    #[must_use]
    pub fn drops(&self) -> Vec<DropCount> {
        let all = self.drops.iter().map(|((class, reason, port, protocol), count)| DropCount {
            class: *class,
            reason: reason.clone(),
            port: *port,
            protocol: *protocol,
            count: *count,
        });
        all.collect()
    }

    /// For the snapshot.
    #[must_use]
    pub fn latencies(&self) -> Vec<Latency> {
        let all = self.latencies.iter().map(|(flow, h)| Latency {
            flow: flow.clone(),
            buckets: h.buckets.to_vec(),
            sum_ns: h.sum_ns,
            count: h.count,
        });
        all.collect()
    }

    /// For the snapshot.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        let all = self.lost.iter();
        all.map(|(stage, (count, last))| Loss { stage: stage.clone(), count: *count, last: *last }).collect()
    }
}
