//! Required pairs against fixtures, both ways: each row with a code of the catalogue has its pair with the right verdict, and
//! no pair is denied that no row and no object speaks for.
//!
//! A row is covered by the objects where `weir check` has its pair from them alone, else by traffic where the pair is there
//! once the row's connection was seen: who calls whom in an application is told by no object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use weir_engine::check::{Connection, InstanceView, Model, Options, Party, Report, Verdict, check};
use weir_engine::words::Name;

use super::fixtures::{Case, End};

/// How the rows of a fixture, or of many, are covered.
#[derive(Debug, Default)]
pub struct Coverage {
    /// Rows with a code of the catalogue, once per state.
    pub rows: usize,
    /// Their pair follows from the objects.
    pub by_objects: usize,
    /// Their pair follows from traffic.
    pub by_traffic: usize,
    /// Codes of the rows that took traffic, with how many.
    pub learnt: BTreeMap<String, usize>,
    /// Rows whose ends and port are judged, but as another flow: what tells the two apart is in no object and no packet.
    pub otherwise: BTreeSet<String>,
    /// Rows without a pair.
    pub uncovered: BTreeSet<String>,
    /// Denied pairs that no row is about, but objects are: other ports, protocols and pods of the catalogue's flows.
    pub beyond: BTreeSet<String>,
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, by_objects, by_traffic, learnt, otherwise, uncovered, beyond } = self;
        let missing = rows - by_objects - by_traffic;
        writeln!(
            f,
            "{rows} rows of required flows: {by_objects} by objects, {by_traffic} by traffic, {missing} without a pair"
        )?;
        let codes: Vec<String> = learnt.iter().map(|(code, rows)| format!("{code} {rows}")).collect();
        writeln!(f, "by traffic, as no object names both ends: {}", codes.join(", "))?;
        for row in otherwise {
            writeln!(f, "by traffic, as another flow: {row}")?;
        }
        for row in uncovered {
            writeln!(f, "without a pair: {row}")?;
        }
        let mut flows: BTreeMap<&str, usize> = BTreeMap::new();
        for pair in beyond {
            *flows.entry(pair.split(' ').next().unwrap_or_default()).or_default() += 1;
        }
        let flows: Vec<String> = flows.iter().map(|(flow, pairs)| format!("{flow} {pairs}")).collect();
        write!(f, "denied by objects, and no row is about them: {}", flows.join(", "))
    }
}

/// Compares the pairs of one state with the rows' results in it; returns what is wrong.
pub fn judge(state: &str, mut model: Model, cases: &[Case], coverage: &mut Coverage) -> Vec<String> {
    let rows: Vec<&Case> = cases.iter().filter(|c| c.catalog.is_some() && c.results.contains_key(state)).collect();
    let before = report(&model);
    let mut wrong = Vec::new();
    let mut unseen = Vec::new();
    for row in &rows {
        coverage.rows += 1;
        match verdict(&model, &before, row) {
            // Where a host outside really is, traffic tells.
            None | Some(Verdict::Undecidable) => unseen.push(*row),
            Some(found) => {
                coverage.by_objects += 1;
                wrong.extend(differs(state, row, found));
            }
        }
    }
    let connections: Vec<Connection> = unseen.iter().map(|row| connection(row)).collect();
    model.observe(&connections);
    let after = report(&model);
    for row in unseen {
        let own = verdict(&model, &after, row);
        if let Some((flow, _)) = any_verdict(&model, &after, row).filter(|_| own.is_none()) {
            coverage.otherwise.insert(format!("{} ({}) is judged as {flow}", row.id, row.code()));
        }
        match own.or_else(|| any_verdict(&model, &after, row).map(|(_, found)| found)) {
            Some(found) => {
                coverage.by_traffic += 1;
                *coverage.learnt.entry(row.code().to_owned()).or_default() += 1;
                wrong.extend(differs(state, row, found));
            }
            None => drop(coverage.uncovered.insert(format!("{} ({}) in {state}", row.id, row.code()))),
        }
    }
    let told_by_objects: BTreeSet<String> = before.pairs.iter().map(key).collect();
    for pair in after.pairs.iter().filter(|p| p.verdict == Verdict::Denied) {
        for case in pair.cases.iter().filter(|c| c.verdict == Verdict::Denied) {
            for instance in &case.instances {
                let on_wire = rows.iter().filter(|row| {
                    pair.port == row.port && pair.protocol == row.protocol && is_row(&model, instance, row)
                });
                let on_wire: Vec<_> = on_wire.collect();
                let row = on_wire.iter().find(|row| *pair.code == *row.code()).or(on_wire.first());
                let name = format!(
                    "{} {} {} {}/{}",
                    pair.flow, instance.source, instance.destination, pair.port, pair.protocol
                );
                match row {
                    Some(row) => wrong.extend(differs(state, row, Verdict::Denied)),
                    None if told_by_objects.contains(&key(pair)) => drop(coverage.beyond.insert(name)),
                    None => {
                        wrong.push(format!("{state}: denied, and neither a row nor an object speaks for it: {name}"))
                    }
                }
            }
        }
    }
    wrong
}

fn report(model: &Model) -> Report {
    check(model, &Options { max_instances: usize::MAX, ..Options::default() })
}

fn key(pair: &weir_engine::check::PairReport) -> String {
    format!("{} {:?} {:?} {} {}", pair.flow, pair.source, pair.destination, pair.port, pair.protocol)
}

fn differs(state: &str, row: &Case, found: Verdict) -> Option<String> {
    let expected = &row.results.get(state)?.verdict;
    let found = match found {
        Verdict::Admitted => "allowed",
        Verdict::Denied => "denied",
        Verdict::Undecidable => "undecidable",
    };
    (found != expected).then(|| format!("{} {state}: the pair is {found}, expected {expected}", row.id))
}

/// What the report says of a row, if it has the row's pair.
fn verdict(model: &Model, report: &Report, row: &Case) -> Option<Verdict> {
    let pairs =
        report.pairs.iter().filter(|p| *p.code == *row.code() && p.port == row.port && p.protocol == row.protocol);
    let mut cases = pairs.flat_map(|p| &p.cases);
    cases.find(|case| case.instances.iter().any(|i| is_row(model, i, row))).map(|case| case.verdict)
}

/// What the report says of a row's packets, whatever they are required for.
fn any_verdict(model: &Model, report: &Report, row: &Case) -> Option<(String, Verdict)> {
    let pairs = report.pairs.iter().filter(|p| p.port == row.port && p.protocol == row.protocol);
    let mut cases = pairs.flat_map(|p| p.cases.iter().map(|case| (p.flow.to_string(), case)));
    cases.find(|(_, case)| case.instances.iter().any(|i| is_row(model, i, row))).map(|(flow, c)| (flow, c.verdict))
}

fn is_row(model: &Model, found: &InstanceView, row: &Case) -> bool {
    is_end(model, &found.source, &row.from) && is_end(model, &found.destination, &row.to)
}

/// An end of the report against a row's.
fn is_end(model: &Model, found: &str, expected: &End) -> bool {
    match expected {
        End { pod: Some(pod), .. } => found == pod || on_node(model, pod).is_some_and(|node| found.starts_with(&node)),
        End { node: Some(node), .. } => found == format!("node {node}") || found.starts_with(&format!("node {node} (")),
        End { ip: Some(ip), .. } => {
            let ip = ip.to_string();
            found == ip || found == "outside" || found.ends_with(&format!("({ip})"))
        }
        End { .. } => false,
    }
}

/// A pod on its node's network is its node.
fn on_node(model: &Model, pod: &str) -> Option<String> {
    let (namespace, name) = pod.split_once('/')?;
    let pod = model.cluster.pod(&Name::new(namespace, name)).filter(|p| p.host_network)?;
    Some(format!("node {} (", pod.node.as_deref()?))
}

fn connection(row: &Case) -> Connection {
    let party = |end: &End| match end {
        End { pod: Some(pod), .. } => Party::Pod(pod.clone()),
        End { node: Some(node), .. } => Party::Node(node.as_str().into()),
        End { ip, .. } => Party::Ip(ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into())),
    };
    // Seen before the policies were there: it came about.
    Connection { from: party(&row.from), to: party(&row.to), protocol: row.protocol, port: row.port, established: true }
}
