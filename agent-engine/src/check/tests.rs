//! Reports on a small mesh: three pods of one workload, a control plane and DNS.

use serde_json::{Value, json};

use super::{Model, Options, Report, Verdict, check, compare, repair};
use crate::cluster::{Object, Origin};
use crate::policy::Profile;
use crate::policy::lint::{Level, LintId};
use crate::requirement::Catalogue;

#[test]
fn order_of_objects_never_matters() {
    let mut objects = mesh();
    objects.push(policy("shop", "p", to_istiod(json!({"app": "istiod"}))));
    let forwards = report(&objects);
    objects.reverse();
    assert_eq!(report(&objects), forwards);
    let json = serde_json::to_value(&forwards).expect("JSON");
    assert_eq!(serde_json::from_value::<Report>(json.clone()).expect("a report"), forwards);
    assert_eq!(json["version"], 1);
}

#[test]
fn what_needs_attention_comes_first() {
    let mut objects = mesh();
    objects.push(policy("shop", "deny", json!({"podSelector": {}, "policyTypes": ["Egress"]})));
    let report = report(&objects);
    assert_eq!(report.verdict, Verdict::Denied);
    let order: Vec<_> = report.pairs.iter().map(|p| (p.verdict, p.severity)).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(report.counts.denied, report.pairs.iter().filter(|p| p.verdict == Verdict::Denied).count());
    let xds = report.pairs.iter().find(|p| *p.flow == *"sidecar-xds").expect("every sidecar needs it");
    assert_eq!((xds.instances, xds.denied(), xds.cases.len()), (3, 3, 1), "alike by the same policies");
    assert_eq!(xds.policies, ["shop/deny"]);
}

#[test]
fn instances_that_fare_differently_are_told_apart() {
    let mut objects = mesh();
    let one = json!({"podSelector": {"matchLabels": {"canary": "yes"}}, "policyTypes": ["Egress"]});
    objects.push(policy("shop", "deny-canary", one));
    let options = Options { max_instances: 1, ..Options::default() };
    let report = check(&model(&objects), &options);
    let xds = report.pairs.iter().find(|p| *p.flow == *"sidecar-xds").expect("every sidecar needs it");
    let cases: Vec<_> = xds.cases.iter().map(|c| (c.verdict, c.count, c.instances.len())).collect();
    assert_eq!(cases, [(Verdict::Denied, 1, 1), (Verdict::Admitted, 2, 1)]);
}

#[test]
fn a_lint_that_blocks_a_required_flow_is_a_warning() {
    let lint = |labels: Value| {
        let mut objects = mesh();
        objects.push(policy("shop", "p", to_istiod(labels)));
        report(&objects).lints.into_iter().find(|f| f.lint.id == LintId::PeerNoPod)
    };
    let found = lint(json!({"app": "pilot"})).expect("no pod is called pilot");
    assert_eq!(found.lint.level, Level::Warning);
    assert_eq!(found.blocks.iter().map(|f| &**f).collect::<Vec<_>>(), ["sidecar-xds"]);
    assert_eq!(lint(json!({"app": "istiod"})), None);
}

#[test]
fn comparison_and_repair() {
    let open = mesh();
    let mut closed = mesh();
    closed.push(policy("shop", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})));
    let (before, after) = (report(&open), report(&closed));
    let worse = compare(&before, &after);
    assert!(worse.closed.iter().any(|c| *c.pair.flow == *"sidecar-xds" && c.denied_now == 3), "{worse:?}");
    assert_eq!((worse.opened.len(), worse.unsure.len()), (0, 0));
    let better = compare(&after, &before);
    assert_eq!((better.opened.len(), better.closed.len()), (worse.closed.len(), 0));
    let mut model = model(&closed);
    let repair = repair(&mut model, |_| true);
    assert_eq!((repair.denied_before, repair.denied_after), (worse.closed.len(), 0), "{repair:?}");
    assert_eq!(check(&model, &Options::default()).verdict, Verdict::Admitted);
    assert_eq!(repair.beyond, [], "nothing but what is required");
}

fn report(objects: &[Value]) -> Report {
    check(&model(objects), &Options { mutate: true, ..Options::default() })
}

fn model(objects: &[Value]) -> Model {
    let objects = objects.iter().map(|o| (Object::from_value(o.clone()).expect("an object"), Origin::default()));
    Model::new(objects, Catalogue::built_in(), Profile::Spec)
}

fn to_istiod(labels: Value) -> Value {
    let istio = json!({"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}});
    json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"namespaceSelector": istio, "podSelector": {"matchLabels": labels}}], "ports": [{"port": 15012}]}]})
}

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn mesh() -> Vec<Value> {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let pod = |namespace: &str, name: &str, labels: Value, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
               "metadata": {"namespace": namespace, "name": name, "labels": labels,
                            "annotations": {"sidecar.istio.io/status": "{\"containers\":[\"istio-proxy\"]}"},
                            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "set",
                                                 "uid": "1", "controller": true}]},
               "spec": {"nodeName": "n1", "containers": [{"name": "c"}, {"name": "istio-proxy"}]},
               "status": {"podIP": address, "podIPs": [{"ip": address}]}})
    };
    let cart = |n: u8, canary: &str| {
        let labels = json!({"app": "cart", "security.istio.io/tlsMode": "istio", "canary": canary});
        pod("shop", &format!("cart-{n}"), labels, &format!("10.0.0.{n}"))
    };
    vec![
        namespace("kube-system"),
        namespace("istio-system"),
        namespace("shop"),
        pod("kube-system", "coredns-0", json!({"k8s-app": "kube-dns"}), "10.0.1.1"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "kube-system", "name": "kube-dns"},
               "spec": {"selector": {"k8s-app": "kube-dns"}, "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}),
        pod("istio-system", "istiod-0", json!({"app": "istiod", "istio": "pilot"}), "10.0.1.2"),
        cart(1, "no"),
        cart(2, "no"),
        cart(3, "yes"),
    ]
}
