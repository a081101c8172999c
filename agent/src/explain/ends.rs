//! The ends of a connection as people name them.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use weir_engine::check::Model;
use weir_engine::cluster::{Cluster, Pod, Service};
use weir_engine::policy::Endpoint;
use weir_engine::words::{Name, Protocol};

/// Who was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Pods, nodes or addresses.
    Ends(Vec<Endpoint>),
    /// A Service: its backends, once the port is known.
    Service(Name),
}

/// How an end can be named.
pub const FORMS: &str = "an end is NAMESPACE/POD, NAMESPACE/WORKLOAD, NAMESPACE/KIND/NAME (deploy, sts, ds, svc, …), an \
                         address, apiserver, kubelet@NODE or external";

/// A port as it was asked for, and where it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The concrete destinations.
    pub ends: Vec<Endpoint>,
    /// The pod port.
    pub port: u16,
    /// What was named is the port of this Service, and not the pods'.
    pub through: Option<Name>,
}

/// Reads an end.
///
/// # Errors
/// When there is no such thing among the objects; says what there is instead.
pub fn parse(model: &Model, text: &str) -> anyhow::Result<Named> {
    let cluster = &model.cluster;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(by_address(cluster, address));
    }
    match text {
        "apiserver" => {
            let kubernetes = Name::new("default", "kubernetes");
            if cluster.service(&kubernetes).is_some() {
                return Ok(Named::Service(kubernetes));
            }
            let ends: Vec<Endpoint> = model.identity.api_server().map(|(a, _)| at(cluster, a)).collect();
            if ends.is_empty() {
                bail!("the API server's addresses are not known: add Service and EndpointSlice default/kubernetes");
            }
            return Ok(Named::Ends(ends));
        }
        "external" => return Ok(Named::Ends(vec![Endpoint::External])),
        _ => {}
    }
    if let Some(node) = text.strip_prefix("kubelet@") {
        let node = cluster.node(node).with_context(|| {
            let known: Vec<&str> = cluster.nodes().map(|n| &*n.name).take(5).collect();
            format!("there is no node {node}; known are {}", known.join(", "))
        })?;
        return Ok(Named::Ends(vec![Endpoint::Node { name: node.name.clone(), address: None }]));
    }
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [namespace, name] => by_name(cluster, namespace, name),
        [namespace, kind, name] => by_kind(cluster, namespace, kind, name),
        _ => bail!("{text:?} names no end: {FORMS}"),
    }
}

fn at(cluster: &Cluster, address: IpAddr) -> Endpoint {
    if let Some(pod) = cluster.pod_by_address(address) {
        return Endpoint::Pod { name: pod.name.clone(), address: Some(address) };
    }
    match cluster.node_by_address(address) {
        Some(node) => Endpoint::Node { name: node.name.clone(), address: Some(address) },
        None => Endpoint::Address(address),
    }
}

fn by_address(cluster: &Cluster, address: IpAddr) -> Named {
    let own = at(cluster, address);
    match (own, cluster.service_by_address(address)) {
        (Endpoint::Address(_), Some(service)) => Named::Service(service.name.clone()),
        (own, _) => Named::Ends(vec![own]),
    }
}

fn pod(pod: &Pod) -> Endpoint {
    Endpoint::Pod { name: pod.name.clone(), address: None }
}

fn by_name(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<Named> {
    let namespace: Arc<str> = namespace.into();
    if let Some(found) = cluster.pod(&Name::new(namespace.clone(), name)) {
        return Ok(Named::Ends(vec![pod(found)]));
    }
    let of_workload = |p: &&Pod| *p.workload.name == *name && !p.finished();
    let pods: Vec<Endpoint> = cluster.pods_in(&namespace).filter(of_workload).map(pod).collect();
    if !pods.is_empty() {
        return Ok(Named::Ends(pods));
    }
    let service = Name::new(namespace.clone(), name);
    if cluster.service(&service).is_some() {
        return Ok(Named::Service(service));
    }
    bail!("{namespace} has no pod, workload or Service {name}{}", known(cluster, &namespace))
}

fn by_kind(cluster: &Cluster, namespace: &str, kind: &str, name: &str) -> anyhow::Result<Named> {
    let namespace: Arc<str> = namespace.into();
    let kind = match kind.to_ascii_lowercase().as_str() {
        "po" | "pod" | "pods" => return by_pod(cluster, &namespace, name),
        "svc" | "service" | "services" => {
            let service = Name::new(namespace.clone(), name);
            return match cluster.service(&service) {
                Some(_) => Ok(Named::Service(service)),
                None => bail!("{namespace} has no Service {name}"),
            };
        }
        "deploy" | "deployment" | "deployments" => "Deployment",
        "sts" | "statefulset" | "statefulsets" => "StatefulSet",
        "ds" | "daemonset" | "daemonsets" => "DaemonSet",
        "rs" | "replicaset" | "replicasets" => "ReplicaSet",
        "job" | "jobs" => "Job",
        "cj" | "cronjob" | "cronjobs" => "CronJob",
        other => bail!("{other:?} is no kind of workload: {FORMS}"),
    };
    let of = |p: &&Pod| *p.workload.kind == *kind && *p.workload.name == *name && !p.finished();
    let pods: Vec<Endpoint> = cluster.pods_in(&namespace).filter(of).map(pod).collect();
    if pods.is_empty() {
        bail!("{namespace} has no {kind} {name} with pods{}", known(cluster, &namespace));
    }
    Ok(Named::Ends(pods))
}

fn by_pod(cluster: &Cluster, namespace: &Arc<str>, name: &str) -> anyhow::Result<Named> {
    let found = cluster.pod(&Name::new(namespace.clone(), name));
    let found = found.with_context(|| format!("{namespace} has no pod {name}{}", known(cluster, namespace)))?;
    Ok(Named::Ends(vec![pod(found)]))
}

/// What there is instead, for the message.
fn known(cluster: &Cluster, namespace: &Arc<str>) -> String {
    let mut names: Vec<String> = cluster.pods_in(namespace).map(|p| p.workload.to_string()).collect();
    names.sort_unstable();
    names.dedup();
    match names.as_slice() {
        [] => format!("; of namespace {namespace} no pod was read"),
        [..] => format!("; it has {}", names.iter().take(8).cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// Where a connection to this port of these ends arrives: one target per pod port.
///
/// # Errors
/// When a Service has no such port or no backend.
pub fn targets(cluster: &Cluster, named: &Named, protocol: Protocol, port: u16) -> anyhow::Result<Vec<Target>> {
    match named {
        Named::Service(name) => through(cluster, name, protocol, port),
        Named::Ends(ends) => {
            let mut found: Vec<Target> = Vec::new();
            for end in ends {
                let (port, service) = match end {
                    Endpoint::Pod { name, .. } => {
                        cluster.pod(name).and_then(|pod| in_front(cluster, pod, protocol, port))
                    }
                    Endpoint::Node { .. } | Endpoint::Address(_) | Endpoint::External => None,
                }
                .map_or((port, None), |(port, service)| (port, Some(service)));
                add(&mut found, end.clone(), port, service);
            }
            Ok(found)
        }
    }
}

fn add(found: &mut Vec<Target>, end: Endpoint, port: u16, service: Option<Name>) {
    match found.iter_mut().find(|t| t.port == port && t.through == service) {
        Some(target) => target.ends.push(end),
        None => found.push(Target { ends: vec![end], port, through: service }),
    }
}

/// The pod does not listen on this port as far as is known, and a Service in front of it has it, leading to another one.
fn in_front(cluster: &Cluster, pod: &Pod, protocol: Protocol, port: u16) -> Option<(u16, Name)> {
    if pod.ports.iter().any(|p| p.port == port && p.protocol == protocol) {
        return None;
    }
    let selects = |s: &&Service| !s.selector.is_empty() && s.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
    let mut behind = None;
    for service in cluster.services_in(&pod.name.namespace).filter(selects) {
        for entry in service.ports.iter().filter(|e| e.protocol == protocol) {
            let target = cluster.selected(service, entry).find(|(p, _)| p.name == pod.name).map(|(_, port)| port);
            match target {
                Some(target) if target == port => return None,
                Some(target) if entry.port == port && behind.is_none() => behind = Some((target, service.name.clone())),
                Some(_) | None => {}
            }
        }
    }
    behind
}

fn through(cluster: &Cluster, name: &Name, protocol: Protocol, port: u16) -> anyhow::Result<Vec<Target>> {
    let service = cluster.service(name).with_context(|| format!("there is no Service {name}"))?;
    let entry = service.ports.iter().find(|p| p.port == port && p.protocol == protocol).with_context(|| {
        let ports: Vec<String> = service.ports.iter().map(|p| format!("{}/{}", p.port, p.protocol)).collect();
        format!("Service {name} has no port {port}/{protocol}; it has {}", ports.join(", "))
    })?;
    let mut found = Vec::new();
    for (address, port) in cluster.endpoints(name, protocol, port) {
        add(&mut found, at(cluster, address), port, Some(name.clone()));
    }
    if found.is_empty() {
        for (backend, port) in cluster.selected(service, entry) {
            add(&mut found, pod(backend), port, Some(name.clone()));
        }
    }
    if found.is_empty() {
        bail!("Service {name} leads to no pod or address that was read");
    }
    Ok(found)
}
