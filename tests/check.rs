//! `weir check` and its relatives over fixtures, and their pages as golden files. Needs no root.

#[path = "check/fixture.rs"]
mod fixture;
#[path = "check/golden.rs"]
mod golden;
#[path = "check/large.rs"]
mod large;
#[path = "check/naive.rs"]
mod naive;
#[path = "check/traffic.rs"]
mod traffic;

use std::collections::{BTreeMap, BTreeSet};

use fixture::{End, Expected, Fixture, State};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use weir::cluster::manifests;
use weir::report::words;
use weir_engine::check::{
    Case, InstanceView, Model, Options, Report, Verdict, check, compare as compare_reports, repair,
};
use weir_engine::cluster::{Object, Origin};
use weir_engine::policy::diff::diff;
use weir_engine::policy::{Admission, Profile, Side};
use weir_engine::requirement::Catalogue;
use weir_engine::words::{Direction, Name};

/// Every flow that a fixture says is required is found, with the right verdict, by the right policies on each side.
#[test]
fn fixtures_verdicts() {
    let mut wrong = Vec::new();
    let mut missing: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut rows, mut found) = (0, 0);
    for fixture in fixture::all() {
        for (name, state) in &fixture.states {
            let model = model(&fixture, state);
            let report = report(&model);
            for flow in &fixture.flows {
                let (Some(code), Some(expected)) = (&flow.catalog, flow.results.get(name)) else { continue };
                rows += 1;
                let what = format!("{} {name} {}", fixture.file, flow.id);
                let pairs = report
                    .pairs
                    .iter()
                    .filter(|p| *p.code == **code && p.port == flow.port && p.protocol.as_str() == flow.protocol);
                let cases = pairs.flat_map(|p| &p.cases);
                let is = |i: &InstanceView| {
                    // Where a host outside is, traffic tells: see weir-conformance.
                    i.destination != "outside"
                        && end_is(&model, &i.source, &flow.from)
                        && end_is(&model, &i.destination, &flow.to)
                };
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

/// Each gotcha's treatment is shown by tests that exist.
#[test]
fn gotchas_name_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = std::fs::read_to_string(root.join("docs/gotchas.md")).expect("docs/gotchas.md");
    let mut rows = 0;
    for row in table.lines().filter(|l| l.starts_with("| ") && l.as_bytes().get(2).is_some_and(u8::is_ascii_digit)) {
        rows += 1;
        assert!(row.starts_with(&format!("| {rows} |")), "row {rows}: {row}");
        let tests: Vec<&str> = row.rsplit('|').nth(1).expect("a cell").split(';').map(str::trim).collect();
        for test in tests {
            let named: Vec<&str> = test.split('`').skip(1).step_by(2).collect();
            let [file, functions @ ..] = named.as_slice() else { panic!("{row}: `file` `test` expected: {test}") };
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{row}: {file}: {e}"));
            assert!(!functions.is_empty(), "{row}: no test named: {test}");
            for function in functions {
                let is_there =
                    [format!("fn {function}("), format!("    {function}: \"")].iter().any(|f| text.contains(f));
                assert!(is_there, "{row}: {file} has no {function}");
            }
        }
    }
    assert_eq!(rows, 32);
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

/// What the mutation report says of a rule is what happens when the rule is deleted.
#[test]
fn fixtures_mutation_equals_deleting() {
    let (mut needed, mut idle) = (0, 0);
    for fixture in fixture::all() {
        for (name, state) in &fixture.states {
            let objects = objects(&fixture, state);
            let build = |objects| Model::new(objects, Catalogue::built_in(), Profile::Spec);
            let options = Options { mutate: true, ..Options::default() };
            let whole = check(&build(objects.clone()), &options);
            for rule in &whole.mutation.as_ref().expect("it was asked for").rules {
                let without = objects.iter().map(|(object, origin)| match object {
                    Object::NetworkPolicy(p) if object.key().name == rule.policy => {
                        let mut p = p.clone();
                        let spec = p.spec.as_mut().expect("a spec");
                        match rule.direction {
                            Direction::Ingress => drop(spec.ingress.as_mut().expect("rules").remove(rule.rule)),
                            Direction::Egress => drop(spec.egress.as_mut().expect("rules").remove(rule.rule)),
                        }
                        (Object::NetworkPolicy(p), origin.clone())
                    }
                    object => (object.clone(), origin.clone()),
                });
                let after = check(&build(without.collect::<Vec<_>>()), &Options::default());
                let denied = |r: &Report| -> BTreeSet<String> {
                    let count = |p: &weir_engine::check::PairReport| p.denied();
                    let text = |p| format!("{} {} {}", words::pair(p), p.flow, count(p));
                    r.pairs.iter().filter(|p| p.verdict == Verdict::Denied).map(text).collect()
                };
                let flows = |texts: BTreeSet<String>| texts.len();
                let closed = flows(denied(&after).difference(&denied(&whole)).cloned().collect());
                let what = format!("{} {name} {} {} {}", fixture.file, rule.policy, rule.direction, rule.rule);
                assert_eq!(closed, rule.breaks.len(), "{what}: {:?}", rule.breaks);
                if closed > 0 { needed += 1 } else { idle += 1 }
            }
        }
    }
    assert!(needed > 0 && idle > 0, "{needed} needed, {idle} idle");
}

/// What `weir fix` proposes opens every flow that is denied, closes none that was open, and says what else it opens.
#[test]
fn fixtures_fix_opens_everything_and_closes_nothing() {
    let mut opened = 0;
    for fixture in fixture::all() {
        for (name, state) in &fixture.states {
            let what = format!("{} {name}", fixture.file);
            let before = model(&fixture, state);
            let mut after = before.clone();
            let repair = repair(&mut after, |_| true);
            opened += repair.denied_before;
            assert_eq!(repair.unfixable, [], "{what}");
            // Applied to a fresh model, as a user would.
            let patches = repair.policies.iter();
            let patches = patches.map(|r| (Object::NetworkPolicy(Box::new(r.policy.clone())), Origin::default()));
            let objects = objects(&fixture, state).into_iter().chain(patches);
            let applied = Model::new(objects, Catalogue::built_in(), Profile::Spec);
            let (was, is) = (report(&before), report(&applied));
            assert_eq!(is.counts.denied, 0, "{what}: {:?}", is.pairs.first());
            assert!(compare_reports(&was, &is).closed.is_empty(), "{what}");
            let changes = diff((&before.cluster, &before.policies), (&applied.cluster, &applied.policies));
            assert!(changes.iter().all(|c| c.after != Admission::NotAdmitted), "{what}: {changes:?}");
        }
    }
    assert!(opened > 0);
}

/// 5,000 pods and 400 policies in less than 2 s and 300 MiB, where the build is one to be measured.
#[test]
fn large_cluster() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("cluster.yaml"), large::cluster(5_000)).expect("written");
    std::fs::write(folder.path().join("policies.yaml"), large::policies(400)).expect("written");
    let start = std::time::Instant::now();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["check", "-f", "policies.yaml", "--cluster", "cluster.yaml"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("weir");
    let mut page = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().expect("a pipe"), &mut page).expect("text");
    let status = child.wait().expect("it ends");
    // Of all children so far; the others are small. Time on a processor: other tests share the machine.
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    let memory = usage.max_rss();
    let busy = (usage.user_time() + usage.system_time()).num_milliseconds();
    let took = start.elapsed();
    println!(
        "5,000 pods, 400 policies: {took:?}, {busy} ms busy, {memory} KiB; {}",
        page.lines().rev().nth(3).unwrap_or_default()
    );
    assert_eq!(status.code(), Some(1), "{page}");
    if !cfg!(debug_assertions) {
        assert!(busy < 2_000, "{busy} ms");
        assert!(memory < 300 << 10, "{memory} KiB");
    }
}

fn model(fixture: &Fixture, state: &State) -> Model {
    Model::new(objects(fixture, state), Catalogue::built_in(), Profile::Spec)
}

fn objects(fixture: &Fixture, state: &State) -> Vec<(Object, Origin)> {
    let mut files: Vec<_> = state.policies.iter().chain([&state.cluster]).map(|f| fixture.dir.join(f)).collect();
    // Istio's own objects are beside the cluster's.
    files.extend(Some(fixture.dir.join("mesh-config.yaml")).filter(|f| f.is_file()));
    let found = manifests::load(&files).expect("the fixture's manifests");
    found.objects.into_iter().map(|f| (f.object, f.origin)).collect()
}

fn report(model: &Model) -> Report {
    check(model, &Options { max_instances: usize::MAX, ..Options::default() })
}

fn end_is(model: &Model, found: &str, expected: &End) -> bool {
    match expected {
        End { pod: Some(pod), .. } => found == pod || on_node(model, pod).is_some_and(|node| found.starts_with(&node)),
        End { node: Some(node), ip: Some(ip), .. } => {
            found == format!("node {node}") || found == format!("node {node} ({ip})")
        }
        End { node: Some(node), .. } => found == format!("node {node}") || found.starts_with(&format!("node {node} (")),
        // An address outside stands for any.
        End { ip: Some(ip), .. } => found == ip || found == "outside" || found.ends_with(&format!("({ip})")),
        End { .. } => false,
    }
}

/// A pod on its node's network is its node.
fn on_node(model: &Model, pod: &str) -> Option<String> {
    let (namespace, name) = pod.split_once('/')?;
    let pod = model.cluster.pod(&Name::new(namespace, name)).filter(|p| p.host_network)?;
    Some(format!("node {} (", pod.node.as_deref()?))
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
