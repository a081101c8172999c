//! What was not seen proves nothing: lost events, and nodes whose kernel does not take every probe.

use super::{Engine, Unseen};
use crate::testing::{self as t, End, at, connect, engine, pair};
use crate::verdict::State;
use crate::words::Protocol;

fn xds(engine: &Engine, ms: u64) -> crate::snapshot::PairView {
    pair(&engine.snapshot(at(ms)), "sidecar-xds", "web", "istiod", 15012)
}

#[test]
fn what_was_lost_proves_nothing() {
    let lose = |engine: &mut Engine, ms| engine.lost(at(ms), "ring-buffer", 3);
    let mut engine = engine(&[t::default_deny("app")]);
    lose(&mut engine, 15_000);
    let view = xds(&engine, 15_001);
    assert_eq!(view.state, State::Unknown, "that no attempt was seen proves nothing: {}", view.why);
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Dropped);
    lose(&mut engine, 21_000);
    assert_eq!(xds(&engine, 21_001).state, State::Denied, "a drop that was seen stays seen");

    let mut engine = t::engine(&[]);
    connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Reset);
    lose(&mut engine, 20_500);
    assert_eq!(xds(&engine, 21_000).state, State::Unknown, "the drop that caused the RST may be what was lost");
    connect(&mut engine, 22_000, t::WEB, t::ISTIOD, 15012, End::Reset);
    assert_eq!(xds(&engine, 23_000).state, State::Failing);
    assert_eq!(engine.snapshot(at(23_000)).lost[0].count, 3);
    engine.handle_timeout(at(323_000));
    assert_eq!(xds(&engine, 323_000).state, State::Silent, "after a window without loss absence counts again");
}

#[test]
fn lost_drops_leave_the_absence_of_attempts_as_it_is() {
    for stage in crate::ledger::DROP_STAGES {
        let mut engine = engine(&[t::default_deny("app")]);
        engine.lost(at(15_000), stage, 3);
        assert_eq!(xds(&engine, 15_001).state, State::AtRisk);
        connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Reset);
        engine.lost(at(20_500), stage, 3);
        assert_eq!(xds(&engine, 21_000).state, State::Predicted);

        let mut engine = t::engine(&[]);
        engine.lost(at(15_000), stage, 3);
        assert_eq!(xds(&engine, 15_001).state, State::Silent);
        connect(&mut engine, 20_000, t::WEB, t::ISTIOD, 15012, End::Reset);
        engine.lost(at(20_500), stage, 3);
        assert_eq!(xds(&engine, 21_000).state, State::Unknown, "the drop that caused the RST may be what was lost");
    }
}

#[test]
fn what_no_probe_of_the_node_sees_proves_nothing_by_its_absence() {
    let blind = Unseen { drops: true, udp: true, tcp: false };
    let mut open = engine(&[]);
    open.unseen(at(15_000), blind);
    assert_eq!(xds(&open, 15_001).state, State::Silent, "TCP attempts are seen");
    for (from, end) in [(20_000, End::Reset), (40_000, End::TimedOut)] {
        connect(&mut open, from, t::WEB, t::ISTIOD, 15012, end);
        let view = xds(&open, from + 6_000);
        assert_eq!(view.state, State::Unknown, "a rule may be the cause: {}", view.why);
        assert!(view.why.ends_with("no probe of this node sees drops, so a rule may be the cause"), "{}", view.why);
        connect(&mut open, from + 10_000, t::WEB, t::ISTIOD, 15012, End::Established);
        assert_eq!(xds(&open, from + 11_000).state, State::Verified);
    }
    let dns = |engine: &Engine| {
        let pairs = engine.snapshot(at(62_000)).pairs;
        let dns = pairs.into_iter().find(|p| p.protocol == Protocol::Udp).expect("a pair of DNS");
        (dns.state, dns.why)
    };
    let (state, why) = dns(&open);
    assert_eq!(state, State::Unknown, "{why}");
    assert!(why.contains("UDP") && why.contains("weir doctor"), "{why}");
    open.unseen(at(61_000), Unseen::default());
    assert_eq!(dns(&open).0, State::Silent);

    let mut denied = engine(&[t::default_deny("app")]);
    denied.unseen(at(15_000), blind);
    assert_eq!(xds(&denied, 15_001).state, State::AtRisk);
    connect(&mut denied, 20_000, t::WEB, t::ISTIOD, 15012, End::TimedOut);
    assert_eq!(xds(&denied, 26_000).state, State::Predicted, "the drop itself was not seen");

    let mut none = engine(&[]);
    none.unseen(at(15_000), Unseen { tcp: true, ..blind });
    assert_eq!(xds(&none, 15_001).state, State::Unknown);
}
