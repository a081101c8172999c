//! Peers by address: asked for once, forgotten, checked again, and never in a rush.

use std::net::IpAddr;
use std::time::Duration;

use harness::apiserver::{ApiServer, Fault, Rule, Verb};
use serde_json::json;
use weir::cluster::change::State;
use weir::cluster::watch::Nodes;
use weir_engine::cluster::Kind;

use crate::follower::{Follower, cluster, pod, settings};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn lookups(server: &ApiServer) -> Vec<String> {
    server.requests().into_iter().filter(|r| r.contains("status.podIP")).collect()
}

#[tokio::test]
async fn a_peer_is_asked_for_once() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    for _ in 0..500 {
        follower.source.lookups.want(ip("10.0.2.1"));
    }
    follower.until("the peer", |f| f.has(Kind::Pod, "shop", "db-1")).await;
    let asked = lookups(&server);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].contains("resourceVersion=0"), "from the cache: {asked:?}");
}

#[tokio::test]
async fn local_addresses_are_never_asked_for() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    for local in ["127.0.0.1", "::1", "169.254.7.127", "fe80::1", "224.0.0.1", "0.0.0.0", "ff02::1", "255.255.255.255"]
    {
        follower.source.lookups.want(ip(local));
    }
    follower.source.lookups.want(ip("::ffff:10.0.2.1"));
    follower.until("the mapped address", |f| f.has(Kind::Pod, "shop", "db-1")).await;
    assert_eq!(lookups(&server).len(), 1);
}

#[tokio::test]
async fn an_unknown_address_leaves_a_tombstone_that_lasts_longer_each_time() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    // Tombstones of 0.3, 0.6, 1.2 and 2.4 s, up to a quarter longer: within two seconds at most three requests.
    for _ in 0..100 {
        follower.source.lookups.want(ip("203.0.113.9"));
        follower.for_a_while(Duration::from_millis(20)).await;
    }
    let asked = lookups(&server).len();
    assert!((2..=3).contains(&asked), "{asked} requests");
    assert!(follower.nobody.contains(&ip("203.0.113.9")), "it is said that nobody has it");
    // It comes up after all.
    server.apply(pod("shop", "late", "node-2", "203.0.113.9", json!({"app": "late"})));
    follower
        .until("it is found", |f| {
            f.source.lookups.want(ip("203.0.113.9"));
            f.has(Kind::Pod, "shop", "late")
        })
        .await;
}

#[tokio::test]
async fn an_address_that_is_another_pods_by_now() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    follower.source.lookups.want(ip("10.0.2.1"));
    follower.until("the first", |f| f.has(Kind::Pod, "shop", "db-1")).await;
    server.delete("", "pods", "shop", "db-1");
    server.apply(pod("shop", "db-2", "node-2", "10.0.2.1", json!({"app": "db"})));
    follower
        .until("the second in place of the first", |f| {
            f.source.lookups.want(ip("10.0.2.1"));
            f.has(Kind::Pod, "shop", "db-2") && !f.has(Kind::Pod, "shop", "db-1")
        })
        .await;
    server.delete("", "pods", "shop", "db-2");
    follower
        .until("nobody", |f| {
            f.source.lookups.want(ip("10.0.2.1"));
            !f.has(Kind::Pod, "shop", "db-2")
        })
        .await;
}

#[tokio::test]
async fn a_peer_that_stays_is_checked_by_its_metadata_alone() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    follower.source.lookups.want(ip("10.0.2.1"));
    follower.until("the peer", |f| f.has(Kind::Pod, "shop", "db-1")).await;
    for _ in 0..100 {
        follower.source.lookups.want(ip("10.0.2.1"));
        follower.for_a_while(Duration::from_millis(20)).await;
    }
    assert_eq!(lookups(&server).len(), 1, "all pods are looked through once");
    let checks = server.counts().requests(Some("pods"), Some(Verb::Get));
    assert!((3..=7).contains(&checks), "{checks} checks in two seconds, every 300 to 375 ms");
    // New labels are seen by a check, and at once where much depends on it.
    server.apply(pod("shop", "db-1", "node-2", "10.0.2.1", json!({"app": "other"})));
    follower
        .until("the new labels", |f| {
            f.source.lookups.want_fresh(ip("10.0.2.1"), Duration::from_millis(50));
            f.objects.values().any(|o| o.pointer("/metadata/labels/app") == Some(&json!("other")))
        })
        .await;
}

#[tokio::test]
async fn a_pod_that_ended_is_not_the_peer() {
    let server = cluster().await;
    let mut ended = pod("shop", "job", "node-2", "10.0.2.7", json!({"app": "job"}));
    ended["status"]["phase"] = "Succeeded".into();
    server.apply(ended);
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    follower.source.lookups.want(ip("10.0.2.7"));
    follower.until("nobody", |f| f.nobody.contains(&ip("10.0.2.7"))).await;
    assert!(!follower.has(Kind::Pod, "shop", "job"));
    assert_eq!(lookups(&server).len(), 1);
}

#[tokio::test]
async fn what_is_not_met_any_more_is_forgotten() {
    let server = cluster().await;
    let mut settings = settings();
    settings.lookups.forget = Duration::from_millis(400);
    let mut follower = Follower::start(&server, settings);
    follower.until_synced().await;
    follower.source.lookups.want(ip("10.0.2.1"));
    follower.until("the peer", |f| f.has(Kind::Pod, "shop", "db-1")).await;
    // The istiod is watched too: forgetting the lookup must not take it away.
    follower.source.lookups.want(ip("10.0.2.2"));
    follower.until("forgotten", |f| !f.has(Kind::Pod, "shop", "db-1")).await;
    follower.for_a_while(Duration::from_millis(1200)).await;
    assert!(follower.has(Kind::Pod, "istio-system", "istiod-1"));
}

#[tokio::test]
async fn many_at_once_are_paced() {
    let server = cluster().await;
    for n in 0..200 {
        server.apply(pod("shop", &format!("p{n}"), "node-2", &format!("10.1.0.{n}"), json!({"n": n.to_string()})));
    }
    let mut settings = settings();
    (settings.lookups.per_second, settings.lookups.burst) = (20, 10);
    let mut follower = Follower::start(&server, settings);
    follower.until_synced().await;
    for n in 0..200 {
        follower.source.lookups.want(ip(&format!("10.1.0.{n}")));
    }
    follower.for_a_while(Duration::from_secs(2)).await;
    let asked = lookups(&server).len();
    assert!((30..=52).contains(&asked), "{asked} requests in two seconds at 20 a second after 10");
    follower.until("all of them", |f| (0..200).all(|n| f.has(Kind::Pod, "shop", &format!("p{n}")))).await;
}

#[tokio::test]
async fn failures_are_backed_off_and_nothing_is_lost() {
    for fault in [Fault::Status(403, None), Fault::Status(429, Some(1)), Fault::Garbage] {
        let server = cluster().await;
        let mut follower = Follower::start(&server, settings());
        follower.until_synced().await;
        server.fault(Rule::all(fault.clone()).of("pods").on(Verb::List));
        follower.source.lookups.want(ip("10.0.2.1"));
        follower.for_a_while(Duration::from_secs(2)).await;
        let asked = lookups(&server).len();
        assert!((1..=20).contains(&asked), "{asked} requests with {fault:?}");
        assert_ne!(follower.state("pods (by address)"), Some(State::Current), "{fault:?}");
        server.clear_faults();
        follower.until("the peer", |f| f.has(Kind::Pod, "shop", "db-1")).await;
        follower.until("current", |f| f.state("pods (by address)") == Some(State::Current)).await;
    }
}

#[tokio::test]
async fn all_nodes_are_watched_only_where_they_are_few() {
    let server = cluster().await;
    for (most, all) in [(2, true), (1, false)] {
        let mut settings = settings();
        settings.nodes = Nodes::UpTo(most, "node-1".to_owned());
        let mut follower = Follower::start(&server, settings);
        follower.until_synced().await;
        assert!(follower.has(Kind::Node, "", "node-1"));
        assert_eq!(follower.has(Kind::Node, "", "node-2"), all, "two nodes, all of them up to {most}");
    }
}

#[tokio::test]
async fn endpoints_of_a_dialled_service_are_looked_up_where_not_all_are_watched() {
    let server = cluster().await;
    let mut settings = settings();
    settings.nodes = Nodes::Only("node-1".to_owned());
    let mut follower = Follower::start(&server, settings);
    follower.until_synced().await;
    assert!(!follower.has(Kind::EndpointSlice, "shop", "web-x"), "of other Services they are not watched");
    let has = |follower: &Follower, name: &str| follower.has(Kind::EndpointSlice, "shop", name);
    for _ in 0..100 {
        follower.source.lookups.meet(&follower.cluster(), ip("10.96.0.10"));
    }
    follower.until("its endpoints", |f| has(f, "web-x")).await;
    server.delete("discovery.k8s.io", "endpointslices", "shop", "web-x");
    server.apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": "web-y", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["10.0.1.9"]}], "ports": [{"port": 8080}]}));
    follower
        .until("its new endpoints", |f| {
            f.source.lookups.meet(&f.cluster(), ip("10.96.0.10"));
            has(f, "web-y") && !has(f, "web-x")
        })
        .await;
    assert!(lookups(&server).is_empty(), "the address of a Service is no pod's");
}

#[tokio::test]
async fn what_watches_have_is_not_looked_up() {
    let server = cluster().await;
    let mut follower = Follower::start(&server, settings());
    follower.until_synced().await;
    let cluster = follower.cluster();
    for address in ["10.0.1.1", "10.0.2.2", "192.0.2.1", "10.96.0.10"] {
        follower.source.lookups.meet(&cluster, ip(address));
    }
    follower.source.lookups.meet(&cluster, ip("10.0.2.1"));
    follower.until("the only one that is not watched", |f| f.has(Kind::Pod, "shop", "db-1")).await;
    assert_eq!(lookups(&server).len(), 1);
    let slices = server.counts().requests(Some("endpointslices"), None);
    assert_eq!(slices, 1, "the watch");
}

#[tokio::test]
async fn a_node_is_fetched_when_one_of_its_own_pods_is_met() {
    let server = cluster().await;
    let mut proxy = pod("kube-system", "kube-proxy-2", "node-2", "192.0.2.2", json!({"k8s-app": "kube-proxy"}));
    proxy["spec"]["hostNetwork"] = true.into();
    server.apply(proxy);
    let mut settings = settings();
    settings.nodes = Nodes::Only("node-1".to_owned());
    let mut follower = Follower::start(&server, settings);
    follower.until_synced().await;
    assert!(follower.has(Kind::Node, "", "node-1") && !follower.has(Kind::Node, "", "node-2"));
    follower.source.lookups.want(ip("192.0.2.2"));
    follower.until("the node", |f| f.has(Kind::Node, "", "node-2")).await;
    assert!(!follower.has(Kind::Pod, "kube-system", "kube-proxy-2"), "its address is the node's, not the pod's");
}
