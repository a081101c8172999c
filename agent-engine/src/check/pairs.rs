//! One pair: every instance judged, those that fare alike put together.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Brief, Case, PairReport, Verdict, instance};
use super::{Model, Options};
use crate::policy::Flow;
use crate::requirement::{End, Pair};
use crate::snapshot::EndView;

pub(super) fn judge(model: &Model, pair: &Pair, options: &Options) -> PairReport {
    let mut cases: BTreeMap<(Verdict, Brief, Brief), Case> = BTreeMap::new();
    let mut instances = 0;
    for (source, destination) in pair.instances() {
        instances += 1;
        let flow = Flow {
            source: source.clone(),
            destination: destination.clone(),
            protocol: pair.key.protocol,
            port: pair.key.port,
            dialled: None,
        };
        let decision = model.policies.decide(&model.cluster, &flow);
        let key = Brief::both(&decision);
        let case = cases.entry(key).or_insert_with(|| Case {
            verdict: decision.admission().into(),
            egress: decision.egress,
            ingress: decision.ingress,
            count: 0,
            instances: Vec::new(),
        });
        case.count += 1;
        if case.instances.len() < options.max_instances {
            case.instances.push(instance(source, destination));
        }
    }
    let cases: Vec<Case> = cases.into_values().collect();
    let requirement = &pair.requirement;
    PairReport {
        verdict: cases.first().map_or(Verdict::Admitted, |c| c.verdict),
        severity: requirement.severity,
        flow: requirement.id.clone(),
        code: requirement.code.clone(),
        profile: requirement.profile.clone(),
        source: end(&pair.key.source),
        destination: end(&pair.key.destination),
        protocol: pair.key.protocol,
        port: pair.key.port,
        service_port: requirement.service_port,
        purpose: requirement.purpose.clone(),
        symptom: requirement.symptom.clone(),
        policies: policies(&cases),
        instances,
        cases,
    }
}

fn policies(cases: &[Case]) -> Vec<String> {
    let denying = cases.iter().flat_map(|c| c.denying()).flat_map(|(_, side)| side.selecting());
    let names: BTreeSet<String> = denying.map(ToString::to_string).collect();
    names.into_iter().collect()
}

fn end(end: &End) -> EndView {
    match end {
        End::Workload(w) => EndView {
            kind: end.kind().to_owned(),
            namespace: w.namespace.clone(),
            workload: w.name.clone(),
            workload_kind: w.kind.clone(),
        },
        End::ApiServer | End::Kubelet | End::Node | End::External | End::NodeLocalDns => EndView {
            kind: end.kind().to_owned(),
            namespace: "".into(),
            workload: end.kind().into(),
            workload_kind: "".into(),
        },
    }
}
