//! `weir check --traffic`: what candidates would break of what an agent has observed, without the agent.
//!
//! A recording holds objects and observations: it is replayed, and judged by the same engine as live. A snapshot holds what was
//! observed; the objects that the candidates are judged on come from `--cluster`.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Serialize;
use weir_engine::cluster::{Object, Origin};
use weir_engine::engine::{Candidate, Engine, Input, Settings, Snapshot};
use weir_engine::policy::{Admission, Endpoint, Flow};
use weir_engine::snapshot::{CandidatePolicy, Effect, EndView, InstanceView, PairView, TrafficView};
use weir_engine::time::Time;
use weir_engine::words::{Direction, Name, Protocol};

use super::super::manifests::Source;
use super::super::table::{Table, wrap};
use super::super::{Exit, out};
use crate::outputs::log::end;
use crate::outputs::text::clean;
use crate::run::record::Recording;

/// Version of the JSON.
const VERSION: u32 = 1;
/// Longer than any debounce of the engine.
const LATER: std::time::Duration = std::time::Duration::from_secs(1);

/// What the candidates would do to what was observed.
#[derive(Debug, Default, Serialize)]
struct Report {
    version: u32,
    /// The candidates.
    candidates: Vec<CandidatePolicy>,
    /// Flows that would be denied and are not now: what was observed most first.
    breaks: Vec<Broken>,
    /// Observed flows of which nothing can be said: their ends are not among the objects.
    untold: Vec<Broken>,
    /// Flows judged.
    judged: usize,
}

/// One flow between two workloads.
#[derive(Clone, Debug, Serialize)]
struct Broken {
    /// Of the catalogue; `none` for traffic that no flow requires.
    flow: String,
    source: EndView,
    destination: EndView,
    protocol: Protocol,
    port: u16,
    /// Observed attempts; 0 for a required flow that was not seen.
    attempts: u64,
    /// Sides that would not admit.
    directions: Vec<Direction>,
    /// Policies that would select the ends there.
    policies: Vec<String>,
}

/// Judges and prints. Exit codes as `weir check`.
///
/// # Errors
/// When a file cannot be read, or a snapshot comes without objects.
pub fn run(traffic: &Path, source: &Source, json: bool) -> anyhow::Result<Exit> {
    let (files, cluster, incomplete) = source.parts()?;
    let candidates: Vec<Candidate> = files
        .into_iter()
        .filter_map(|(object, _)| match object {
            Object::NetworkPolicy(policy) => Some(Candidate::new(*policy)),
            _ => None,
        })
        .collect();
    if candidates.is_empty() {
        bail!("no candidates: -f names no NetworkPolicy");
    }
    let report = if Recording::open(traffic).is_ok() {
        recorded(traffic, candidates)?
    } else {
        observed(traffic, cluster, candidates, source)?
    };
    if json {
        out::json(&report)?
    } else {
        // A recording brings the cluster's objects along; who asks further has to.
        let cluster = if source.cluster.is_empty() { " --cluster CLUSTER" } else { "" };
        out::print(&page(&report, &format!("{}{cluster}", source.arguments())))?
    }
    Ok(match (report.breaks.is_empty(), incomplete || !report.untold.is_empty()) {
        (false, _) => Exit::Findings,
        (true, true) => Exit::Failed,
        (true, false) => Exit::Fine,
    })
}

/// Everything is in the recording.
fn recorded(path: &Path, candidates: Vec<Candidate>) -> anyhow::Result<Report> {
    let mut recording = Recording::open(path)?;
    let mut engine = Engine::new(recording.settings.clone());
    let mut last = Time::default();
    while let Some((now, input)) = recording.next_input()? {
        last = now;
        // Those of the agent that recorded are not those in question.
        if matches!(input, Input::Candidates { .. }) {
            continue;
        }
        if let Err(error) = engine.input(now, input) {
            anstream::eprintln!("weir: at {now}: {}", clean(&error.to_string()));
        }
        while engine.poll_transition().is_some() {}
    }
    engine.candidates(last, "-f", candidates);
    engine.handle_timeout(last.plus(LATER));
    let snapshot = engine.snapshot(last.plus(LATER));
    let mut report = Report::of(&snapshot);
    for pair in &snapshot.pairs {
        report.pair(pair, pair.attempts);
    }
    for seen in &snapshot.traffic {
        report.traffic(seen);
    }
    Ok(report.sorted())
}

/// A snapshot's traffic on the cluster's objects.
fn observed(
    path: &Path,
    objects: Vec<(Object, Origin)>,
    candidates: Vec<Candidate>,
    source: &Source,
) -> anyhow::Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let seen: Snapshot = serde_json::from_str(&text)
        .with_context(|| format!("{} is neither a recording nor a snapshot of weir", path.display()))?;
    if objects.is_empty() {
        bail!(
            "a snapshot does not hold the cluster's objects: add --cluster with what `kubectl get \
             ns,no,po,svc,endpointslices,netpol -A -o yaml` prints, or give a recording of `weir run --record`"
        );
    }
    let now = Time(1);
    let mut engine = Engine::new(Settings { profile: source.reading.engine, ..Settings::default() });
    for (object, origin) in objects {
        engine.apply(now, object, origin);
    }
    engine.synced(now);
    engine.candidates(now, "-f", candidates);
    engine.handle_timeout(now.plus(LATER));
    let snapshot = engine.snapshot(now.plus(LATER));
    let mut report = Report::of(&snapshot);
    let key = |p: &PairView| (p.flow.clone(), p.source.clone(), p.destination.clone(), p.protocol, p.port);
    for pair in &snapshot.pairs {
        let attempts = seen.pairs.iter().find(|s| key(s) == key(pair)).map_or(0, |s| s.attempts);
        report.pair(pair, attempts);
    }
    // What the agent learnt from traffic is in no object.
    for pair in seen.pairs.iter().filter(|p| p.attempts > 0 && !snapshot.pairs.iter().any(|s| key(s) == key(p))) {
        let instance = pair.evidence.as_ref().map(|e| &e.instance);
        let flow = Broken::new(&pair.flow, (&pair.source, &pair.destination), pair.protocol, pair.port, pair.attempts);
        report.instance(&engine, flow, instance);
    }
    for traffic in &seen.traffic {
        let ends = (&traffic.source, &traffic.destination);
        let flow = Broken::new("none", ends, traffic.protocol, traffic.port, traffic.attempts);
        report.instance(&engine, flow, Some(&traffic.instance));
    }
    Ok(report.sorted())
}

impl Broken {
    fn new(flow: &str, ends: (&EndView, &EndView), protocol: Protocol, port: u16, attempts: u64) -> Self {
        Self {
            flow: flow.to_owned(),
            source: ends.0.clone(),
            destination: ends.1.clone(),
            protocol,
            port,
            attempts,
            directions: Vec::new(),
            policies: Vec::new(),
        }
    }
}

impl Report {
    fn of(snapshot: &Snapshot) -> Self {
        let candidates = snapshot.candidates.as_ref().map(|c| c.policies.clone()).unwrap_or_default();
        Self { version: VERSION, candidates, ..Self::default() }
    }

    fn pair(&mut self, pair: &PairView, attempts: u64) {
        let Some(candidate) = &pair.candidate else { return };
        self.judged += 1;
        let ends = (&pair.source, &pair.destination);
        let flow = Broken {
            directions: candidate.directions.clone(),
            policies: candidate.policies.clone(),
            ..Broken::new(&pair.flow, ends, pair.protocol, pair.port, attempts)
        };
        match candidate.effect {
            Effect::Breaks => self.breaks.push(flow),
            Effect::Opens | Effect::Same => {}
        }
    }

    fn traffic(&mut self, seen: &TrafficView) {
        let Some(candidate) = &seen.candidate else { return };
        self.judged += 1;
        if candidate.effect == Effect::Breaks {
            let ends = (&seen.source, &seen.destination);
            self.breaks.push(Broken {
                directions: candidate.directions.clone(),
                policies: candidate.policies.clone(),
                ..Broken::new("none", ends, seen.protocol, seen.port, seen.attempts)
            });
        }
    }

    /// One concrete source and destination, by name.
    fn instance(&mut self, engine: &Engine, mut flow: Broken, instance: Option<&InstanceView>) {
        let ends = instance.and_then(|i| Some((endpoint(engine, &i.source)?, endpoint(engine, &i.destination)?)));
        let Some((source, destination)) = ends else {
            self.untold.push(flow);
            return;
        };
        self.judged += 1;
        let asked = Flow { source, destination, protocol: flow.protocol, port: flow.port, dialled: None };
        let Some((enforced, candidate)) = engine.decide_twice(&asked) else { return };
        if candidate.admission() == Admission::NotAdmitted && enforced != Admission::NotAdmitted {
            flow.directions = candidate.denying().map(|(direction, _)| direction).collect();
            let names = candidate.denying().flat_map(|(_, side)| side.selecting()).map(ToString::to_string);
            flow.policies = names.collect();
            flow.policies.sort();
            flow.policies.dedup();
            self.breaks.push(flow);
        }
    }

    fn sorted(mut self) -> Self {
        let order = |b: &Broken| (std::cmp::Reverse(b.attempts), b.source.clone(), b.destination.clone(), b.port);
        self.breaks.sort_by_key(order);
        self.untold.sort_by_key(order);
        self
    }
}

/// As snapshots name it: a pod that still exists, a node, an address.
fn endpoint(engine: &Engine, text: &str) -> Option<Endpoint> {
    if let Some(name) = text.strip_prefix("node ") {
        return engine.cluster().node(name).map(|n| Endpoint::Node { name: n.name.clone(), address: None });
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Endpoint::Address(address));
    }
    let (namespace, name) = text.split_once('/')?;
    let pod = engine.cluster().pod(&Name::new(namespace, name))?;
    Some(Endpoint::Pod { name: pod.name.clone(), address: None })
}

fn page(report: &Report, arguments: &str) -> String {
    let mut text = String::new();
    if !report.breaks.is_empty() {
        let mut table = Table::new(&["flow", "source → destination", "port", "attempts"], 1);
        for b in &report.breaks {
            let note = format!("policies: {}", b.policies.join(", "));
            let ends = format!("{} → {}", end(&b.source), end(&b.destination));
            let port = format!("{}/{}", b.port, b.protocol);
            table.row([(&b.flow).into(), ends.into(), port.into(), b.attempts.to_string().into()], Some(&note));
        }
        text = format!("{}\n", table.render());
    }
    let seen = report.breaks.iter().filter(|b| b.attempts > 0).count();
    let (all, judged) = (report.breaks.len(), report.judged);
    text.push_str(&format!("{all} of {judged} flows would be denied, {seen} of them with observed traffic\n"));
    if !report.untold.is_empty() {
        let untold = report.untold.len();
        text.push_str(&format!("{untold} observed flows cannot be judged: their pods are not among the objects\n"));
    }
    text.push_str(&wrap(&format!("next: {}", clean(&next_step(report, arguments)))));
    text
}

/// What to do about it.
fn next_step(report: &Report, arguments: &str) -> String {
    let Some(first) = report.breaks.first() else {
        return if report.untold.is_empty() {
            "nothing that was observed would be denied: `kubectl apply` them, once what was observed is all the traffic there is"
                .to_owned()
        } else {
            "take the snapshot and the cluster's objects at the same time, and check again".to_owned()
        };
    };
    let udp = if first.protocol == Protocol::Udp { "/udp" } else { "" };
    let (source, destination, port) = (end(&first.source), end(&first.destination), first.port);
    format!(
        "`weir explain {source} {destination} {port}{udp} {arguments}` says why; open it in the candidates and check again"
    )
}
