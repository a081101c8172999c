//! Candidates: what enforcing them would change, while they are not enforced.

use serde_json::{Value, json};

use super::{Engine, Input};
use crate::policy::Admission;
use crate::snapshot::{CandidateView, Effect, PairView, Snapshot, TrafficView};
use crate::testing::{self as t, End, apply, at, connect, engine};
use crate::verdict::State;

fn candidates(engine: &mut Engine, ms: u64, policies: &[Value]) -> Snapshot {
    let input = Input::Candidates { source: "candidates.yaml".to_owned(), policies: policies.to_vec() };
    engine.input(at(ms), input).expect("candidates");
    engine.handle_timeout(at(ms + 200));
    engine.snapshot(at(ms + 200))
}

fn xds(snapshot: &Snapshot) -> PairView {
    t::pair(snapshot, "sidecar-xds", "web", "istiod", 15012)
}

fn of(view: Option<CandidateView>) -> (Effect, Admission, Vec<String>) {
    let view = view.expect("judged by the candidates");
    (view.effect, view.admission, view.policies)
}

#[test]
fn a_candidate_is_judged_and_changes_nothing_else() {
    let mut engine = engine(&[]);
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD_SERVICE, 15012, End::Established);
    let before = engine.snapshot(at(21_000));
    assert_eq!((xds(&before).state, xds(&before).candidate, before.candidates), (State::Verified, None, None));

    let after = candidates(&mut engine, 21_000, &[t::default_deny("app")]);
    let pair = xds(&after);
    assert_eq!(pair.state, State::Verified, "it is not enforced, and what was seen still counts");
    assert_eq!(of(pair.candidate), (Effect::Breaks, Admission::NotAdmitted, vec!["app/default-deny".to_owned()]));
    let view = after.candidates.expect("there are candidates");
    assert_eq!(view.policies.len(), 1);
    assert_eq!(view.policies[0].source, "candidates.yaml");
    let broken = after.pairs.iter().filter(|p| p.candidate.as_ref().is_some_and(|c| c.effect == Effect::Breaks));
    assert_eq!(view.breaks, broken.count() as u64);

    let after = candidates(&mut engine, 22_000, &[t::default_deny("app"), t::allow_xds()]);
    assert_eq!(of(xds(&after).candidate), (Effect::Same, Admission::Admitted, vec![]));
    let after = candidates(&mut engine, 23_000, &[]);
    assert_eq!((xds(&after).candidate, after.candidates), (None, None));
}

#[test]
fn what_is_enforced_by_now_is_no_change() {
    let mut engine = engine(&[]);
    let view = candidates(&mut engine, 20_000, &[t::default_deny("app")]).candidates.expect("candidates");
    assert!(view.breaks > 0);
    apply(&mut engine, 30_000, t::default_deny("app"));
    engine.handle_timeout(at(30_200));
    let snapshot = engine.snapshot(at(30_200));
    let view = snapshot.candidates.clone().expect("candidates");
    assert_eq!((view.breaks, view.opens), (0, 0));
    assert_eq!(view.policies[0].replaces, ["app/default-deny"], "the enforced one of its name");
    assert_eq!(of(xds(&snapshot).candidate).0, Effect::Same);
}

#[test]
fn a_candidate_takes_the_place_of_what_it_names() {
    let replacing = |names: &str| {
        let mut policy = t::allow_xds();
        policy["metadata"]["annotations"] = json!({"weir.io/replaces": names});
        policy
    };
    let opens = |names: &str| {
        let mut engine = engine(&[t::default_deny("app"), t::default_deny("kube-system")]);
        let snapshot = candidates(&mut engine, 20_000, &[replacing(names)]);
        assert_eq!(of(xds(&snapshot).candidate).0, Effect::Opens, "{names}");
        let dns = snapshot.pairs.iter().find(|p| &*p.flow == "sidecar-dns").expect("a pair").candidate.clone();
        assert_eq!(of(dns).1, Admission::NotAdmitted, "{names}: another namespace's policies stay");
        snapshot.candidates.expect("candidates").opens
    };
    // Added, it opens what its rule admits; without the default deny, what leads to the pods as well.
    let added = opens("");
    assert_eq!(opens("other"), added);
    for names in ["default-deny", "*", " other , default-deny,"] {
        assert!(opens(names) > added, "{names}");
    }
}

#[test]
fn replaced_policies_follow_the_cluster() {
    let mut engine = engine(&[]);
    let mut open = t::policy("app", "open", json!({}), Some(json!([{}])), Some(json!([{}])));
    open["metadata"]["annotations"] = json!({"weir.io/replaces": "*"});
    let snapshot = candidates(&mut engine, 20_000, &[open]);
    assert_eq!(of(xds(&snapshot).candidate).0, Effect::Same);
    apply(&mut engine, 30_000, t::default_deny("app"));
    engine.handle_timeout(at(30_200));
    assert_eq!(of(xds(&engine.snapshot(at(30_200))).candidate).0, Effect::Opens, "the new one is replaced as well");
    t::delete(&mut engine, 40_000, crate::cluster::Kind::NetworkPolicy, "app", "default-deny");
    engine.handle_timeout(at(40_200));
    assert_eq!(of(xds(&engine.snapshot(at(40_200))).candidate).0, Effect::Same);
}

#[test]
fn traffic_that_no_flow_requires_is_judged_too() {
    let mut engine = engine(&[]);
    let between = |snapshot: &Snapshot| -> Vec<TrafficView> {
        let ours = |v: &&TrafficView| &*v.source.workload == "prometheus-0" && &*v.destination.workload == "vpn-0";
        snapshot.traffic.iter().filter(ours).cloned().collect()
    };
    connect(&mut engine, 20_000, t::PROMETHEUS, t::TUNNEL, 443, End::Established);
    connect(&mut engine, 22_000, t::PROMETHEUS, t::TUNNEL, 443, End::Reset);
    let seen = between(&engine.snapshot(at(23_000)));
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].attempts, seen[0].established, seen[0].port), (2, 1, 443));
    assert_eq!((seen[0].admission, &seen[0].candidate), (Admission::Admitted, &None));

    let snapshot = candidates(&mut engine, 24_000, &[t::default_deny("monitoring")]);
    let seen = between(&snapshot);
    assert_eq!(
        of(seen[0].candidate.clone()),
        (Effect::Breaks, Admission::NotAdmitted, vec!["monitoring/default-deny".to_owned()])
    );
    assert_eq!(snapshot.candidates.expect("candidates").traffic_breaks, 1);
}

#[test]
fn what_is_no_network_policy_is_no_candidate() {
    let mut engine = engine(&[]);
    let input = Input::Candidates { source: "x".to_owned(), policies: vec![t::namespace("app", json!({}))] };
    assert!(engine.input(at(20_000), input).is_err());
    assert_eq!(engine.snapshot(at(20_000)).candidates, None);
}
