//! Services and EndpointSlices: how a dialled address becomes a pod port.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Cluster;
use super::Pod;
use super::labels::{Labels, labels_of};
use super::pod::protocol;
use crate::words::{Name, Protocol};

/// `spec.ports[].targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A container port's name, resolved on each endpoint pod.
    Name(Arc<str>),
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`, empty where there is none.
    pub name: Arc<str>,
    /// `port`: what clients dial.
    pub port: u16,
    /// `targetPort`: the pod port; the same as `port` where absent.
    pub target: TargetPort,
    /// `protocol`.
    pub protocol: Protocol,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: Name,
    /// Labels.
    pub labels: Labels,
    /// `spec.selector`; empty selects nothing.
    pub selector: Labels,
    /// `spec.clusterIPs`; none for headless Services.
    pub cluster_ips: Vec<IpAddr>,
    /// External and load balancer addresses.
    pub external_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `spec.type`.
    pub type_: Arc<str>,
    /// `spec.externalTrafficPolicy` is Local.
    pub local_only: bool,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: Name,
    /// The Service it belongs to (label `kubernetes.io/service-name`), if any.
    pub service: Option<Name>,
    /// Addresses of ready (or not known to be unready) endpoints.
    pub addresses: Vec<IpAddr>,
    /// `(port name, port, protocol)`.
    pub ports: Vec<(Arc<str>, u16, Protocol)>,
}

impl Service {
    /// Reduces an API Service.
    #[must_use]
    pub fn from_api(o: &core::Service) -> Self {
        let meta = &o.metadata;
        let spec = o.spec.clone().unwrap_or_default();
        let ips = spec.cluster_ips.unwrap_or_default();
        let all = ips.iter().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok());
        let mut cluster_ips: Vec<IpAddr> = Vec::new();
        for ip in all {
            if !cluster_ips.contains(&ip) {
                cluster_ips.push(ip);
            }
        }
        let balancer = o.status.as_ref().and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_ref());
        let external =
            spec.external_ips.iter().flatten().chain(balancer.into_iter().flatten().filter_map(|i| i.ip.as_ref()));
        let ports = spec.ports.iter().flatten().filter_map(|p| {
            let port = u16::try_from(p.port).ok()?;
            let target = match &p.target_port {
                None | Some(IntOrString::Int(0)) => TargetPort::Number(port),
                Some(IntOrString::Int(n)) => TargetPort::Number(u16::try_from(*n).ok()?),
                Some(IntOrString::String(s)) => TargetPort::Name(s.as_str().into()),
            };
            let name = p.name.as_deref().unwrap_or("").into();
            Some(ServicePort { name, port, target, protocol: protocol(p.protocol.as_deref())? })
        });
        Self {
            name: Name::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or("")),
            labels: labels_of(meta.labels.as_ref()),
            selector: labels_of(spec.selector.as_ref()),
            cluster_ips,
            external_ips: external.filter_map(|ip| ip.parse().ok()).collect(),
            ports: ports.collect(),
            type_: spec.type_.as_deref().unwrap_or("ClusterIP").into(),
            local_only: spec.external_traffic_policy.as_deref() == Some("Local"),
        }
    }
}

impl EndpointSlice {
    /// Reduces an API EndpointSlice.
    #[must_use]
    pub fn from_api(o: &discovery::EndpointSlice) -> Self {
        let meta = &o.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let service = meta.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        let ready = o.endpoints.iter().filter(|e| e.conditions.as_ref().and_then(|c| c.ready) != Some(false));
        Self {
            name: Name::new(namespace, meta.name.as_deref().unwrap_or("")),
            service: service.map(|s| Name::new(namespace, s.as_str())),
            addresses: ready.flat_map(|e| e.addresses.iter().filter_map(|a| a.parse().ok())).collect(),
            ports: o
                .ports
                .iter()
                .flatten()
                .filter_map(|p| {
                    let port = u16::try_from(p.port?).ok()?;
                    Some((p.name.as_deref().unwrap_or("").into(), port, protocol(p.protocol.as_deref())?))
                })
                .collect(),
        }
    }
}

pub(super) fn resolve(cluster: &Cluster, name: &Name, wanted: Protocol, port: u16) -> Vec<(IpAddr, u16)> {
    let Some(service) = cluster.service(name) else { return Vec::new() };
    let Some(entry) = service.ports.iter().find(|p| p.port == port && p.protocol == wanted) else { return Vec::new() };
    let mut found: Vec<(IpAddr, u16)> = cluster
        .slices_of(name)
        .flat_map(|s| {
            let port =
                s.ports.iter().find(|(n, _, proto)| *n == entry.name && *proto == wanted).map(|(_, port, _)| *port);
            s.addresses.iter().filter_map(move |a| Some((*a, port?)))
        })
        .collect();
    if found.is_empty() {
        for (pod, port) in selected(cluster, service, entry) {
            found.extend(pod.addresses.iter().map(|a| (*a, port)));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The pods and templates that a Service's selector names, with the pod port its port leads to.
pub(super) fn selected<'a>(
    cluster: &'a Cluster,
    service: &'a Service,
    entry: &'a ServicePort,
) -> impl Iterator<Item = (&'a Pod, u16)> {
    let pods = (!service.selector.is_empty()).then(|| cluster.pods_in(&service.name.namespace)).into_iter().flatten();
    pods.filter(|p| !p.finished() && service.selector.iter().all(|(k, v)| p.labels.get(k) == Some(v))).filter_map(
        |pod| {
            let port = match &entry.target {
                TargetPort::Number(n) => Some(*n),
                TargetPort::Name(n) => {
                    pod.ports.iter().find(|p| p.name == *n && p.protocol == entry.protocol).map(|p| p.port)
                }
            };
            Some((pod, port?))
        },
    )
}
