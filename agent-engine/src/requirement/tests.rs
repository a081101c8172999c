//! The catalogue's files and what they resolve to.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Catalogue, CatalogueError, Role};
use crate::cluster::{Kind, Object};
use crate::engine::Engine;
use crate::testing::{self as t, apply, at, engine};
use crate::words::Name;

/// Every code of the documentation's table.
const CODES: &str = "CP-WEBHOOK CP-API CP-DNS CP-JWKS CP-METRICS CP-PROBE CP-REMOTE-API CP-EXTCA CNI-API CNI-DNS CNI-PROBE \
    CNI-METRICS SC-XDS SC-XDS-PLAIN SC-DNS SC-DATA SC-PROBE SC-METRICS SC-EXT SC-WASM SC-OTLP SC-META GW-XDS GW-DNS \
    GW-INGRESS GW-BACKEND GW-PROBE GW-LBHC GW-METRICS GW-EXTAUTHZ GW-OTLP GW-EGRESS AM-ZT-XDS AM-ZT-DNS AM-ZT-PROBE \
    AM-ZT-METRICS AM-HBONE AM-PLAIN AM-DNS AM-PROBE AM-WP-IN AM-WP-OUT AM-WP-XDS AM-WP-DNS MX-HBONE-SC EW-DATA EW-ISTIOD \
    KY-CTRL-API KY-CTRL-DNS KY-CTRL-METRICS KY-EGW";

#[test]
fn the_built_in_catalogue_has_every_row() {
    let catalogue = Catalogue::built_in();
    for code in CODES.split_whitespace() {
        assert!(catalogue.flow(code).is_some(), "{code}");
    }
    let ids: BTreeSet<_> = catalogue.flows().map(|f| f.id.clone()).collect();
    assert_eq!(ids.len(), catalogue.flows().count(), "ids are unique over all files");
    for flow in catalogue.flows() {
        assert!(!flow.purpose.is_empty() && !flow.symptom.is_empty() && !flow.fact.is_empty(), "{}", flow.id);
        let by_kubelet = flow.source == [Role::Kubelet] && flow.learn_source.is_empty();
        assert_eq!(flow.sides.is_empty(), by_kubelet, "{}: only what is node-local needs no side", flow.id);
    }
}

#[test]
fn a_file_of_the_user_adds_or_overrides() {
    let text = r#"
        schema = 1
        profile = "mine"
        [[flow]]
        id = "sidecar-xds"
        code = "SC-XDS"
        source = ["sidecar"]
        destination = ["istiod"]
        ports = [15010]
        purpose = "p"
        symptom = "s"
        severity = "low"
        fact = "f"
    "#;
    let mut catalogue = Catalogue::built_in();
    let before = catalogue.flows().count();
    catalogue.add(text).expect("a valid file");
    assert_eq!(catalogue.flows().count(), before);
    assert_eq!(catalogue.flow("sidecar-xds").map(|f| (f.ports.clone(), &*f.profile)), Some((vec![15010], "mine")));

    for (broken, expected) in [
        (text.replace("schema = 1", "schema = 2"), "schema = 2 is not known"),
        (text.replace("[15010]", "[]"), "give either ports"),
        (text.replace("\"sidecar-xds\"", "\"Sidecar XDS\""), "kebab-case"),
        (text.replace("[\"istiod\"]", "[]"), "must not be empty"),
        (text.replace("source = [\"sidecar\"]", "source = [\"sidekick\"]"), "unknown variant `sidekick`"),
        (text.replace("purpose", "porpoise"), "unknown field `porpoise`"),
    ] {
        let error = catalogue.add(&broken).expect_err("a broken file");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = catalogue.add(&text.replace("\"low\"", "low")).expect_err("a broken file");
    assert!(matches!(error, CatalogueError::Syntax { line: 12, .. }), "{error}");
}

fn roles_of(extra: &[serde_json::Value], namespace: &str, name: &str) -> Vec<Role> {
    let mut engine = engine(&[]);
    for object in extra {
        apply(&mut engine, 1, object.clone());
    }
    let roles = engine.resolver().roles(&Name::new(namespace, name));
    roles.iter().filter(|r| !matches!(r, Role::Pod | Role::Application)).collect()
}

#[test]
fn roles_come_from_live_labels_containers_and_annotations() {
    let proxy: &[&str] = &["istio-proxy"];
    let both: &[&str] = &["istio-proxy", "app"];
    let app: &[&str] = &["app"];
    let table: &[(&str, serde_json::Value, &[&str], &[Role])] = &[
        ("istiod", json!({"app": "istiod", "istio": "pilot"}), app, &[Role::Istiod]),
        (
            "a revisioned istiod",
            json!({"app": "istiod", "istio": "istiod", "istio.io/rev": "1-30"}),
            app,
            &[Role::Istiod],
        ),
        ("a name proves nothing", json!({"app": "web"}), app, &[]),
        ("injected", json!({"security.istio.io/tlsMode": "istio"}), both, &[Role::Sidecar]),
        ("tlsMode overridden by the user", json!({"security.istio.io/tlsMode": "disabled"}), both, &[Role::Sidecar]),
        ("proxyless gRPC has the label alone", json!({"security.istio.io/tlsMode": "istio"}), app, &[Role::Sidecar]),
        ("a classic gateway", json!({"istio": "ingressgateway"}), proxy, &[Role::Gateway]),
        ("an egress gateway", json!({"istio": "egressgateway"}), proxy, &[Role::Gateway, Role::EgressGateway]),
        ("a Gateway API gateway", json!({"gateway.networking.k8s.io/gateway-name": "g"}), proxy, &[Role::Gateway]),
        (
            "a waypoint",
            json!({"gateway.networking.k8s.io/gateway-name": "w", "gateway.istio.io/managed": "istio.io-mesh-controller"}),
            proxy,
            &[Role::Waypoint],
        ),
        ("ztunnel's container is called istio-proxy too", json!({"app": "ztunnel"}), proxy, &[Role::Ztunnel]),
        ("istio-cni", json!({"k8s-app": "istio-cni-node"}), app, &[Role::Cni]),
        ("ambient by its own label", json!({"istio.io/dataplane-mode": "ambient"}), app, &[Role::Ambient]),
        ("an injected pod is not ambient", json!({"istio.io/dataplane-mode": "ambient"}), both, &[Role::Sidecar]),
        ("a scraper", json!({"app.kubernetes.io/name": "vmagent"}), app, &[Role::Scraper]),
        ("a tunnel", json!({"k8s-app": "konnectivity-agent"}), app, &[Role::Tunnel]),
        (
            "Kyma's controller needs both labels",
            json!({"kyma-project.io/module": "istio", "app.kubernetes.io/name": "istio-operator"}),
            app,
            &[Role::KymaController],
        ),
        ("a module label alone", json!({"kyma-project.io/module": "istio"}), app, &[]),
    ];
    for (name, labels, containers, expected) in table {
        let pod = t::pod("app", "istiod-gateway-sidecar", "10.1.0.99", labels.clone(), containers);
        assert_eq!(roles_of(&[pod], "app", "istiod-gateway-sidecar"), *expected, "{name}");
    }
}

#[test]
fn ambient_follows_the_namespace_and_the_pods_own_word() {
    let ambient = t::namespace("amb", json!({"istio.io/dataplane-mode": "ambient"}));
    let pod = |labels| t::pod("amb", "p", "10.1.0.99", labels, &["app"]);
    assert_eq!(roles_of(&[ambient.clone(), pod(json!({}))], "amb", "p"), [Role::Ambient]);
    assert_eq!(roles_of(&[pod(json!({})), ambient.clone()], "amb", "p"), [Role::Ambient], "in any order");
    assert_eq!(roles_of(&[ambient, pod(json!({"istio.io/dataplane-mode": "none"}))], "amb", "p"), [Role::Pod; 0]);
    let mut redirected = pod(json!({}));
    redirected["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    assert_eq!(roles_of(&[redirected], "amb", "p"), [Role::Ambient]);
    let mut injected = t::pod("app", "g", "10.1.0.98", json!({"istio": "my"}), &["istio-proxy"]);
    injected["metadata"]["annotations"] = json!({"inject.istio.io/templates": "gateway"});
    assert_eq!(roles_of(&[injected], "app", "g"), [Role::Gateway]);
}

fn pairs(engine: &Engine) -> Vec<String> {
    let line = |p: &super::Pair| {
        let k = &p.key;
        format!("{} {} → {} {} {} ×{}", k.flow, k.source, k.destination, k.protocol, k.port, p.instances().count())
    };
    engine.pairs().map(line).collect()
}

#[test]
fn the_pairs_of_a_small_mesh() {
    let expected = "\
control-plane-api istio-system/istiod → api-server TCP 6443 ×1
control-plane-dns istio-system/istiod → kube-system/coredns TCP 53 ×2
control-plane-dns istio-system/istiod → kube-system/coredns UDP 53 ×2
control-plane-metrics monitoring/prometheus-0 → istio-system/istiod TCP 15014 ×1
control-plane-probe kubelet → istio-system/istiod TCP 8080 ×1
control-plane-webhook kube-system/vpn-0 → istio-system/istiod TCP 15017 ×1
control-plane-webhook api-server → istio-system/istiod TCP 15017 ×1
gateway-dns istio-system/gateway → kube-system/coredns TCP 53 ×2
gateway-dns istio-system/gateway → kube-system/coredns UDP 53 ×2
gateway-ingress kubelet → istio-system/gateway TCP 8443 ×1
gateway-ingress node → istio-system/gateway TCP 8443 ×1
gateway-ingress external → istio-system/gateway TCP 8443 ×1
gateway-load-balancer-health kubelet → istio-system/gateway TCP 15021 ×1
gateway-load-balancer-health node → istio-system/gateway TCP 15021 ×1
gateway-metrics monitoring/prometheus-0 → istio-system/gateway TCP 15020 ×1
gateway-metrics monitoring/prometheus-0 → istio-system/gateway TCP 15090 ×1
gateway-probe kubelet → istio-system/gateway TCP 15021 ×1
gateway-xds istio-system/gateway → istio-system/istiod TCP 15012 ×1
sidecar-dns app/web → kube-system/coredns TCP 53 ×2
sidecar-dns app/web → kube-system/coredns UDP 53 ×2
sidecar-metrics monitoring/prometheus-0 → app/web TCP 15020 ×1
sidecar-metrics monitoring/prometheus-0 → app/web TCP 15090 ×1
sidecar-probe kubelet → app/web TCP 15020 ×1
sidecar-probe kubelet → app/web TCP 15021 ×1
sidecar-xds app/web → istio-system/istiod TCP 15012 ×1";
    assert_eq!(pairs(&engine(&[])).join("\n"), expected);
}

#[test]
fn the_order_of_objects_does_not_matter() {
    let mut reversed = Engine::new(t::settings());
    for object in t::mesh().into_iter().rev() {
        apply(&mut reversed, 0, object);
    }
    reversed.synced(at(0));
    assert_eq!(pairs(&reversed), pairs(&engine(&[])));
}

fn with(extra: &[serde_json::Value], flow: &str) -> Vec<String> {
    let mut engine = engine(&[]);
    for object in extra {
        apply(&mut engine, 1, object.clone());
    }
    engine.handle_timeout(at(1_000));
    pairs(&engine).into_iter().filter(|p| p.starts_with(&format!("{flow} "))).collect()
}

#[test]
fn dns_ports_are_the_pods_and_the_node_cache_counts() {
    let gardener = t::service(
        "kube-system",
        "dns",
        t::DNS_SERVICE,
        json!({"k8s-app": "kube-dns"}),
        json!([{"name": "u", "port": 53, "targetPort": 8053, "protocol": "UDP"}]),
        "ClusterIP",
    );
    assert_eq!(with(&[gardener], "sidecar-dns"), ["sidecar-dns app/web → kube-system/coredns UDP 8053 ×2"]);
    let mut cache = t::pod("kube-system", "cache", t::NODE_A, json!({"k8s-app": "node-local-dns"}), &["node-cache"]);
    cache["spec"]["hostNetwork"] = json!(true);
    let pairs = with(&[cache], "sidecar-dns");
    assert_eq!(pairs.len(), 4);
    // The link-local address, and the DNS Service's own, which the cache binds as well.
    assert!(pairs.contains(&"sidecar-dns app/web → node-local-dns UDP 53 ×2".to_owned()), "{pairs:?}");
}

#[test]
fn a_proxy_belongs_to_its_revision() {
    let canary = json!({"app": "istiod", "istio": "istiod", "istio.io/rev": "1-30"});
    let canary = t::pod("istio-system", "canary", "10.1.0.11", canary, &["discovery"]);
    let both = with(std::slice::from_ref(&canary), "sidecar-xds");
    assert_eq!(both.len(), 2, "the pod says no revision: {both:?}");
    let labels = json!({"security.istio.io/tlsMode": "istio", "pod-template-hash": "7c7"});
    let mut web = t::pod("app", "web-7c7-x", t::WEB, labels, &["istio-proxy", "web"]);
    web["metadata"]["annotations"] = json!({"istio.io/rev": "1-30"});
    assert_eq!(with(&[canary, web.clone()], "sidecar-xds"), ["sidecar-xds app/web → istio-system/canary TCP 15012 ×1"]);
    assert_eq!(
        with(&[web], "sidecar-xds").len(),
        1,
        "a revision that no control plane has is no reason to require nothing"
    );
}

#[test]
fn pods_that_ended_need_nothing() {
    let mut done =
        t::pod("app", "job", "10.1.0.88", json!({"security.istio.io/tlsMode": "istio"}), &["istio-proxy", "j"]);
    assert_eq!(with(std::slice::from_ref(&done), "sidecar-xds").len(), 2);
    done["status"]["phase"] = json!("Succeeded");
    assert_eq!(with(&[done], "sidecar-xds").len(), 1);
}

#[test]
fn a_large_cluster_resolves_quickly_enough_to_follow_it() {
    let mut engine = Engine::new(t::settings());
    for object in t::mesh() {
        apply(&mut engine, 0, object);
    }
    for n in 0..500 {
        let labels = json!({"app": format!("a{n}"), "security.istio.io/tlsMode": "istio", "pod-template-hash": "1"});
        let address = format!("10.3.{}.{}", n / 250, n % 250 + 1);
        let object = t::pod("app", &format!("a{n}-1-x"), &address, labels, &["istio-proxy", "a"]);
        engine.apply(at(0), Object::from_value(object).expect("a pod"), crate::cluster::Origin::default());
    }
    engine.synced(at(0));
    assert_eq!(engine.pairs().filter(|p| &*p.key.flow == "sidecar-xds").count(), 501);
    t::delete(&mut engine, 10, Kind::Pod, "app", "a7-1-x");
    engine.handle_timeout(at(1_000));
    assert_eq!(engine.pairs().filter(|p| &*p.key.flow == "sidecar-xds").count(), 500);
}
