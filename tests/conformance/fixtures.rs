//! Fixtures: `expected*.yaml` names the cluster and the policies of each state, and per flow verdict, sides and policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use weir::cluster::manifests;
use weir_engine::check::Model;
use weir_engine::cluster::{Cluster, Kind};
use weir_engine::policy::{Admission, Endpoint, Flow, Policies, Profile, Side};
use weir_engine::requirement::Catalogue;
use weir_engine::words::{Name, Protocol};

use super::Tally;
use super::pairs::{self, Coverage};

#[derive(Deserialize)]
struct Fixture {
    states: BTreeMap<String, State>,
    flows: Vec<Case>,
}

#[derive(Deserialize)]
struct State {
    policies: Vec<String>,
    #[serde(default = "cluster_file")]
    cluster: String,
}

fn cluster_file() -> String {
    "cluster.yaml".to_owned()
}

/// A row: a flow and what each state makes of it.
#[derive(Deserialize)]
pub struct Case {
    pub id: String,
    /// Code of the catalogue.
    pub catalog: Option<String>,
    pub from: End,
    pub to: End,
    #[serde(default)]
    pub protocol: Protocol,
    pub port: u16,
    pub results: BTreeMap<String, Wanted>,
}

impl Case {
    /// Code of the catalogue; empty for a flow that nothing requires.
    pub fn code(&self) -> &str {
        self.catalog.as_deref().unwrap_or_default()
    }
}

/// One end of a row.
#[derive(Deserialize)]
pub struct End {
    pub pod: Option<String>,
    pub node: Option<String>,
    pub ip: Option<IpAddr>,
}

/// What a state makes of a row.
#[derive(Deserialize)]
pub struct Wanted {
    pub verdict: String,
    egress: String,
    ingress: String,
    #[serde(default)]
    egress_isolated_by: Vec<String>,
    #[serde(default)]
    ingress_isolated_by: Vec<String>,
    #[serde(default)]
    egress_allowed_by: Vec<String>,
    #[serde(default)]
    ingress_allowed_by: Vec<String>,
}

/// Judges every flow of a fixture in every state, and the pairs that are required in it.
pub fn judge(file: &Path, coverage: &mut Coverage) -> Result<Tally> {
    let fixture: Fixture = serde_saphyr::from_str(&std::fs::read_to_string(file)?)?;
    let dir = file.parent().unwrap_or(Path::new("."));
    let mut worlds = BTreeMap::new();
    let mut wrong_pairs = Vec::new();
    for (name, state) in &fixture.states {
        let mut files = std::iter::once(&state.cluster).chain(&state.policies).map(|f| dir.join(f)).collect::<Vec<_>>();
        // Istio's own objects are beside the cluster's.
        files.extend(Some(dir.join("mesh-config.yaml")).filter(|f| f.is_file()));
        let manifests = manifests::load(&files)?;
        ensure!(!manifests.is_incomplete(), "state {name}: {:?}", manifests.problems);
        let mut cluster = Cluster::default();
        let objects: Vec<_> = manifests.objects.into_iter().map(|found| (found.object, found.origin)).collect();
        let model = Model::new(objects.clone(), Catalogue::built_in(), Profile::Spec);
        wrong_pairs.extend(pairs::judge(name, model, &fixture.flows, coverage));
        for (object, origin) in objects {
            cluster.apply(object, origin);
        }
        ensure!(cluster.policies().next().is_some(), "state {name} has no {}", Kind::NetworkPolicy.as_str());
        let policies = Policies::of(&cluster, Profile::Spec);
        worlds.insert(name, (cluster, policies));
    }
    let mut tally = Tally::default();
    for case in &fixture.flows {
        let mut failures = Vec::new();
        for (state, wanted) in &case.results {
            let (cluster, policies) = worlds.get(state).with_context(|| format!("{}: no state {state}", case.id))?;
            tally.verdicts += 1;
            let wrong = compare(case, wanted, cluster, policies);
            failures.extend(wrong.into_iter().map(|wrong| format!("{} {state}: {wrong}", case.id)));
        }
        tally.count(failures);
    }
    wrong_pairs.dedup();
    tally.count(wrong_pairs);
    Ok(tally)
}

fn compare(case: &Case, wanted: &Wanted, cluster: &Cluster, policies: &Policies) -> Vec<String> {
    let flow = Flow {
        source: case.from.endpoint(),
        destination: case.to.endpoint(),
        protocol: case.protocol,
        port: case.port,
        dialled: None,
    };
    let decision = policies.decide(cluster, &flow);
    let verdict = match decision.admission() {
        Admission::Admitted => "allowed",
        Admission::NotAdmitted => "denied",
        Admission::Undecidable => "undecidable",
    };
    let mut wrong = Vec::new();
    if verdict != wanted.verdict {
        wrong.push(format!("verdict {verdict}, expected {}", wanted.verdict));
    }
    if policies.admits(cluster, &flow) != decision.admission() {
        wrong.push("the fast answer differs from the explained one".to_owned());
    }
    let egress = (&decision.egress, &wanted.egress, &wanted.egress_isolated_by, &wanted.egress_allowed_by);
    let ingress = (&decision.ingress, &wanted.ingress, &wanted.ingress_isolated_by, &wanted.ingress_allowed_by);
    for (direction, (side, wanted, isolated_by, allowed_by)) in [("egress", egress), ("ingress", ingress)] {
        let (word, policies) = match side {
            Side::NotIsolated => ("not-isolated", BTreeSet::new()),
            Side::Admitted { by, .. } => ("allowed", by.iter().map(|r| &*r.policy.name).collect()),
            Side::NotAdmitted { .. } | Side::DeniedBy { .. } => {
                ("denied", side.selecting().iter().map(|p| &*p.name).collect())
            }
            Side::NodeLocal => ("node-local", BTreeSet::new()),
            Side::NotApplicable if case.from.pod.is_some() && case.from.pod == case.to.pod => ("self", BTreeSet::new()),
            Side::NotApplicable => ("not-applicable", BTreeSet::new()),
            Side::Undecidable { .. } => ("undecidable", BTreeSet::new()),
        };
        let named: BTreeSet<&str> = isolated_by.iter().chain(allowed_by).map(String::as_str).collect();
        if word != wanted || policies != named {
            wrong.push(format!("{direction} {word} {policies:?}, expected {wanted} {named:?}; {side:?}"));
        }
    }
    wrong
}

impl End {
    fn endpoint(&self) -> Endpoint {
        match self {
            Self { pod: Some(pod), .. } => {
                let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
                Endpoint::Pod { name: Name::new(namespace, name), address: self.ip }
            }
            Self { node: Some(node), ip, .. } => Endpoint::Node { name: node.as_str().into(), address: *ip },
            Self { ip: Some(ip), .. } => Endpoint::Address(*ip),
            Self { .. } => Endpoint::External,
        }
    }
}
