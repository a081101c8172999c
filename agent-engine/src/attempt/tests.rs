//! Outcomes, as the state machine of the kernel's documentation has them.

use std::net::IpAddr;

use super::{Attempt, Attempts, Outcome};
use crate::observation::{
    Accepted, AttemptEnd, AttemptStart, DropClass, Owner, PacketDrop, QueuedError, Retransmit, Tuple, UdpEnd,
};
use crate::time::Time;
use crate::words::Protocol;

const SOCKET: u64 = 0xffff_8880_1234_0000;
const CLIENT: &str = "10.0.0.2";
const SERVICE: &str = "10.96.0.10";
const BACKEND: &str = "10.0.1.3";

/// What happens to one attempt, in order; times in milliseconds after the connect.
#[derive(Clone, Copy)]
enum Step {
    Retransmit(u64, u32),
    /// At, class by reason name, location.
    Drop(u64, &'static str, &'static str),
    ReplyDrop(u64, &'static str, &'static str),
    Established(u64),
    Reset(u64),
    /// At, ICMP code of type 3.
    Icmp(u64, u8),
    /// At, sk_err.
    Error(u64, i32),
    /// At; the probe cannot read why.
    Closed(u64),
    Accepted(u64),
    Timeout(u64),
    /// `ListenDrops` of the namespace behind the Service, if anybody has asked for it.
    ListenDrops(u64),
}
use Step::{Drop, Error, Established, Icmp, ListenDrops, ReplyDrop, Reset, Timeout};

fn ms(t: u64) -> Time {
    Time(1_000_000_000_000 + t * 1_000_000)
}

fn tuple(destination: &str, port: u16, source_port: u16) -> Tuple {
    let ip = |s: &str| s.parse::<IpAddr>().expect("a test address");
    Tuple {
        source: if destination.contains(':') { ip("fd00::2") } else { ip(CLIENT) },
        source_port,
        destination: ip(destination),
        destination_port: port,
        protocol: Protocol::Tcp,
    }
}

fn start(at: u64, socket: u64) -> AttemptStart {
    let owner = Owner { pid: 7, comm: "envoy".into(), cgroup: 1, pod: None };
    AttemptStart { at: ms(at), tuple: tuple(SERVICE, 443, 0), socket, netns: 5, owner }
}

fn end(at: u64, error: i32) -> AttemptEnd {
    AttemptEnd {
        at: ms(at),
        tuple: tuple(SERVICE, 443, 40_000),
        socket: SOCKET,
        started: ms(0),
        established: false,
        reset: false,
        cause_unknown: false,
        error,
        soft_error: 0,
        queued: None,
        retransmits: 0,
        netns: 5,
    }
}

fn drop(at: u64, reason: &str, location: &str, source_port: u16) -> PacketDrop {
    PacketDrop {
        at: ms(at),
        tuple: tuple(BACKEND, 8443, source_port),
        original: Some(tuple(SERVICE, 443, source_port)),
        socket: None,
        reason: Some(reason.into()),
        location: Some(location.into()),
        stack: Default::default(),
        count: 1,
        netns: 9,
        interface: 3,
        tcp_flags: 0x02,
        reply: false,
        untracked: false,
    }
}

fn run(steps: &[Step]) -> Vec<Attempt> {
    let mut attempts = Attempts::new(100);
    attempts.start(&start(0, SOCKET));
    let mut retransmits = 0_u16;
    for step in steps {
        match *step {
            Step::Retransmit(at, count) => {
                retransmits = u16::try_from(count).expect("a small count");
                let tuple = tuple(SERVICE, 443, 40_000);
                attempts.retransmit(&Retransmit { at: ms(at), tuple, socket: SOCKET, started: ms(0), count, netns: 5 });
            }
            Drop(at, reason, location) => attempts.dropped(ms(at), &drop(at, reason, location, 40_000)),
            ReplyDrop(at, reason, location) => {
                attempts.dropped(
                    ms(at),
                    &PacketDrop { reply: true, tcp_flags: 0x12, ..drop(at, reason, location, 40_000) },
                );
            }
            Established(at) => attempts.end(ms(at), &AttemptEnd { established: true, retransmits, ..end(at, 0) }),
            Reset(at) => attempts.end(ms(at), &AttemptEnd { reset: true, ..end(at, 111) }),
            Icmp(at, code) => {
                let queued = Some(QueuedError { origin: 2, kind: 3, code });
                attempts.end(ms(at), &AttemptEnd { queued, ..end(at, 0) });
            }
            Error(at, error) => attempts.end(ms(at), &AttemptEnd { retransmits, ..end(at, error) }),
            Step::Closed(at) => {
                attempts.end(ms(at), &AttemptEnd { retransmits, cause_unknown: true, ..end(at, 0) });
            }
            Step::Accepted(at) => {
                attempts.accepted(&Accepted { at: ms(at), tuple: tuple(BACKEND, 8443, 40_000), netns: 11 });
            }
            Timeout(at) => attempts.handle_timeout(ms(at)),
            ListenDrops(count) => {
                while let Some(destination) = attempts.poll_listener() {
                    assert_eq!(destination, (SERVICE.parse().expect("a test address"), 443));
                    attempts.listen_drops(destination, count);
                }
            }
        }
    }
    std::iter::from_fn(|| attempts.poll()).collect()
}

#[test]
fn outcome_of_what_the_kernel_did() {
    use Outcome::{BacklogFull, Cancelled, Dropped, Refused, Rejected, TimedOut, Unreachable};
    const NF: (&str, &str) = ("NETFILTER_DROP", "nft_do_chain");
    let table: &[(&str, &[Step], Outcome)] = &[
        ("SYN-ACK", &[Established(1), Timeout(200)], Outcome::Established),
        (
            "SYN-ACK after a lost SYN",
            &[Step::Retransmit(1000, 1), Established(1001), Timeout(1200)],
            Outcome::Established,
        ),
        ("RST alone: a closed port", &[Reset(1), Timeout(200)], Refused),
        ("sk_err 111 over IPv4 without ICMP is an RST", &[Error(1, 111), Timeout(200)], Refused),
        ("policy drop, then RST", &[Drop(0, NF.0, NF.1), Reset(1)], Rejected),
        ("RST, then its policy drop", &[Reset(1), Drop(2, NF.0, NF.1)], Rejected),
        ("RST and a drop too far apart", &[Drop(0, NF.0, NF.1), Timeout(80), Reset(900), Timeout(1100)], Refused),
        (
            "RST and a drop of no socket: a closed port",
            &[Drop(0, "NO_SOCKET", "tcp_v4_rcv"), Reset(1), Timeout(200)],
            Refused,
        ),
        ("ICMP port unreachable with policy drop", &[Icmp(1, 3), Drop(1, NF.0, NF.1)], Rejected),
        ("ICMP port unreachable from elsewhere", &[Icmp(1, 3), Timeout(200)], Rejected),
        ("ICMP 3/13 needs no drop", &[Icmp(1, 13), Timeout(800)], Rejected),
        ("ICMP 3/9 needs no drop", &[Icmp(1, 9), Timeout(800)], Rejected),
        ("ICMP 3/10 needs no drop", &[Icmp(1, 10), Timeout(800)], Rejected),
        ("ICMP host unreachable", &[Icmp(1, 1), Timeout(200)], Unreachable),
        ("ICMP host unreachable with policy drop", &[Drop(0, NF.0, NF.1), Icmp(1, 1), Timeout(200)], Rejected),
        ("sk_err 113: the neighbour is gone", &[Error(3000, 113), Timeout(3200)], Unreachable),
        ("sk_err 13: ICMPv6 prohibited", &[Error(1, 13), Timeout(800)], Rejected),
        (
            "a prohibit route on a processor that stops between answer and drop",
            &[Icmp(1, 13), Timeout(300), Drop(350, "NOT_SPECIFIED", "ip_error"), Timeout(800)],
            Unreachable,
        ),
        ("a policy drop, and the RST when the processor goes on", &[Drop(0, NF.0, NF.1), Reset(300)], Rejected),
        (
            "a prohibit route answers 3/13, then drops",
            &[Icmp(1, 13), Drop(1, "NOT_SPECIFIED", "ip_error"), Timeout(200)],
            Unreachable,
        ),
        (
            "a prohibit route over IPv6",
            &[Drop(1, "IP_INNOROUTES", "ip6_pkt_prohibit"), Error(1, 13), Timeout(200)],
            Unreachable,
        ),
        ("sk_err 110", &[Step::Retransmit(1000, 1), Error(2500, 110)], TimedOut),
        ("drop, sk_err 110", &[Drop(0, NF.0, NF.1), Error(2500, 110)], Dropped),
        ("drop, application gave up", &[Drop(0, NF.0, NF.1), Error(30, 0)], Dropped),
        ("neighbour drop, gave up", &[Drop(0, "NEIGH_FAILED", "neigh_invalidate"), Error(2500, 110)], Unreachable),
        ("queue drop, gave up", &[Drop(0, "CPU_BACKLOG", "enqueue_to_backlog"), Error(2500, 110)], Dropped),
        (
            "listen overflow, gave up",
            &[Drop(0, "TCP_LISTEN_OVERFLOW", "tcp_conn_request"), Error(2500, 110)],
            BacklogFull,
        ),
        (
            "listener turned SYNs away until it ended",
            &[Step::Retransmit(1000, 1), ListenDrops(5), Error(1300, 0), ListenDrops(6)],
            BacklogFull,
        ),
        (
            "listener turned SYNs away while it hung",
            &[Step::Retransmit(1000, 1), ListenDrops(5), Step::Retransmit(2000, 2), ListenDrops(7), Error(2500, 110)],
            BacklogFull,
        ),
        (
            "listener turned none away",
            &[Step::Retransmit(1000, 1), ListenDrops(5), Error(1300, 0), ListenDrops(5)],
            TimedOut,
        ),
        (
            "nobody says at its end",
            &[Step::Retransmit(1000, 1), ListenDrops(5), Error(1300, 0), Timeout(1800)],
            TimedOut,
        ),
        ("listener heard of only once", &[Step::Retransmit(1000, 1), Error(1300, 0), ListenDrops(9)], TimedOut),
        (
            "listener turned others away, and a rule this one",
            &[Step::Retransmit(1000, 1), ListenDrops(5), Drop(2000, NF.0, NF.1), Error(2500, 0), ListenDrops(6)],
            Dropped,
        ),
        (
            "listener had room in the end",
            &[
                Step::Retransmit(1000, 1),
                ListenDrops(5),
                Step::Retransmit(2000, 2),
                ListenDrops(6),
                Established(3000),
                Timeout(3200),
            ],
            Outcome::Established,
        ),
        ("application gave up at once", &[Error(400, 0)], Cancelled),
        ("application gave up after a second", &[Error(1500, 0)], TimedOut),
        ("application gave up after a retransmit", &[Step::Retransmit(900, 1), Error(950, 0)], TimedOut),
        ("ended early, nobody knows why", &[Step::Closed(400)], Cancelled),
        ("ended after a second, nobody knows why", &[Step::Closed(1500)], TimedOut),
        ("ended after a retransmit, nobody knows why", &[Step::Retransmit(900, 1), Step::Closed(950)], TimedOut),
        ("policy drop, ended early, nobody knows why", &[Drop(0, NF.0, NF.1), Step::Closed(1)], Dropped),
        ("answer dropped, gave up", &[ReplyDrop(1, NF.0, NF.1), Error(2500, 110)], Dropped),
    ];
    for (name, steps, expected) in table {
        let attempts = run(steps);
        let last = attempts.last().unwrap_or_else(|| panic!("{name}: nothing reported"));
        assert_eq!(last.outcome, *expected, "{name}");
        assert!(!last.provisional, "{name}: not final");
        assert_eq!(attempts.iter().filter(|a| !a.provisional).count(), 1, "{name}: counted once");
    }
}

#[test]
fn a_socket_used_again_takes_nothing_from_the_attempt_before() {
    let mut attempts = Attempts::new(100);
    attempts.start(&start(0, SOCKET));
    attempts.end(ms(1), &AttemptEnd { reset: true, ..end(1, 111) });
    attempts.start(&start(2, SOCKET));
    let established = AttemptEnd { established: true, started: ms(2), ..end(3, 0) };
    attempts.end(ms(3), &established);
    attempts.handle_timeout(ms(200));
    let outcomes: Vec<Outcome> = std::iter::from_fn(|| attempts.poll()).map(|a| a.outcome).collect();
    assert_eq!(outcomes, [Outcome::Refused, Outcome::Established]);
    assert_eq!((attempts.len(), attempts.evicted()), (0, 0));

    attempts.start(&start(300, SOCKET));
    attempts.start(&start(301, SOCKET));
    assert_eq!((attempts.len(), attempts.evicted()), (1, 1), "an attempt whose end was lost makes room");
}

#[test]
fn both_tuples_are_kept() {
    let attempts = run(&[Drop(0, "NETFILTER_DROP", "nf_hook_slow"), Error(2500, 110)]);
    let last = attempts.last().expect("an attempt");
    assert_eq!((last.dialled, last.translated), (tuple(SERVICE, 443, 40_000), Some(tuple(BACKEND, 8443, 40_000))));
    assert_eq!(last.judged().destination_port, 8443);
    let attempts = run(&[Established(1), Step::Accepted(2)]);
    assert_eq!(attempts.len(), 1, "the listener's side is the same attempt");
    assert_eq!(attempts[0].judged(), &tuple(BACKEND, 8443, 40_000));
    assert_eq!(attempts[0].latency, Some(std::time::Duration::from_millis(1)));
}

#[test]
fn a_local_drop_is_reported_at_once_and_silence_after_three_seconds() {
    let attempts = run(&[Drop(0, "NETFILTER_DROP", "nft_do_chain"), Timeout(60)]);
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].outcome, attempts[0].provisional), (Outcome::Dropped, true));
    assert_eq!(attempts[0].owner.as_ref().map(|o| &*o.comm), Some("envoy"));

    assert!(run(&[Step::Retransmit(1000, 1), Timeout(2900)]).is_empty());
    for steps in [&[Timeout(3000)][..], &[Step::Retransmit(1000, 1), Step::Retransmit(2000, 2)]] {
        let attempts = run(steps);
        assert_eq!(attempts.len(), 1);
        assert_eq!((attempts[0].outcome, attempts[0].provisional), (Outcome::TimedOut, true));
    }
}

#[test]
fn a_destination_that_did_not_answer_is_asked_about_from_the_start_on() {
    let mut attempts = Attempts::new(100);
    attempts.start(&start(0, SOCKET));
    assert_eq!(attempts.poll_listener(), None, "most connections are answered at once");
    attempts.end(ms(1_500), &end(1_500, 0));
    attempts.start(&start(10_000, 2));
    let destination = attempts.poll_listener().expect("the attempt before timed out");
    attempts.listen_drops(destination, 3);
    attempts.end(ms(11_500), &AttemptEnd { socket: 2, started: ms(10_000), ..end(11_500, 0) });
    let destination = attempts.poll_listener().expect("whether it rose");
    attempts.listen_drops(destination, 4);
    let outcomes: Vec<Outcome> = std::iter::from_fn(|| attempts.poll()).map(|a| a.outcome).collect();
    assert_eq!(outcomes, [Outcome::TimedOut, Outcome::BacklogFull]);
    attempts.start(&start(90_000, 3));
    assert_eq!(attempts.poll_listener(), None, "that was long ago");
    assert_eq!(attempts.len(), 1);
}

#[test]
fn a_policy_engine_without_reasons_is_seen_by_location() {
    let attempts = run(&[Drop(0, "NOT_SPECIFIED", "nfqnl_reinject"), Error(2500, 110)]);
    assert_eq!(attempts.last().and_then(|a| a.dropped.as_ref()).map(|d| d.class), Some(DropClass::Nfqueue));
    assert!(run(&[Drop(0, "NOT_SPECIFIED", "tcp_v4_rcv"), Timeout(100)]).is_empty(), "a normal free");
}

#[test]
fn a_drop_joins_the_attempt_with_its_source_port() {
    let mut attempts = Attempts::new(100);
    attempts.start(&start(0, 1));
    attempts.start(&start(10, 2));
    let retransmit = |at, socket, port| Retransmit {
        at: ms(at),
        tuple: tuple(SERVICE, 443, port),
        socket,
        started: ms(if socket == 1 { 0 } else { 10 }),
        count: 1,
        netns: 5,
    };
    attempts.retransmit(&retransmit(1000, 1, 1001));
    attempts.retransmit(&retransmit(1010, 2, 1002));
    attempts.dropped(ms(5000), &drop(5000, "NETFILTER_DROP", "nft_do_chain", 1002));
    attempts.handle_timeout(ms(5060));
    let reported: Vec<_> =
        std::iter::from_fn(|| attempts.poll()).filter(|a| a.dropped.is_some()).map(|a| a.dialled.source_port).collect();
    assert_eq!(reported, [1002]);
}

#[test]
fn a_drop_by_socket_needs_no_tuple() {
    let mut attempts = Attempts::new(100);
    attempts.start(&start(0, SOCKET));
    let mut exact = drop(700, "NOT_SPECIFIED", "netkit_xmit", 40_000);
    (exact.socket, exact.original, exact.tuple) = (Some(SOCKET), None, tuple("10.99.99.99", 1, 2));
    attempts.dropped(ms(700), &exact);
    attempts.handle_timeout(ms(800));
    let first = attempts.poll().expect("a report");
    assert_eq!((first.outcome, first.dropped.map(|d| d.class)), (Outcome::Dropped, Some(DropClass::Netkit)));
}

#[test]
fn attempts_from_elsewhere_are_attempts_of_their_own() {
    let mut attempts = Attempts::new(100);
    attempts.dropped(ms(0), &drop(0, "NETFILTER_DROP", "nft_do_chain", 50_000));
    attempts.dropped(ms(1000), &drop(1000, "NETFILTER_DROP", "nft_do_chain", 50_000));
    attempts.accepted(&Accepted { at: ms(2000), tuple: tuple(BACKEND, 8443, 50_001), netns: 11 });
    let all: Vec<_> = std::iter::from_fn(|| attempts.poll()).map(|a| (a.outcome, a.provisional)).collect();
    let expected =
        [(Outcome::Dropped, false), (Outcome::Dropped, true /* the same SYN again */), (Outcome::Established, false)];
    assert_eq!(all, expected);
}

#[test]
fn a_suppressed_drop_of_the_same_flow_explains_a_time_out() {
    let mut attempts = Attempts::new(100);
    attempts.start(&start(0, SOCKET));
    // Another connection's, of the same flow, during this attempt; its own was held back by the probe.
    attempts.dropped(ms(900), &drop(900, "NETFILTER_DROP", "nft_do_chain", 50_000));
    attempts.end(ms(2500), &AttemptEnd { retransmits: 1, ..end(2500, 110) });
    let last = std::iter::from_fn(|| attempts.poll()).last().expect("an attempt");
    assert_eq!(last.outcome, Outcome::Dropped);
}

#[test]
fn udp_exchanges() {
    let udp = |t: Tuple| Tuple { protocol: Protocol::Udp, ..t };
    let released = |replied, error| UdpEnd {
        at: ms(5000),
        tuple: udp(tuple(SERVICE, 443, 40_000)),
        socket: SOCKET,
        created: ms(0),
        replied,
        error,
        netns: 5,
        owner: Owner::default(),
    };
    let dropped = PacketDrop {
        tuple: udp(tuple(BACKEND, 8443, 40_000)),
        original: Some(udp(tuple(SERVICE, 443, 40_000))),
        tcp_flags: 0,
        ..drop(0, "NETFILTER_DROP", "nft_do_chain", 40_000)
    };
    let table = [
        ("answered", None, released(true, 0), Outcome::Established),
        ("nothing came back", None, released(false, 0), Outcome::NoReply),
        ("asked for a route", None, UdpEnd { created: ms(4990), ..released(false, 0) }, Outcome::Cancelled),
        ("port unreachable", None, released(false, 111), Outcome::Refused),
        ("dropped here", Some(&dropped), released(false, 0), Outcome::Dropped),
        ("rejected here", Some(&dropped), released(false, 111), Outcome::Rejected),
        ("lost once, then answered", Some(&dropped), released(true, 0), Outcome::Established),
    ];
    for (name, drop, release, expected) in table {
        let mut attempts = Attempts::new(100);
        if let Some(drop) = drop {
            attempts.dropped(ms(0), drop);
            assert_eq!(attempts.poll().map(|a| a.outcome), Some(Outcome::Dropped), "{name}: at once");
        }
        attempts.udp_end(&release);
        assert_eq!(attempts.poll().map(|a| a.outcome), Some(expected), "{name}");
    }
}

#[test]
fn an_answer_that_finds_its_client_gone_is_no_failure() {
    let udp = |t: Tuple| Tuple { protocol: Protocol::Udp, ..t };
    let closed = PacketDrop {
        tuple: udp(tuple(BACKEND, 8443, 40_000)),
        original: None,
        tcp_flags: 0,
        ..drop(0, "NO_SOCKET", "__udp4_lib_rcv", 40_000)
    };
    let mut attempts = Attempts::new(100);
    attempts.dropped(ms(0), &PacketDrop { reply: true, ..closed.clone() });
    assert_eq!(attempts.poll(), None);
    attempts.dropped(ms(1), &closed);
    assert_eq!(attempts.poll().map(|a| a.outcome), Some(Outcome::Refused), "a query that finds no listener is one");
}

#[test]
fn memory_is_bounded() {
    let mut attempts = Attempts::new(10);
    for n in 0..100 {
        attempts.start(&start(n, n));
    }
    assert_eq!((attempts.len(), attempts.evicted()), (10, 90));
    attempts.handle_timeout(ms(3_500));
    attempts.handle_timeout(ms(200_000));
    assert_eq!((attempts.len(), attempts.evicted()), (0, 100), "an end that never comes is forgotten");
    assert_eq!(attempts.poll_timeout(), None);
}
