//! A fixture rehearsed with the real agent: the mesh carries real packets under real rules, the agent watches, and what it
//! reports is held against what the fixture says is right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Agent, AgentOptions, replace_file};
use crate::cni::Enforcement;
use crate::drive::DriveOptions;
use crate::fixture::{End, Fixture, Flow, State, Verdict};
use crate::ipv6::Family;
use crate::mesh::{Mesh, MeshOptions};
use crate::objects::Objects;
use crate::outcome::FlowResult;

/// How long the agent may take to read an edit of its manifests: it looks four times a second and believes a file once it
/// looked the same twice.
const EDIT: Duration = Duration::from_millis(1500);

/// A mesh with an agent beside it.
#[derive(Debug)]
pub struct Rehearsal {
    /// The fixture.
    pub fixture: Fixture,
    /// The agent. Stopped before the mesh goes.
    pub agent: Agent,
    /// The mesh.
    pub mesh: Mesh,
    manifests: TempDir,
}

/// What the agent said of one flow of the fixture.
#[derive(Debug, Clone)]
pub struct Row {
    /// The flow's id in the fixture.
    pub id: String,
    /// Code of the catalogue.
    pub code: String,
    /// What the packets did.
    pub result: FlowResult,
    /// The state that is right: `verified` or `denied`. The worst of a pair's flows speaks for the pair.
    pub expected: &'static str,
    /// The agent's pair (see `weir_engine::snapshot::PairView`); none if it has no such pair.
    pub pair: Option<Value>,
    /// What is wrong with it; empty if nothing is.
    pub faults: Vec<String>,
}

/// The comparison of one state of the fixture.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// One row for each flow with a code of the catalogue.
    pub rows: Vec<Row>,
    /// Pairs that accuse a policy (`denied`, `unexplained`, `unenforced`) and that no flow of the fixture stands for.
    pub accused: Vec<String>,
}

impl Rehearsal {
    /// Brings up the mesh under the fixture's first state, and the agent with the same objects.
    pub fn begin(fixture: Fixture, binary: PathBuf, enforcement: Enforcement) -> Result<Self> {
        Self::with(fixture, binary, enforcement, &MeshOptions::default(), &[])
    }

    /// The same with far nodes, and with more arguments of `weir run`.
    pub fn with(
        fixture: Fixture,
        binary: PathBuf,
        enforcement: Enforcement,
        options: &MeshOptions,
        arguments: &[&str],
    ) -> Result<Self> {
        let mesh = Mesh::with(&fixture.cluster, &fixture.flows, options)?;
        let manifests = tempfile::Builder::new().prefix("weir-manifests-").tempdir()?;
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": mesh.manifests() });
        fs::write(manifests.path().join("cluster.json"), serde_json::to_string_pretty(&list)?)?;
        let state = fixture.states.first().context("a fixture without states")?;
        write_policies(&manifests, state)?;
        let mesh_config = fixture.dir.join("mesh-config.yaml");
        if mesh_config.is_file() {
            fs::copy(&mesh_config, manifests.path().join("mesh-config.yaml"))?;
        }
        mesh.apply_policies(&state.policies, enforcement)?;
        let options = AgentOptions {
            binary,
            manifests: Some(manifests.path().to_owned()),
            arguments: ["--grace", "300ms", "--window", "60s"].iter().chain(arguments).map(|&a| a.to_owned()).collect(),
        };
        let agent = Agent::start(&options)?;
        Ok(Self { fixture, agent, mesh, manifests })
    }

    /// Puts another state of the fixture into force: in the kernel and in the agent's manifests.
    pub fn enter(&self, state: &str, enforcement: Enforcement) -> Result<()> {
        let state = self.fixture.state(state)?;
        self.mesh.apply_policies(&state.policies, enforcement)?;
        write_policies(&self.manifests, state)?;
        thread::sleep(EDIT);
        Ok(())
    }

    /// A flow of the fixture by its id.
    pub fn flow(&self, id: &str) -> Result<&Flow> {
        self.fixture.flows.iter().find(|flow| flow.id == id).with_context(|| format!("there is no flow {id}"))
    }

    /// The agent's pair for a flow, as it is now.
    pub fn pair(&self, flow: &Flow) -> Result<Option<Value>> {
        let snapshot = self.agent.snapshot()?;
        let code = flow.catalog.as_deref().context("a flow without a code of the catalogue")?;
        let pairs = snapshot["pairs"].as_array().context("a snapshot without pairs")?;
        Ok(pairs.iter().find(|pair| self.stands_for(pair, code, flow)).cloned())
    }

    /// Drives one flow and waits until the agent's pair is in `state`; returns the pair and the time since connect().
    ///
    /// # Errors
    /// When it is not there after `patience`; the error has what it is instead, and the agent's log.
    pub fn drive_until(
        &self,
        flow: &Flow,
        options: &DriveOptions,
        state: &str,
        patience: Duration,
    ) -> Result<(Value, Duration)> {
        thread::sleep(Duration::from_millis(400)); // past the grace window of the last edit
        let start = Instant::now();
        thread::scope(|scope| {
            let driving = scope.spawn(|| self.mesh.drive(std::slice::from_ref(flow), options));
            let seen = loop {
                let pair = self.pair(flow)?.unwrap_or_default();
                if pair["state"] == state {
                    break Ok((pair, start.elapsed()));
                }
                if start.elapsed() > patience {
                    break Err(anyhow!("{} is not {state}: {}\n{}", flow.id, line(&pair), self.agent.log()));
                }
                thread::sleep(Duration::from_millis(10));
            };
            driving.join().map_err(|_| anyhow!("the driver panicked"))??;
            seen
        })
    }

    /// Drives every flow of the fixture again and again until the agent reports what is right, at most for `patience`.
    pub fn compare(&self, state: &str, family: Family, patience: Duration) -> Result<Comparison> {
        let options = DriveOptions { family: Some(family), ..DriveOptions::default() };
        let flows: Vec<Flow> =
            self.fixture.flows.iter().filter(|f| self.mesh.cannot_carry(f, &options).is_none()).cloned().collect();
        let begin = Instant::now();
        loop {
            let results = self.mesh.drive(&flows, &options)?;
            let settled = Instant::now();
            loop {
                let comparison = self.against(state, &flows, &results)?;
                if comparison.faultless() || begin.elapsed() > patience {
                    return Ok(comparison);
                }
                if settled.elapsed() > Duration::from_secs(2) {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn against(&self, state: &str, flows: &[Flow], results: &[FlowResult]) -> Result<Comparison> {
        let snapshot = self.agent.snapshot()?;
        let pairs = snapshot["pairs"].as_array().context("a snapshot without pairs")?;
        let mut stood_for = vec![false; pairs.len()];
        let mut rows = Vec::new();
        // Several flows of a fixture may be one pair: of its pods, or of addresses outside.
        let mut pair_of = Vec::new();
        let mut denied_pairs: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for flow in flows {
            let Some(code) = &flow.catalog else {
                pair_of.push(None);
                continue;
            };
            let index = pairs.iter().position(|pair| self.stands_for(pair, code, flow));
            pair_of.push(index);
            let right = flow.results.get(state).with_context(|| format!("{}: no result in {state}", flow.id))?;
            if let Some(index) = index.filter(|_| right.verdict == Verdict::Denied) {
                denied_pairs.entry(index).or_default().extend(self.due(flow, right));
            }
        }
        for ((flow, result), index) in flows.iter().zip(results).zip(pair_of) {
            let Some(code) = &flow.catalog else { continue };
            let right = flow.results.get(state).with_context(|| format!("{}: no result in {state}", flow.id))?;
            let pair_is_denied = index.is_some_and(|index| denied_pairs.contains_key(&index));
            let expected = if right.verdict == Verdict::Denied || pair_is_denied { "denied" } else { "verified" };
            let mut faults = Vec::new();
            if result.outcome.reachable() != (right.verdict == Verdict::Allowed) {
                faults.push(format!("the packets say {}", result.outcome));
            }
            match index {
                None => faults.push("no such pair".to_owned()),
                Some(index) => {
                    stood_for[index] = true;
                    let said = pairs[index]["state"].as_str().unwrap_or("?");
                    if said != expected {
                        faults.push(format!("reported {said}: {}", pairs[index]["why"].as_str().unwrap_or("")));
                    }
                    if expected == "denied" {
                        let named = strings(&pairs[index]["policies"]);
                        let due: Vec<String> = denied_pairs.get(&index).into_iter().flatten().cloned().collect();
                        if named != due {
                            faults.push(format!("names {named:?}, not {due:?}"));
                        }
                    }
                }
            }
            let pair = index.map(|index| pairs[index].clone());
            rows.push(Row { id: flow.id.clone(), code: code.clone(), result: result.clone(), expected, pair, faults });
        }
        let accuses = |pair: &Value| matches!(pair["state"].as_str(), Some("denied" | "unexplained" | "unenforced"));
        let accused = pairs.iter().zip(&stood_for).filter(|(pair, stood)| !**stood && accuses(pair));
        Ok(Comparison { rows, accused: accused.map(|(pair, _)| line(pair)).collect() })
    }

    /// The policies that must be named for a denied flow: all that select the pod of a side that does not admit.
    fn due(&self, flow: &Flow, right: &crate::fixture::Expected) -> Vec<String> {
        let side = |end: &End, names: &[String]| -> Vec<String> {
            let namespace = match end {
                End::Pod(key) => key.split('/').next().unwrap_or(""),
                End::Node { .. } | End::Ip(_) => "",
            };
            names.iter().map(|name| format!("{namespace}/{name}")).collect()
        };
        let denied = |side| side == crate::fixture::Side::Denied;
        let mut due = Vec::new();
        if denied(right.egress) {
            due.extend(side(&flow.from, &right.egress_isolated_by));
        }
        if denied(right.ingress) {
            due.extend(side(&flow.to, &right.ingress_isolated_by));
        }
        due.sort();
        due.dedup();
        due
    }

    fn stands_for(&self, pair: &Value, code: &str, flow: &Flow) -> bool {
        pair["code"] == code
            && pair["port"] == flow.port
            && pair["protocol"] == flow.protocol.to_string()
            && self.is_end(&pair["source"], &flow.from, &flow.to)
            && self.is_end(&pair["destination"], &flow.to, &flow.from)
    }

    fn is_end(&self, said: &Value, end: &End, other: &End) -> bool {
        let kind = said["kind"].as_str().unwrap_or("");
        match end {
            End::Pod(key) => {
                let (namespace, _) = key.split_once('/').unwrap_or(("default", key));
                let workload = workload_of(&self.mesh.cluster, key);
                kind == "workload" && said["namespace"] == namespace && said["workload"] == workload.as_str()
                    || kind == "api-server" && self.mesh.cluster.pod(key).is_some_and(on_host_network)
            }
            // What comes from a pod's own node is the kubelet's, whoever sent it.
            End::Node { name, .. } => match kind {
                "kubelet" => self.node_of(other) == Some(name.as_str()),
                "node" => self.node_of(other) != Some(name.as_str()),
                _ => kind == "api-server",
            },
            End::Ip(_) => matches!(kind, "external" | "api-server" | "node-local-dns"),
        }
    }
}

impl Rehearsal {
    fn node_of<'a>(&'a self, end: &'a End) -> Option<&'a str> {
        match end {
            End::Pod(key) => self.mesh.cluster.pod(key)?.spec.as_ref()?.node_name.as_deref(),
            End::Node { name, .. } => Some(name),
            End::Ip(_) => None,
        }
    }
}

impl Comparison {
    /// Nothing is wrong.
    pub fn faultless(&self) -> bool {
        self.accused.is_empty() && self.rows.iter().all(|row| row.faults.is_empty())
    }

    /// One line for each thing that is wrong.
    pub fn faults(&self) -> String {
        let mut text = String::new();
        for row in self.rows.iter().filter(|row| !row.faults.is_empty()) {
            let _ = writeln!(text, "{} ({}), expected {}: {}", row.id, row.code, row.expected, row.faults.join("; "));
        }
        for accused in &self.accused {
            let _ = writeln!(text, "accused without cause: {accused}");
        }
        text
    }
}

/// A pair in one line.
pub fn line(pair: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{} {} {} {}", text(&pair["state"]), text(&pair["flow"]), ends(pair), text(&pair["why"]))
}

/// The ends of a pair, with the port: what clients dial, too, where that is another one.
pub fn ends(pair: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let end = |end: &Value| match end["namespace"].as_str() {
        Some("") | None => text(&end["workload"]),
        Some(namespace) => format!("{namespace}/{}", text(&end["workload"])),
    };
    let dialled = pair["service_port"].as_u64().map(|port| format!("{port}→")).unwrap_or_default();
    format!(
        "{} → {} {dialled}{}/{}",
        end(&pair["source"]),
        end(&pair["destination"]),
        pair["port"],
        text(&pair["protocol"]),
    )
}

/// The workload of a fixture's pod, which has no ownerReferences: its Deployment by the pod-template-hash in its name.
fn workload_of(cluster: &Objects, key: &str) -> String {
    let name = key.rsplit('/').next().unwrap_or(key);
    let labels = cluster.pod(key).and_then(|pod| pod.metadata.labels.as_ref());
    let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash.and_then(|hash| name.rsplit_once('-')?.0.strip_suffix(&format!("-{hash}")));
    deployment.unwrap_or(name).to_owned()
}

fn on_host_network(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

fn strings(value: &Value) -> Vec<String> {
    let mut all: Vec<String> =
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str()).map(str::to_owned).collect();
    all.sort();
    all
}

fn write_policies(manifests: &TempDir, state: &State) -> Result<()> {
    let mut text = String::new();
    for file in &state.files {
        let policies = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let _ = write!(text, "---\n{policies}\n");
    }
    replace_file(&manifests.path().join("policies.yaml"), &text)
}
