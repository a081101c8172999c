//! The objects known, as the API would have written them: a cluster that is given them knows the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::{Cluster, EndpointSlice, Kind, Labels, Namespace, Node, Object, Origin, Phase, Pod, Service, TargetPort};
use crate::words::{Name, Protocol};

/// Kinds of workloads whose pod templates are kept.
const TEMPLATES: [Kind; 6] =
    [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet, Kind::ReplicaSet, Kind::Job, Kind::CronJob];

impl Cluster {
    /// Every object known, as far as it was kept, with where it came from. In this order [`apply`](Self::apply) makes the same
    /// cluster of them; of pods that share an address the younger one comes last.
    #[must_use]
    pub fn objects(&self) -> Vec<(Object, Origin)> {
        let nowhere = |object| (object, Origin::default());
        let mut pods: Vec<&Pod> = self.all_pods().map(|pod| self.written.get(&pod.name).unwrap_or(pod)).collect();
        pods.sort_by_key(|pod| pod.started);
        let namespaces = self.namespaces().map(|o| Object::Namespace(Box::new(namespace(o))));
        let nodes = self.nodes().map(|o| Object::Node(Box::new(node(o))));
        let pods = pods.into_iter().filter_map(pod);
        let services = self.services().map(|o| Object::Service(Box::new(service(o))));
        let slices = self.slices().map(|o| Object::EndpointSlice(Box::new(slice(o))));
        let reduced = namespaces.chain(nodes).chain(pods).chain(services).chain(slices).map(nowhere);
        let policies =
            self.policies().map(|p| (Object::NetworkPolicy(Box::new((*p.object).clone())), p.origin.clone()));
        let wide = self.cluster_policies().map(|p| {
            let object = Box::new((*p.object).clone());
            (Object::AdminPolicy(p.kind, object), p.origin.clone())
        });
        let raw = self.raw.iter().map(|(key, raw)| (Object::Raw(key.kind, raw.object.clone()), raw.origin.clone()));
        reduced.chain(policies).chain(wide).chain(raw).collect()
    }
}

fn namespace(o: &Namespace) -> core::Namespace {
    let metadata = meta::ObjectMeta {
        name: Some(o.name.to_string()),
        labels: map(&o.labels),
        annotations: map(&o.annotations),
        ..meta::ObjectMeta::default()
    };
    core::Namespace { metadata, ..core::Namespace::default() }
}

fn node(o: &Node) -> core::Node {
    let addresses = o.addresses.iter();
    let addresses = addresses.map(|a| core::NodeAddress { address: a.to_string(), type_: "InternalIP".to_owned() });
    let cidrs: Vec<String> = o.pod_cidrs.iter().map(ToString::to_string).collect();
    core::Node {
        metadata: meta::ObjectMeta {
            name: Some(o.name.to_string()),
            labels: map(&o.labels),
            ..meta::ObjectMeta::default()
        },
        spec: Some(core::NodeSpec { pod_cidrs: Some(cidrs), ..core::NodeSpec::default() }),
        status: Some(core::NodeStatus { addresses: Some(addresses.collect()), ..core::NodeStatus::default() }),
    }
}

/// A pod, or a workload with its pod template. The owner written is the workload that was found for it.
fn pod(o: &Pod) -> Option<Object> {
    let owner = meta::OwnerReference {
        kind: o.workload.kind.to_string(),
        name: o.workload.name.to_string(),
        controller: Some(true),
        ..meta::OwnerReference::default()
    };
    let started = o.started.and_then(|s| Timestamp::from_second(s).ok()).map(meta::Time);
    let (kind, name) = match o.name.name.split_once('/').filter(|_| o.template) {
        Some((kind, name)) => {
            let kind = TEMPLATES.into_iter().find(|k| k.as_str().eq_ignore_ascii_case(kind))?;
            (Some(kind), name)
        }
        None => (None, &*o.name.name),
    };
    let metadata = meta::ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(o.name.namespace.to_string()),
        labels: map(&o.labels),
        annotations: map(&o.annotations),
        owner_references: Some(vec![owner]),
        creation_timestamp: started,
        ..meta::ObjectMeta::default()
    };
    let mut containers: Vec<core::Container> = o.containers.iter().map(|name| container(name)).collect();
    if let Some(first) = containers.first_mut() {
        let ports = o.ports.iter().map(|p| core::ContainerPort {
            name: some(&p.name),
            container_port: p.port.into(),
            protocol: spelled(p.protocol),
            ..core::ContainerPort::default()
        });
        first.ports = Some(ports.collect());
        let settings = o.settings.iter();
        let settings = settings.map(|(name, value)| core::EnvVar {
            name: name.to_string(),
            value: Some(value.to_string()),
            ..core::EnvVar::default()
        });
        first.env = Some(settings.collect());
    }
    let addresses: Vec<_> = o.addresses.iter().map(|a| core::PodIP { ip: a.to_string() }).collect();
    let phase = match o.phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        Phase::Unknown => "Unknown",
    };
    let pod = Box::new(core::Pod {
        metadata,
        spec: Some(core::PodSpec {
            node_name: o.node.as_ref().map(ToString::to_string),
            host_network: Some(o.host_network),
            containers,
            ..core::PodSpec::default()
        }),
        status: Some(core::PodStatus {
            phase: Some(phase.to_owned()),
            pod_ips: Some(addresses),
            ..core::PodStatus::default()
        }),
    });
    Some(match kind {
        None => Object::Pod(pod),
        Some(kind) => Object::Template(kind, pod),
    })
}

fn container(name: &str) -> core::Container {
    core::Container { name: name.to_owned(), ..core::Container::default() }
}

fn service(o: &Service) -> core::Service {
    let ports = o.ports.iter().map(|p| core::ServicePort {
        name: some(&p.name),
        port: p.port.into(),
        target_port: Some(match &p.target {
            TargetPort::Number(n) => IntOrString::Int((*n).into()),
            TargetPort::Name(name) => IntOrString::String(name.to_string()),
        }),
        protocol: spelled(p.protocol),
        ..core::ServicePort::default()
    });
    let spec = core::ServiceSpec {
        selector: map(&o.selector),
        cluster_ips: Some(texts(&o.cluster_ips)),
        external_ips: Some(texts(&o.external_ips)),
        ports: Some(ports.collect()),
        type_: Some(o.type_.to_string()),
        external_traffic_policy: o.local_only.then(|| "Local".to_owned()),
        ..core::ServiceSpec::default()
    };
    core::Service { metadata: named(&o.name, map(&o.labels)), spec: Some(spec), status: None }
}

fn slice(o: &EndpointSlice) -> discovery::EndpointSlice {
    let label = o.service.iter().map(|s| ("kubernetes.io/service-name".to_owned(), s.name.to_string()));
    let endpoint = discovery::Endpoint { addresses: texts(&o.addresses), ..discovery::Endpoint::default() };
    let ports = o.ports.iter().map(|(name, port, protocol)| discovery::EndpointPort {
        name: some(name),
        port: Some((*port).into()),
        protocol: spelled(*protocol),
        ..discovery::EndpointPort::default()
    });
    discovery::EndpointSlice {
        address_type: if o.addresses.iter().any(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: vec![endpoint],
        metadata: named(&o.name, Some(label.collect())),
        ports: Some(ports.collect()),
    }
}

fn named(name: &Name, labels: Option<BTreeMap<String, String>>) -> meta::ObjectMeta {
    meta::ObjectMeta {
        name: Some(name.name.to_string()),
        namespace: Some(name.namespace.to_string()),
        labels,
        ..meta::ObjectMeta::default()
    }
}

fn map(labels: &Labels) -> Option<BTreeMap<String, String>> {
    Some(labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|t| !t.is_empty())
}

fn spelled(protocol: Protocol) -> Option<String> {
    Some(protocol.to_string())
}
