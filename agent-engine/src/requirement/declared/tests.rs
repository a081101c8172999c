//! Pairs that follow from objects, without a packet.

use serde_json::{Value, json};

use super::keys::host_and_port;
use crate::testing::{self as t, apply, at, engine};

fn object(api: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api, "kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn web() -> Value {
    let ports = json!([{"name": "http", "port": 8000, "targetPort": 8080}]);
    t::service("app", "web", "10.2.2.30", json!({"app": "web"}), ports, "ClusterIP")
}

/// The pairs of these flows in the small mesh with more objects, in any order.
fn declared(extra: &[Value], flows: &[&str]) -> Vec<String> {
    let lines = |objects: &mut dyn Iterator<Item = &Value>| {
        let mut engine = engine(&[]);
        for object in objects {
            apply(&mut engine, 1, object.clone());
        }
        engine.handle_timeout(at(1_000));
        let pairs = engine.pairs().filter(|p| flows.contains(&&*p.key.flow));
        pairs.map(|p| format!("{} {} → {} {}", p.key.flow, p.key.source, p.key.destination, p.key.port)).collect()
    };
    let (forth, back): (Vec<String>, Vec<String>) = (lines(&mut extra.iter()), lines(&mut extra.iter().rev()));
    assert_eq!(forth, back, "the order of objects does not matter");
    forth
}

fn virtual_service(gateways: Value, host: &str, port: Value) -> Value {
    let route = json!([{"route": [{"destination": {"host": host, "port": port}}]}]);
    object("networking.istio.io/v1", "VirtualService", "app", "vs", json!({"gateways": gateways, "http": route}))
}

#[test]
fn a_virtual_service_leads_from_its_gateway_to_the_pod_port() {
    let gateway = |labels| object("networking.istio.io/v1", "Gateway", "edge", "g", json!({"selector": labels}));
    let to_web = ["gateway-backend istio-system/gateway → app/web 8080"];
    let found = |gateway: Value, route: Value| declared(&[web(), gateway, route], &["gateway-backend"]);
    for host in ["web", "web.app", "web.app.svc", "web.app.svc.cluster.local", "web.app.svc.other.domain"] {
        let route = virtual_service(json!(["edge/g"]), host, json!({"number": 8000}));
        assert_eq!(found(gateway(json!({"istio": "ingressgateway"})), route), to_web, "{host}");
    }
    let none: [&str; 0] = [];
    let route = |gateways, host| virtual_service(gateways, host, json!({"number": 8000}));
    assert_eq!(found(gateway(json!({"istio": "another"})), route(json!(["edge/g"]), "web")), none);
    assert_eq!(found(gateway(json!({"istio": "ingressgateway"})), route(json!(["mesh"]), "web")), none);
    assert_eq!(found(gateway(json!({"istio": "ingressgateway"})), route(json!(["edge/g"]), "gone")), none);
    // The Gateway's object is not at hand, and the cluster has one gateway only; a Service's only port needs no number.
    let missing = virtual_service(json!(["edge/missing"]), "web", json!(null));
    assert_eq!(declared(&[web(), missing], &["gateway-backend"]), to_web);
}

#[test]
fn the_tunnels_port_is_needed_where_the_backend_is_ambient() {
    let ambient = t::namespace("app", json!({"istio.io/dataplane-mode": "ambient"}));
    let pod = t::pod("app", "api", "10.1.0.77", json!({"app": "api"}), &["api"]);
    let ports = json!([{"name": "http", "port": 80, "targetPort": 9000}]);
    let service = t::service("app", "api", "10.2.2.77", json!({"app": "api"}), ports, "ClusterIP");
    let route = virtual_service(json!(["x/y"]), "api", json!({"number": 80}));
    let objects = [ambient, pod, service, route];
    assert_eq!(declared(&objects, &["gateway-backend"]), ["gateway-backend istio-system/gateway → app/api 15008"]);
}

#[test]
fn routes_of_the_gateway_api_lead_from_the_pods_that_istio_made() {
    let labels = json!({"gateway.networking.k8s.io/gateway-name": "public"});
    let gateway = t::pod("app", "public-istio", "10.1.0.66", labels, &["istio-proxy"]);
    for (kind, version) in
        [("HTTPRoute", "v1"), ("GRPCRoute", "v1"), ("TCPRoute", "v1alpha2"), ("TLSRoute", "v1alpha2")]
    {
        let api = format!("gateway.networking.k8s.io/{version}");
        let spec =
            json!({"parentRefs": [{"name": "public"}], "rules": [{"backendRefs": [{"name": "web", "port": 8000}]}]});
        let route = object(&api, kind, "app", "r", spec);
        let expected = ["gateway-backend app/public-istio → app/web 8080"];
        assert_eq!(declared(&[web(), gateway.clone(), route], &["gateway-backend"]), expected, "{kind}");
    }
}

#[test]
fn a_service_entry_is_behind_the_egress_gateway() {
    let gateway = t::pod("istio-system", "egress", "10.1.0.67", json!({"istio": "egressgateway"}), &["istio-proxy"]);
    let istio =
        object("networking.istio.io/v1", "Gateway", "app", "out", json!({"selector": {"istio": "egressgateway"}}));
    let spec = json!({"hosts": ["example.com"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]});
    let entry = object("networking.istio.io/v1", "ServiceEntry", "app", "example", spec);
    let route = virtual_service(json!(["mesh", "out"]), "example.com", json!({"number": 443}));
    let expected = ["egress-gateway-outside istio-system/egress → external 443"];
    assert_eq!(declared(&[gateway, istio, entry, route], &["egress-gateway-outside", "gateway-backend"]), expected);
}

#[test]
fn keys_are_fetched_by_istiod_or_by_the_proxies() {
    let flows = ["control-plane-jwks", "sidecar-jwks"];
    let rules = json!([{"issuer": "a", "jwksUri": "https://keys.example.com/jwks"},
                       {"issuer": "b", "jwksUri": "http://web.app.svc.cluster.local:8000/keys"},
                       {"issuer": "testing@secure.istio.io", "jwks": "{}"}]);
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "jwtRules": rules});
    let keys = object("security.istio.io/v1", "RequestAuthentication", "app", "jwt", spec);
    let by_istiod = [
        "control-plane-jwks istio-system/istiod → app/web 8080",
        "control-plane-jwks istio-system/istiod → external 443",
    ];
    assert_eq!(declared(&[web(), keys.clone()], &flows), by_istiod);
    let labels = json!({"app": "istiod", "istio": "pilot", "istio.io/rev": "default", "pod-template-hash": "5d5"});
    let mut istiod = t::pod("istio-system", "istiod-5d5-x", t::ISTIOD, labels, &["discovery"]);
    istiod["spec"]["containers"][0]["env"] = json!([{"name": "PILOT_JWT_ENABLE_REMOTE_JWKS", "value": "envoy"}]);
    // The only proxy that is selected is behind the second rule's Service itself.
    assert_eq!(declared(&[web(), keys, istiod], &flows), ["sidecar-jwks app/web → external 443"]);
}

#[test]
fn hosts_and_ports_of_uris() {
    for (uri, expected) in [
        ("https://a.example/keys", Some(("a.example", 443))),
        ("http://a.example", Some(("a.example", 80))),
        ("https://a.example:8443/x?y", Some(("a.example", 8443))),
        ("https://user@a.example/", Some(("a.example", 443))),
        ("https://[2001:db8::1]:5556/keys", Some(("2001:db8::1", 5556))),
        ("https://a.example:port/", None),
        ("testing@secure.istio.io", None),
        ("https:///keys", None),
    ] {
        assert_eq!(host_and_port(uri), expected, "{uri}");
    }
}

#[test]
fn providers_of_the_mesh_configuration() {
    let config = "extensionProviders:\n- name: authz\n  envoyExtAuthzHttp: {service: web.app.svc.cluster.local, port: 8000}\n\
                  - name: traces\n  opentelemetry: {service: app/web.app.svc.cluster.local, port: 8000}\n\
                  defaultProviders: {tracing: [traces]}\n";
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "istio"},
                     "data": {"mesh": config}});
    let spec = json!({"action": "CUSTOM", "provider": {"name": "authz"}, "rules": [{}]});
    let policy = object("security.istio.io/v1", "AuthorizationPolicy", "istio-system", "authz", spec);
    let flows = ["gateway-ext-authz", "gateway-otlp", "sidecar-provider"];
    let expected =
        ["gateway-ext-authz istio-system/gateway → app/web 8080", "gateway-otlp istio-system/gateway → app/web 8080"];
    assert_eq!(declared(&[web(), map, policy], &flows), expected, "a pod that would call itself needs no policy");
}

#[test]
fn waypoints_lead_to_the_pods_that_are_told_to_use_them() {
    let ambient = json!({"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "w"});
    let labels =
        json!({"gateway.networking.k8s.io/gateway-name": "w", "gateway.istio.io/managed": "istio.io-mesh-controller"});
    let objects = [
        t::namespace("amb", ambient),
        t::pod("amb", "w-0", "10.1.0.70", labels, &["istio-proxy"]),
        t::pod("amb", "server", "10.1.0.71", json!({}), &["app"]),
        t::pod("amb", "apart", "10.1.0.72", json!({"istio.io/use-waypoint": "none"}), &["app"]),
    ];
    assert_eq!(declared(&objects, &["waypoint-out"]), ["waypoint-out amb/w-0 → amb/server 15008"]);
}

#[test]
fn injection_is_simulated_on_templates() {
    let deployment = |labels: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "later", "name": "d"},
               "spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c"}]}}}})
    };
    let table: &[(&str, Value, Value, bool)] = &[
        ("enabled", json!({"istio-injection": "enabled"}), json!({}), true),
        ("opted out", json!({"istio-injection": "enabled"}), json!({"sidecar.istio.io/inject": "false"}), false),
        ("a revision", json!({"istio.io/rev": "canary"}), json!({}), true),
        ("disabled wins", json!({"istio-injection": "disabled"}), json!({"sidecar.istio.io/inject": "true"}), false),
        ("by the pod alone", json!({}), json!({"sidecar.istio.io/inject": "true"}), true),
        ("nobody asked", json!({}), json!({}), false),
    ];
    for (name, namespace, labels, expected) in table {
        let objects = [t::namespace("later", namespace.clone()), deployment(labels.clone())];
        let found = declared(&objects, &["sidecar-xds"]).iter().any(|p| p.contains("later/d"));
        assert_eq!(found, *expected, "{name}");
    }
    // Policies select by the label that the injector adds, whichever object came first.
    let only_mesh = json!([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"security.istio.io/tlsMode": "istio"}}}]}]);
    let policy = t::policy("istio-system", "mesh", json!({"app": "istiod"}), Some(only_mesh), None);
    let namespace = t::namespace("later", json!({"istio-injection": "enabled"}));
    let mut engine = engine(&[policy]);
    for object in [deployment(json!({})), namespace] {
        apply(&mut engine, 1, object);
    }
    engine.handle_timeout(at(1_000));
    let view = t::pair(&engine.snapshot(at(1_000)), "sidecar-xds", "d", "istiod", 15012);
    assert_eq!(view.state, crate::verdict::State::Silent, "{}", view.why);
}

#[test]
fn a_policy_that_means_an_ambient_pod_means_its_tunnel() {
    let ambient = t::namespace("amb", json!({"istio.io/dataplane-mode": "ambient"}));
    let plain = t::namespace("plain", json!({}));
    let server = t::pod("amb", "server", "10.1.0.71", json!({"app": "server"}), &["app"]);
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let service = t::service("amb", "server", "10.2.2.71", json!({"app": "server"}), ports, "ClusterIP");
    let client = t::pod("amb", "client", "10.1.0.72", json!({"app": "client"}), &["app"]);
    let stranger = t::pod("plain", "stranger", "10.1.0.73", json!({"app": "client"}), &["app"]);
    let found = |ingress: Value| {
        let policy = t::policy("amb", "server-in", json!({"app": "server"}), Some(ingress), None);
        let objects = [&ambient, &plain, &server, &service, &client, &stranger, &policy].map(Clone::clone);
        declared(&objects, &["ambient-hbone", "ambient-to-sidecar-hbone", "ambient-from-proxy-hbone"])
    };
    let from = |labels: Value| json!([{"podSelector": {"matchLabels": labels}}]);
    let none: [&str; 0] = [];
    let tunnel = ["ambient-hbone amb/client → amb/server 15008"];
    assert_eq!(found(json!([{"from": from(json!({"app": "client"})), "ports": [{"port": 8080}]}])), tunnel);
    assert_eq!(
        found(json!([{"from": from(json!({"app": "client"})), "ports": [{"port": 8000, "endPort": 8999}]}])),
        tunnel
    );
    assert_eq!(found(json!([{"from": from(json!({"app": "client"}))}])), tunnel);
    assert_eq!(
        found(json!([{"from": from(json!({"app": "client"})), "ports": [{"port": 9999}]}])),
        none,
        "nobody listens"
    );
    assert_eq!(found(json!([{"from": from(json!({})), "ports": [{"port": 8080}]}])), none, "everybody is nobody");
    assert_eq!(found(json!([{"ports": [{"port": 8080}]}])), none, "everybody is nobody");
    // From a pod with a sidecar it is a tunnel too; between two sidecars, or from outside the mesh, it is not.
    let apps = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "app"}}}]);
    let mixed = ["ambient-from-proxy-hbone app/web → amb/server 15008"];
    assert_eq!(found(json!([{"from": apps, "ports": [{"port": 8080}]}])), mixed);
    let outside = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "plain"}}}]);
    assert_eq!(found(json!([{"from": outside, "ports": [{"port": 8080}]}])), none);
}

#[test]
fn what_enters_by_another_node_has_its_address() {
    let gateway = |policy: &str| {
        let ports = json!([{"name": "status", "port": 15021}, {"name": "https", "port": 443, "targetPort": 8443}]);
        let mut service =
            t::service("istio-system", "gateway", "10.2.1.20", json!({"app": "gw"}), ports, "LoadBalancer");
        service["spec"]["externalTrafficPolicy"] = json!(policy);
        declared(&[service], &["gateway-ingress", "gateway-load-balancer-health"])
    };
    let outside = "gateway-ingress external → istio-system/gateway 8443";
    let cluster = [
        outside,
        "gateway-ingress kubelet → istio-system/gateway 8443",
        "gateway-ingress node → istio-system/gateway 8443",
        "gateway-load-balancer-health kubelet → istio-system/gateway 15021",
        "gateway-load-balancer-health node → istio-system/gateway 15021",
    ];
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    assert_eq!(sorted(gateway("Cluster")), cluster);
    assert_eq!(gateway("Local"), [outside]);
}

#[test]
fn flows_of_the_clusters_own() {
    let map = |labels: Value, text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "weir-flows", "labels": labels},
               "data": {"mine.toml": text, "notes.md": "not read"}})
    };
    let flow = "schema = 1\nprofile = \"mine\"\n[[flow]]\nid = \"web-ledger\"\ncode = \"MINE\"\nsource = [\"sidecar\"]\n\
                destination = [\"istiod\"]\nports = [5432]\nsides = [\"egress\"]\npurpose = \"p\"\nsymptom = \"s\"\nseverity = \"high\"\nfact = \"f\"\n";
    let label = json!({"weir.dev/flows": "true"});
    let none: [&str; 0] = [];
    assert_eq!(
        declared(&[map(label.clone(), flow)], &["web-ledger"]),
        ["web-ledger app/web → istio-system/istiod 5432"]
    );
    assert_eq!(declared(&[map(json!({}), flow)], &["web-ledger"]), none, "without the label it is anything");
    let mut engine = engine(&[]);
    apply(&mut engine, 1, map(label.clone(), &flow.replace("high", "huge")));
    let [(name, error)] = engine.refused_flows() else { panic!("one is wrong: {:?}", engine.refused_flows()) };
    assert_eq!(name.to_string(), "istio-system/weir-flows");
    assert!(error.starts_with("mine.toml: line 12") && error.contains("`critical`"), "{error}");
    apply(&mut engine, 2, map(label, flow));
    assert_eq!(engine.refused_flows(), [], "put right");
}
