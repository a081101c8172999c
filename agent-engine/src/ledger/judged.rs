//! What the policies say of a pair: of each of its instances, together.

use std::sync::{Arc, OnceLock};

use crate::cluster::Cluster;
use crate::policy::{Admission, Decision, Endpoint, Flow, Policies};
use crate::requirement::{Pair, PairKey};

/// Instances kept by name.
const MAX_NAMED: usize = 16;
/// Policies told by name, of all that select the ends; how many more there are is told too.
pub const MAX_POLICIES: usize = 1_000;

/// What the policies say of a pair.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Not admitted if one instance is not, else undecidable if one is.
    pub admission: Admission,
    /// Of the first instance with that admission.
    pub decision: Decision,
    /// The instance that `decision` is of.
    pub representative: (Endpoint, Endpoint),
    /// How many instances there are.
    pub instances: usize,
    /// The first instances that are not admitted.
    pub not_admitted: Vec<(Endpoint, Endpoint)>,
    /// How many are not.
    pub not_admitted_count: usize,
    /// What [`policies`](Self::policies) tells, once it was asked.
    policies: OnceLock<Arc<(Vec<String>, usize)>>,
}

impl Judged {
    /// Judges a pair. `None` for one without instances.
    #[must_use]
    pub fn new(cluster: &Cluster, policies: &Policies, pair: &Pair) -> Option<Self> {
        let mut first: [Option<(&Endpoint, &Endpoint)>; 3] = [None; 3];
        let (mut instances, mut not_admitted_count) = (0, 0);
        let mut not_admitted = Vec::new();
        for (source, destination) in pair.instances() {
            instances += 1;
            let admission = policies.admits(cluster, &flow(&pair.key, source, destination));
            let rank = match admission {
                Admission::NotAdmitted => 0,
                Admission::Undecidable => 1,
                Admission::Admitted => 2,
            };
            first[rank].get_or_insert((source, destination));
            if admission == Admission::NotAdmitted {
                not_admitted_count += 1;
                if not_admitted.len() < MAX_NAMED {
                    not_admitted.push((source.clone(), destination.clone()));
                }
            }
        }
        let (source, destination) = first.into_iter().flatten().next()?;
        let decision = policies.decide(cluster, &flow(&pair.key, source, destination));
        Some(Self {
            admission: decision.admission(),
            decision,
            representative: (source.clone(), destination.clone()),
            instances,
            not_admitted,
            not_admitted_count,
            policies: OnceLock::new(),
        })
    }

    /// The same verdict on the same instances: what was seen before still counts.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        self.admission == other.admission
            && self.not_admitted_count == other.not_admitted_count
            && self.not_admitted == other.not_admitted
    }

    /// The policies that select the ends on the sides that do not admit, sorted, and how many are left out. Found once: a
    /// snapshot asks every pair.
    #[must_use]
    pub fn policies(&self) -> &(Vec<String>, usize) {
        self.policies.get_or_init(|| Arc::new(self.decision.some_denying(MAX_POLICIES)))
    }
}

/// The flow of one instance.
#[must_use]
pub fn flow(key: &PairKey, source: &Endpoint, destination: &Endpoint) -> Flow {
    Flow {
        source: source.clone(),
        destination: destination.clone(),
        protocol: key.protocol,
        port: key.port,
        dialled: None,
    }
}
