//! The smallest patches that open every denied required flow, one after the other, each tried out on those before.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use serde::{Deserialize, Serialize};

use super::Model;
use super::report::instance;
use crate::cluster::{Cluster, Object, Origin};
use crate::policy::diff::{WorkloadDifference, by_workload, diff};
use crate::policy::fix::{Patch, PatchKind, Unfixable};
use crate::policy::{Admission, Endpoint, Flow};
use crate::requirement::{End, Pair, PairKey};
use crate::words::{Direction, Name, Protocol, Workload};

/// Version of the shape.
pub const VERSION: u32 = 1;
/// Patches made at most: a cluster that needs more is better served by a policy of another shape.
const MAX_PATCHES: usize = 200;
/// Patches tried at most for one pair, whose instances may need different ones.
const MAX_PER_PAIR: usize = 16;

/// What to apply so that required flows pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Repair {
    /// [`VERSION`].
    pub version: u32,
    /// Policies to apply, each in its final shape.
    pub policies: Vec<Repaired>,
    /// Denied flows that no NetworkPolicy opens.
    pub unfixable: Vec<Left>,
    /// Flows between workloads that open besides the required ones.
    pub beyond: Vec<WorkloadDifference>,
    /// Denied required flows before.
    pub denied_before: usize,
    /// Denied required flows with the patches, by re-evaluation.
    pub denied_after: usize,
    /// Denied flows that were not looked at because there were too many.
    pub left_out: usize,
}

/// A policy to apply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repaired {
    /// The whole object.
    pub policy: NetworkPolicy,
    /// It did not exist.
    pub created: bool,
    /// Rules that are new, by direction and index; all of them in a policy that did not exist.
    pub rules: Vec<(Direction, usize)>,
    /// Required flows that it was made for.
    pub opens: Vec<String>,
    /// Policies of the same pods that are left alone, each with who manages it.
    pub managed: Vec<(Name, String)>,
}

/// A flow that stays denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Flow and ends.
    pub flow: String,
    /// Why.
    pub why: String,
}

/// Makes patches for the denied required flows that `wanted` picks; the model ends up with them applied.
#[must_use]
pub fn repair(model: &mut Model, wanted: impl Fn(&Pair) -> bool) -> Repair {
    let pairs = model.pairs();
    let mut denied: Vec<&Pair> = pairs.values().filter(|p| wanted(p) && first_denied(model, p).is_some()).collect();
    denied.sort_by_key(|p| (p.requirement.severity, &p.key));
    let mut bench = Bench::new(model);
    bench.out.denied_before = denied.len();
    let mut made = 0;
    for (index, pair) in denied.iter().enumerate() {
        if made >= MAX_PATCHES {
            let rest = denied[index..].iter().filter(|p| first_denied(bench.model, p).is_some());
            bench.out.left_out = rest.count();
            break;
        }
        made += bench.open(&pair.key.flow, |model| first_denied(model, pair));
    }
    bench.tidy();
    bench.out.denied_after = denied.iter().filter(|p| first_denied(bench.model, p).is_some()).count();
    bench.finish(&required(&pairs))
}

/// Makes patches for connections, required or not; the model ends up with them applied.
#[must_use]
pub fn repair_flows(model: &mut Model, flows: &[Flow]) -> Repair {
    let mut asked = required(&model.pairs());
    asked.extend(flows.iter().map(|f| {
        let workload = |end: &Endpoint| match end {
            Endpoint::Pod { name, .. } => model.cluster.pod(name).map(|p| p.workload.clone()),
            _ => None,
        };
        (workload(&f.source), workload(&f.destination), f.protocol, f.port)
    }));
    let denied = |model: &Model| flows.iter().filter(|f| is_denied(model, f)).count();
    let before = denied(model);
    let mut bench = Bench::new(model);
    bench.out.denied_before = before;
    if before > 0 {
        bench.open("", |model| flows.iter().find(|f| is_denied(model, f)).cloned());
        bench.tidy();
    }
    bench.out.denied_after = denied(bench.model);
    bench.finish(&asked)
}

/// Where patches are made and tried out, each on those before.
struct Bench<'a> {
    before: Model,
    model: &'a mut Model,
    done: BTreeMap<Name, Repaired>,
    out: Repair,
}

impl<'a> Bench<'a> {
    fn new(model: &'a mut Model) -> Self {
        let out = Repair { version: VERSION, ..Repair::default() };
        Self { before: model.clone(), model, done: BTreeMap::new(), out }
    }

    fn apply(&mut self, policy: &NetworkPolicy) {
        let object = Object::NetworkPolicy(Box::new(policy.clone()));
        let change = self.model.cluster.apply(object, Origin::default());
        self.model.policies.update(&self.model.cluster, &change);
    }

    /// Opens what `next` names until it names nothing more; says how many times it took.
    fn open(&mut self, id: &str, next: impl Fn(&Model) -> Option<Flow>) -> usize {
        for made in 0..MAX_PER_PAIR {
            let Some(flow) = next(self.model) else { return made };
            let ends = instance(&flow.source, &flow.destination);
            let label = format!("{id} {} → {} {} {}", ends.source, ends.destination, flow.protocol, flow.port);
            let label = label.trim_start().to_owned();
            match self.model.policies.fix(&self.model.cluster, &flow) {
                Ok(fix) => fix.patches.into_iter().for_each(|patch| self.take(patch, &label)),
                Err(Unfixable::Admitted) => return made,
                Err(error) => {
                    self.out.unfixable.push(Left { flow: label, why: error.to_string() });
                    return made;
                }
            }
        }
        MAX_PER_PAIR
    }

    fn take(&mut self, patch: Patch, label: &str) {
        let name = Object::NetworkPolicy(Box::new(patch.policy.clone())).key().name;
        self.apply(&patch.policy);
        let entry = self.done.entry(name).or_insert_with(|| Repaired {
            policy: patch.policy.clone(),
            created: patch.kind == PatchKind::Policy,
            rules: Vec::new(),
            opens: Vec::new(),
            managed: Vec::new(),
        });
        entry.policy = patch.policy;
        match patch.kind {
            PatchKind::Rule(index) => entry.rules.push((patch.direction, index)),
            PatchKind::Policy => entry.rules.push((patch.direction, 0)),
        }
        entry.managed.extend(patch.managed);
        entry.managed.sort_unstable();
        entry.managed.dedup();
        if !entry.opens.iter().any(|l| l == label) {
            entry.opens.push(label.to_owned());
        }
    }

    fn tidy(&mut self) {
        for repaired in self.done.values_mut() {
            tidy(repaired, &self.before.cluster);
        }
        let policies: Vec<NetworkPolicy> = self.done.values().map(|r| r.policy.clone()).collect();
        policies.iter().for_each(|p| self.apply(p));
    }

    fn finish(mut self, asked: &Asked) -> Repair {
        let (before, after) = (&self.before, &*self.model);
        let differences = diff((&before.cluster, &before.policies), (&after.cluster, &after.policies));
        self.out.beyond = beyond(by_workload(&after.cluster, &differences), asked);
        self.out.policies = self.done.into_values().collect();
        self.out
    }
}

/// Puts new rules together that differ in their ports or in their peers only: they mean the same as one.
fn tidy(repaired: &mut Repaired, before: &Cluster) {
    let Some(spec) = &mut repaired.policy.spec else { return };
    let meta = &repaired.policy.metadata;
    let name = Name::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or(""));
    let old = before.policy(&name).and_then(|p| p.object.spec.as_ref());
    let kept = |rules: Option<usize>| rules.unwrap_or(0);
    let egress = kept(old.and_then(|s| s.egress.as_ref().map(Vec::len)));
    let ingress = kept(old.and_then(|s| s.ingress.as_ref().map(Vec::len)));
    if let Some(rules) = &mut spec.egress {
        together(rules, egress, |r| (&mut r.to, &mut r.ports));
    }
    if let Some(rules) = &mut spec.ingress {
        together(rules, ingress, |r| (&mut r.from, &mut r.ports));
    }
    let new =
        |direction: Direction, from: usize, to: Option<usize>| (from..to.unwrap_or(from)).map(move |i| (direction, i));
    let egress = new(Direction::Egress, egress, spec.egress.as_ref().map(Vec::len));
    repaired.rules = egress.chain(new(Direction::Ingress, ingress, spec.ingress.as_ref().map(Vec::len))).collect();
}

type Parts<'a> = (&'a mut Option<Vec<NetworkPolicyPeer>>, &'a mut Option<Vec<NetworkPolicyPort>>);

fn together<R>(rules: &mut Vec<R>, first: usize, parts: impl Fn(&mut R) -> Parts<'_>) {
    let mut by_peers: Vec<R> = Vec::new();
    for mut rule in rules.split_off(first) {
        let (peers, ports) = parts(&mut rule);
        if !by_peers.iter_mut().any(|k| {
            let (into_peers, into_ports) = parts(k);
            *into_peers == *peers && absorb(into_ports, ports)
        }) {
            by_peers.push(rule);
        }
    }
    let mut by_ports: Vec<R> = Vec::new();
    for mut rule in by_peers {
        let (peers, ports) = parts(&mut rule);
        if !by_ports.iter_mut().any(|k| {
            let (into_peers, into_ports) = parts(k);
            *into_ports == *ports && absorb(into_peers, peers)
        }) {
            by_ports.push(rule);
        }
    }
    rules.append(&mut by_ports);
}

/// Adds to a list what it does not have; not where one of both is absent or empty, which means everything.
fn absorb<T: Clone + PartialEq>(into: &mut Option<Vec<T>>, more: &Option<Vec<T>>) -> bool {
    match (into, more) {
        (Some(into), Some(more)) if !into.is_empty() && !more.is_empty() => {
            let missing: Vec<T> = more.iter().filter(|m| !into.contains(m)).cloned().collect();
            into.extend(missing);
            true
        }
        _ => false,
    }
}

/// The first instance of a pair that is denied.
fn first_denied(model: &Model, pair: &Pair) -> Option<Flow> {
    let flow = |(source, destination): (&Endpoint, &Endpoint)| Flow {
        source: source.clone(),
        destination: destination.clone(),
        protocol: pair.key.protocol,
        port: pair.key.port,
        dialled: None,
    };
    pair.instances().map(flow).find(|f| is_denied(model, f))
}

fn is_denied(model: &Model, flow: &Flow) -> bool {
    model.policies.admits(&model.cluster, flow) == Admission::NotAdmitted
}

/// Flows from workload to workload; what is no pod has none.
type Asked = BTreeSet<(Option<Workload>, Option<Workload>, Protocol, u16)>;

fn required(pairs: &BTreeMap<PairKey, Pair>) -> Asked {
    let workload = |end: &End| match end {
        End::Workload(w) => Some(w.clone()),
        End::ApiServer | End::Kubelet | End::Node | End::External | End::NodeLocalDns => None,
    };
    pairs.keys().map(|k| (workload(&k.source), workload(&k.destination), k.protocol, k.port)).collect()
}

/// What opens besides the flows that were asked for.
fn beyond(all: Vec<WorkloadDifference>, asked: &Asked) -> Vec<WorkloadDifference> {
    let mut rest = Vec::new();
    for mut d in all {
        d.ports.retain(|p| {
            let is = (d.source.clone(), d.destination.clone(), d.protocol, p.first);
            p.first != p.last || !asked.contains(&is)
        });
        if !d.ports.is_empty() {
            rest.push(d);
        }
    }
    rest
}
