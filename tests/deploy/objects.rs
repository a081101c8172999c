//! The rendered objects: what Kubernetes' own types read of them, what they ask for, and how they fit together.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weir_engine::cluster::Kind;

use super::chart::{NAMESPACE, render};

/// Values that take every branch of the templates.
const VARIANTS: [&str; 5] = [
    "",
    "{legacyCapabilities: true, socketHostPath: /run/weir, seLinuxOptions: {type: spc_t}, appArmorProfile: {type: Unconfined}}",
    "{image: {digest: 'sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}, imagePullSecrets: [registry], \
      agent: {ports: [53, 15012], extraArgs: [--record=/run/weir/recording]}, affinity: {nodeAffinity: {}}, \
      podLabels: {team: mesh}, podAnnotations: {note: 'yes'}, serviceAccount: {annotations: {note: 'no'}}}",
    "{networkPolicy: {metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}], \
      apiServerCidrs: [10.0.0.1/32, 'fd00::1/128'], apiServerPorts: [6443]}, podMonitor: {enabled: true, labels: {release: p}}, \
      serviceMonitor: {enabled: true, labels: {release: p}}, prometheusRule: {enabled: true, labels: {release: p}}}",
    "{rbac: {create: false}, serviceAccount: {create: false, name: other}, networkPolicy: {enabled: false}}",
];

fn objects(over: &str) -> Vec<Value> {
    render(over, "Helm").iter().map(|(_, text)| super::yaml(text)).collect()
}

fn one(over: &str, kind: &str, name: &str) -> Value {
    let found: Vec<Value> =
        objects(over).into_iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0].clone()
}

/// Unknown fields are ignored by the API's types, so what they read is written again and compared.
fn typed<T: DeserializeOwned + Serialize>(object: &Value) {
    let read: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}\n{object:#}"));
    let again = serde_json::to_value(&read).unwrap();
    let mut lost = Vec::new();
    compare(object, &again, String::new(), &mut lost);
    assert!(lost.is_empty(), "the API knows no {lost:?} in {}", object["metadata"]["name"]);
}

fn compare(written: &Value, read: &Value, path: String, lost: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(w), Value::Object(r)) => {
            for (key, value) in w {
                // An empty map or list reads as absent.
                let empty =
                    value.as_object().is_some_and(|o| o.is_empty()) || value.as_array().is_some_and(|a| a.is_empty());
                match r.get(key) {
                    Some(other) => compare(value, other, format!("{path}.{key}"), lost),
                    None if empty => {}
                    None => lost.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(w), Value::Array(r)) if w.len() == r.len() => {
            for (i, (w, r)) in w.iter().zip(r).enumerate() {
                compare(w, r, format!("{path}[{i}]"), lost);
            }
        }
        (w, r) if w == r => {}
        (w, r) => lost.push(format!("{path}: {w} is read as {r}")),
    }
}

#[test]
fn kubernetes_reads_all_of_it() {
    for over in VARIANTS {
        for object in objects(over) {
            match object["kind"].as_str().unwrap() {
                "DaemonSet" => typed::<DaemonSet>(&object),
                "Service" => typed::<Service>(&object),
                "ServiceAccount" => typed::<ServiceAccount>(&object),
                "NetworkPolicy" => typed::<NetworkPolicy>(&object),
                "ClusterRole" => typed::<ClusterRole>(&object),
                "ClusterRoleBinding" => typed::<ClusterRoleBinding>(&object),
                "Role" => typed::<Role>(&object),
                "RoleBinding" => typed::<RoleBinding>(&object),
                // No types of Kubernetes' own; promtool and the tests below read them.
                "PodMonitor" | "ServiceMonitor" | "PrometheusRule" => {
                    assert_eq!(object["apiVersion"], "monitoring.coreos.com/v1");
                }
                other => panic!("{other} is not expected in the chart"),
            }
        }
    }
}

#[test]
fn a_field_that_the_api_does_not_know_is_found() {
    let mut daemon_set = one("", "DaemonSet", "weir");
    daemon_set["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = true.into();
    let found = std::panic::catch_unwind(|| typed::<DaemonSet>(&daemon_set));
    assert!(found.is_err());
}

fn container(over: &str) -> Value {
    one(over, "DaemonSet", "weir")["spec"]["template"]["spec"]["containers"][0].clone()
}

#[test]
fn the_agent_has_four_capabilities_and_nothing_else() {
    let context = container("")["securityContext"].clone();
    assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!(context["capabilities"]["add"], serde_json::json!(["BPF", "PERFMON", "NET_ADMIN", "SYSLOG"]));
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    let pod = one("", "DaemonSet", "weir")["spec"]["template"]["spec"].clone();
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    for namespace in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(pod[namespace], false, "{namespace}");
    }
    let seeing = one("{hostPID: true}", "DaemonSet", "weir")["spec"]["template"]["spec"].clone();
    assert_eq!((&seeing["hostPID"], &seeing["hostNetwork"]), (&true.into(), &false.into()));
    let legacy = container("{legacyCapabilities: true}")["securityContext"]["capabilities"]["add"].clone();
    let expected = serde_json::json!(["BPF", "PERFMON", "NET_ADMIN", "SYSLOG", "SYS_ADMIN", "SYS_RESOURCE"]);
    assert_eq!(legacy, expected);
}

/// Each capability, mount and rule says what it is for, in the manifest that people read.
#[test]
fn each_permission_says_what_needs_it() {
    let documents = render("{legacyCapabilities: true}", "Helm");
    let daemon_set = &documents.iter().find(|(file, _)| file == "daemonset.yaml").unwrap().1;
    let cluster_role = &documents.iter().find(|(file, _)| file == "rbac.yaml").unwrap().1;
    let commented = |text: &str, wanted: &str| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = lines.iter().position(|l| *l == wanted).unwrap_or_else(|| panic!("no line {wanted:?}"));
        assert!(at > 0 && lines[at - 1].starts_with('#'), "{wanted:?} has no comment");
    };
    for capability in ["BPF", "PERFMON", "NET_ADMIN", "SYSLOG", "SYS_ADMIN", "SYS_RESOURCE"] {
        commented(daemon_set, &format!("- {capability}"));
    }
    for mount in ["- name: run", "- name: cgroup"] {
        commented(daemon_set, mount);
    }
    assert!(cluster_role.lines().filter(|l| l.trim_start().starts_with('#')).count() >= 5);
}

/// `(group, resource, verb)` of every rule.
fn permissions(role: &Value) -> BTreeSet<(String, String, String)> {
    let strings =
        |v: &Value| -> Vec<String> { v.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect() };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    all.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    all
}

/// Kinds that an API server has without any CRD: followed always.
const BUILT_IN: [Kind; 7] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::NetworkPolicy,
    Kind::MutatingWebhookConfiguration,
];

/// Group and plural of a kind, as the CRDs and the API have them.
fn resource(kind: Kind) -> (&'static str, &'static str) {
    const GATEWAY: &str = "gateway.networking.k8s.io";
    const NETWORKING: &str = "networking.istio.io";
    const SECURITY: &str = "security.istio.io";
    const POLICY: &str = "policy.networking.k8s.io";
    match kind {
        Kind::Namespace => ("", "namespaces"),
        Kind::Node => ("", "nodes"),
        Kind::Pod => ("", "pods"),
        Kind::Service => ("", "services"),
        Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
        Kind::NetworkPolicy => ("networking.k8s.io", "networkpolicies"),
        Kind::MutatingWebhookConfiguration => ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
        Kind::AdminNetworkPolicy => (POLICY, "adminnetworkpolicies"),
        Kind::BaselineAdminNetworkPolicy => (POLICY, "baselineadminnetworkpolicies"),
        Kind::ClusterNetworkPolicy => (POLICY, "clusternetworkpolicies"),
        Kind::VirtualService => (NETWORKING, "virtualservices"),
        Kind::IstioGateway => (NETWORKING, "gateways"),
        Kind::ServiceEntry => (NETWORKING, "serviceentries"),
        Kind::Sidecar => (NETWORKING, "sidecars"),
        Kind::DestinationRule => (NETWORKING, "destinationrules"),
        Kind::WorkloadEntry => (NETWORKING, "workloadentries"),
        Kind::WorkloadGroup => (NETWORKING, "workloadgroups"),
        Kind::ProxyConfig => (NETWORKING, "proxyconfigs"),
        Kind::RequestAuthentication => (SECURITY, "requestauthentications"),
        Kind::PeerAuthentication => (SECURITY, "peerauthentications"),
        Kind::AuthorizationPolicy => (SECURITY, "authorizationpolicies"),
        Kind::Telemetry => ("telemetry.istio.io", "telemetries"),
        Kind::WasmPlugin => ("extensions.istio.io", "wasmplugins"),
        Kind::Gateway => (GATEWAY, "gateways"),
        Kind::HttpRoute => (GATEWAY, "httproutes"),
        Kind::GrpcRoute => (GATEWAY, "grpcroutes"),
        Kind::TcpRoute => (GATEWAY, "tcproutes"),
        Kind::TlsRoute => (GATEWAY, "tlsroutes"),
        Kind::ReferenceGrant => (GATEWAY, "referencegrants"),
        Kind::KymaIstio => ("operator.kyma-project.io", "istios"),
        Kind::ApiRule => ("gateway.kyma-project.io", "apirules"),
        other => panic!("{other:?} is watched and the chart grants nothing for it"),
    }
}

#[test]
fn the_agent_reads_what_it_watches_and_writes_events() {
    let settings = weir::cluster::watch::Settings::for_node("node");
    let mut expected: BTreeSet<(String, String, String)> = BUILT_IN
        .iter()
        .chain(&settings.optional)
        .map(|kind| resource(*kind))
        .flat_map(|(group, plural)| {
            ["get", "list", "watch"].map(|v| (group.to_owned(), plural.to_owned(), v.to_owned()))
        })
        .collect();
    expected.insert(("events.k8s.io".to_owned(), "events".to_owned(), "create".to_owned()));
    let granted = permissions(&one("", "ClusterRole", "weir"));
    let missing: Vec<_> = expected.difference(&granted).collect();
    let idle: Vec<_> = granted.difference(&expected).collect();
    assert!(missing.is_empty() && idle.is_empty(), "missing {missing:?}, not needed {idle:?}");

    // The ConfigMaps that are read by default are those that the Role grants by default.
    let role = one("", "Role", "weir-mesh-config");
    let names: Vec<&str> =
        role["rules"][0]["resourceNames"].as_array().unwrap().iter().filter_map(|n| n.as_str()).collect();
    for maps in &settings.config_maps {
        assert_eq!(role["metadata"]["namespace"], maps.namespace.as_str());
        assert!(maps.name.as_deref().is_some_and(|n| names.contains(&n)), "{maps:?}");
    }
}

/// What is switched off needs no permission, and what is switched on has it.
#[test]
fn candidates_events_and_dns_replies_are_where_they_are_asked_for() {
    let args =
        |over: &str| one(over, "DaemonSet", "weir")["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    let role = one("", "Role", "weir-candidates");
    let namespace = role["metadata"]["namespace"].as_str().unwrap();
    assert!(args("").contains(&format!("--candidates-from={namespace}")) && !args("").contains("--no-events"));
    let get = |verb: &str| (String::new(), "configmaps".to_owned(), verb.to_owned());
    assert_eq!(permissions(&role), ["get", "list", "watch"].map(get).into());

    assert!(!args("").contains("--dns-replies") && args("{agent: {dnsReplies: true}}").contains("--dns-replies"));
    let off = "{agent: {candidates: false, events: false}}";
    assert!(!args(off).contains("candidates") && args(off).contains("--no-events"));
    assert!(objects(off).iter().all(|o| o["metadata"]["name"] != "weir-candidates"));
    assert!(permissions(&one(off, "ClusterRole", "weir")).iter().all(|(_, resource, _)| resource != "events"));
}

#[test]
fn one_config_map_can_be_read_and_no_secret() {
    let over = "{istio: {namespace: mesh, configMaps: [istio, istio-1-30]}}";
    let role = one(over, "Role", "weir-mesh-config");
    assert_eq!(role["metadata"]["namespace"], "mesh");
    let rules = role["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0]["resourceNames"], serde_json::json!(["istio", "istio-1-30"]));
    let verbs = permissions(&role);
    assert!(
        verbs
            .iter()
            .all(|(g, r, v)| g.is_empty() && r == "configmaps" && ["get", "list", "watch"].contains(&v.as_str()))
    );
    for object in objects(over).iter().filter(|o| o["rules"].is_array()) {
        let granted = object["rules"].to_string();
        assert!(!granted.contains("secrets") && !granted.contains('*'), "{granted}");
    }
}

#[test]
fn the_parts_name_each_other() {
    let over = VARIANTS[3];
    let daemon_set = one(over, "DaemonSet", "weir");
    let labels = daemon_set["spec"]["template"]["metadata"]["labels"].as_object().unwrap().clone();
    let selects = |selector: &Value| {
        let selector = selector.as_object().unwrap();
        !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    };
    let service = one(over, "Service", "weir");
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert!(selects(&daemon_set["spec"]["selector"]["matchLabels"]));
    assert!(selects(&service["spec"]["selector"]));
    assert!(selects(&one(over, "NetworkPolicy", "weir")["spec"]["podSelector"]["matchLabels"]));
    assert!(selects(&one(over, "PodMonitor", "weir")["spec"]["selector"]["matchLabels"]));
    let service_labels = service["metadata"]["labels"].as_object().unwrap();
    let monitor = one(over, "ServiceMonitor", "weir");
    let monitored = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert!(monitored.iter().all(|(k, v)| service_labels.get(k) == Some(v)));

    // Alerts ask for job="weir": the monitors take it from this label.
    assert_eq!(labels["app.kubernetes.io/name"], "weir");
    for monitor in [one(over, "PodMonitor", "weir"), monitor] {
        assert_eq!(monitor["spec"]["jobLabel"], "app.kubernetes.io/name");
        let endpoints = monitor["spec"].get("podMetricsEndpoints").unwrap_or(&monitor["spec"]["endpoints"]).clone();
        assert_eq!(endpoints[0]["port"], "metrics");
        assert_eq!(endpoints[0]["relabelings"][0]["targetLabel"], "node");
    }

    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["ports"][0]["name"], "metrics");
    assert_eq!(container["ports"][0]["containerPort"], service["spec"]["ports"][0]["port"]);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "metrics");
    for probe in ["livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "metrics");
    }
    let account = daemon_set["spec"]["template"]["spec"]["serviceAccountName"].clone();
    for (kind, name) in [("ClusterRoleBinding", "weir"), ("RoleBinding", "weir-mesh-config")] {
        let binding = one(over, kind, name);
        assert_eq!(binding["subjects"][0]["name"], account);
        assert_eq!(binding["subjects"][0]["namespace"], NAMESPACE);
    }
    let mounts = container["volumeMounts"].as_array().unwrap().iter().map(|m| &m["name"]);
    let volumes = daemon_set["spec"]["template"]["spec"]["volumes"].as_array().unwrap().iter().map(|v| &v["name"]);
    assert!(mounts.eq(volumes));
}

#[test]
fn values_reach_the_agent() {
    let over =
        "{http: {port: 9999, address: '[::]'}, agent: {ports: [53, 15012], window: 1m, grace: 5s, logFormat: text}}";
    let arguments: Vec<String> = serde_json::from_value(container(over)["args"].clone()).unwrap();
    assert_eq!(
        arguments,
        [
            "run",
            "--listen=[::]:9999",
            "--pods=own",
            "--window=1m",
            "--grace=5s",
            "--log-format=text",
            "--ports=53,15012",
            "--candidates-from=weir-system"
        ]
    );
    assert_eq!(container(over)["ports"][0]["containerPort"], 9999);
    let image = |over: &str| container(over)["image"].as_str().unwrap().to_owned();
    assert_eq!(image(""), "ghcr.io/weir-dev/weir:0.1.0");
    assert_eq!(image("{image: {tag: next}}"), "ghcr.io/weir-dev/weir:next");
    assert_eq!(image("{image: {tag: next, digest: 'sha256:00'}}"), "ghcr.io/weir-dev/weir@sha256:00");
}

/// The flags of `weir run` as they are: the program itself reads them, up to the request for help at their end.
#[test]
fn the_program_takes_the_arguments() {
    let Ok(program) = harness::agent::binary() else {
        eprintln!("skipped: no weir binary; `cargo build` makes one");
        return;
    };
    for over in VARIANTS {
        let mut arguments: Vec<String> = serde_json::from_value(container(over)["args"].clone()).unwrap();
        arguments.push("--help".to_owned());
        let output = std::process::Command::new(&program).args(&arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
