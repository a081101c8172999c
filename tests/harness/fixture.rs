//! A fixture folder: the cluster, the policies of each state, and the verdict that is right for each flow.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use indexmap::IndexMap;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use crate::objects::Objects;

/// One `expected*.yaml` with everything it names.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// What the fixture calls itself.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// The cluster file all states share.
    pub cluster_file: PathBuf,
    /// The objects of the cluster file.
    pub cluster: Objects,
    /// The states in the order of the file.
    pub states: Vec<State>,
    /// The flows in the order of the file.
    pub flows: Vec<Flow>,
}

/// A named set of policies.
#[derive(Debug, Clone)]
pub struct State {
    /// Name, e.g. `before`.
    pub name: String,
    /// The files the policies were read from.
    pub files: Vec<PathBuf>,
    /// The policies of all files.
    pub policies: Vec<NetworkPolicy>,
}

/// A flow with its right verdict per state.
#[derive(Debug, Clone, Deserialize)]
pub struct Flow {
    /// Name, unique in the fixture.
    pub id: String,
    /// Code of the catalogue entry, e.g. `SC-XDS`; none where no required flow is meant.
    #[serde(default)]
    pub catalog: Option<String>,
    /// Who dials.
    pub from: End,
    /// Who is reached when nothing forbids it.
    pub to: End,
    /// What is dialled instead of the destination's own address.
    #[serde(default)]
    pub via_service: Option<ServicePort>,
    /// Transport.
    pub protocol: Protocol,
    /// Port of the destination, after service translation.
    pub port: u16,
    /// What is right in each state.
    pub results: BTreeMap<String, Expected>,
    /// Hint for a detector.
    #[serde(default)]
    pub severity: Option<String>,
    /// Remark of the fixture.
    #[serde(default)]
    pub note: Option<String>,
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "RawEnd")]
pub enum End {
    /// A pod by `namespace/name`.
    Pod(String),
    /// A node's own network (kubelet), with a source address other than the node's first one if given.
    Node {
        /// Name of the node.
        name: String,
        /// Source address.
        ip: Option<IpAddr>,
    },
    /// An address that belongs to no pod.
    Ip(IpAddr),
}

/// A port of a service: `namespace/name:port`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ServicePort {
    /// `namespace/name`.
    pub service: String,
    /// Port of the service, not of its endpoints.
    pub port: u16,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The right answer for one flow in one state.
#[derive(Debug, Clone, Deserialize)]
pub struct Expected {
    /// Both sides together.
    pub verdict: Verdict,
    /// Side of the source.
    pub egress: Side,
    /// Side of the destination.
    pub ingress: Side,
    /// Policies that select the source for egress.
    #[serde(default)]
    pub egress_isolated_by: Vec<String>,
    /// Policies that select the destination for ingress.
    #[serde(default)]
    pub ingress_isolated_by: Vec<String>,
    /// Policies that admit on the side of the source.
    #[serde(default)]
    pub egress_allowed_by: Vec<String>,
    /// Policies that admit on the side of the destination.
    #[serde(default)]
    pub ingress_allowed_by: Vec<String>,
}

/// Whether a flow may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
}

/// What one side says of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// A rule admits it.
    Allowed,
    /// Policies select the pod and no rule admits it.
    Denied,
    /// No policy of this direction selects the pod.
    NotIsolated,
    /// No pod that a policy could select.
    NotApplicable,
    /// The source is the host network of the destination's own node.
    NodeLocal,
    /// A pod talks to itself.
    #[serde(rename = "self")]
    Itself,
}

#[derive(Deserialize)]
struct RawFixture {
    fixture: String,
    states: IndexMap<String, RawState>,
    flows: Vec<Flow>,
}

#[derive(Deserialize)]
struct RawState {
    policies: Vec<String>,
    #[serde(default = "cluster_yaml")]
    cluster: String,
}

#[derive(Deserialize)]
struct RawEnd {
    pod: Option<String>,
    node: Option<String>,
    ip: Option<IpAddr>,
}

impl Fixture {
    /// Reads `expected.yaml` of a folder and all it names.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_expected(&dir.join("expected.yaml"))
    }

    /// Reads a certain `expected*.yaml` and all it names, relative to its folder.
    pub fn load_expected(file: &Path) -> Result<Self> {
        let dir = file.parent().unwrap_or(Path::new(".")).to_owned();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let raw: RawFixture = serde_saphyr::from_str(&text).with_context(|| format!("in {}", file.display()))?;

        let mut clusters: Vec<&str> = raw.states.values().map(|state| state.cluster.as_str()).collect();
        clusters.dedup();
        ensure!(clusters.len() == 1, "{}: the states must share one cluster file, not {clusters:?}", file.display());
        let cluster_file = dir.join(clusters[0]);
        let cluster = Objects::read(&cluster_file)?;

        let mut states = Vec::new();
        for (name, state) in &raw.states {
            let files: Vec<PathBuf> = state.policies.iter().map(|file| dir.join(file)).collect();
            let mut policies = Vec::new();
            for file in &files {
                policies.extend(Objects::read(file)?.policies);
            }
            states.push(State { name: name.clone(), files, policies });
        }
        Ok(Self { name: raw.fixture, dir, cluster_file, cluster, states, flows: raw.flows })
    }

    /// Every fixture (`expected*.yaml`) below a folder, in the order of their paths.
    pub fn load_all(root: &Path) -> Result<Vec<Self>> {
        let mut files = Vec::new();
        collect_expected(root, &mut files)?;
        files.sort();
        files.iter().map(|file| Self::load_expected(file)).collect()
    }

    /// A state by name.
    pub fn state(&self, name: &str) -> Result<&State> {
        self.states.iter().find(|state| state.name == name).with_context(|| {
            let names: Vec<&str> = self.states.iter().map(|state| state.name.as_str()).collect();
            format!("{} has no state {name:?}, only {names:?}", self.name)
        })
    }
}

/// The folder of the fixtures that come with the source: `tests/fixtures`.
pub fn fixtures_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A folder of fixtures that do not come with the source, from `WEIR_SHARED` or beside the workspace; none if missing.
pub fn shared_dir(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WEIR_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
    let dir = root.join("fixtures").join(name);
    dir.is_dir().then_some(dir)
}

fn cluster_yaml() -> String {
    "cluster.yaml".to_owned()
}

fn collect_expected(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            collect_expected(&path, files)?;
        } else if name.starts_with("expected") && name.ends_with(".yaml") {
            files.push(path);
        }
    }
    Ok(())
}

impl TryFrom<RawEnd> for End {
    type Error = anyhow::Error;

    fn try_from(raw: RawEnd) -> Result<Self> {
        match raw {
            RawEnd { pod: Some(pod), node: None, ip: None } => Ok(Self::Pod(pod)),
            RawEnd { pod: None, node: Some(name), ip } => Ok(Self::Node { name, ip }),
            RawEnd { pod: None, node: None, ip: Some(ip) } => Ok(Self::Ip(ip)),
            RawEnd { .. } => bail!("an end of a flow is one of pod, node (with ip) and ip"),
        }
    }
}

impl TryFrom<String> for ServicePort {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let (service, port) = text.rsplit_once(':').context("a service port is written namespace/name:port")?;
        ensure!(service.contains('/'), "a service port is written namespace/name:port, not {text:?}");
        Ok(Self { service: service.to_owned(), port: port.parse().with_context(|| format!("port of {text:?}"))? })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Node { name, ip: None } => write!(f, "node {name}"),
            Self::Node { name, ip: Some(ip) } => write!(f, "node {name} ({ip})"),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixture_can_be_read_and_is_consistent() -> Result<()> {
        let fixtures = Fixture::load_all(&fixtures_dir())?;
        assert!(fixtures.len() >= 17, "only {} fixtures", fixtures.len());
        for fixture in &fixtures {
            for flow in &fixture.flows {
                for state in &fixture.states {
                    let expected = flow.results.get(&state.name);
                    let expected = expected.with_context(|| format!("{}: no {}", flow.id, state.name))?;
                    let denied = expected.egress == Side::Denied || expected.ingress == Side::Denied;
                    assert_eq!(expected.verdict == Verdict::Denied, denied, "{} {}", flow.id, state.name);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn ends_and_service_ports_are_told_from_rubbish() {
        let end = |text: &str| serde_saphyr::from_str::<End>(text).ok();
        assert_eq!(end("{pod: a/b}"), Some(End::Pod("a/b".to_owned())));
        let ip = Some(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(end("{node: n, ip: 10.0.0.1}"), Some(End::Node { name: "n".to_owned(), ip }));
        assert_eq!(end("{ip: 10.0.0.1}"), ip.map(End::Ip));
        for rubbish in ["{}", "{pod: a/b, node: n}", "{ip: nowhere}"] {
            assert_eq!(end(rubbish), None, "{rubbish}");
        }
        for rubbish in ["a/b", "a:53", "a/b:dns"] {
            assert!(ServicePort::try_from(rubbish.to_owned()).is_err(), "{rubbish}");
        }
    }
}
