//! Whose listeners are asked about, and what is made of the answer.

use super::{Engine, Settings};
use crate::attempt::Outcome;
use crate::observation::{AttemptEnd, AttemptStart, Observation, Owner, Retransmit, Tuple};
use crate::testing::{self as t, apply, at, pair, tuple};
use crate::verdict::State;
use crate::words::Protocol;

/// An engine on these nodes.
fn engine(nodes: &[&str], policies: &[serde_json::Value]) -> Engine {
    let nodes = nodes.iter().map(|n| (*n).to_owned()).collect();
    let mut engine = Engine::new(Settings { nodes, ..t::settings() });
    for object in t::mesh().into_iter().chain(policies.iter().cloned()) {
        apply(&mut engine, 0, object);
    }
    engine.synced(at(0));
    engine
}

/// A connect of the workload that is sent again after a second and given up after one and a half; what `meanwhile` and
/// `afterwards` are, is told of the listener when it is asked for.
fn hang(engine: &mut Engine, ms: u64, destination: &str, port: u16, [meanwhile, afterwards]: [u64; 2]) -> Vec<String> {
    let dialled = tuple(t::WEB, destination, port, Protocol::Tcp);
    let (socket, started) = (7, at(ms));
    let owner = Owner { pid: 42, comm: "envoy".into(), cgroup: 1, pod: None };
    let start = AttemptStart { at: started, tuple: Tuple { source_port: 0, ..dialled }, socket, netns: 1, owner };
    engine.observe(started, &Observation::AttemptStart(start));
    let again = Retransmit { at: at(ms + 1_000), tuple: dialled, socket, started, count: 1, netns: 1 };
    engine.observe(at(ms + 1_000), &Observation::Retransmit(again));
    let mut asked = Vec::new();
    let mut answer = |engine: &mut Engine, ms, count| {
        while let Some(address) = engine.poll_listener() {
            asked.push(address.to_string());
            engine.listen_drops(at(ms), address, count);
        }
    };
    answer(engine, ms + 1_050, meanwhile);
    let end = AttemptEnd {
        at: at(ms + 1_500),
        tuple: dialled,
        socket,
        started,
        established: false,
        reset: false,
        cause_unknown: false,
        error: 0,
        soft_error: 0,
        queued: None,
        retransmits: 1,
        netns: 1,
    };
    engine.observe(at(ms + 1_500), &Observation::AttemptEnd(end));
    answer(engine, ms + 1_550, afterwards);
    engine.handle_timeout(at(ms + 2_100));
    asked
}

fn outcome(engine: &Engine, ms: u64) -> (State, Option<Outcome>) {
    let view = pair(&engine.snapshot(at(ms)), "sidecar-xds", "web", "istiod", 15012);
    (view.state, view.evidence.map(|e| e.outcome))
}

#[test]
fn a_full_listener_is_named_as_one() {
    let mut engine = engine(&["node-a"], &[]);
    assert_eq!(hang(&mut engine, 20_000, t::ISTIOD, 15012, [5, 6]), [t::ISTIOD, t::ISTIOD]);
    assert_eq!(outcome(&engine, 23_000), (State::Failing, Some(Outcome::BacklogFull)));
    hang(&mut engine, 30_000, t::ISTIOD, 15012, [6, 6]);
    assert_eq!(outcome(&engine, 33_000), (State::Failing, Some(Outcome::TimedOut)));
}

#[test]
fn what_is_dialled_is_asked_about_where_it_leads() {
    let mut engine = engine(&["node-a"], &[]);
    assert_eq!(hang(&mut engine, 20_000, t::ISTIOD_SERVICE, 15012, [5, 6]), [t::ISTIOD, t::ISTIOD], "its one backend");
    assert_eq!(outcome(&engine, 23_000), (State::Failing, Some(Outcome::BacklogFull)));
    // Two backends: which of them was meant cannot be told.
    assert_eq!(hang(&mut engine, 30_000, t::DNS_SERVICE, 53, [5, 6]), Vec::<String>::new());
    let elsewhere = &mut self::engine(&["node-b"], &[]);
    assert_eq!(hang(elsewhere, 20_000, t::ISTIOD, 15012, [5, 6]), Vec::<String>::new(), "a pod of another node");
    assert_eq!(hang(elsewhere, 30_000, t::CLIENT, 443, [5, 6]), Vec::<String>::new(), "no pod");
}

#[test]
fn a_full_listener_takes_no_policy_back() {
    let mut engine = engine(&[], &[t::default_deny("app")]);
    hang(&mut engine, 20_000, t::ISTIOD, 15012, [5, 6]);
    assert_eq!(outcome(&engine, 23_000), (State::Predicted, Some(Outcome::BacklogFull)));
}
