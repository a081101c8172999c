//! `diff` and `fix`: what they say against every pair and port looked at one by one.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use weir_engine::policy::diff::{by_workload, diff};
use weir_engine::policy::fix::{PatchKind, Unfixable};
use weir_engine::policy::{Admission, Endpoint, Flow};
use weir_engine::words::Protocol;

use crate::random::{objects, policy};
use crate::world::{World, flow, namespace, node, pod, policy as named};

/// Every flow between pods of the pod network, and between them and the outside, on ports on both sides of every edge.
fn every_flow(world: &World) -> Vec<Flow> {
    let pods = world.cluster.pods().filter(|p| !p.host_network);
    let pods = pods.map(|p| Endpoint::Pod { name: p.name.clone(), address: None });
    let ends: Vec<Endpoint> = pods.chain([Endpoint::External]).collect();
    let mut all = Vec::new();
    for source in &ends {
        for destination in ends.iter().filter(|d| *d != source) {
            for port in [1, 79, 80, 81, 82, 442, 443, 444, 8999, 9000, 9001, 65535] {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    let (source, destination) = (source.clone(), destination.clone());
                    all.push(Flow { source, destination, protocol, port, dialled: None });
                }
            }
        }
    }
    all
}

fn answers(old: &World, new: &World) -> Vec<(Flow, Admission, Admission)> {
    let answer = |world: &World, flow: &Flow| world.policies.admits(&world.cluster, flow);
    every_flow(old).into_iter().map(|f| (answer(old, &f), answer(new, &f), f)).map(|(a, b, f)| (f, a, b)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn diff_is_every_pair_and_port(base in objects(), changed in vec(policy(), 0..4), world in any::<bool>()) {
        let old = World::new(base.clone());
        let mut new = World::new(base.clone());
        changed.into_iter().for_each(|p| new.apply(p));
        if world {
            new.apply(namespace("a", json!({"app": "x", "env": "y"})));
        }
        if let Some(gone) = base.iter().find(|o| o["kind"] == "NetworkPolicy") {
            new.delete(gone);
        }
        let differences = diff((&old.cluster, &old.policies), (&new.cluster, &new.policies));
        for (flow, before, after) in answers(&old, &new) {
            let said: Vec<_> = differences.iter().filter(|d| d.covers(&flow)).map(|d| (d.before, d.after)).collect();
            let wanted = if before == after { vec![] } else { vec![(before, after)] };
            prop_assert_eq!(said, wanted, "{:?}", flow);
        }
        let pairs: usize = by_workload(&old.cluster, &differences).iter().map(|w| w.pairs).sum();
        prop_assert_eq!(pairs > 0, !differences.is_empty());
    }

    /// A fix opens its flow, closes nothing that it does not list, and opens nothing that it does not list.
    #[test]
    fn fix_never_widens_beyond_what_it_lists(base in objects(), pick in any::<prop::sample::Index>()) {
        let old = World::new(base.clone());
        let denied: Vec<Flow> = answers(&old, &old).into_iter().filter(|(_, a, _)| *a == Admission::NotAdmitted).map(|(f, ..)| f).collect();
        prop_assume!(!denied.is_empty());
        let asked = pick.get(&denied);
        let fix = match old.policies.fix(&old.cluster, asked) {
            Ok(fix) => fix,
            Err(why) => {
                let reported = matches!(why, Unfixable::DeniedBy(_) | Unfixable::NotExpressible);
                prop_assert!(reported, "{:?}: {}", asked, why);
                return Ok(());
            }
        };
        let mut new = World::new(base);
        for patch in &fix.patches {
            let mut object = serde_json::to_value(&patch.policy).unwrap();
            object["kind"] = "NetworkPolicy".into();
            object["apiVersion"] = "networking.k8s.io/v1".into();
            new.apply(object);
        }
        for side in [new.decide(asked).egress, new.decide(asked).ingress] {
            prop_assert_ne!(side.admission(), Admission::NotAdmitted, "{:?} is not opened by {:?}", asked, fix.patches);
        }
        for (flow, before, after) in answers(&old, &new) {
            let listed = fix.changes.iter().any(|d| d.covers(&flow) && (d.before, d.after) == (before, after));
            prop_assert_eq!(listed, before != after, "{:?} {:?} {:?}", flow, before, after);
        }
    }
}

fn cluster() -> World {
    World::new([
        namespace("app", json!({})),
        namespace("other", json!({})),
        node("n1", "192.168.0.1"),
        node("n2", "192.168.0.2"),
        pod("app/server", "10.0.0.1", json!({"app": "server", "pod-template-hash": "1"})),
        pod("app/second", "10.0.0.3", json!({"app": "second"})),
        pod("other/client", "10.0.1.2", json!({"app": "client", "version": "v1"})),
        pod("other/client-2", "10.0.1.3", json!({"app": "client-2", "version": "v1"})),
        named("app/default-deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
        named(
            "app/server",
            json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"ports": [{"port": 1}]}]}),
        ),
    ])
}

const ASKED: &str = "other/client -> app/server TCP 80";

#[test]
fn a_rule_in_a_policy_of_the_users_own() {
    let world = cluster();
    let fix = world.policies.fix(&world.cluster, &flow(ASKED)).unwrap();
    assert_eq!((fix.patches.len(), fix.patches[0].kind), (1, PatchKind::Rule(1)));
    let policy = serde_json::to_value(&fix.patches[0].policy).unwrap();
    assert_eq!(policy["metadata"], json!({"name": "server", "namespace": "app"}));
    assert_eq!(
        policy["spec"]["ingress"][1],
        json!({
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}, "podSelector": {"matchLabels": {"app": "client"}}}],
        "ports": [{"port": 80, "protocol": "TCP"}]})
    );
    assert_eq!(fix.changes.len(), 1);
    assert!(fix.changes[0].covers(&flow(ASKED)));
    assert_eq!(fix.beyond(&world.cluster, &flow(ASKED)).count(), 0);
}

#[test]
fn objects_that_others_manage_are_left_alone() {
    let marks = [
        ("labels", json!({"kyma-project.io/managed-by": "kyma"})),
        ("labels", json!({"app.kubernetes.io/managed-by": "Helm"})),
        ("labels", json!({"helm.sh/chart": "server-1.0"})),
        ("labels", json!({"install.operator.istio.io/owning-resource": "unknown"})),
        ("labels", json!({"operator.istio.io/component": "Pilot"})),
        ("annotations", json!({"meta.helm.sh/release-name": "server"})),
        ("ownerReferences", json!([{"apiVersion": "v1", "kind": "Thing", "name": "t", "uid": "u"}])),
    ];
    for (field, value) in marks {
        let mut world = cluster();
        let spec = json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"ports": [{"port": 1}]}]});
        let mut managed = named("app/server", spec);
        managed["metadata"][field] = value.clone();
        world.apply(managed);
        let fix = world.policies.fix(&world.cluster, &flow(ASKED)).unwrap();
        let patch = &fix.patches[0];
        assert_eq!(patch.kind, PatchKind::Policy, "{value}");
        assert_eq!(patch.managed[0].0.to_string(), "app/server");
        let policy = serde_json::to_value(&patch.policy).unwrap();
        assert_eq!(policy["metadata"], json!({"name": "allow-server-from-client-80", "namespace": "app"}));
        assert_eq!(policy["spec"]["podSelector"], json!({"matchLabels": {"app": "server"}}));
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    }
}

#[test]
fn both_sides_and_other_ends() {
    let mut world = cluster();
    world.apply(named("other/default-deny", json!({"podSelector": {}, "policyTypes": ["Egress"]})));
    let fix = world.policies.fix(&world.cluster, &flow(ASKED)).unwrap();
    let opened: Vec<String> = fix.patches.iter().map(|p| format!("{} {:?}", p.direction, p.kind)).collect();
    assert_eq!(opened, ["egress Policy", "ingress Rule(1)"]);
    let rows = [
        ("203.0.113.9 -> app/server TCP 80", json!([{"ipBlock": {"cidr": "203.0.113.9/32"}}])),
        ("node:n2 -> app/server TCP 80", json!([{"ipBlock": {"cidr": "192.168.0.2/32"}}])),
        ("outside -> app/server TCP 80", json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}])),
        ("app/second -> app/server TCP 80", json!([{"podSelector": {"matchLabels": {"app": "second"}}}])),
    ];
    for (text, peers) in rows {
        let fix = world.policies.fix(&world.cluster, &flow(text)).unwrap();
        let ingress = fix.patches.iter().find(|p| p.direction.as_str() == "ingress").unwrap();
        let policy = serde_json::to_value(&ingress.policy).unwrap();
        assert_eq!(policy["spec"]["ingress"][1]["from"], peers, "{text}");
    }
}

#[test]
fn what_cannot_be_fixed_says_why() {
    let mut world = cluster();
    let open = flow("app/server -> app/server TCP 80");
    assert_eq!(world.policies.fix(&world.cluster, &open), Err(Unfixable::Admitted));
    let unknown = flow("app/nobody -> app/server TCP 80");
    assert!(matches!(world.policies.fix(&world.cluster, &unknown), Err(Unfixable::Undecided(_))));
    world.apply(json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}}));
    assert!(matches!(world.policies.fix(&world.cluster, &flow(ASKED)), Err(Unfixable::DeniedBy(_))));
}

#[test]
fn differences_by_workload() {
    let old = cluster();
    let mut new = cluster();
    let open: Value = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 80, "endPort": 90}]}]});
    new.apply(named("app/open", open));
    let differences = diff((&old.cluster, &old.policies), (&new.cluster, &new.policies));
    let lines: Vec<String> = by_workload(&old.cluster, &differences)
        .iter()
        .map(|w| {
            let end =
                |w: &Option<weir_engine::words::Workload>| w.as_ref().map_or("outside".to_owned(), ToString::to_string);
            let ports: Vec<String> = w.ports.iter().map(ToString::to_string).collect();
            format!("{} -> {} {} {} {:?}", end(&w.source), end(&w.destination), w.protocol, ports.join(","), w.after)
        })
        .collect();
    assert_eq!(
        lines,
        [
            "other/client -> app/second TCP 80-90 Admitted",
            "other/client -> app/server TCP 80-90 Admitted",
            "other/client-2 -> app/second TCP 80-90 Admitted",
            "other/client-2 -> app/server TCP 80-90 Admitted",
        ]
    );
}
