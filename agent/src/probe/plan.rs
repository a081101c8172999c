//! Which connections there are to open: one per required flow, source pod and destination workload.

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use serde::{Deserialize, Serialize};
use weir_engine::check::Model;
use weir_engine::cluster::{Pod, Service, ServicePort};
use weir_engine::policy::{Admission, Decision, Endpoint, Flow};
use weir_engine::requirement::{Pair, Severity, same};
use weir_engine::words::{Name, Protocol};

use crate::explain::{self, Named};

/// Version of the shape.
pub const VERSION: u32 = 1;
/// Ports on which istiod speaks TLS.
const TLS: [u16; 2] = [15012, 15017];
/// Ports that answer a GET, and where.
const HTTP: [(u16, &str); 4] =
    [(15014, "/metrics"), (15020, "/healthz/ready"), (15021, "/healthz/ready"), (15090, "/stats/prometheus")];
/// Where DNS is asked, whatever port its pods listen on.
const DNS: u16 = 53;

/// Everything there is to open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// By source, then flow.
    pub checks: Vec<Check>,
    /// Flows that cannot be opened from here, each with the reason.
    pub left: Vec<String>,
}

/// One connection to open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Check {
    /// `namespace/pod` that it is opened from.
    pub source: String,
    /// An address of that pod: whose network namespace has it is the pod's.
    pub address: IpAddr,
    /// The catalogue's id.
    pub flow: String,
    /// How bad it is when blocked.
    pub severity: Severity,
    /// To whom.
    pub destination: String,
    /// The Service that the flow goes through, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What is dialled: the Service's address and port, or the destination's own.
    pub to: SocketAddr,
    /// The port of the destination: what policies see.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// What is asked once it is open.
    pub ask: Ask,
    /// What the policies say of it.
    pub admission: Admission,
    /// Policies that select its ends on the sides that do not admit. None of them alone denies.
    pub policies: Vec<String>,
}

/// What is asked of who answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Nothing: the handshake says it all.
    Connect,
    /// Which name its certificate is for; one of these it should be.
    Tls(Vec<String>),
    /// A name that every cluster has.
    Dns,
    /// A page that health checks or scrapers get.
    Http(String),
}

/// Makes a plan.
///
/// # Errors
/// When `from` names nothing that can connect, or a flow is not in the catalogue.
pub fn plan(model: &Model, from: Option<&str>, flows: &[String]) -> anyhow::Result<Plan> {
    let catalogue = model.resolver.catalogue();
    if let Some(unknown) = flows.iter().find(|id| catalogue.flow(id).is_none()) {
        bail!("there is no flow {unknown:?}; `weir flows` lists them");
    }
    let sources = match from.map(|text| explain::parse(model, text)).transpose()? {
        None => None,
        Some(Named::Ends(ends)) => Some(ends),
        Some(Named::Service(name)) => bail!("{name} is a Service, and Services do not connect; name a workload"),
    };
    let mut plan = Plan { version: VERSION, checks: Vec::new(), left: Vec::new() };
    for pair in model.pairs().values() {
        let r = &pair.requirement;
        if !flows.is_empty() && !flows.iter().any(|f| **f == *r.id || **f == *r.code) {
            continue;
        }
        for source in pair.sources.iter() {
            if sources.as_ref().is_some_and(|s| !s.iter().any(|s| same(s, source))) {
                continue;
            }
            let Some((pod, address)) = pod_of(model, source) else { continue };
            // The nearest of several is as good as any: they are one workload.
            let destination =
                pair.destinations.iter().find(|d| !same(d, source) && address_of(model, d, address).is_some());
            let Some(destination) = destination else {
                plan.left.push(format!("{} of {}: {} has no address", r.id, pod.name, pair.key.destination));
                continue;
            };
            plan.checks.extend(check(model, pair, (pod, address, source), destination));
        }
    }
    plan.checks.sort_unstable();
    plan.checks.dedup();
    plan.left.sort_unstable();
    plan.left.dedup();
    Ok(plan)
}

fn check(
    model: &Model,
    pair: &Pair,
    (pod, address, source): (&Pod, IpAddr, &Endpoint),
    destination: &Endpoint,
) -> Option<Check> {
    let target = address_of(model, destination, address)?;
    let (protocol, port) = (pair.key.protocol, pair.key.port);
    let ask = if protocol == Protocol::Udp {
        Ask::Dns
    } else if TLS.contains(&port) {
        Ask::Tls(names(model, destination, port))
    } else {
        let page = HTTP.iter().find(|(http, _)| *http == port);
        page.map_or(Ask::Connect, |(_, path)| Ask::Http((*path).to_owned()))
    };
    // Health checks and scrapers dial the pod itself; everybody else finds it by a name.
    let named = !matches!(ask, Ask::Http(_));
    let service = || service(model, destination, (protocol, port), pair.requirement.service_port, address);
    let service = named.then(service).flatten();
    let dialled = service.as_ref().map(|(_, to)| (to.ip(), to.port()));
    let flow = Flow { source: source.clone(), destination: destination.clone(), protocol, port, dialled };
    let decision: Decision = model.policies.decide(&model.cluster, &flow);
    let mut policies: Vec<String> =
        decision.denying().flat_map(|(_, side)| side.selecting()).map(Name::to_string).collect();
    policies.sort_unstable();
    policies.dedup();
    // A datagram that is no query nobody would answer.
    if protocol == Protocol::Udp && pair.requirement.service_port != Some(DNS) && port != DNS {
        return None;
    }
    Some(Check {
        source: pod.name.to_string(),
        address,
        flow: pair.key.flow.to_string(),
        severity: pair.requirement.severity,
        destination: match destination {
            Endpoint::Pod { name, .. } => name.to_string(),
            Endpoint::Node { name, .. } => format!("node {name}"),
            Endpoint::Address(_) | Endpoint::External => pair.key.destination.to_string(),
        },
        to: service.as_ref().map_or(SocketAddr::new(target, port), |(_, to)| *to),
        service: service.map(|(name, _)| name),
        port,
        protocol,
        ask,
        admission: decision.admission(),
        policies,
    })
}

/// A pod that runs, with an address.
fn pod_of<'a>(model: &'a Model, source: &Endpoint) -> Option<(&'a Pod, IpAddr)> {
    let Endpoint::Pod { name, .. } = source else { return None };
    let pod = model.cluster.pod(name)?;
    Some((pod, *pod.addresses.first()?))
}

/// An address of the same family as the source's.
fn address_of(model: &Model, end: &Endpoint, source: IpAddr) -> Option<IpAddr> {
    let fits = |a: &IpAddr| a.is_ipv4() == source.is_ipv4();
    match end {
        Endpoint::Pod { name, address } => address.filter(fits).or_else(|| {
            let pod = model.cluster.pod(name)?;
            pod.addresses.iter().copied().find(fits)
        }),
        Endpoint::Node { address, .. } => address.filter(fits),
        Endpoint::Address(address) => Some(*address).filter(fits),
        Endpoint::External => None,
    }
}

/// Names of the Services that lead to this port of a pod, as clients inside the cluster dial them.
fn names(model: &Model, destination: &Endpoint, port: u16) -> Vec<String> {
    let services = services(model, destination, (Protocol::Tcp, port));
    services.map(|(s, _)| format!("{}.{}.svc", s.name.name, s.name.namespace)).collect()
}

/// The Service through which clients reach a port, with what they dial: its address of the source's family, and its port.
fn service(
    model: &Model,
    destination: &Endpoint,
    (protocol, port): (Protocol, u16),
    dialled: Option<u16>,
    source: IpAddr,
) -> Option<(String, SocketAddr)> {
    let at = |service: &Service, port: u16| {
        let ip = service.cluster_ips.iter().copied().find(|ip| ip.is_ipv4() == source.is_ipv4())?;
        Some((service.name.to_string(), SocketAddr::new(ip, port)))
    };
    if let Some(address) = address_of(model, destination, source)
        && model.identity.api_server().any(|end| end == (address, port))
    {
        let kubernetes = model.cluster.service(&Name::new("default", "kubernetes"))?;
        return at(kubernetes, kubernetes.ports.iter().find(|p| p.protocol == protocol)?.port);
    }
    let fits = |to: u16| dialled.is_none_or(|d| d == to);
    services(model, destination, (protocol, port)).filter(|(_, to)| fits(*to)).find_map(|(s, to)| at(s, to))
}

/// Services that lead to a port of a pod, each with its own port.
fn services<'a>(
    model: &'a Model,
    destination: &'a Endpoint,
    (protocol, port): (Protocol, u16),
) -> impl Iterator<Item = (&'a Service, u16)> {
    let pod = match destination {
        Endpoint::Pod { name, .. } => Some(name),
        Endpoint::Node { .. } | Endpoint::Address(_) | Endpoint::External => None,
    };
    let all = pod.into_iter().flat_map(|pod| model.cluster.services_in(&pod.namespace).map(move |s| (pod, s)));
    all.filter_map(move |(pod, service)| {
        let leads = |entry: &&ServicePort| {
            entry.protocol == protocol
                && model.cluster.selected(service, entry).any(|(p, to)| p.name == *pod && to == port)
        };
        service.ports.iter().find(leads).map(|entry| (service, entry.port))
    })
}
