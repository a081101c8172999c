//! Exemplars of the attempts: the newest one of each flow and outcome, with its pods, which no series names.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use weir_engine::snapshot::{EvidenceView, PairView};

use super::labels::{Attempts, name};

/// Characters of all names and values together (OpenMetrics 1.0, "Exemplars").
const MAX_CHARACTERS: usize = 128;

/// Who connected to whom, at last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Exemplar {
    /// `namespace/name` of the pod, else the node or the address.
    pub source: String,
    /// The same.
    pub destination: String,
}

/// An exemplar and when it was seen.
pub type Seen = (Exemplar, SystemTime);

/// The newest attempt of each series; none where names are longer than an exemplar may be, or no time is known.
pub fn newest(pairs: &[PairView]) -> BTreeMap<Attempts, Seen> {
    let mut newest: BTreeMap<Attempts, &EvidenceView> = BTreeMap::new();
    for pair in pairs {
        let Some(evidence) = &pair.evidence else { continue };
        let series = Attempts { flow: name(&pair.flow), outcome: evidence.outcome.to_string() };
        let known = newest.entry(series).or_insert(evidence);
        if known.at < evidence.at {
            *known = evidence;
        }
    }
    newest.into_iter().filter_map(|(series, evidence)| Some((series, exemplar(evidence)?))).collect()
}

fn exemplar(evidence: &EvidenceView) -> Option<Seen> {
    let since_epoch = u64::try_from(evidence.at_unix_ns).ok().filter(|ns| *ns > 0)?;
    let (source, destination) = (name(&evidence.instance.source), name(&evidence.instance.destination));
    let characters = "sourcedestination".len() + source.chars().count() + destination.chars().count();
    (characters <= MAX_CHARACTERS)
        .then(|| (Exemplar { source, destination }, SystemTime::UNIX_EPOCH + Duration::from_nanos(since_epoch)))
}
