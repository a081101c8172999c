//! networking.k8s.io/v1, line by line: what each field does to one flow.

use serde_json::{Value, json};
use weir_engine::policy::{Admission, Profile, Undecided};
use weir_engine::words::{Name, Protocol};

use crate::world::{World, flow, namespace, node, pod, policy};

/// Two namespaces, a client in each, a server, two nodes.
fn cluster() -> Vec<Value> {
    vec![
        namespace("app", json!({"team": "red"})),
        namespace("other", json!({"team": "blue", "env": ""})),
        node("n1", "192.168.0.1"),
        node("n2", "192.168.0.2"),
        pod("app/server", "10.0.0.1", json!({"app": "server", "tier": "back"})),
        pod("app/client", "10.0.0.2", json!({"app": "client"})),
        pod("other/client", "10.0.1.2", json!({"app": "client"})),
        pod("other/six", "fd00::6", json!({"app": "six"})),
    ]
}

fn with(spec: Value) -> World {
    let mut world = World::new(cluster());
    world.apply(policy("app/tested", spec));
    world
}

/// Each row: the policy's spec, the flow, what is right.
fn check(rows: &[(Value, &str, &str)]) {
    for (spec, flow, wanted) in rows {
        assert_eq!(with(spec.clone()).verdict(flow), *wanted, "{flow} under {spec}");
    }
}

const LOCAL: &str = "app/client -> app/server TCP 80";
const FOREIGN: &str = "other/client -> app/server TCP 80";
const OUT: &str = "app/server -> other/client TCP 80";

#[test]
fn policy_types_default_by_what_is_there() {
    check(&[
        (json!({"podSelector": {}}), LOCAL, "no"),
        (json!({"podSelector": {}}), OUT, "yes"),
        (json!({"podSelector": {}, "egress": [{}]}), OUT, "yes"),
        (json!({"podSelector": {}, "egress": [{}]}), FOREIGN, "no"),
        (json!({"podSelector": {}, "egress": []}), OUT, "yes"),
        (json!({"podSelector": {}, "policyTypes": []}), FOREIGN, "no"),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), FOREIGN, "yes"),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), OUT, "no"),
        (json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": []}), FOREIGN, "yes"),
        (json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": []}), OUT, "yes"),
        (json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}), OUT, "no"),
        (json!({}), FOREIGN, "no"),
    ]);
}

#[test]
fn the_subject_is_selected_by_label_in_its_namespace() {
    check(&[
        (json!({"podSelector": {"matchLabels": {"app": "server"}}}), FOREIGN, "no"),
        (json!({"podSelector": {"matchLabels": {"app": "client"}}}), FOREIGN, "yes"),
        (json!({"podSelector": {}}), "app/client -> other/client TCP 80", "yes"),
        (json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}}), FOREIGN, "no"),
        (json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}}), FOREIGN, "yes"),
    ]);
}

#[test]
fn every_operator() {
    let from = |selector: Value| json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": selector}]}]});
    let expression = |key: &str, operator: &str, values: Value| {
        from(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}))
    };
    check(&[
        (from(json!({})), FOREIGN, "yes"),
        (from(json!({"matchLabels": {"team": "blue"}})), FOREIGN, "yes"),
        (from(json!({"matchLabels": {"team": "red"}})), FOREIGN, "no"),
        (from(json!({"matchLabels": {"env": ""}})), FOREIGN, "yes"),
        (from(json!({"matchLabels": {"env": ""}})), LOCAL, "no"),
        (expression("team", "In", json!(["blue", "green"])), FOREIGN, "yes"),
        (expression("team", "In", json!(["green"])), FOREIGN, "no"),
        (expression("team", "NotIn", json!(["red"])), FOREIGN, "yes"),
        (expression("team", "NotIn", json!(["blue"])), FOREIGN, "no"),
        (expression("absent", "NotIn", json!(["blue"])), FOREIGN, "yes"),
        (expression("absent", "In", json!(["blue"])), FOREIGN, "no"),
        (expression("env", "Exists", Value::Null), FOREIGN, "yes"),
        (expression("absent", "Exists", Value::Null), FOREIGN, "no"),
        (expression("absent", "DoesNotExist", Value::Null), FOREIGN, "yes"),
        (expression("env", "DoesNotExist", Value::Null), FOREIGN, "no"),
        (from(json!({"matchLabels": {"kubernetes.io/metadata.name": "other"}})), FOREIGN, "yes"),
        // What the API server refuses matches nothing.
        (expression("team", "In", json!([])), FOREIGN, "no"),
        (expression("team", "Exists", json!(["blue"])), FOREIGN, "no"),
        (expression("team", "Like", json!(["blue"])), FOREIGN, "no"),
    ]);
}

#[test]
fn peers_are_alternatives_and_their_fields_are_not() {
    let from = |peers: Value| json!({"podSelector": {}, "ingress": [{"from": peers}]});
    let pods = json!({"podSelector": {"matchLabels": {"app": "client"}}});
    let nobody = json!({"podSelector": {"matchLabels": {"app": "nobody"}}});
    let blue = json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}});
    let both = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}, "namespaceSelector": {"matchLabels": {"team": "blue"}}});
    check(&[
        (from(json!([])), FOREIGN, "yes"),
        (json!({"podSelector": {}, "ingress": [{}]}), "203.0.113.9 -> app/server TCP 1", "yes"),
        (json!({"podSelector": {}, "ingress": [{"from": null}]}), FOREIGN, "yes"),
        (json!({"podSelector": {}, "ingress": []}), FOREIGN, "no"),
        (from(json!([pods])), LOCAL, "yes"),
        (from(json!([pods])), FOREIGN, "no"),
        (from(json!([{"podSelector": {}}])), LOCAL, "yes"),
        (from(json!([{"podSelector": {}}])), FOREIGN, "no"),
        (from(json!([nobody, blue])), FOREIGN, "yes"),
        (from(json!([both("client")])), FOREIGN, "yes"),
        (from(json!([both("client")])), LOCAL, "no"),
        (from(json!([both("nobody")])), FOREIGN, "no"),
        (from(json!([{}])), FOREIGN, "no"),
        (from(json!([{"podSelector": {}, "ipBlock": {"cidr": "0.0.0.0/0"}}])), LOCAL, "no"),
    ]);
}

#[test]
fn two_rules_and_two_policies_are_alternatives() {
    let mut world = with(json!({"podSelector": {}, "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]}, {"ports": [{"port": 80}]}]}));
    assert_eq!(world.verdict(FOREIGN), "yes");
    assert_eq!(world.verdict("other/client -> app/server TCP 81"), "no");
    world.apply(policy("app/second", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 81}]}]})));
    assert_eq!(world.verdict("other/client -> app/server TCP 81"), "yes");
}

#[test]
fn ports() {
    let to = |ports: Value| json!({"podSelector": {}, "ingress": [{"ports": ports}]});
    let flow = |what: &str| format!("other/client -> app/server {what}");
    let rows = [
        (json!([]), "TCP 80", "yes"),
        (json!([{"port": 80}]), "TCP 80", "yes"),
        (json!([{"port": 80}]), "UDP 80", "no"),
        (json!([{"port": 80}]), "TCP 81", "no"),
        (json!([{"protocol": "UDP"}]), "UDP 9", "yes"),
        (json!([{"protocol": "UDP"}]), "TCP 9", "no"),
        (json!([{}]), "TCP 65535", "yes"),
        (json!([{}]), "SCTP 5", "no"),
        (json!([{"protocol": "SCTP", "port": 5}]), "SCTP 5", "yes"),
        (json!([{"port": 80, "endPort": 90}]), "TCP 90", "yes"),
        (json!([{"port": 80, "endPort": 90}]), "TCP 91", "no"),
        (json!([{"port": 80, "endPort": 80}]), "TCP 80", "yes"),
        (json!([{"port": "http"}]), "TCP 80", "yes"),
        (json!([{"port": "http"}]), "TCP 8443", "no"),
        (json!([{"port": "dns"}]), "UDP 53", "no"),
        (json!([{"port": "dns", "protocol": "UDP"}]), "UDP 53", "yes"),
        (json!([{"port": "missing"}]), "TCP 80", "no"),
        (json!([{"port": 1}, {"port": 80}]), "TCP 80", "yes"),
        // What the API server refuses opens nothing.
        (json!([{"port": 0}]), "TCP 0", "no"),
        (json!([{"port": 90, "endPort": 80}]), "TCP 85", "no"),
        (json!([{"port": 70000}]), "TCP 4464", "no"),
        (json!([{"endPort": 80}]), "TCP 80", "no"),
        (json!([{"port": "http", "endPort": 90}]), "TCP 80", "no"),
        (json!([{"protocol": "ICMP"}]), "TCP 80", "no"),
    ];
    for (ports, what, wanted) in rows {
        check(&[(to(ports), &flow(what), wanted)]);
    }
}

#[test]
fn named_ports_of_egress_are_the_destinations() {
    let world = with(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]}));
    assert_eq!(world.verdict(OUT), "yes");
    assert_eq!(world.verdict("app/server -> other/client TCP 81"), "no");
    assert_eq!(world.verdict("app/server -> 203.0.113.9 TCP 80"), "no");
}

#[test]
fn address_blocks() {
    let from = |cidr: &str, except: Value| json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr, "except": except}}]}]});
    let flow = |source: &str| format!("{source} -> app/server TCP 80");
    let rows = [
        ("203.0.113.0/24", json!(null), "203.0.113.9", "yes"),
        ("203.0.113.9/24", json!(null), "203.0.113.1", "yes"),
        ("203.0.113.0/24", json!(null), "203.0.114.9", "no"),
        ("203.0.113.0/24", json!(["203.0.113.8/29"]), "203.0.113.9", "no"),
        ("203.0.113.0/24", json!(["203.0.113.8/29"]), "203.0.113.7", "yes"),
        ("0.0.0.0/0", json!(null), "203.0.113.9", "yes"),
        ("0.0.0.0/0", json!(null), "2001:db8::1", "no"),
        ("::/0", json!(null), "2001:db8::1", "yes"),
        ("2001:db8::/32", json!(["2001:db8:1::/48"]), "2001:db8::1", "yes"),
        ("2001:db8::/32", json!(["2001:db8:1::/48"]), "2001:db8:1::1", "no"),
        // Pods match by address too.
        ("10.0.1.0/24", json!(null), "other/client", "yes"),
        ("10.0.1.0/24", json!(null), "app/client", "no"),
        // Refused by the API server: matches nothing.
        ("not-a-block", json!(null), "203.0.113.9", "no"),
        ("203.0.113.0/24", json!(["10.0.0.0/8"]), "203.0.113.9", "no"),
        ("203.0.113.0/24", json!(["x"]), "203.0.113.9", "no"),
    ];
    for (cidr, except, source, wanted) in rows {
        check(&[(from(cidr, except), &flow(source), wanted)]);
    }
}

#[test]
fn any_address_outside() {
    let from = |peers: Value| json!({"podSelector": {}, "ingress": [{"from": peers, "ports": [{"port": 80}]}]});
    let block = |cidr: &str| json!({"ipBlock": {"cidr": cidr}});
    let flow = "outside -> app/server TCP 80";
    check(&[
        (from(json!([])), flow, "yes"),
        (from(json!([block("0.0.0.0/0")])), flow, "yes"),
        (from(json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}])), flow, "?"),
        (from(json!([block("203.0.113.0/24")])), flow, "?"),
        (from(json!([block("::/0")])), flow, "no"),
        (from(json!([{"namespaceSelector": {}}])), flow, "no"),
        // A pod's own address is nobody's outside.
        (from(json!([block("10.0.1.2/32")])), flow, "no"),
        (from(json!([])), "outside -> app/server TCP 81", "no"),
    ]);
}

#[test]
fn host_network_and_nodes() {
    let mut host = pod("app/host", "192.168.0.2", json!({"app": "client"}));
    host["spec"]["hostNetwork"] = true.into();
    host["spec"]["nodeName"] = "n2".into();
    let verdict = |spec: Value, flow: &str| {
        let mut world = with(spec);
        world.apply(host.clone());
        world.verdict(flow)
    };
    let all = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"namespaceSelector": {}}]}], "egress": [{"to": [{"namespaceSelector": {}}]}]});
    let block = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "192.168.0.2/32"}}]}]});
    // Neither selected nor matched by selectors; matched by the node's address.
    assert_eq!(verdict(all.clone(), "203.0.113.9 -> app/host TCP 80"), "yes");
    assert_eq!(verdict(all.clone(), "app/host -> 203.0.113.9 TCP 80"), "yes");
    assert_eq!(verdict(all.clone(), "app/host -> app/server TCP 80"), "no");
    assert_eq!(verdict(all.clone(), "app/server -> app/host TCP 80"), "no");
    assert_eq!(verdict(block.clone(), "app/host -> app/server TCP 80"), "yes");
    assert_eq!(verdict(block.clone(), "192.168.0.2 -> app/server TCP 80"), "yes");
    assert_eq!(verdict(block.clone(), "node:n2 -> app/server TCP 80"), "yes");
    // The destination's own node is let in, whatever the policies say; another node is not.
    let none = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    assert_eq!(verdict(none.clone(), "node:n1 -> app/server TCP 80"), "yes");
    assert_eq!(verdict(none.clone(), "192.168.0.1 -> app/server TCP 80"), "yes");
    assert_eq!(verdict(none.clone(), "node:n2 -> app/server TCP 80"), "no");
    // The way back is left to the engine.
    assert_eq!(verdict(none.clone(), "app/server -> node:n1 TCP 80"), "?");
    assert_eq!(verdict(none.clone(), "app/server -> node:n2 TCP 80"), "no");
    assert_eq!(verdict(none, "app/server -> app/server TCP 80"), "yes");
}

#[test]
fn what_engines_make_of_it() {
    let none = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let pods = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"namespaceSelector": {}, "podSelector": {}}]}]});
    let blocks = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]});
    let own = "app/server -> node:n1 TCP 80";
    let probe = "169.254.7.127 -> app/server TCP 80";
    let rows: [(&Value, &str, [&str; 4]); 5] = [
        // spec, calico, cilium, ovn
        (&none, own, ["?", "no", "no", "?"]),
        (&none, probe, ["?", "yes", "no", "?"]),
        (&blocks, FOREIGN, ["yes", "yes", "no", "yes"]),
        (&pods, "node:n2 -> app/server TCP 80", ["no", "no", "no", "yes"]),
        (&none, FOREIGN, ["no", "no", "no", "no"]),
    ];
    for (spec, flow, wanted) in rows {
        for (profile, wanted) in Profile::ALL.into_iter().zip(wanted) {
            let mut world = World::under(profile, cluster());
            world.apply(policy("app/tested", spec.clone()));
            assert_eq!(world.verdict(flow), wanted, "{profile}: {flow}");
        }
    }
    // Under every engine a rule for the probe's address settles it.
    let open = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "169.254.7.127/32"}}]}]});
    check(&[(open, probe, "yes")]);
}

#[test]
fn both_addresses_of_a_dual_stack_pod() {
    let dual = |name: &str, v4: &str, v6: &str| {
        let mut pod = pod(name, v4, json!({"app": "dual"}));
        pod["status"]["podIPs"] = json!([{"ip": v4}, {"ip": v6}]);
        pod
    };
    let from = |blocks: &[&str]| {
        let peers: Vec<Value> = blocks.iter().map(|b| json!({"ipBlock": {"cidr": b}})).collect();
        json!({"podSelector": {"matchLabels": {"app": "dual"}}, "ingress": [{"from": peers}]})
    };
    let verdict = |blocks: &[&str], flow: &str| {
        let mut world = with(from(blocks));
        world.apply(dual("app/a", "10.0.0.8", "fd00::8"));
        world.apply(dual("other/b", "10.0.1.9", "fd00::9"));
        world.verdict(flow)
    };
    let flow = "other/b -> app/a TCP 80";
    assert_eq!(verdict(&["10.0.0.0/8", "fd00::/64"], flow), "yes");
    assert_eq!(verdict(&["10.0.0.0/8"], flow), "?");
    assert_eq!(verdict(&["172.16.0.0/12"], flow), "no");
    // Only the family that both have matters.
    assert_eq!(verdict(&["10.0.0.0/8"], "other/client -> app/a TCP 80"), "yes");
    assert_eq!(verdict(&["fd00::/64"], "other/six -> app/a TCP 80"), "yes");
}

#[test]
fn workload_templates_stand_for_their_pods() {
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "app"},
        "spec": {"template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": 80}]}]}}}});
    let blocks = |cidr: &str| json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]});
    let verdict = |spec: Value, flow: &str| {
        let mut world = with(spec);
        world.apply(deployment.clone());
        world.verdict(flow)
    };
    let closed = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    assert_eq!(verdict(closed.clone(), "app/client -> app/deployment/web TCP 80"), "no");
    // Replicas do talk to one another.
    assert_eq!(verdict(closed, "app/deployment/web -> app/deployment/web TCP 80"), "no");
    assert_eq!(verdict(blocks("0.0.0.0/0"), "app/deployment/web -> app/server TCP 80"), "yes");
    assert_eq!(verdict(blocks("10.0.0.0/16"), "app/deployment/web -> app/server TCP 80"), "?");
    assert_eq!(verdict(blocks("fd00::/16"), "app/client -> app/server TCP 80"), "no");
}

#[test]
fn what_is_not_known_is_not_guessed() {
    check(&[
        (json!({"podSelector": {}}), "other/nobody -> app/server TCP 80", "?"),
        (json!({"podSelector": {}, "ingress": [{}]}), "other/nobody -> app/server TCP 80", "?"),
        (json!({"podSelector": {}}), "node:n9 -> app/server TCP 80", "no"),
    ]);
    // Without a node, nobody can say whose own node it is.
    let mut world = with(json!({"podSelector": {}}));
    let mut homeless = pod("app/homeless", "10.0.0.77", json!({}));
    homeless["spec"]["nodeName"] = Value::Null;
    world.apply(homeless);
    assert_eq!(world.verdict("node:n1 -> app/homeless TCP 80"), "?");
    assert_eq!(world.verdict("app/client -> app/homeless TCP 80"), "no");
}

#[test]
fn a_service_is_judged_at_its_backends() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"ports": [{"port": 8443}]}]});
    let service = |selector: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "app"}, "spec": {
            "clusterIP": "10.96.0.1", "selector": selector, "ports": [{"name": "https", "port": 443, "targetPort": 8443},
                {"name": "web", "port": 80, "targetPort": "http"}]}})
    };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s-1", "namespace": "app",
        "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4", "endpoints": [{"addresses": ["203.0.113.9"]}],
        "ports": [{"name": "https", "port": 6443}]});
    let source = flow("other/client -> app/server TCP 1").source;
    let judge = |world: &World, port| {
        world.policies.decide_service(&world.cluster, &source, &Name::new("app", "s"), Protocol::Tcp, port)
    };
    let mut world = with(spec);
    assert_eq!(judge(&world, 443).agreed(), Err(Undecided::NoBackends { service: Name::new("app", "s") }));
    world.apply(service(json!({"app": "server"})));
    assert_eq!(judge(&world, 443).agreed(), Ok(Admission::Admitted));
    assert_eq!(judge(&world, 80).agreed(), Ok(Admission::NotAdmitted));
    assert_eq!(judge(&world, 443).backends[0].flow.port, 8443);
    assert_eq!(judge(&world, 443).backends[0].flow.dialled, Some(("10.96.0.1".parse().unwrap(), 443)));
    // A client is let in on 80, the server is not.
    world.apply(service(json!({})));
    assert_eq!(judge(&world, 80).admission(), Admission::Undecidable);
    let mut both = pod("app/second", "10.0.0.44", json!({"app": "server", "free": "yes"}));
    world.apply(service(json!({"free": "yes"})));
    both["metadata"]["labels"]["app"] = "free".into();
    world.apply(both);
    assert_eq!(judge(&world, 80).agreed(), Ok(Admission::Admitted));
    // Slices come before selectors.
    world.apply(slice);
    assert_eq!(judge(&world, 443).backends[0].flow.port, 6443);
}
