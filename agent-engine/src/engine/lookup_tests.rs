//! Peers that have to be looked up before anybody is accused.

use super::Engine;
use crate::testing::{self as t, End, apply, at, connect, pair};
use crate::verdict::State;

fn xds(engine: &Engine, ms: u64) -> crate::snapshot::PairView {
    pair(&engine.snapshot(at(ms)), "sidecar-xds", "web", "istiod", 15012)
}

/// An engine that looks peers up, with a client outside of what it watches.
fn looking_up(policies: &[serde_json::Value]) -> Engine {
    let mut engine = Engine::new(super::Settings { lookups: true, ..t::settings() });
    for object in t::mesh().into_iter().chain(policies.iter().cloned()) {
        apply(&mut engine, 0, object);
    }
    engine.synced(at(0));
    engine
}

fn questions(engine: &mut Engine) -> Vec<String> {
    std::iter::from_fn(|| engine.poll_question()).map(|a| a.to_string()).collect()
}

#[test]
fn an_attempt_of_an_unknown_peer_waits_for_the_answer() {
    let stranger = "203.0.113.77";
    let mut engine = looking_up(&[]);
    connect(&mut engine, 20_000, t::WEB, stranger, 443, End::Established);
    assert_eq!(questions(&mut engine), [stranger]);
    let unattributed = |engine: &Engine, ms| engine.snapshot(at(ms)).unattributed_attempts;
    assert_eq!(unattributed(&engine, 20_400), 0, "it waits");
    engine.answered(at(20_500), stranger.parse().expect("an address"), false);
    engine.handle_timeout(at(20_700));
    assert_eq!(unattributed(&engine, 20_700), 0, "it is outside: no riddle");
    connect(&mut engine, 21_000, t::WEB, stranger, 443, End::Established);
    assert_eq!(questions(&mut engine), Vec::<String>::new(), "it has been answered");

    let silent = "203.0.113.78";
    connect(&mut engine, 30_000, t::WEB, silent, 443, End::Established);
    assert_eq!(questions(&mut engine), [silent]);
    let due = engine.poll_timeout().expect("it waits no longer than so");
    assert!(due <= at(33_000), "{due}");
    engine.handle_timeout(at(33_000));
    assert_eq!(unattributed(&engine, 33_000), 1, "without an answer it stays unknown");
}

#[test]
fn a_new_denial_rests_on_a_fresh_answer() {
    let mut engine = looking_up(&[t::default_deny("app")]);
    // The destination's pod was looked up a while ago.
    let address = t::ISTIOD.parse().expect("an address");
    engine.answered(at(1_000), address, true);
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    engine.handle_timeout(at(20_400));
    assert_eq!(questions(&mut engine), [t::ISTIOD]);
    assert_eq!(xds(&engine, 20_400).state, State::AtRisk, "it stays as it was");
    engine.answered(at(20_500), address, true);
    assert_eq!(xds(&engine, 20_500).state, State::Denied);
    connect(&mut engine, 40_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    assert_eq!(questions(&mut engine), Vec::<String>::new(), "what is denied already is asked for no more");
}
