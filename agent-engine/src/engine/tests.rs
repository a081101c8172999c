//! The whole pipeline: objects and observations in, states out.

use serde_json::json;

use super::{Engine, Input, Snapshot, Transition};
use crate::attempt::Outcome;
use crate::cluster::{Kind, Origin};
use crate::observation::{DropClass, Observation};
use crate::requirement::Severity;
use crate::testing::{self as t, End, apply, at, connect, engine, pair, policy, query, transitions};
use crate::verdict::State;
use crate::words::{Direction, Protocol};

fn xds(engine: &Engine, ms: u64) -> crate::snapshot::PairView {
    pair(&engine.snapshot(at(ms)), "sidecar-xds", "web", "istiod", 15012)
}

#[test]
fn a_flow_is_denied_until_it_is_admitted_and_then_verified() {
    let mut engine = engine(&[t::default_deny("app")]);
    assert_eq!(xds(&engine, 0).state, State::AtRisk);

    connect(&mut engine, 20_000, t::WEB, t::ISTIOD_SERVICE, 15012, End::Dropped);
    let view = xds(&engine, 20_300);
    assert_eq!(view.state, State::Denied);
    assert_eq!((view.directions, view.policies), (vec![Direction::Egress], vec!["app/default-deny".to_owned()]));
    let evidence = view.evidence.expect("evidence");
    assert_eq!((evidence.outcome, evidence.class), (Outcome::Dropped, Some(DropClass::Netfilter)));
    assert_eq!(evidence.reason.as_deref(), Some("NETFILTER_DROP"));
    assert_eq!(evidence.owner.map(|o| o.comm), Some("envoy".to_owned()));
    let turns: Vec<_> = transitions(&mut engine).into_iter().filter(|t| &*t.flow == "sidecar-xds").collect();
    assert_eq!(
        turns.iter().map(|t| (t.from, t.to)).collect::<Vec<_>>(),
        [(None, Some(State::AtRisk)), (Some(State::AtRisk), Some(State::Denied))]
    );
    assert!(turns[1].at <= at(21_500), "a local drop is reported within 1.5 s");

    apply(&mut engine, 30_000, t::allow_xds());
    engine.handle_timeout(at(30_200));
    let view = xds(&engine, 30_200);
    assert_eq!(view.state, State::Silent, "what was seen under the old policies proves nothing about the new ones");
    let edit = view.since_edit.expect("the edit that opened it");
    assert_eq!(edit.object.to_string(), "NetworkPolicy app/allow-xds");
    assert_eq!((edit.origin.file.as_deref(), edit.origin.line, edit.at), (Some("mesh.yaml"), Some(7), at(30_000)));

    connect(&mut engine, 31_000, t::WEB, t::ISTIOD_SERVICE, 15012, End::Established);
    assert_eq!(xds(&engine, 31_300).state, State::Verified);
    let latency = engine.snapshot(at(31_300)).latencies;
    assert_eq!(latency.iter().find(|l| &*l.flow == "sidecar-xds").map(|l| l.count), Some(1));

    engine.handle_timeout(at(332_000));
    assert_eq!(xds(&engine, 332_000).state, State::Silent, "evidence ages");
    assert!(transitions(&mut engine).iter().any(|t| t.to == Some(State::Silent) && t.from == Some(State::Verified)));
}

#[test]
fn each_state_from_its_cause() {
    let deny = [t::default_deny("app")];
    let table: [(&str, &[serde_json::Value], &[End], State); 10] = [
        ("not admitted, nothing tried", &deny, &[], State::AtRisk),
        ("not admitted, dropped", &deny, &[End::Dropped], State::Denied),
        ("not admitted, rejected", &deny, &[End::Rejected], State::Denied),
        ("not admitted, no answer", &deny, &[End::TimedOut], State::Predicted),
        ("not admitted, established", &deny, &[End::Established], State::Unenforced),
        ("not admitted, dropped, then a time-out", &deny, &[End::Dropped, End::TimedOut], State::Denied),
        ("admitted, nothing tried", &[], &[], State::Silent),
        ("admitted, dropped", &[], &[End::Dropped], State::Unexplained),
        ("admitted, closed port", &[], &[End::Reset], State::Failing),
        ("admitted, established", &[], &[End::Reset, End::Established], State::Verified),
    ];
    for (name, policies, ends, expected) in table {
        let mut engine = engine(policies);
        for (n, end) in (0_u64..).zip(ends) {
            connect(&mut engine, 20_000 + 10_000 * n, t::WEB, t::ISTIOD, 15012, *end);
        }
        let view = xds(&engine, 45_000);
        assert_eq!(view.state, expected, "{name}: {}", view.why);
        let others = engine.snapshot(at(45_000)).pairs.into_iter().filter(|p| p.evidence.is_some()).count();
        assert_eq!(others, usize::from(!ends.is_empty()), "{name}: only its own pair has evidence");
    }
}

#[test]
fn a_change_is_given_time_and_old_evidence_never_proves_the_new_decision() {
    let mut engine = engine(&[]);
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Established);
    apply(&mut engine, 30_000, t::default_deny("app"));
    engine.handle_timeout(at(30_200));
    assert_eq!(xds(&engine, 30_200).state, State::AtRisk, "an established connection from before proves nothing");
    connect(&mut engine, 35_000, t::WEB, t::ISTIOD, 15012, End::Established);
    assert_eq!(xds(&engine, 36_000).state, State::AtRisk, "the engine may lag");
    connect(&mut engine, 37_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    assert_eq!(xds(&engine, 38_000).state, State::Denied, "agreement needs no grace");
    connect(&mut engine, 41_000, t::WEB, t::ISTIOD, 15012, End::Established);
    assert_eq!(xds(&engine, 42_000).state, State::Unenforced, "now it should have been dropped");

    t::delete(&mut engine, 50_000, Kind::NetworkPolicy, "app", "default-deny");
    connect(&mut engine, 52_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    assert_eq!(xds(&engine, 53_000).state, State::Silent, "the rule may still be there for a moment");
    let edit = xds(&engine, 53_000).since_edit.expect("an edit");
    assert!(edit.deleted);
    connect(&mut engine, 61_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    assert_eq!(xds(&engine, 62_000).state, State::Unexplained);
}

#[test]
fn what_speaks_against_the_policies_may_be_the_first_sign_of_a_change() {
    let mut engine = engine(&[]);
    let states = |engine: &mut Engine| -> Vec<State> {
        std::iter::from_fn(|| engine.poll_transition())
            .filter(|t| &*t.flow == "sidecar-xds")
            .filter_map(|t| t.to)
            .collect()
    };
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Established);
    // The network plugin is ahead of the API server's word to the agent.
    connect(&mut engine, 30_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    apply(&mut engine, 30_900, t::default_deny("app"));
    engine.handle_timeout(at(31_100));
    connect(&mut engine, 40_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    engine.handle_timeout(at(41_500));
    t::delete(&mut engine, 50_000, Kind::NetworkPolicy, "app", "default-deny");
    engine.handle_timeout(at(50_200));
    connect(&mut engine, 60_000, t::WEB, t::ISTIOD, 15012, End::Established);
    engine.handle_timeout(at(61_500));
    let told = states(&mut engine);
    assert!(!told.contains(&State::Unexplained) && told.contains(&State::Denied), "{told:?}");
    // It stays like that: no change is coming. New evidence of the same does not begin the wait anew.
    for ms in [70_000, 70_600, 71_200] {
        connect(&mut engine, ms, t::WEB, t::ISTIOD, 15012, End::Dropped);
        engine.handle_timeout(at(ms + 200));
    }
    assert_eq!(xds(&engine, 71_500).state, State::Unexplained);
}

#[test]
fn the_same_object_again_is_no_edit() {
    let mut engine = engine(&[t::default_deny("app")]);
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    apply(&mut engine, 30_000, t::default_deny("app"));
    for object in t::mesh() {
        apply(&mut engine, 30_001, object);
    }
    engine.handle_timeout(at(30_500));
    let view = xds(&engine, 30_500);
    assert_eq!((view.state, view.since_edit), (State::Denied, None));
}

#[test]
fn each_blocked_flow_turns_only_its_own_pair() {
    let drops = [
        (t::WEB, t::ISTIOD, 15012, Protocol::Tcp),
        (t::WEB, t::DNS[1], 53, Protocol::Udp),
        (t::WEB, t::DNS[0], 53, Protocol::Tcp),
        (t::PROMETHEUS, t::WEB, 15020, Protocol::Tcp),
        (t::TUNNEL, t::ISTIOD, 15017, Protocol::Tcp),
        (t::ISTIOD, t::API_SERVER, 6443, Protocol::Tcp),
        (t::API_SERVER, t::ISTIOD, 15017, Protocol::Tcp),
        (t::CLIENT, t::GATEWAY, 8443, Protocol::Tcp),
        (t::GATEWAY, t::ISTIOD, 15012, Protocol::Tcp),
    ];
    let deny = ["app", "istio-system", "kube-system", "monitoring"].map(t::default_deny);
    for (source, destination, port, protocol) in drops {
        let mut engine = engine(&deny);
        engine.observe(at(20_000), &t::drop_of(20_000, t::tuple(source, destination, port, protocol)));
        engine.handle_timeout(at(20_200));
        let snapshot = engine.snapshot(at(20_200));
        let denied: Vec<_> = snapshot.pairs.iter().filter(|p| p.state == State::Denied).collect();
        assert_eq!(denied.len(), 1, "{source} → {destination}:{port}: {denied:?}");
        assert_eq!((denied[0].port, denied[0].protocol), (port, protocol));
    }
}

#[test]
fn a_probe_from_the_pods_own_node_accuses_nobody() {
    let mut engine = engine(&[t::default_deny("istio-system")]);
    let probe = |e: &Engine, ms| pair(&e.snapshot(at(ms)), "control-plane-probe", "kubelet", "istiod", 8080);
    assert_eq!(probe(&engine, 0).state, State::Silent);
    connect(&mut engine, 20_000, t::NODE_A, t::ISTIOD, 8080, End::Established);
    assert_eq!(probe(&engine, 21_000).state, State::Verified);
    // Another node is not exempt, and not the kubelet either.
    connect(&mut engine, 22_000, t::NODE_B, t::ISTIOD, 8080, End::Dropped);
    let view = probe(&engine, 23_000);
    assert_eq!((view.state, view.attempts), (State::Verified, 1));
}

#[test]
fn an_untranslated_service_address_counts_if_all_backends_fare_alike() {
    let dns = |e: &Engine, ms| {
        let mut snapshot = e.snapshot(at(ms));
        snapshot.pairs.retain(|p| p.protocol == Protocol::Udp);
        pair(&snapshot, "sidecar-dns", "web", "coredns", 53)
    };
    let mut engine = engine(&[]);
    query(&mut engine, 20_000, t::WEB, t::DNS_SERVICE, true);
    let view = dns(&engine, 23_000);
    assert_eq!(view.state, State::Verified);
    assert_eq!(view.evidence.map(|e| e.instance.destination), Some(t::DNS_SERVICE.to_owned()));

    // Only one of the two is admitted: which one was asked is not known, so nothing is concluded.
    let one = json!([{"to": [{"ipBlock": {"cidr": "10.1.0.2/32"}}]}]);
    let mut engine = t::engine(&[policy("app", "one", json!({}), None, Some(one))]);
    query(&mut engine, 20_000, t::WEB, t::DNS_SERVICE, false);
    let view = dns(&engine, 23_000);
    assert_eq!((view.state, view.not_admitted_count, view.instances), (State::AtRisk, 1, 2));
    assert_eq!(view.not_admitted[0].destination, "kube-system/coredns-2b2-y");
}

#[test]
fn a_query_that_the_node_cache_or_the_dns_pods_may_have_answered() {
    let cache = t::pod("kube-system", "cache", "10.1.0.9", json!({"k8s-app": "node-local-dns"}), &["cache"]);
    let state = |e: &Engine, ms, to: &str| {
        let mut snapshot = e.snapshot(at(ms));
        snapshot.pairs.retain(|p| p.protocol == Protocol::Udp);
        pair(&snapshot, "sidecar-dns", "web", to, 53).state
    };
    // The pods are admitted, the cache is not: an answer was theirs, a drop was the cache's.
    let pods = json!([{"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]}]);
    let policies = [cache.clone(), policy("app", "pods", json!({}), None, Some(pods))];
    let mut engine = t::engine(&policies);
    query(&mut engine, 20_000, t::WEB, t::DNS_SERVICE, true);
    assert_eq!(state(&engine, 23_000, "coredns"), State::Verified);
    assert_eq!(state(&engine, 23_000, "node-local-dns"), State::AtRisk);
    let mut engine = t::engine(&policies);
    engine.observe(at(20_000), &t::drop_of(20_000, t::tuple(t::WEB, t::DNS_SERVICE, 53, Protocol::Udp)));
    engine.handle_timeout(at(20_200));
    assert_eq!(state(&engine, 20_200, "node-local-dns"), State::Denied);
    assert_ne!(state(&engine, 20_200, "coredns"), State::Unexplained);
}

#[test]
fn the_metadata_probe_of_a_starting_proxy_accuses_nobody() {
    let mut engine = engine(&[t::default_deny("app")]);
    let before = engine.snapshot(at(19_000)).pairs.len();
    engine.observe(at(20_000), &t::drop_of(20_000, t::tuple(t::WEB, "169.254.169.254", 80, Protocol::Tcp)));
    engine.handle_timeout(at(20_200));
    let snapshot = engine.snapshot(at(20_200));
    assert_eq!(snapshot.pairs.len(), before, "no pair comes of it");
    assert!(snapshot.pairs.iter().all(|p| p.state != State::Denied));
}

#[test]
fn unknown_peers_weaken_and_never_accuse() {
    let mut engine = engine(&[]);
    connect(&mut engine, 20_000, t::WEB, "10.1.1.99", 15012, End::Dropped);
    let snapshot = engine.snapshot(at(21_000));
    assert_eq!(snapshot.unattributed_attempts, 0, "the attempt is still open");
    let view = xds(&engine, 21_000);
    assert_eq!(view.state, State::Unknown, "{}", view.why);
    assert!(snapshot.pairs.iter().all(|p| p.evidence.is_none()));
}

#[test]
fn ends_in_one_namespace_are_never_judged() {
    let mut engine = engine(&[t::default_deny("app")]);
    for (source, destination) in [("127.0.0.1", "127.0.0.1"), (t::WEB, t::WEB), (t::NODE_A, t::NODE_A)] {
        connect(&mut engine, 20_000, source, destination, 15012, End::Dropped);
    }
    assert!(engine.snapshot(at(21_000)).pairs.iter().all(|p| p.evidence.is_none()));
}

#[test]
fn webhook_callers_and_application_pairs_are_learnt() {
    let mut engine = engine(&[t::default_deny("istio-system")]);
    connect(&mut engine, 20_000, t::NODE_B, t::ISTIOD_SERVICE, 443, End::Dropped);
    engine.handle_timeout(at(20_400));
    let view = pair(&engine.snapshot(at(20_400)), "control-plane-webhook", "node", "istiod", 15017);
    assert_eq!(view.state, State::Denied, "the attempt that told of the pair counts: {}", view.why);

    // A pod that no label makes a scraper is one once it has scraped; an attempt alone is nobody's requirement.
    let client = json!({"app": "curl"});
    apply(&mut engine, 21_000, t::pod("app", "curl", "10.1.0.77", client, &["curl"]));
    connect(&mut engine, 22_000, "10.1.0.77", t::ISTIOD, 15014, End::Dropped);
    connect(&mut engine, 23_000, "10.1.0.77", t::ISTIOD, 15017, End::Dropped);
    connect(&mut engine, 24_000, "10.1.0.77", t::WEB, 15020, End::Dropped);
    engine.handle_timeout(at(25_000));
    let mine = |e: &Engine| e.snapshot(at(25_000)).pairs.into_iter().filter(|p| &*p.source.workload == "curl").count();
    assert_eq!(mine(&engine), 0);
    t::delete(&mut engine, 26_000, Kind::NetworkPolicy, "istio-system", "default-deny");
    connect(&mut engine, 27_000, "10.1.0.77", t::ISTIOD, 15014, End::Established);
    engine.handle_timeout(at(27_500));
    let view = pair(&engine.snapshot(at(27_500)), "control-plane-metrics", "curl", "istiod", 15014);
    assert_eq!(view.state, State::Verified);

    // A client outside the mesh is told apart: default-deny may well mean to keep it out.
    connect(&mut engine, 28_000, "10.1.0.77", t::WEB, 8080, End::Established);
    engine.handle_timeout(at(28_500));
    let view = pair(&engine.snapshot(at(28_500)), "sidecar-data-outside", "curl", "web", 8080);
    assert_eq!(view.severity, Severity::Info);
}

#[test]
fn a_connection_to_the_own_proxy_proves_nothing_about_the_destination() {
    let labels = json!({"security.istio.io/tlsMode": "istio"});
    let mut engine = engine(&[]);
    apply(&mut engine, 1, t::pod("app", "shop", "10.1.0.66", labels, &["istio-proxy", "shop"]));
    let state = |e: &Engine, ms| pair(&e.snapshot(at(ms)), "sidecar-data", "shop", "web", 8080).state;
    t::connect_as(&mut engine, "shop", 20_000, "10.1.0.66", t::WEB, 8080, End::Established);
    engine.handle_timeout(at(20_500));
    assert_eq!(state(&engine, 20_500), State::Silent, "required from now on, and masked by the sidecar");
    t::connect_as(&mut engine, "wrk:worker_0", 21_000, "10.1.0.66", t::WEB, 8080, End::TimedOut);
    assert_eq!(state(&engine, 27_000), State::Failing, "the proxy's own connection tells");
    t::connect_as(&mut engine, "shop", 28_000, "10.1.0.66", t::WEB, 8080, End::Established);
    assert_eq!(state(&engine, 29_000), State::Failing);
    t::connect_as(&mut engine, "envoy", 30_000, "10.1.0.66", t::WEB, 8080, End::Established);
    assert_eq!(state(&engine, 31_000), State::Verified);
}

#[test]
fn an_agent_tells_of_its_own_nodes_only() {
    let mut engine = Engine::new(crate::engine::Settings { nodes: vec!["node-b".into()], ..t::settings() });
    for object in t::mesh() {
        apply(&mut engine, 0, object);
    }
    engine.synced(at(0));
    let snapshot = engine.snapshot(at(0));
    assert!(snapshot.pairs.iter().all(|p| &*p.flow != "sidecar-xds" && &*p.flow != "control-plane-api"));
    assert!(snapshot.pairs.iter().any(|p| &*p.flow == "gateway-xds"));
}

#[test]
fn a_pod_that_goes_takes_its_evidence_along() {
    let mut engine = engine(&[t::default_deny("app")]);
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    let again = t::pod("app", "web-7c7-z", "10.1.1.31", t::mesh()[16]["metadata"]["labels"].clone(), &["istio-proxy"]);
    apply(&mut engine, 30_000, again);
    t::delete(&mut engine, 31_000, Kind::Pod, "app", "web-7c7-x");
    engine.handle_timeout(at(31_500));
    assert_eq!(xds(&engine, 31_500).state, State::AtRisk);
    t::delete(&mut engine, 40_000, Kind::Pod, "app", "web-7c7-z");
    engine.handle_timeout(at(40_500));
    assert!(engine.snapshot(at(40_500)).pairs.iter().all(|p| &*p.source.workload != "web"));
    assert!(transitions(&mut engine).iter().any(|t| &*t.flow == "sidecar-xds" && t.to.is_none()));
}

#[test]
fn nothing_is_said_before_all_objects_are_in() {
    let mut engine = Engine::new(t::settings());
    connect(&mut engine, 0, t::WEB, t::ISTIOD, 15012, End::Dropped);
    for object in t::mesh().into_iter().chain([t::default_deny("app")]) {
        apply(&mut engine, 1_000, object);
    }
    assert!(engine.snapshot(at(1_000)).pairs.is_empty());
    engine.synced(at(2_000));
    assert_eq!(xds(&engine, 2_000).state, State::Denied, "what was seen meanwhile counts");
}

fn replay(inputs: &[(super::Time, Input)]) -> (Vec<u8>, Vec<Transition>) {
    let mut engine = Engine::new(t::settings());
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for (now, input) in inputs {
        engine.input(*now, input.clone()).expect("a recorded input");
        snapshots.push(engine.snapshot(*now));
    }
    (serde_json::to_vec(&snapshots).expect("a snapshot is JSON"), transitions(&mut engine))
}

#[test]
fn a_recording_replayed_gives_the_same_bytes() {
    let mut inputs: Vec<(super::Time, Input)> = Vec::new();
    for object in t::mesh().into_iter().chain([t::default_deny("app")]) {
        inputs.push((at(0), Input::Apply { object, origin: Origin::default() }));
    }
    inputs.push((at(1), Input::Synced));
    for n in 0..20_u64 {
        let tuple = t::tuple(
            t::WEB,
            if n % 2 == 0 { t::ISTIOD } else { t::DNS[0] },
            if n % 2 == 0 { 15012 } else { 53 },
            Protocol::Tcp,
        );
        let ms = 1_000 + n * 700;
        inputs.push((at(ms), Input::Observe(t::drop_of(ms, tuple))));
        inputs.push((at(ms + 300), Input::Timeout));
    }
    inputs.push((at(9_000), Input::Lost { stage: "ring-buffer".into(), count: 1 }));
    inputs.push((at(16_000), Input::Apply { object: t::allow_xds(), origin: Origin::default() }));
    inputs.push((at(17_000), Input::Timeout));
    let first = replay(&inputs);
    let recorded = serde_json::to_string(&inputs).expect("a recording is JSON");
    let read: Vec<(super::Time, Input)> = serde_json::from_str(&recorded).expect("a recording reads back");
    assert_eq!(read, inputs);
    let second = replay(&read);
    assert!(!first.1.is_empty());
    assert_eq!(first, second);
}

#[test]
fn counters_keep_their_caps() {
    let mut engine = Engine::new(crate::engine::Settings { max_drop_series: 2, ..t::settings() });
    for port in 1..10 {
        engine.observe(at(0), &t::drop_of(0, t::tuple(t::WEB, t::ISTIOD, port, Protocol::Tcp)));
    }
    let snapshot = engine.snapshot(at(0));
    assert_eq!((snapshot.drops.len(), snapshot.overflow.drop_series), (3, 7));
    assert_eq!(snapshot.drops.iter().map(|d| d.count).sum::<u64>(), 9);
    let Observation::Drop(mut normal) = t::drop_of(0, t::tuple(t::WEB, t::ISTIOD, 1, Protocol::Tcp)) else { return };
    (normal.reason, normal.location) = (Some("NOT_SPECIFIED".into()), Some("tcp_v4_rcv".into()));
    engine.observe(at(0), &Observation::Drop(normal));
    assert_eq!(engine.snapshot(at(0)).drops.iter().map(|d| d.count).sum::<u64>(), 9, "a normal free is no drop");
}

#[test]
fn a_wall_clock_that_is_set_moves_times_that_are_shown_and_no_verdict() {
    let run = |set: &[(u64, i64)]| {
        let mut engine = Engine::new(crate::engine::Settings { wall_offset_ns: 1_000, ..t::settings() });
        t::mesh().into_iter().chain([t::default_deny("app")]).for_each(|object| apply(&mut engine, 0, object));
        engine.synced(at(0));
        let clock = |engine: &mut Engine, ms: u64| {
            for (_, offset_ns) in set.iter().filter(|(when, _)| *when == ms) {
                engine.input(at(ms), Input::WallClock { offset_ns: *offset_ns }).expect("an input");
            }
        };
        connect(&mut engine, 20_000, t::WEB, t::ISTIOD_SERVICE, 15012, End::Dropped);
        clock(&mut engine, 25_000);
        apply(&mut engine, 30_000, t::allow_xds());
        engine.handle_timeout(at(30_200));
        connect(&mut engine, 31_000, t::WEB, t::ISTIOD_SERVICE, 15012, End::Established);
        clock(&mut engine, 40_000);
        (engine.snapshot(at(50_000)), transitions(&mut engine))
    };
    let year = 365 * 86_400 * 1_000_000_000_i64;
    let (plain, before) = run(&[]);
    for (set, last) in [(vec![(25_000, 30 * year)], 30 * year), (vec![(25_000, 30 * year), (40_000, -year)], -year)] {
        let (moved, after) = run(&set);
        let states = |s: &Snapshot| s.pairs.iter().map(|p| (p.flow.clone(), p.state, p.since)).collect::<Vec<_>>();
        assert_eq!(states(&moved), states(&plain));
        let turns = |t: &[Transition]| t.iter().map(|t| (t.at, t.from, t.to)).collect::<Vec<_>>();
        assert_eq!(turns(&after), turns(&before));
        let wall = |at: crate::time::Time| i64::try_from(at.0).expect("small") + last;
        assert_eq!(moved.at_unix_ns, wall(moved.at));
        for pair in &moved.pairs {
            assert_eq!(pair.since_unix_ns, wall(pair.since));
            assert!(pair.evidence.iter().all(|e| e.at_unix_ns == wall(e.at)));
            assert!(pair.since_edit.iter().all(|e| e.at_unix_ns == wall(e.at)), "edits before and after: one clock");
        }
        assert!(moved.transitions.iter().all(|t| t.at_unix_ns == wall(t.at)), "{:?}", moved.transitions);
        assert!(!moved.transitions.is_empty() && moved.pairs.iter().any(|p| p.since_edit.is_some()));
    }
}

/// One by one, as a list of the API server brings them: in a namespace of many, each costs no more than the one before.
#[test]
fn thousands_of_policies_that_select_one_pod_are_one_decision() {
    let mut engine = engine(&[]);
    let count = 20_000;
    for n in 0..count {
        let mut policy = t::default_deny("app");
        policy["metadata"]["name"] = format!("deny-{n}").into();
        apply(&mut engine, 20_000, policy);
    }
    engine.handle_timeout(at(20_500));
    let view = xds(&engine, 20_500);
    assert_eq!((view.state, view.policies.len(), view.policies_left_out), (State::AtRisk, 1_000, count - 1_000));
    let json = serde_json::to_string(&engine.snapshot(at(20_500))).expect("a snapshot is JSON");
    assert!(json.len() < 1 << 20, "{} bytes for {count} policies", json.len());
    assert!(view.why.len() < 1_000 && view.why.ends_with("and 19990 more"), "{}", view.why);
    assert_eq!(engine.snapshot(at(20_500)), engine.snapshot(at(20_500)), "reasons are found once and shared");
    apply(&mut engine, 30_000, t::allow_xds());
    engine.handle_timeout(at(30_200));
    assert_eq!(xds(&engine, 30_200).state, State::AtRisk, "among so many, the next judgement is not that soon");
    engine.handle_timeout(at(31_000));
    assert_eq!(xds(&engine, 31_000).state, State::Silent, "one of them admits");
}

/// The probes let through a thousand new kinds of drops a second and processor; each from another address, to a required port.
#[test]
fn a_flood_from_everywhere_grows_nothing_without_end() {
    let mut engine = t::engine(&[t::default_deny("istio-system")]);
    let mut size = |from: u32, to: u32| {
        for n in from..to {
            let (ms, source) = (20_000 + u64::from(n), std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string());
            let tuple = t::tuple(&source, t::ISTIOD, 15012, Protocol::Tcp);
            engine.observe(at(ms), &t::drop_of(ms, tuple));
            if n % 100 == 0 {
                engine.handle_timeout(at(ms));
            }
        }
        let now = at(20_000 + u64::from(to));
        engine.handle_timeout(now);
        serde_json::to_string(&engine.snapshot(now)).expect("a snapshot is JSON").len()
    };
    let (early, late) = (size(0, 10_000), size(10_000, 30_000));
    assert!(late < early + early / 10, "{early} bytes after 10 s, {late} after 30 s");
}
