//! One test for each thing that must be survived.

use std::time::Duration;

use harness::apiserver::{Fault, Rule, Streaming, Type, Verb};
use serde_json::json;
use weir::cluster::change::State;
use weir_engine::cluster::Kind;

use crate::follower::{Follower, cluster, fill, pod, policy, settings, settled, virtual_service};

fn virtual_services() -> Type {
    Type::new("networking.istio.io", "v1", "VirtualService", "virtualservices", true)
}

#[tokio::test]
async fn says_what_there_is_and_what_changes() {
    for streaming in [Streaming::Offered, Streaming::Refused, Streaming::Ignored, Streaming::Broken] {
        let server = cluster().await;
        server.set_streaming(streaming);
        let mut follower = Follower::start(&server, settings());
        follower.until_synced().await;
        follower.until_converged(&server, "the initial objects").await;
        assert!(!follower.has(Kind::Pod, "shop", "db-1"), "another node's pod is not this node's concern");
        assert!(!follower.has(Kind::ConfigMap, "istio-system", "other"), "only the mesh configuration is read");

        server.apply(policy("shop", "deny", "db"));
        server.apply(policy("shop", "second", "web"));
        server.apply(pod("shop", "web-2", "node-1", "10.0.1.3", json!({"app": "web"})));
        server.delete("", "pods", "shop", "web-1");
        server.delete("networking.k8s.io", "networkpolicies", "shop", "second");
        follower.until_converged(&server, &format!("changes with streaming lists {streaming:?}")).await;
        for health in follower.health.values() {
            assert_eq!(health.state, State::Current, "{}", health.part);
        }
    }
}

#[tokio::test]
async fn objects_are_reduced_and_equal_ones_are_not_said_again() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    let of = |f: &Follower, kind, namespace: &str, name: &str| {
        let key = weir_engine::cluster::Key { kind, name: weir_engine::words::Name::new(namespace, name) };
        (f.objects[&key].clone(), f.applied[&key])
    };
    let (web, said) = of(&follower, Kind::Pod, "shop", "web-1");
    let text = web.to_string();
    for dropped in ["hidden", "SECRET", "volumes", "managedFields", "last-applied", "conditions", "example/app"] {
        assert!(!text.contains(dropped), "{dropped} is still there: {text}");
    }
    for kept in ["ReplicaSet", "8080", "10.0.1.1", "node-1", "\"app\":\"web\""] {
        assert!(text.contains(kept), "{kept} is not there: {text}");
    }
    assert!(!of(&follower, Kind::Node, "", "node-1").0.to_string().contains("big"));
    assert!(!of(&follower, Kind::MutatingWebhookConfiguration, "", "injector").0.to_string().contains("AAAA"));

    let mut same = pod("shop", "web-1", "node-1", "10.0.1.1", json!({"app": "web"}));
    same["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    server.apply(same);
    server.apply(policy("shop", "marker", "x"));
    follower.until("the marker", |f| f.has(Kind::NetworkPolicy, "shop", "marker")).await;
    follower.for_a_while(Duration::from_millis(300)).await;
    assert_eq!(of(&follower, Kind::Pod, "shop", "web-1").1, said, "a condition is nothing to Weir");
}

#[tokio::test]
async fn an_object_that_two_watches_have_is_gone_when_neither_has_it() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    // On this node and a gateway; then only on this node; then gone.
    server.apply(pod("istio-system", "gateway-1", "node-1", "10.0.1.2", json!({"app": "was-a-gateway"})));
    follower.until_converged(&server, "no gateway any more").await;
    follower.for_a_while(Duration::from_millis(300)).await;
    assert!(follower.has(Kind::Pod, "istio-system", "gateway-1"));
    server.delete("", "pods", "istio-system", "gateway-1");
    // On another node and well known; then not well known.
    server.apply(pod("istio-system", "istiod-1", "node-2", "10.0.2.2", json!({"app": "something"})));
    follower.until_converged(&server, "two pods less").await;
    assert!(!follower.has(Kind::Pod, "istio-system", "istiod-1"));
}

#[tokio::test]
async fn pages() {
    let server = cluster().await;
    server.set_streaming(Streaming::Refused);
    for n in 0..57 {
        server.apply(policy("shop", &format!("p{n}"), "x"));
    }
    server.fault(Rule::all(Fault::ExpiredContinue).of("networkpolicies").on(Verb::List).times(3));
    let mut settings = settings();
    settings.page = 10;
    let mut follower = Follower::start(&server, settings);
    follower.until_synced().await;
    follower.until_converged(&server, "all pages, although the continue token expired").await;
    let lists = server.counts().requests(Some("networkpolicies"), Some(Verb::List));
    assert!(lists <= 12, "{lists} lists");
}

#[tokio::test]
async fn the_api_server_is_away_at_the_start_and_later() {
    let mut server = cluster().await;
    server.stop().await;
    let mut follower = Follower::start(&server, settings());
    follower.until("policies are stale", |f| f.state("networkpolicies") == Some(State::Stale)).await;
    assert!(!follower.synced);
    assert_eq!(follower.part("networkpolicies").age(std::time::Instant::now()), None, "nothing is known yet");
    assert!(follower.part("networkpolicies").reason.as_ref().is_some_and(|r| r.contains("refused")));

    server.resume().await.expect("the port is free");
    follower.until_synced().await;
    follower.until_converged(&server, "after the start").await;

    server.stop().await;
    follower
        .until("all parts are stale", |f| {
            f.health.values().filter(|h| h.kind.is_some() && h.confirmed.is_some()).all(|h| h.state == State::Stale)
        })
        .await;
    follower.for_a_while(Duration::from_millis(500)).await;
    let age = follower.part("networkpolicies").age(std::time::Instant::now()).expect("something is known");
    assert!(age >= Duration::from_millis(500), "{age:?}");
    assert!(follower.has(Kind::NetworkPolicy, "shop", "deny"), "what is known stays in force");

    server.apply(policy("shop", "while-away", "x"));
    server.delete("networking.k8s.io", "networkpolicies", "shop", "deny");
    server.resume().await.expect("the port is free");
    follower.until_converged(&server, "what happened while it was away").await;
    follower.until("all parts are current", |f| f.health.values().all(|h| h.state == State::Current)).await;
}

#[tokio::test]
async fn versions_that_are_too_old() {
    for rule in [
        Rule::all(Fault::GoneInWatch).on(Verb::Watch).times(12),
        Rule::all(Fault::Status(410, None)).on(Verb::Watch).times(12),
    ] {
        for streaming in [Streaming::Offered, Streaming::Refused] {
            let server = cluster().await;
            server.set_streaming(streaming);
            let mut follower = Follower::start(&server, settings());
            follower.until_synced().await;
            server.fault(rule.clone());
            // Open watches learn it from the stream.
            server.apply(policy("shop", "forgotten", "x"));
            server.delete("networking.k8s.io", "networkpolicies", "shop", "deny");
            server.compact();
            follower.until_converged(&server, &format!("after 410, {rule:?}, {streaming:?}")).await;
            server.apply(policy("shop", "later", "x"));
            follower.until_converged(&server, "the watch lives again").await;
        }
    }
}

#[tokio::test]
async fn watches_that_are_closed_and_cut() {
    for fault in [Fault::CloseAfter(0), Fault::CloseAfter(2), Fault::CutAfter(1)] {
        for streaming in [Streaming::Offered, Streaming::Refused] {
            let server = cluster().await;
            server.set_streaming(streaming);
            let mut follower = Follower::start(&server, settings());
            follower.until_synced().await;
            server.fault(Rule::all(fault.clone()).on(Verb::Watch));
            server.compact();
            let before = server.counts();
            for n in 0..8 {
                server.apply(policy("shop", &format!("p{n}"), "x"));
                follower.for_a_while(Duration::from_millis(100)).await;
            }
            let asked = server.counts().since(&before).requests(Some("networkpolicies"), None);
            // The shortest delay is 50 ms, so 800 ms have room for 16 watches, and as many lists where each ends in a list.
            assert!(asked <= 40, "{asked} requests with {fault:?}");
            server.clear_faults();
            follower.until_converged(&server, &format!("after {fault:?} with {streaming:?}")).await;
        }
    }
}

#[tokio::test]
async fn a_watch_that_is_closed_at_once_for_ever_is_no_hot_loop() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    server.fault(Rule::all(Fault::CloseAfter(0)).on(Verb::Watch).of("services"));
    server.compact();
    follower.for_a_while(Duration::from_secs(1)).await;
    let before = server.counts();
    follower.for_a_while(Duration::from_secs(2)).await;
    let asked = server.counts().since(&before).requests(Some("services"), None);
    assert!(asked <= 20, "{asked} requests in two seconds with delays of up to 400 ms");
    let others = server.counts().since(&before).requests(Some("networkpolicies"), None);
    assert!(others <= 1, "{others} requests for a kind that is well");
}

#[tokio::test]
async fn a_slow_list_holds_nobody_up() {
    let server = cluster().await;
    server.set_streaming(Streaming::Refused);
    server.fault(Rule::all(Fault::Slow(Duration::from_secs(1))).of("services").on(Verb::List).times(1));
    let mut follower = Follower::start(&server, settings());
    follower.until("policies are there", |f| f.has(Kind::NetworkPolicy, "shop", "deny")).await;
    assert!(!follower.synced, "services are essential and still under way");
    assert!(!follower.has(Kind::Service, "shop", "web"));
    follower.until_synced().await;
    follower.until_converged(&server, "the slow list came").await;
}

#[tokio::test]
async fn a_list_that_never_comes_is_given_up_and_asked_for_again() {
    let server = cluster().await;
    server.set_streaming(Streaming::Refused);
    server.fault(Rule::all(Fault::Slow(Duration::from_secs(60))).of("services").on(Verb::List).times(1));
    let mut follower = Follower::start(&server, settings());
    follower.until("services are stale", |f| f.state("services") == Some(State::Stale)).await;
    assert!(follower.part("services").reason.as_ref().is_some_and(|r| r.contains("did not answer within 2 s")));
    follower.until_synced().await;
    follower.until_converged(&server, "the second list").await;
}

#[tokio::test]
async fn one_kind_that_is_forbidden_degrades_alone_and_is_named() {
    let server = cluster().await;
    server.install(virtual_services());
    server.apply(virtual_service("a", "1"));
    server.fault(Rule::all(Fault::Status(403, None)).of("virtualservices"));
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    follower.until("refused", |f| f.state("virtualservices.networking.istio.io") == Some(State::Refused)).await;
    assert!(
        follower
            .part("virtualservices")
            .reason
            .as_ref()
            .is_some_and(|r| r.contains("403") && r.contains("ClusterRole"))
    );
    assert!(follower.health.values().filter(|h| h.state != State::Current).count() == 1);
    let before = server.counts();
    follower.for_a_while(Duration::from_secs(1)).await;
    let asked = server.counts().since(&before).requests(Some("virtualservices"), None);
    assert!(asked <= 8, "{asked} requests in a second");
    server.clear_faults();
    follower.until_converged(&server, "access was granted").await;
    follower.until("current", |f| f.state("virtualservices") == Some(State::Current)).await;
}

#[tokio::test]
async fn without_an_essential_kind_nothing_is_decided() {
    let server = cluster().await;
    server.fault(Rule::all(Fault::Status(403, None)).of("networkpolicies"));
    let mut follower = Follower::start(&server, settings());
    follower.until("refused", |f| f.state("networkpolicies") == Some(State::Refused)).await;
    follower.for_a_while(Duration::from_secs(1)).await;
    assert!(!follower.synced, "every pair would look admitted");
    assert!(follower.part("networkpolicies").essential);
    server.clear_faults();
    follower.until_synced().await;
}

#[tokio::test]
async fn a_token_that_expires_is_read_again() {
    let server = cluster().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (token, kubeconfig) = (folder.path().join("token"), folder.path().join("kubeconfig"));
    std::fs::write(&token, "first").expect("the folder is ours");
    server.require_token(Some("first"));
    server.write_kubeconfig(&kubeconfig, None, Some(&token)).expect("the folder is ours");
    let mut follower = Follower::start_from(&kubeconfig, settings()).await;
    follower.until_synced().await;

    server.require_token(Some("second"));
    server.compact();
    server.apply(policy("shop", "unseen", "x"));
    follower.until("refused", |f| f.state("networkpolicies") == Some(State::Refused)).await;
    assert!(follower.part("networkpolicies").reason.as_ref().is_some_and(|r| r.contains("401")));
    assert!(follower.has(Kind::NetworkPolicy, "shop", "deny"), "what is known stays in force");
    std::fs::write(&token, "second").expect("the folder is ours");
    follower.until_converged(&server, "with the second token").await;
}

#[tokio::test]
async fn too_many_requests_and_errors_are_backed_off() {
    for (fault, delay) in [
        (Fault::Status(429, Some(1)), Duration::from_secs(1)),
        (Fault::Status(429, None), Duration::ZERO),
        (Fault::Status(500, None), Duration::ZERO),
        (Fault::Page(503), Duration::ZERO),
        (Fault::Garbage, Duration::ZERO),
    ] {
        let server = cluster().await;
        server.set_streaming(Streaming::Refused);
        server.fault(Rule::all(fault.clone()).of("networkpolicies").on(Verb::List));
        let mut follower = Follower::start(&server, settings());
        follower.until("stale", |f| f.state("networkpolicies") == Some(State::Stale)).await;
        let before = server.counts();
        follower.for_a_while(Duration::from_secs(2)).await;
        let asked = server.counts().since(&before).requests(Some("networkpolicies"), Some(Verb::List));
        let most = if delay.is_zero() { 20 } else { 3 };
        assert!((1..=most).contains(&asked), "{asked} requests in two seconds with {fault:?}");
        server.clear_faults();
        follower.until_synced().await;
        follower.until_converged(&server, &format!("after {fault:?}")).await;
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_is_skipped_and_counted() {
    for streaming in [Streaming::Offered, Streaming::Refused] {
        let server = cluster().await;
        server.set_streaming(streaming);
        let mut broken = policy("shop", "broken", "x");
        broken["metadata"]["annotations"] = json!({"test/broken": "yes"});
        broken["spec"]["podSelector"] = json!("\u{1b}[31mweb");
        server.apply(broken.clone());
        let mut follower = Follower::start(&server, settings());
        follower.until_synced().await;
        follower.until_converged(&server, "all the others").await;
        let health = follower.part("networkpolicies");
        assert_eq!((health.state, health.undecodable), (State::Current, 1));
        let reason = health.reason.clone().expect("it is named");
        assert!(reason.contains("NetworkPolicy shop/broken") && !reason.contains('\u{1b}'), "{reason}");

        // A good one that breaks stays in force as it was.
        let mut breaks = policy("shop", "deny", "web");
        breaks["spec"]["ingress"] = json!({"not": "a list"});
        server.apply(breaks);
        follower.until("the second is counted", |f| f.part("networkpolicies").undecodable == 2).await;
        server.compact();
        server.apply(pod("shop", "web-9", "node-1", "10.0.1.9", json!({"app": "web"})));
        follower.until("the watches live", |f| f.has(Kind::Pod, "shop", "web-9")).await;
        follower.for_a_while(Duration::from_millis(500)).await;
        assert!(follower.has(Kind::NetworkPolicy, "shop", "deny"), "also after a new list");

        server.apply(policy("shop", "deny", "db"));
        server.delete("networking.k8s.io", "networkpolicies", "shop", "broken");
        follower.until("both are repaired", |f| f.part("networkpolicies").undecodable == 0).await;
        assert_eq!(follower.part("networkpolicies").reason, None);
        follower.until_converged(&server, "repaired").await;
    }
}

#[tokio::test]
async fn a_crd_appears_and_goes() {
    for aggregated in [true, false] {
        let server = cluster().await;
        server.set_aggregated(aggregated);
        let mut follower = Follower::start(&server, settings());
        follower.until_synced().await;
        assert_eq!(follower.state("virtualservices"), None, "a missing CRD is no fault");
        assert!(follower.health.values().all(|h| h.state == State::Current));

        server.install(virtual_services());
        server.apply(virtual_service("a", "1"));
        follower.until_converged(&server, "a CRD appeared").await;
        server.apply(virtual_service("a", "2"));
        server.apply(virtual_service("b", "1"));
        follower.until_converged(&server, "its objects are watched").await;

        server.uninstall("networking.istio.io", "virtualservices");
        follower.until("its objects are gone", |f| !f.has(Kind::VirtualService, "shop", "a")).await;
        follower.until("absent", |f| f.state("virtualservices") == Some(State::Absent)).await;
        server.install(virtual_services());
        server.apply(virtual_service("c", "1"));
        follower.until_converged(&server, "it came back").await;
    }
}

#[tokio::test]
async fn discovery_is_cheap_when_nothing_changes() {
    let server = cluster().await;
    server.install(virtual_services());
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    settled(&server).await;
    let before = server.counts();
    follower.for_a_while(Duration::from_secs(2)).await;
    let after = server.counts().since(&before);
    let asked = after.requests(None, Some(Verb::Discovery));
    assert!((2..=10).contains(&asked), "{asked} times in 2 s, every 225 to 375 ms");
    assert_eq!(after.bytes(None, Some(Verb::Discovery)), 0, "304 has no body");
}

#[tokio::test]
async fn bookmarks_keep_a_quiet_watch_from_starting_over() {
    let server = cluster().await;
    let mut settings = settings();
    settings.watch_time = Duration::from_secs(1);
    let mut follower = Follower::start(&server, settings);
    follower.until_synced().await;
    // Only pods change; the watches of all other kinds learn newer versions from bookmarks alone.
    for n in 0..5 {
        server.apply(pod("shop", "web-1", "node-1", &format!("10.0.1.{}", 50 + n), json!({"app": "web"})));
    }
    follower.for_a_while(Duration::from_millis(600)).await;
    server.compact();
    let before = server.counts();
    server.set_bookmark_every(Duration::from_millis(100));
    follower.for_a_while(Duration::from_secs(4)).await;
    follower.until_converged(&server, "all the while").await;
    let after = server.counts().since(&before);
    assert!(after.requests(Some("services"), Some(Verb::Watch)) >= 2, "watches of one second were resumed");
}

#[tokio::test]
async fn over_tls_all_watches_share_one_connection() {
    let mut server = harness::apiserver::ApiServer::start_tls().await.expect("the loopback has a free port");
    fill(&server);
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("kubeconfig");
    server.require_token(Some("secret"));
    server.write_kubeconfig(&kubeconfig, Some("secret"), None).expect("the folder is ours");
    let mut follower = Follower::start_from(&kubeconfig, settings()).await;
    follower.until_synced().await;
    follower.until_converged(&server, "over TLS").await;
    let counts = server.counts();
    assert!(counts.open(None) >= 10, "{} watches", counts.open(None));
    assert!(counts.connections <= 3, "{} connections", counts.connections);
    server.stop().await;
    server.apply(policy("shop", "while-away", "x"));
    follower.until("stale", |f| f.state("networkpolicies") == Some(State::Stale)).await;
    server.resume().await.expect("the port is free");
    follower.until_converged(&server, "after the connection was cut").await;
}
