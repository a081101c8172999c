//! `weir check` and its relatives over fixtures, and their pages as golden files. Needs no root.

#[path = "check/fixture.rs"]
mod fixture;
#[path = "check/naive.rs"]
mod naive;

use std::collections::{BTreeMap, BTreeSet};

use fixture::{End, Expected, Fixture, State};
use weir::cluster::manifests;
use weir_engine::check::{Case, InstanceView, Model, Options, Report, Verdict, check};
use weir_engine::policy::{Profile, Side};
use weir_engine::requirement::Catalogue;

/// Every flow that a fixture says is required is found, with the right verdict, by the right policies on each side.
#[test]
fn fixtures_verdicts() {
    let mut wrong = Vec::new();
    let mut missing: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut rows, mut found) = (0, 0);
    for fixture in fixture::all() {
        for (name, state) in &fixture.states {
            let report = report(&model(&fixture, state));
            for flow in &fixture.flows {
                let (Some(code), Some(expected)) = (&flow.catalog, flow.results.get(name)) else { continue };
                rows += 1;
                let what = format!("{} {name} {}", fixture.file, flow.id);
                let pairs = report
                    .pairs
                    .iter()
                    .filter(|p| *p.code == **code && p.port == flow.port && p.protocol.as_str() == flow.protocol);
                let cases = pairs.flat_map(|p| &p.cases);
                let is = |i: &InstanceView| end_is(&i.source, &flow.from) && end_is(&i.destination, &flow.to);
                let Some(case) = cases.into_iter().find(|c| c.instances.iter().any(is)) else {
                    missing.entry(code.clone()).or_default().insert(format!("{} {}", fixture.file, flow.id));
                    continue;
                };
                found += 1;
                if let Some(difference) = compare(case, expected) {
                    wrong.push(format!("{what}: {difference}"));
                }
            }
        }
    }
    println!("{found} of {rows} rows with a catalogue code have their pair");
    for (code, rows) in &missing {
        println!("no pair: {code}: {}", rows.iter().cloned().collect::<Vec<_>>().join(", "));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(found > 0, "no row was compared");
}

/// No pair is accused without reason: what the report denies, a second and plainer reading of the specification denies too,
/// and what it admits that one admits.
#[test]
fn fixtures_second_opinion() {
    let (mut denied, mut admitted) = (0, 0);
    for fixture in fixture::all() {
        for (name, state) in &fixture.states {
            let model = model(&fixture, state);
            for pair in model.pairs().values() {
                for (from, to) in pair.instances() {
                    let (port, protocol) = (pair.key.port, pair.key.protocol);
                    let (_, cases) = weir_engine::check::judge_all(&model, [(from, to)], protocol, port, 1);
                    let second = naive::admits(&model.cluster, from, to, protocol, port);
                    let what = || format!("{} {name} {:?} {from:?} {to:?}", fixture.file, pair.key);
                    match cases[0].verdict {
                        Verdict::Denied => {
                            assert_eq!(second, Some(false), "{}", what());
                            denied += 1;
                        }
                        Verdict::Admitted => {
                            assert!(second != Some(false), "{}", what());
                            admitted += 1;
                        }
                        Verdict::Undecidable => {}
                    }
                }
            }
        }
    }
    assert!(denied > 0 && admitted > 0, "{denied} denied, {admitted} admitted");
}

fn model(fixture: &Fixture, state: &State) -> Model {
    let files: Vec<_> = state.policies.iter().chain([&state.cluster]).map(|f| fixture.dir.join(f)).collect();
    let found = manifests::load(&files).expect("the fixture's manifests");
    let objects = found.objects.into_iter().map(|f| (f.object, f.origin));
    Model::new(objects, Catalogue::built_in(), Profile::Spec)
}

fn report(model: &Model) -> Report {
    check(model, &Options { max_instances: usize::MAX, ..Options::default() })
}

fn end_is(found: &str, expected: &End) -> bool {
    match expected {
        End { pod: Some(pod), .. } => found == pod,
        End { node: Some(node), ip: Some(ip), .. } => {
            found == format!("node {node}") || found == format!("node {node} ({ip})")
        }
        End { node: Some(node), .. } => found == format!("node {node}") || found.starts_with(&format!("node {node} (")),
        // An address outside stands for any.
        End { ip: Some(ip), .. } => found == ip || found == "outside" || found.ends_with(&format!("({ip})")),
        End { .. } => false,
    }
}

fn compare(case: &Case, expected: &Expected) -> Option<String> {
    let verdict = match case.verdict {
        Verdict::Admitted => "allowed",
        Verdict::Denied => "denied",
        Verdict::Undecidable => "undecidable",
    };
    let found = (verdict, side(&case.egress), side(&case.ingress));
    let policies = |side: &str, allowed: &[String], isolated: &[String]| -> BTreeSet<String> {
        let names = if side == "allowed" { allowed } else { isolated };
        names.iter().cloned().collect()
    };
    let egress = policies(&expected.egress, &expected.egress_allowed_by, &expected.egress_isolated_by);
    let ingress = policies(&expected.ingress, &expected.ingress_allowed_by, &expected.ingress_isolated_by);
    let wanted = (expected.verdict.as_str(), (expected.egress.as_str(), egress), (expected.ingress.as_str(), ingress));
    (found != wanted).then(|| format!("found {found:?}, expected {wanted:?}"))
}

/// The side in the fixtures' words, with the names of the policies that admit, or that isolate without admitting.
fn side(side: &Side) -> (&'static str, BTreeSet<String>) {
    let names = |names: Vec<&weir_engine::words::Name>| names.into_iter().map(|n| n.name.to_string()).collect();
    match side {
        Side::NotIsolated => ("not-isolated", BTreeSet::new()),
        Side::Admitted { by, .. } => ("allowed", names(by.iter().map(|r| &r.policy).collect())),
        Side::NotAdmitted { selecting } => ("denied", names(selecting.iter().map(|s| &s.policy).collect())),
        Side::DeniedBy { by } => ("denied", names(vec![&by.policy])),
        Side::NodeLocal => ("node-local", BTreeSet::new()),
        Side::NotApplicable => ("not-applicable", BTreeSet::new()),
        Side::Undecidable { .. } => ("undecidable", BTreeSet::new()),
    }
}
