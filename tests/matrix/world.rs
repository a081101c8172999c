//! The mesh of the matrix: for each cause and place a client and a server of its own, and two agents that watch them all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Cause, Model, Place, Said};
use crate::agent::{Agent, AgentOptions, replace_file};
use crate::far::FarAnswer;
use crate::fixture::{End, Protocol};
use crate::ipv6::Family;
use crate::mesh::{Mesh, MeshOptions};
use crate::netns::Netns;
use crate::objects::Objects;

/// istiod's port for configuration and certificates: the required flow `sidecar-xds`.
pub const XDS: u16 = 15012;
/// The required flow `sidecar-dns`.
pub const DNS: u16 = 53;

const CLIENTS: &str = "apps";
/// Each server is istiod and cluster DNS in one pod: roles come from labels, and every cause needs both protocols.
const SERVERS: &str = "kube-system";
const DEPLOYMENT: &str = "control";
const HASH: &str = "5d9c7b";

/// One cause at one place.
#[derive(Debug, Clone)]
pub struct Lane {
    /// The cause.
    pub cause: Cause,
    /// Where it is.
    pub place: Place,
    /// Name of the client's pod and workload.
    pub name: String,
    /// The client.
    pub client: End,
    /// The server.
    pub server: End,
}

/// Where a cause is to be brought about.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The mesh.
    pub mesh: &'a Mesh,
    /// The pods concerned.
    pub lane: &'a Lane,
}

/// An agent and the manifests it reads.
#[derive(Debug)]
pub struct Watcher {
    /// The agent.
    pub agent: Agent,
    manifests: TempDir,
}

/// The lanes of some causes.
pub fn lanes(causes: &[Cause]) -> Vec<Lane> {
    let mut lanes = Vec::new();
    for cause in causes {
        for place in cause.places {
            let name = format!("{}-{}", cause.id, place.to_string().replace(' ', "-"));
            lanes.push(Lane {
                cause: *cause,
                place: *place,
                client: End::Pod(format!("{CLIENTS}/{name}")),
                server: End::Pod(format!("{SERVERS}/{DEPLOYMENT}-{HASH}-{:03}", lanes.len())),
                name,
            });
        }
    }
    lanes
}

/// A mesh with two pods for each lane on two nodes, and a third node that is far and discards what comes.
pub fn mesh(lanes: &[Lane]) -> Result<Mesh> {
    let far = vec![("node-far".to_owned(), FarAnswer::Discard)];
    let cluster = Objects::parse(&cluster(lanes).to_string())?;
    let mesh = Mesh::with(&cluster, &[], &MeshOptions { far })?;
    for lane in lanes.iter().filter(|lane| lane.place != Place::FarNode) {
        // Half-open connections must not outlast the round they belong to.
        mesh.namespace(&lane.server)?.sysctl(&[("ipv4/tcp_synack_retries", "1")])?;
    }
    Ok(mesh)
}

fn cluster(lanes: &[Lane]) -> Value {
    // Another matrix on this machine is seen by the same probes: its addresses should be others.
    let own = std::process::id();
    let second = 64 + u8::try_from(own % 63).unwrap_or(0);
    let address = |index: usize| {
        let [high, low] = u16::try_from(index + 1).unwrap_or(u16::MAX).to_be_bytes();
        Ipv4Addr::new(100, second, high, low).to_string()
    };
    let mut items: Vec<Value> = [CLIENTS, SERVERS].map(namespace).to_vec();
    let nodes = ["node-a", "node-b", "node-far"];
    for (index, name) in nodes.iter().enumerate() {
        let ip = format!("10.{}.{}.{}", 100 + own % 100, own / 100 % 250, index + 1);
        items.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                          "status": {"addresses": [{"type": "InternalIP", "address": ip}]}}));
    }
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for (index, lane) in lanes.iter().enumerate() {
        let (from, to) = match lane.place {
            Place::OneNode => (nodes[0], nodes[0]),
            Place::FarNode => (nodes[0], nodes[2]),
            _ => (nodes[0], nodes[1]),
        };
        clients.push(pod(&lane.client, from, &address(2 * index), json!({"app": lane.name}), "istio-proxy", &[]));
        let labels = json!({"app": "istiod", "k8s-app": "kube-dns", "pod-template-hash": HASH});
        let ports = [("TCP", XDS), ("UDP", DNS)];
        servers.push(pod(&lane.server, to, &address(2 * index + 1), labels, "discovery", &ports));
    }
    items.extend(clients);
    items.extend(servers);
    items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": SERVERS, "name": "kube-dns"},
        "spec": {"clusterIP": address(2 * lanes.len()), "selector": {"k8s-app": "kube-dns"},
                 "ports": [{"name": "dns", "port": DNS, "protocol": "UDP"}]}}));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
           "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
}

fn pod(end: &End, node: &str, ip: &str, labels: Value, container: &str, ports: &[(&str, u16)]) -> Value {
    let End::Pod(key) = end else { unreachable!("lanes have pods only") };
    let (namespace, name) = key.split_once('/').unwrap_or(("default", key));
    let ports: Vec<Value> =
        ports.iter().map(|(protocol, port)| json!({"containerPort": port, "protocol": protocol})).collect();
    let mut containers = vec![json!({"name": container, "image": "example.invalid/x", "ports": ports})];
    if container == "istio-proxy" {
        containers.push(json!({"name": "app", "image": "example.invalid/x"}));
    }
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"namespace": namespace, "name": name, "labels": labels},
           "spec": {"nodeName": node, "containers": containers},
           "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}})
}

impl<'a> Site<'a> {
    /// The namespace that the cause sits in.
    pub fn here(&self) -> Result<&'a Netns> {
        match self.lane.place {
            Place::ClientPod => self.mesh.namespace(&self.lane.client),
            Place::ServerPod => self.mesh.namespace(&self.lane.server),
            Place::SourceNode | Place::OneNode => Ok(self.mesh.node_side(&self.lane.client)?.0),
            Place::DestinationNode => Ok(self.mesh.node_side(&self.lane.server)?.0),
            Place::FarNode => bail!("nothing can be done on a far node"),
        }
    }

    /// An end's address.
    pub fn address(&self, end: &End, family: Family) -> Result<IpAddr> {
        let own = self.mesh.addresses(end)?.iter().find(|address| Family::of(**address) == family);
        own.copied().with_context(|| format!("{end} has no address in {family:?}"))
    }

    /// A name for a table of rules that no other lane has.
    pub fn table(&self) -> String {
        format!("m_{}", self.lane.name.replace('-', "_"))
    }

    /// nftables matches of the lane's requests, or answers, one for each family.
    pub fn matches(&self, answers: bool) -> Vec<String> {
        let mut rules = Vec::new();
        for (family, word) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
            let ends = [&self.lane.client, &self.lane.server].map(|end| self.address(end, family));
            if let [Ok(client), Ok(server)] = ends {
                let (from, to) = if answers { (server, client) } else { (client, server) };
                rules.push(format!("{word} saddr {from} {word} daddr {to}"));
            }
        }
        rules
    }
}

impl Watcher {
    /// Starts an agent on a mesh's objects.
    pub fn start(mesh: &Mesh, binary: PathBuf, model: Model) -> Result<Self> {
        let manifests = tempfile::Builder::new().prefix("weir-matrix-").tempdir()?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": mesh.manifests()});
        std::fs::write(manifests.path().join("cluster.json"), list.to_string())?;
        write_policies(manifests.path(), model)?;
        let ports = format!("{XDS},{DNS}");
        let arguments = ["--grace", "300ms", "--window", "60s", "--ports", &ports].map(str::to_owned).to_vec();
        let agent = Agent::start(&AgentOptions { binary, manifests: Some(manifests.path().to_owned()), arguments })?;
        Ok(Self { agent, manifests })
    }

    /// Gives the agent other policies and waits until it judges by them and past their grace window.
    pub fn enter(&self, model: Model, lanes: &[Lane]) -> Result<()> {
        write_policies(self.manifests.path(), model)?;
        let begin = Instant::now();
        loop {
            let snapshot = self.snapshot()?;
            let pairs = snapshot["pairs"].as_array().context("a snapshot without pairs")?;
            let isolated = |lane: &Lane| {
                pair(pairs, &lane.name, Protocol::Tcp)
                    .map(|pair| !pair["directions"].as_array().unwrap_or(&vec![]).is_empty())
            };
            let wanted = Some(model == Model::DoesNotAdmit);
            if lanes.iter().all(|lane| isolated(lane) == wanted) {
                break;
            }
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("the agent does not judge by the new policies:\n{}", self.agent.log());
            }
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_millis(400));
        Ok(())
    }

    /// A snapshot; a machine under load may make an agent too slow for one request.
    fn snapshot(&self) -> Result<Value> {
        let begin = Instant::now();
        loop {
            match self.agent.snapshot() {
                Err(_) if begin.elapsed() < Duration::from_secs(30) => thread::sleep(Duration::from_millis(200)),
                answer => return answer,
            }
        }
    }

    /// What the agent says of each lane, in their order.
    pub fn said(&self, lanes: &[&Lane], protocol: Protocol) -> Result<Vec<Said>> {
        let snapshot = self.snapshot()?;
        let pairs = snapshot["pairs"].as_array().context("a snapshot without pairs")?;
        Ok(lanes.iter().map(|lane| pair(pairs, &lane.name, protocol).map(said).unwrap_or_default()).collect())
    }

    /// Events that the agent says it lost, by stage; stages that lost none are left out.
    pub fn lost(&self) -> Result<BTreeMap<String, u64>> {
        let snapshot = self.snapshot()?;
        let stages = snapshot["lost"].as_array().context("a snapshot without losses")?;
        let lost = |stage: &Value| Some((stage["stage"].as_str()?.to_owned(), stage["count"].as_u64()?));
        Ok(stages.iter().filter_map(lost).filter(|(_, count)| *count > 0).collect())
    }
}

fn write_policies(folder: &Path, model: Model) -> Result<()> {
    let text = match model {
        Model::Admits => "".to_owned(),
        Model::DoesNotAdmit => json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": CLIENTS, "name": "deny-egress"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"]}})
        .to_string(),
    };
    replace_file(&folder.join("policies.yaml"), &text)
}

/// The pair of a lane's client: `sidecar-xds`, or `sidecar-dns` over UDP.
fn pair<'a>(pairs: &'a [Value], client: &str, protocol: Protocol) -> Option<&'a Value> {
    let flow = match protocol {
        Protocol::Tcp => "sidecar-xds",
        Protocol::Udp => "sidecar-dns",
    };
    pairs.iter().find(|pair| {
        pair["flow"] == flow
            && pair["protocol"] == protocol.to_string()
            && pair["source"]["workload"] == client
            && pair["destination"]["namespace"] == SERVERS
    })
}

fn said(pair: &Value) -> Said {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let evidence = &pair["evidence"];
    Said {
        state: text(&pair["state"]),
        outcome: text(&evidence["outcome"]),
        class: text(&evidence["class"]),
        hook: text(&evidence["hook"]),
        reason: text(&evidence["reason"]),
        location: text(&evidence["location"]),
        reply: evidence["reply"].as_bool().unwrap_or(false),
    }
}
