//! Recordings that can be shared: of objects only what verdicts are made from, and no processes. Names, labels and addresses
//! stay: they are what the verdicts are about.

use serde_json::{Map, Value};
use weir_engine::cluster::SETTINGS;
use weir_engine::engine::Input;
use weir_engine::observation::{Observation, Owner};

/// Metadata that is read.
const METADATA: [&str; 8] =
    ["name", "namespace", "uid", "labels", "annotations", "ownerReferences", "creationTimestamp", "deletionTimestamp"];
/// Domains whose annotations are settings.
const DOMAINS: [&str; 7] =
    ["istio.io", "weir.io", "prometheus.io", "kyma-project.io", "helm.sh", "kubernetes.io", "argoproj.io"];
/// What is said of a container.
const CONTAINER: [&str; 4] = ["name", "ports", "restartPolicy", "env"];
/// What is said of a pod's shape.
const POD: [&str; 4] = ["nodeName", "hostNetwork", "containers", "initContainers"];

/// The same input with less in it.
pub(super) fn input(mut input: Input) -> Input {
    match &mut input {
        Input::Apply { object, .. } => value(object),
        Input::Observe(observation) => match observation {
            Observation::AttemptStart(o) => owner(&mut o.owner),
            Observation::UdpEnd(o) => owner(&mut o.owner),
            Observation::Retransmit(_)
            | Observation::AttemptEnd(_)
            | Observation::Accepted(_)
            | Observation::Drop(_)
            | Observation::SocketError(_)
            | Observation::IcmpSent(_)
            | Observation::AnswerRetransmit(_) => {}
        },
        Input::Candidates { policies, .. } => policies.iter_mut().for_each(value),
        Input::Delete { .. }
        | Input::Answered { .. }
        | Input::Lost { .. }
        | Input::ListenDrops { .. }
        | Input::Unseen(_)
        | Input::WallClock { .. }
        | Input::Synced
        | Input::Timeout => {}
    }
    input
}

/// Of a process: its pod, and whether it is the proxy of that pod.
fn owner(owner: &mut Owner) {
    let comm = if owner.is_proxy() { std::mem::take(&mut owner.comm) } else { String::new() };
    *owner = Owner { comm, pod: owner.pod.take(), ..Owner::default() };
}

/// An object, and all that is nested in it: a pod is one wherever its template stands.
fn value(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
                metadata.retain(|key, _| METADATA.contains(&key.as_str()));
                if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                    annotations.retain(|key, text| is_setting(key, text));
                }
            }
            if map.contains_key("containers") {
                map.retain(|key, _| POD.contains(&key.as_str()));
                for list in ["containers", "initContainers"] {
                    map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().for_each(container);
                }
            }
            map.values_mut().for_each(self::value);
        }
        Value::Array(list) => list.iter_mut().for_each(self::value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_setting(key: &str, text: &Value) -> bool {
    let domain = key.split('/').next().unwrap_or_default();
    let known = DOMAINS.iter().any(|d| domain == *d || domain.strip_suffix(d).is_some_and(|rest| rest.ends_with('.')));
    // kubectl keeps the whole object in one.
    known && !text.as_str().is_some_and(|text| text.trim_start().starts_with('{'))
}

fn container(container: &mut Value) {
    let Some(map) = container.as_object_mut() else { return };
    map.retain(|key, _| CONTAINER.contains(&key.as_str()));
    let wanted =
        |entry: &Map<String, Value>| entry.get("name").and_then(Value::as_str).is_some_and(|n| SETTINGS.contains(&n));
    if let Some(Value::Array(env)) = map.get_mut("env") {
        env.retain(|entry| entry.as_object().is_some_and(wanted));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{owner, value};
    use weir_engine::observation::Owner;

    #[test]
    fn of_a_process_its_pod_is_left_and_that_it_is_the_proxy() {
        let of = |comm: &str| Owner { pid: 7, comm: comm.to_owned(), cgroup: 9, pod: Some("uid".into()) };
        for (comm, left) in [("envoy", "envoy"), ("wrk:worker_0", "wrk:worker_0"), ("mysql-secret", "")] {
            let mut redacted = of(comm);
            owner(&mut redacted);
            assert_eq!(redacted, Owner { pid: 0, cgroup: 0, ..of(left) });
        }
    }

    #[test]
    fn nothing_is_left_that_verdicts_do_not_need() {
        let pod = |env: serde_json::Value, more: bool| {
            let mut pod = json!({
                "metadata": {"name": "a", "labels": {"app": "a"}, "annotations": {"sidecar.istio.io/inject": "true"}},
                "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}], "env": env}]},
                "status": {"podIP": "10.0.0.1"},
            });
            if more {
                pod["metadata"]["managedFields"] = json!([{"manager": "secret"}]);
                pod["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "{secret}".into();
                pod["metadata"]["annotations"]["example.com/note"] = "secret".into();
                pod["spec"]["containers"][0]["image"] = "secret".into();
                pod["spec"]["containers"][0]["args"] = json!(["--password=secret"]);
                pod["spec"]["volumes"] = json!([{"secret": {"secretName": "secret"}}]);
            }
            pod
        };
        let setting = json!({"name": "PILOT_JWT_ENABLE_REMOTE_JWKS", "value": "true"});
        let lean = pod(json!([setting]), false);
        let full = pod(json!([{"name": "TOKEN", "value": "secret"}, setting]), true);
        let mut deployment = json!({"metadata": {"name": "d"}, "spec": {"template": full}});
        value(&mut deployment);
        assert_eq!(deployment, json!({"metadata": {"name": "d"}, "spec": {"template": lean}}));
        assert!(!deployment.to_string().contains("secret"));
    }
}
