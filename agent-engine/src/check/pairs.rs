//! One pair: every instance judged, those that fare alike put together.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Brief, Case, PairReport, Verdict, instance};
use super::{Model, Options};
use crate::policy::{Endpoint, Flow};
use crate::requirement::{End, Pair};
use crate::snapshot::EndView;
use crate::words::Protocol;

/// Judges concrete connections to one port, and puts together those that fare alike: how many there are, and the cases, what
/// needs attention first.
pub fn judge_all<'a>(
    model: &Model,
    instances: impl IntoIterator<Item = (&'a Endpoint, &'a Endpoint)>,
    protocol: Protocol,
    port: u16,
    max_instances: usize,
) -> (usize, Vec<Case>) {
    let mut cases: BTreeMap<(Verdict, Brief, Brief), Case> = BTreeMap::new();
    let mut count = 0;
    for (source, destination) in instances {
        count += 1;
        let flow = Flow { source: source.clone(), destination: destination.clone(), protocol, port, dialled: None };
        let decision = model.policies.decide(&model.cluster, &flow);
        let case = cases.entry(Brief::both(&decision)).or_insert_with(|| Case {
            verdict: decision.admission().into(),
            egress: decision.egress,
            ingress: decision.ingress,
            count: 0,
            instances: Vec::new(),
        });
        case.count += 1;
        if case.instances.len() < max_instances {
            case.instances.push(instance(source, destination));
        }
    }
    (count, cases.into_values().collect())
}

pub(super) fn judge(model: &Model, pair: &Pair, options: &Options) -> PairReport {
    let (instances, cases) =
        judge_all(model, pair.instances(), pair.key.protocol, pair.key.port, options.max_instances);
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
