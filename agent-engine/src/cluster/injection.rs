//! What the injector would make of a pod template: manifests that were not applied yet carry no proxy.
//!
//! Who is injected follows istio/istio `manifests/charts/istio-control/istio-discovery/templates/mutatingwebhook.yaml` and
//! `pkg/kube/inject/inject.go`: labels of the namespace and of the pod, never names but those of the namespaces that Istio
//! leaves alone. What is added follows `injection-template.yaml` and `gateway-injection-template.yaml`.

use std::sync::Arc;

use super::{ContainerPort, Labels, Namespace, Pod};
use crate::words::Protocol;

const PROXY: &str = "istio-proxy";
const INJECT: &str = "sidecar.istio.io/inject";
const REVISION: &str = "istio.io/rev";
/// `IgnoredNamespaces` of inject.go.
const IGNORED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// The template as the injector would leave it; `None` where it would leave it alone.
pub(super) fn simulate(pod: &Pod, namespace: Option<&Namespace>) -> Option<Pod> {
    let no_labels = Labels::default();
    let space = namespace.map_or(&no_labels, |n| &n.labels);
    if pod.host_network
        || IGNORED.contains(&&*pod.name.namespace)
        || pod.containers.iter().any(|c| **c == *PROXY)
        || !is_wanted(pod, space)
    {
        return None;
    }
    let mut injected = pod.clone();
    let templates = pod.annotations.get("inject.istio.io/templates");
    let is_gateway = templates.is_some_and(|t| t.split(',').any(|t| t.trim() == "gateway"));
    if !is_gateway {
        let own = |key: &str| pod.labels.get(key).cloned();
        let name =
            own("service.istio.io/canonical-name").or_else(|| own("app.kubernetes.io/name")).or_else(|| own("app"));
        let version = own("service.istio.io/canonical-revision")
            .or_else(|| own("app.kubernetes.io/version"))
            .or_else(|| own("version"));
        let added = [
            ("security.istio.io/tlsMode", "istio".into()),
            ("service.istio.io/canonical-name", name.unwrap_or_else(|| pod.workload.name.clone())),
            ("service.istio.io/canonical-revision", version.unwrap_or_else(|| "latest".into())),
        ];
        for (key, value) in added {
            // The user's own label wins.
            if !injected.labels.contains_key(key) {
                injected.labels = injected.labels.with(key, &value);
            }
        }
    }
    let revision = pod.labels.get(REVISION).or_else(|| space.get(REVISION));
    if let Some(revision) = revision {
        injected.annotations = injected.annotations.with(REVISION, revision);
    }
    let proxy: Arc<str> = PROXY.into();
    injected.containers = [proxy].into_iter().chain(pod.containers.iter().cloned()).collect();
    let metrics = ContainerPort { name: "http-envoy-prom".into(), port: 15_090, protocol: Protocol::Tcp };
    injected.ports = [metrics].into_iter().chain(pod.ports.iter().cloned()).collect();
    injected.simulated = true;
    Some(injected)
}

/// The four webhooks in one: by the namespace's `istio-injection`, by its revision, else by the pod's own word.
fn is_wanted(pod: &Pod, namespace: &Labels) -> bool {
    let own = pod.labels.get(INJECT).or_else(|| pod.annotations.get(INJECT)).map(|v| &**v);
    match (namespace.get("istio-injection").map(|v| &**v), namespace.contains_key(REVISION)) {
        (Some("enabled"), _) | (None, true) => own != Some("false"),
        (Some(_), _) => false,
        (None, false) => own == Some("true") || own != Some("false") && pod.labels.contains_key(REVISION),
    }
}
