//! What policies make of one connection, from manifests or from what an agent knows, and what its kernel saw of it.

mod ends;
mod page;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::bail;
use serde::Serialize;
use weir_engine::attempt::Attempt;
use weir_engine::check::{Case, Model, Repair, Verdict, judge_all, repair_flows};
use weir_engine::cluster::Service;
use weir_engine::ledger::end_view;
use weir_engine::policy::{Endpoint, Flow};
use weir_engine::requirement::{PairKey, Severity, same};
use weir_engine::snapshot::{PairView, Snapshot};
use weir_engine::words::Protocol;

use crate::outputs::live::Line;
use crate::report::table::instance_text;

pub use ends::{Named, parse};
pub use page::render;

/// A port with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The number.
    pub number: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => bail!("{other:?} is no protocol; there are tcp, udp and sctp"),
        };
        match number.parse() {
            Ok(number @ 1..) => Ok(Self { number, protocol }),
            _ => bail!("{number:?} is no port; write a number from 1 to 65535, as in 15012 or 53/udp"),
        }
    }
}

/// What is said of a connection.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    version: u32,
    /// The worst of the answers.
    pub verdict: Verdict,
    from: String,
    to: String,
    protocol: Protocol,
    /// As asked for.
    port: u16,
    /// One per pod port that it leads to.
    targets: Vec<Answer>,
    /// The smallest policies that open it, tried out, where it is denied.
    fix: Option<Repair>,
    /// Who is asked is an agent, whose kernel may have seen something.
    #[serde(skip)]
    live: bool,
}

/// Of one pod port.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    verdict: Verdict,
    /// The pod port: what policies see.
    port: u16,
    /// The Service whose port was named.
    service: Option<String>,
    instances: usize,
    cases: Vec<Case>,
    /// Required flows that such a connection belongs to.
    required: Vec<Required>,
    #[serde(skip)]
    keys: Vec<PairKey>,
    /// What the agent knows of these flows; only from a running one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    observed: Vec<PairView>,
    /// The newest attempts between these ends, newest first; only from a running one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<Line>,
    #[serde(skip)]
    between: Between,
}

/// Addresses of sources and destinations.
#[derive(Clone, Debug, Default)]
struct Between {
    sources: BTreeSet<IpAddr>,
    destinations: BTreeSet<IpAddr>,
}

/// A flow that the mesh needs.
#[derive(Clone, Debug, Serialize)]
pub struct Required {
    flow: String,
    code: String,
    severity: Severity,
    purpose: String,
    symptom: String,
}

/// Attempts remembered per answer.
const MAX_ATTEMPTS: usize = 5;
/// Concrete sources and destinations named per case.
const MAX_INSTANCES: usize = 20;

/// Judges a connection.
///
/// # Errors
/// When an end is not known, or both are the same.
pub fn explain(model: &Model, from: &str, to: &str, port: Port) -> anyhow::Result<Explanation> {
    let sources = match ends::parse(model, from)? {
        ends::Named::Ends(ends) => ends,
        ends::Named::Service(name) if from == "apiserver" => {
            let targets = ends::targets(&model.cluster, &ends::Named::Service(name), Protocol::Tcp, 443)?;
            targets.into_iter().flat_map(|t| t.ends).collect()
        }
        ends::Named::Service(name) => {
            bail!("{from} is the Service {name}, and Services do not connect; name a workload")
        }
    };
    let destination = ends::parse(model, to)?;
    let targets = ends::targets(&model.cluster, &destination, port.protocol, port.number)?;
    let (mut answers, mut flows) = (Vec::new(), Vec::new());
    for target in targets {
        let pairs =
            || sources.iter().flat_map(|s| target.ends.iter().map(move |d| (s, d))).filter(|(s, d)| !same(s, d));
        let (instances, cases) = judge_all(model, pairs(), port.protocol, target.port, MAX_INSTANCES);
        let Some(first) = cases.first() else { continue };
        if first.verdict == Verdict::Denied {
            flows.extend(pairs().map(|(source, destination)| Flow {
                source: source.clone(),
                destination: destination.clone(),
                protocol: port.protocol,
                port: target.port,
                dialled: None,
            }));
        }
        // Where translation was not seen the Service's own address is all that is known of the destination.
        let led = target.ends.iter().flat_map(|end| services_of(model, end, port.protocol, target.port));
        let led: Vec<IpAddr> = led.collect();
        let (required, keys) = required(model, pairs(), port.protocol, target.port);
        answers.push(Answer {
            verdict: first.verdict,
            port: target.port,
            service: target.through.as_ref().map(ToString::to_string),
            instances,
            required,
            keys,
            observed: Vec::new(),
            attempts: Vec::new(),
            between: Between {
                sources: sources.iter().flat_map(|e| addresses(model, e)).collect(),
                destinations: target.ends.iter().flat_map(|e| addresses(model, e)).chain(led).collect(),
            },
            cases,
        });
    }
    let Some(verdict) = answers.iter().map(|a| a.verdict).min() else {
        bail!("{from} and {to} are the same: what stays inside a pod is no policy's business")
    };
    answers.sort_by_key(|a| (a.verdict, a.port));
    Ok(Explanation {
        version: 1,
        verdict,
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: port.protocol,
        port: port.number,
        targets: answers,
        fix: (!flows.is_empty()).then(|| repair_flows(&mut model.clone(), &flows)),
        live: false,
    })
}

impl Explanation {
    /// Adds what an agent knows of the flows that such a connection belongs to: its kernel's evidence, and the edit at which
    /// the decision last flipped.
    pub fn observe(&mut self, snapshot: &Snapshot) {
        self.live = true;
        for answer in &mut self.targets {
            let is = |key: &PairKey, pair: &PairView| {
                key.flow == pair.flow
                    && (key.port, key.protocol) == (pair.port, pair.protocol)
                    && end_view(&key.source) == pair.source
                    && end_view(&key.destination) == pair.destination
            };
            let known = snapshot.pairs.iter().filter(|p| answer.keys.iter().any(|k| is(k, p)));
            answer.observed = known.cloned().collect();
        }
    }

    /// Adds the newest attempts between these ends, whether the mesh needs them or not.
    pub fn remember(&mut self, recent: &[Attempt], wall_offset_ns: i64) {
        let (protocol, port) = (self.protocol, self.port);
        for answer in &mut self.targets {
            let Between { sources, destinations } = &answer.between;
            let is = |attempt: &&Attempt| {
                let ports = [attempt.dialled.destination_port, attempt.judged().destination_port];
                let ends = [attempt.dialled.destination, attempt.judged().destination];
                attempt.dialled.protocol == protocol
                    && (ports.contains(&answer.port) || ports.contains(&port))
                    && sources.contains(&attempt.dialled.source)
                    && ends.iter().any(|end| destinations.contains(end))
            };
            let newest = recent.iter().rev().filter(is).take(MAX_ATTEMPTS);
            answer.attempts = newest.map(|attempt| Line::between_addresses(attempt, wall_offset_ns)).collect();
        }
    }
}

fn required<'a>(
    model: &Model,
    instances: impl Iterator<Item = (&'a Endpoint, &'a Endpoint)>,
    protocol: Protocol,
    port: u16,
) -> (Vec<Required>, Vec<PairKey>) {
    let asked: Vec<_> = instances.collect();
    let pairs = model.pairs();
    let pairs = pairs.values().filter(|p| p.key.protocol == protocol && p.key.port == port);
    let (mut found, mut keys) = (Vec::<Required>::new(), Vec::new());
    for pair in pairs.filter(|p| asked.iter().any(|(s, d)| p.has(s, d))) {
        let r = &pair.requirement;
        keys.push(pair.key.clone());
        if !found.iter().any(|f| *f.flow == *r.id) {
            found.push(Required {
                flow: r.id.to_string(),
                code: r.code.to_string(),
                severity: r.severity,
                purpose: r.purpose.to_string(),
                symptom: r.symptom.to_string(),
            });
        }
    }
    found.sort_by_key(|r| r.severity);
    (found, keys)
}

/// Addresses of the Services that lead to a port of an end.
fn services_of(model: &Model, end: &Endpoint, protocol: Protocol, port: u16) -> Vec<IpAddr> {
    let Endpoint::Pod { name, .. } = end else { return Vec::new() };
    let cluster = &model.cluster;
    let leads = |service: &&Service| {
        let mut entries = service.ports.iter().filter(|entry| entry.protocol == protocol);
        entries.any(|entry| cluster.selected(service, entry).any(|(pod, to)| pod.name == *name && to == port))
    };
    cluster.services_in(&name.namespace).filter(leads).flat_map(|s| s.cluster_ips.iter().copied()).collect()
}

/// Where an end can be seen.
fn addresses(model: &Model, end: &Endpoint) -> Vec<IpAddr> {
    let cluster = &model.cluster;
    match end {
        Endpoint::Pod { name, address } => {
            let pod = cluster.pod(name).map(|p| p.addresses.iter().copied());
            pod.into_iter().flatten().chain(*address).collect()
        }
        Endpoint::Node { name, address } => {
            let node = cluster.nodes().find(|n| n.name == *name).map(|n| n.addresses.iter().copied());
            node.into_iter().flatten().chain(*address).collect()
        }
        Endpoint::Address(address) => vec![*address],
        Endpoint::External => Vec::new(),
    }
}

/// `app/web-0 → mesh/istiod-0`.
fn ends_of(case: &Case) -> String {
    case.instances.first().map(instance_text).unwrap_or_default()
}
