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
