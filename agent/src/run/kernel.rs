//! The probes as the event loop's observer: events become observations with the running kernel's names.

use std::collections::BTreeSet;

use weir_common::Event;
use weir_engine::observation::Observation;

use super::Observer;
use crate::outputs::ProbeView;
use crate::probes::{Decoder, ProbeError, ProbeSettings, ProbeStatus, Probes};

/// Watches this machine's kernel.
#[derive(Debug)]
pub struct Kernel {
    probes: Probes,
    decoder: Decoder,
    events: Vec<Event>,
}

impl Kernel {
    /// Loads the probes.
    ///
    /// # Errors
    /// [`ProbeError`]; every message says what to do.
    pub fn load(settings: &ProbeSettings) -> Result<Self, ProbeError> {
        let probes = Probes::load(settings)?;
        if let Some(why) = &probes.types().unreadable {
            tracing::warn!(%why, "no BTF: drops and causes stay unseen, and nothing will be called denied");
        }
        for ProbeStatus { name, hook, active, reason } in probes.status() {
            match reason {
                _ if *active => tracing::debug!(probe = name, hook, "probe attached"),
                reason => tracing::warn!(probe = name, hook, reason, "probe inactive; what it would see stays unknown"),
            }
        }
        let decoder = probes.decoder();
        Ok(Self { probes, decoder, events: Vec::new() })
    }
}

impl Observer for Kernel {
    async fn next(&mut self, batch: &mut Vec<Observation>) -> anyhow::Result<()> {
        self.probes.next_batch(&mut self.events).await?;
        // No await from here on: a dropped future leaves no event behind.
        batch.extend(self.events.drain(..).filter_map(|event| self.decoder.decode(&event)));
        Ok(())
    }

    fn drain(&mut self, batch: &mut Vec<Observation>) {
        self.probes.drain(&mut self.events);
        batch.extend(self.events.drain(..).filter_map(|event| self.decoder.decode(&event)));
    }

    fn probes(&self) -> Vec<ProbeView> {
        self.probes.status().iter().map(ProbeView::from).collect()
    }

    fn watch(&mut self, ports: &BTreeSet<u16>) -> anyhow::Result<()> {
        Ok(self.probes.watch(ports)?)
    }

    fn lost(&mut self) -> Vec<(&'static str, u64)> {
        let counters = self.probes.counters();
        // Aggregated drops are no loss: a later event carries their number. Nor are stacks held back: the drops are told.
        let mut lost = vec![
            ("ring-buffer", counters.lost_events),
            ("attempt-map", counters.lost_attempts),
            ("drop-rate-limit", counters.suppressed_drops),
            ("error-rate-limit", counters.suppressed_errors),
            ("answer-rate-limit", counters.suppressed_answers),
            ("socket-map", counters.lost_sockets),
            ("decode", counters.malformed_events),
        ];
        lost.extend(self.probes.skipped_runs());
        lost
    }

    fn suppressed_stacks(&self) -> u64 {
        self.probes.counters().suppressed_stacks
    }
}
