//! Cases as JSON: a cluster, its policies, flows and what each of them gets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::Value;
use weir_engine::cluster::{Change, Cluster, Object, Origin};
use weir_engine::policy::{Admission, Endpoint, Flow, Policies, Profile, Side};
use weir_engine::words::{Name, Protocol};

use super::Tally;

/// Flows of every case by its id, for the sequences that refer to them.
pub type Known = BTreeMap<String, Vec<Expected>>;

#[derive(Deserialize)]
struct Case {
    id: String,
    namespaces: Vec<Value>,
    pods: Vec<Value>,
    policies: Vec<Value>,
    flows: Vec<Expected>,
}

/// A flow and what it gets.
#[derive(Clone, Deserialize)]
pub struct Expected {
    src: String,
    dst: String,
    #[serde(default)]
    protocol: Protocol,
    port: u16,
    ipv: Option<u8>,
    expect: bool,
    expect_dir: Option<Sides>,
}

#[derive(Clone, Copy, Deserialize)]
struct Sides {
    egress: bool,
    ingress: bool,
}

#[derive(Deserialize)]
struct Sequence {
    id: String,
    initial: Vec<Value>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Step {
    Apply { object: Value },
    Delete { object: Value },
    Check { case: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Sequence(Sequence),
    Case(Case),
}

/// Judges every case of a file.
pub fn judge(file: &Path, known: &mut Known) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut loops = 0;
    for entry in read(file)? {
        match entry {
            Entry::Case(case) => {
                let failures = judge_case(&case, &mut tally.verdicts).with_context(|| case.id.clone())?;
                tally.count(failures);
                loops += case.flows.iter().filter(|f| f.src == f.dst).count();
                known.insert(case.id, case.flows);
            }
            Entry::Sequence(sequence) => {
                let failures =
                    judge_sequence(&sequence, known, &mut tally.verdicts).with_context(|| sequence.id.clone())?;
                tally.count(failures);
            }
        }
    }
    if loops > 0 {
        tally.notes.push(format!("{loops} flows of a pod to itself, judged as if they left the pod"));
    }
    Ok(tally)
}

fn read(file: &Path) -> Result<Vec<Entry>> {
    let name = file.to_string_lossy();
    let raw = File::open(file)?;
    let mut reader: Box<dyn BufRead> = if name.ends_with(".gz") {
        Box::new(BufReader::new(MultiGzDecoder::new(raw)))
    } else {
        Box::new(BufReader::new(raw))
    };
    if name.trim_end_matches(".gz").ends_with(".ndjson") {
        let lines = reader.lines().filter(|l| !l.as_ref().is_ok_and(|l| l.trim().is_empty()));
        return lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect();
    }
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// A cluster with the policies that follow it.
struct World {
    cluster: Cluster,
    policies: Policies,
}

impl World {
    fn of(objects: impl IntoIterator<Item = Value>) -> Result<Self> {
        // Cases hold flows of a pod to itself, which evaluators answer and networks never ask.
        let mut world = Self { cluster: Cluster::default(), policies: Policies::new(Profile::Spec).with_loopback() };
        for object in objects {
            world.apply(object)?;
        }
        Ok(world)
    }

    fn apply(&mut self, object: Value) -> Result<()> {
        let change = self.cluster.apply(Object::from_value(object)?, Origin::default());
        self.policies.update(&self.cluster, &change);
        Ok(())
    }

    fn delete(&mut self, object: Value) -> Result<()> {
        let change: Change = self.cluster.delete(&Object::from_value(object)?.key());
        self.policies.update(&self.cluster, &change);
        Ok(())
    }

    /// What is wrong with a flow's verdict.
    fn judge(&self, expected: &Expected) -> Option<String> {
        let flow = Flow {
            source: self.end(&expected.src, expected.ipv),
            destination: self.end(&expected.dst, expected.ipv),
            protocol: expected.protocol,
            port: expected.port,
            dialled: None,
        };
        let decision = self.policies.decide(&self.cluster, &flow);
        let fast = self.policies.admits(&self.cluster, &flow);
        let wanted = |admits: bool| if admits { Admission::Admitted } else { Admission::NotAdmitted };
        let right = |side: &Side, admits: bool| side.admission() == wanted(admits);
        let sides = expected.expect_dir;
        let ok = decision.admission() == wanted(expected.expect)
            && fast == decision.admission()
            && sides.is_none_or(|s| right(&decision.egress, s.egress) && right(&decision.ingress, s.ingress));
        (!ok).then(|| {
            let Expected { src, dst, protocol, port, expect, .. } = expected;
            format!("{src} -> {dst} {protocol} {port}: expected {expect}, decided {decision:?}, fast {fast:?}")
        })
    }

    fn end(&self, text: &str, family: Option<u8>) -> Endpoint {
        let Some((namespace, name)) = text.split_once('/') else {
            return text.parse().map_or(Endpoint::External, Endpoint::Address);
        };
        let name = Name::new(namespace, name);
        let of_family = |a: &&IpAddr| family.is_none_or(|f| a.is_ipv4() == (f == 4));
        let pod = self.cluster.pod(&name).filter(|_| family.is_some());
        let address = pod.and_then(|p| p.addresses.iter().find(of_family).copied());
        Endpoint::Pod { name, address }
    }
}

fn judge_case(case: &Case, verdicts: &mut usize) -> Result<Vec<String>> {
    let world = World::of(case.namespaces.iter().chain(&case.pods).chain(&case.policies).cloned())?;
    *verdicts += case.flows.len();
    Ok(case.flows.iter().filter_map(|f| world.judge(f)).map(|wrong| format!("{}: {wrong}", case.id)).collect())
}

fn judge_sequence(sequence: &Sequence, known: &Known, verdicts: &mut usize) -> Result<Vec<String>> {
    let mut world = World::of(sequence.initial.iter().cloned())?;
    let mut failures = Vec::new();
    for (number, step) in sequence.steps.iter().enumerate() {
        match step {
            Step::Apply { object } => world.apply(object.clone())?,
            Step::Delete { object } => world.delete(object.clone())?,
            Step::Check { case } => {
                let flows = known.get(case).with_context(|| format!("step {number} names the unknown case {case}"))?;
                *verdicts += flows.len();
                let wrong = flows.iter().filter_map(|f| world.judge(f));
                failures.extend(wrong.map(|wrong| format!("{} step {number}: {wrong}", sequence.id)));
            }
        }
    }
    Ok(failures)
}
