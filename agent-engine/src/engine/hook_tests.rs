//! Netfilter's hook in the evidence of a pair: of the very drop that is shown, or none.

use super::Engine;
use crate::observation::{Hook, Observation, PacketDrop};
use crate::snapshot::EvidenceView;
use crate::testing::{self as t, at, engine, pair};
use crate::verdict::State;
use crate::words::Protocol;

const FORWARD: &str = "nft_do_chain nft_do_chain_inet nf_hook_slow ip_forward ip_rcv";

fn dropped(ms: u64, reason: &str, stack: &str) -> PacketDrop {
    let Observation::Drop(drop) = t::drop_of(ms, t::tuple(t::WEB, t::ISTIOD, 15012, Protocol::Tcp)) else {
        panic!("a drop")
    };
    PacketDrop { reason: Some(reason.into()), stack: stack.split_whitespace().map(Into::into).collect(), ..drop }
}

/// What the pair says after a drop, and why.
fn seen(engine: &mut Engine, ms: u64, drop: PacketDrop) -> (EvidenceView, String) {
    engine.observe(at(ms), &Observation::Drop(drop));
    engine.handle_timeout(at(ms + 200));
    let view = pair(&engine.snapshot(at(ms + 200)), "sidecar-xds", "web", "istiod", 15012);
    assert_eq!(view.state, State::Denied, "{}", view.why);
    (view.evidence.expect("evidence"), view.why)
}

#[test]
fn the_hook_is_told_where_the_stack_shows_it_and_goes_with_its_drop() {
    let mut engine = engine(&[t::default_deny("app")]);
    let (evidence, why) = seen(&mut engine, 20_000, dropped(20_000, "NETFILTER_DROP", FORWARD));
    assert_eq!((evidence.hook, evidence.stack.join(" ")), (Some(Hook::Forward), FORWARD.to_owned()));
    assert!(why.contains("(netfilter FORWARD: NETFILTER_DROP at nft_do_chain)"), "{why}");
    let (evidence, why) = seen(&mut engine, 30_000, dropped(30_000, "NETFILTER_DROP", ""));
    assert_eq!((evidence.hook, evidence.stack.len()), (None, 0), "of another drop nothing is carried over");
    assert!(why.contains("(netfilter: NETFILTER_DROP at nft_do_chain)"), "{why}");
    let (evidence, _) = seen(&mut engine, 40_000, dropped(40_000, "TC_INGRESS", FORWARD));
    assert_eq!((evidence.hook, evidence.stack.len()), (None, 5), "no hook of netfilter, and a stack all the same");
}

#[test]
fn recordings_from_before_stacks_replay() {
    let plain = Observation::Drop(dropped(1, "NETFILTER_DROP", ""));
    let json = serde_json::to_string(&plain).expect("JSON");
    assert!(!json.contains("stack"), "{json}");
    assert_eq!(serde_json::from_str::<Observation>(&json).expect("an observation"), plain);
    let with = Observation::Drop(dropped(1, "NETFILTER_DROP", FORWARD));
    let json = serde_json::to_string(&with).expect("JSON");
    assert_eq!(serde_json::from_str::<Observation>(&json).expect("an observation"), with);
}
