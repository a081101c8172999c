//! Flows of a fixture as real attempts: who dials which address from where, and that services lead each of them to the
//! endpoint the fixture means.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::{MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::clients::{Attempt, Waiting};
use crate::fixture::{End, Flow};
use crate::ipv6::{Family, in_family};
use crate::mesh::Mesh;
use crate::netns::Netns;
use crate::outcome::FlowResult;
use crate::topology::plan::Host;
use crate::topology::services::{Affinity, AffinityKey, Backend, UNTRANSLATED};
use crate::topology::wiring::host_prefix;

/// How flows are driven.
#[derive(Debug, Clone, Copy)]
pub struct DriveOptions {
    /// Address family; none for the one of the addresses that the fixture itself names first.
    pub family: Option<Family>,
    /// When a client gives up.
    pub timeout: Duration,
    /// How TCP clients wait.
    pub waiting: Waiting,
}

/// Which endpoint of a service each client is led to, and which node passes on what comes from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Steering {
    affinity: Affinity,
    entrances: BTreeMap<IpAddr, usize>,
}

/// A flow ready to be driven.
pub(crate) struct Route<'a> {
    namespace: &'a Netns,
    attempt: Attempt,
    destination: SocketAddr,
    affinity: Option<(AffinityKey, Backend)>,
    entrance: Option<(IpAddr, usize)>,
}

impl Default for DriveOptions {
    fn default() -> Self {
        Self { family: None, timeout: Duration::from_secs(1), waiting: Waiting::NonBlocking }
    }
}

/// Drives flows; those that need a service to lead the same client to different endpoints take turns.
pub(crate) fn drive(mesh: &Mesh, flows: &[Flow], options: &DriveOptions) -> Result<Vec<FlowResult>> {
    let mut waiting = Vec::new();
    for (index, flow) in flows.iter().enumerate() {
        let route = route(mesh, flow, options).with_context(|| format!("flow {} cannot be driven", flow.id))?;
        waiting.push((index, route));
    }
    let mut results: Vec<Option<FlowResult>> = flows.iter().map(|_| None).collect();
    while !waiting.is_empty() {
        let mut installed = steering(mesh);
        let mut wanted = Steering::default();
        let (round, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, route)| wanted.admit(route));
        installed.change_to(mesh, &wanted)?;
        for (index, mut result) in attempt_all(round, flows)? {
            result.reached = result.reached.map(|said| host_name(mesh, said));
            results[index] = Some(result);
        }
        waiting = later;
    }
    results.into_iter().collect::<Option<_>>().context("a flow was left out")
}

/// The host that a server means: a DNS server says its address, where a TCP server says the name itself.
fn host_name(mesh: &Mesh, said: String) -> String {
    let plan = &mesh.topology.plan;
    match said.parse().ok().and_then(|address| plan.host_of(address)) {
        Some(host) => plan.name(host),
        None => said,
    }
}

/// What a flow comes down to in this mesh.
pub(crate) fn route<'a>(mesh: &'a Mesh, flow: &Flow, options: &DriveOptions) -> Result<Route<'a>> {
    let plan = &mesh.topology.plan;
    let family = match options.family {
        Some(family) => family,
        None => own_family(mesh, flow)?,
    };
    let none = || format!("no address in {family:?}");
    let (from, bound) = source(mesh, flow, family)?;
    let source = bound.or_else(|| plan.address(from, family)).with_context(|| format!("{}: {}", flow.from, none()))?;
    let address = match &flow.to {
        End::Ip(address) => in_family(*address, family),
        End::Pod(_) | End::Node { .. } => plan.address(mesh.host(&flow.to)?, family),
    };
    let address = address.with_context(|| format!("{}: {}", flow.to, none()))?;
    let destination = SocketAddr::new(address, flow.port);

    let mut attempt = Attempt::new(flow.protocol, destination);
    attempt.source = bound;
    attempt.timeout = options.timeout;
    attempt.waiting = options.waiting;
    let (mut affinity, mut entrance) = (None, None);
    if let Some(via) = &flow.via_service {
        let name = format!("service {}:{}", via.service, via.port);
        ensure!(mesh.cluster.service(&via.service).is_some(), "there is no {name}");
        let entry = mesh.services.find(&via.service, via.port, flow.protocol, family);
        let entry = entry.with_context(|| format!("{name} has no such port in {family:?}"))?;
        let backend = Backend { address, protocol: flow.protocol, port: flow.port };
        ensure!(entry.backends.contains(&backend), "{destination} is no endpoint of {name}");
        // A headless service has no address of its own: its name leads to the endpoints.
        if let Some(virtual_address) = entry.address(from == Host::Outside) {
            attempt.to = SocketAddr::new(virtual_address, via.port);
            let key = AffinityKey { source, address: virtual_address, protocol: flow.protocol, port: via.port };
            affinity = Some((key, backend));
            let node = plan.host_of(address).and_then(|host| plan.carrier(host));
            entrance = node.filter(|_| from == Host::Outside).map(|node| (virtual_address, node));
        }
    } else if mesh.services.has_address(address) {
        attempt.dscp = UNTRANSLATED;
    }
    let namespace = mesh.topology.namespace(from).with_context(|| format!("{} is far", flow.from))?;
    Ok(Route { namespace, attempt, destination, affinity, entrance })
}

/// The family of the address that a flow names, else of its destination's first one.
fn own_family(mesh: &Mesh, flow: &Flow) -> Result<Family> {
    if let End::Ip(address) | End::Node { ip: Some(address), .. } = &flow.from {
        return Ok(Family::of(*address));
    }
    if let End::Ip(address) = &flow.to {
        return Ok(Family::of(*address));
    }
    let first = mesh.topology.plan.addresses(mesh.host(&flow.to)?).first();
    first.map(|address| Family::of(*address)).with_context(|| format!("{} has no address", flow.to))
}

/// Leads the flows' clients to their endpoints as far as that can be done for all at once, in both families.
pub(crate) fn prepare(mesh: &Mesh, flows: &[Flow]) -> Result<()> {
    let mut wanted = Steering::default();
    for family in [Family::V4, Family::V6] {
        let options = DriveOptions { family: Some(family), ..DriveOptions::default() };
        // A flow that cannot be driven says so when it is driven.
        for route in flows.iter().filter_map(|flow| route(mesh, flow, &options).ok()) {
            wanted.admit(&route);
        }
    }
    for entry in mesh.services.entries() {
        let host = entry.backends.first().and_then(|backend| mesh.topology.plan.host_of(backend.address));
        let node = host.and_then(|host| mesh.topology.plan.carrier(host)).unwrap_or(0);
        for address in &entry.addresses {
            wanted.entrances.entry(*address).or_insert(node);
        }
    }
    let mut installed = steering(mesh);
    wanted.install(mesh, &Steering::default())?;
    *installed = wanted;
    Ok(())
}

/// The host that dials, and the source address it has to bind.
fn source(mesh: &Mesh, flow: &Flow, family: Family) -> Result<(Host, Option<IpAddr>)> {
    let plan = &mesh.topology.plan;
    let convert = |address: &IpAddr| {
        in_family(*address, family).with_context(|| format!("source {address} is not in {family:?}"))
    };
    Ok(match &flow.from {
        End::Pod(_) => (mesh.host(&flow.from)?, None),
        End::Node { ip, .. } => (mesh.host(&flow.from)?, ip.as_ref().map(convert).transpose()?),
        End::Ip(address) => {
            let address = convert(address)?;
            match plan.host_of(address) {
                Some(host) => (host, Some(address)),
                // A link-local source exists on every node; it is meant on the destination's own.
                None => {
                    let node = plan.carrier(mesh.host(&flow.to)?).context("a link-local source needs a node")?;
                    if !plan.nodes[node].local.contains(&address) {
                        bail!("nobody has the source address {address}");
                    }
                    (Host::Node(node), Some(address))
                }
            }
        }
    })
}

fn attempt_all(round: Vec<(usize, Route<'_>)>, flows: &[Flow]) -> Result<Vec<(usize, FlowResult)>> {
    thread::scope(|scope| {
        let running: Vec<_> = round
            .into_iter()
            .map(|(index, route)| {
                scope.spawn(move || {
                    let flow = &flows[index];
                    let attempted = route.attempt.run(route.namespace).with_context(|| format!("flow {}", flow.id))?;
                    let result = FlowResult {
                        id: flow.id.clone(),
                        protocol: flow.protocol,
                        source: attempted.source,
                        dialled: route.attempt.to,
                        destination: route.destination,
                        outcome: attempted.outcome,
                        reached: attempted.said,
                        elapsed: attempted.elapsed,
                    };
                    Ok((index, result))
                })
            })
            .collect();
        running.into_iter().map(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn steering(mesh: &Mesh) -> MutexGuard<'_, Steering> {
    mesh.steering.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Steering {
    /// Takes in what a flow needs, unless that contradicts what is needed already.
    fn admit(&mut self, route: &Route<'_>) -> bool {
        let same_backend = route.affinity.is_none_or(|(key, to)| self.affinity.get(&key).is_none_or(|it| *it == to));
        let same_node = route.entrance.is_none_or(|(key, to)| self.entrances.get(&key).is_none_or(|it| *it == to));
        if same_backend && same_node {
            self.affinity.extend(route.affinity);
            self.entrances.extend(route.entrance);
        }
        same_backend && same_node
    }

    /// Puts what is wanted into force on top of what is, if that is any change.
    fn change_to(&mut self, mesh: &Mesh, wanted: &Self) -> Result<()> {
        let mut changed = self.clone();
        changed.affinity.extend(&wanted.affinity);
        changed.entrances.extend(&wanted.entrances);
        if changed != *self {
            changed.install(mesh, self)?;
            *self = changed;
        }
        Ok(())
    }

    fn install(&self, mesh: &Mesh, before: &Self) -> Result<()> {
        let plan = &mesh.topology.plan;
        for (host, namespace) in mesh.topology.hosts() {
            if let Host::Node(node) = host {
                let pods: Vec<IpAddr> = plan.pods_of(node).flat_map(|pod| &pod.addresses).copied().collect();
                namespace.nft(&mesh.services.rules(&self.affinity, &plan.nodes[node], &pods))?;
            }
        }
        let mut batch = String::new();
        for (address, node) in &self.entrances {
            let changed = before.entrances.get(address) != Some(node);
            let via = plan.address(Host::Node(*node), Family::of(*address));
            if let Some(via) = via.filter(|_| changed && mesh.topology.namespace(Host::Node(*node)).is_some()) {
                let source = plan.address(Host::Outside, Family::of(*address));
                let source = source.map(|source| format!(" src {source}")).unwrap_or_default();
                let prefix = host_prefix(*address);
                let _ = writeln!(batch, "route replace {prefix} via {via} dev node{node} onlink{source}");
            }
        }
        match mesh.topology.namespace(Host::Outside) {
            Some(outside) if !batch.is_empty() => outside.ip(&batch),
            Some(_) | None => Ok(()),
        }
    }
}
