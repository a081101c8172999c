//! The catalogue's files: schema 1.
//!
//! A file is TOML: `schema = 1`, `profile = "…"`, and one `[[flow]]` per required flow with the fields of [`Requirement`].
//! A port is given by number (`ports`) or by what knows it (`port-from`). Ends are roles, see [`Role`]: who has one is decided
//! by live labels and objects, never by names.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Severity;
use super::role::Role;
use crate::words::{Direction, Protocol};

/// Where a pod port comes from that is not the same in each cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortSource {
    /// The EndpointSlices of `default/kubernetes`.
    ApiServer,
    /// The endpoints of the cluster's DNS Service (53, 8053, 5353, 1053, …).
    ClusterDns,
    /// The target ports of the LoadBalancer and NodePort Services that select the pod, without Istio's own.
    PublicService,
    /// The target ports of all Services that select the pod, without Istio's own.
    Service,
    /// Whatever was observed, without Istio's own.
    Application,
}

/// What makes an end that no label tells of one of a flow's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LearnFrom {
    /// An attempt, whatever became of it: nobody else would try.
    #[default]
    Attempt,
    /// An established connection: it is a user of this flow already.
    Established,
}

/// One required flow of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Requirement {
    /// Kebab-case, unique: `sidecar-xds`.
    pub id: Arc<str>,
    /// The short code of the documentation: `SC-XDS`.
    pub code: Arc<str>,
    /// The file's.
    #[serde(default = "empty")]
    pub profile: Arc<str>,
    /// Who connects, for certain.
    #[serde(default)]
    pub source: Vec<Role>,
    /// Who may turn out to connect.
    #[serde(default)]
    pub learn_source: Vec<Role>,
    /// What turns a possible source into one.
    #[serde(default)]
    pub learn_from: LearnFrom,
    /// To whom.
    pub destination: Vec<Role>,
    /// Transports.
    #[serde(default = "tcp")]
    pub protocols: Vec<Protocol>,
    /// Pod ports, by number.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Pod ports, by who knows them.
    #[serde(default)]
    pub port_from: Option<PortSource>,
    /// What clients dial, where that is another port than the pod's.
    #[serde(default)]
    pub service_port: Option<u16>,
    /// Sides on which a NetworkPolicy must admit it (where it isolates the pod); none for what is node-local.
    #[serde(default)]
    pub sides: Vec<Direction>,
    /// Its ends are named by objects or settings that this version does not resolve: listed, never judged.
    #[serde(default)]
    pub configured: bool,
    /// What it is for.
    pub purpose: Arc<str>,
    /// What is seen when it is blocked.
    pub symptom: Arc<str>,
    /// How bad that is.
    pub severity: Severity,
    /// Where the fact comes from.
    pub fact: Arc<str>,
    /// First Istio version that needs it.
    #[serde(default)]
    pub since: Option<Arc<str>>,
    /// Last Istio version that needs it.
    #[serde(default)]
    pub until: Option<Arc<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    schema: u32,
    profile: Arc<str>,
    flow: Vec<Requirement>,
}

/// Why a catalogue file is refused.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Not TOML, or not the schema's fields.
    #[error("line {line}: {message}")]
    Syntax {
        /// 1-based.
        line: usize,
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// A schema that this version does not read.
    #[error("schema = {0} is not known; this version reads schema = 1")]
    Schema(u32),
    /// A flow that contradicts itself.
    #[error("line {line}: flow {id:?}: {message}")]
    Flow {
        /// 1-based, of its id.
        line: usize,
        /// Its id.
        id: String,
        /// What is wrong, and what is allowed.
        message: &'static str,
    },
}

/// All required flows, in the order of their files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    flows: Vec<Arc<Requirement>>,
}

/// Where two entries may fit, the first does: the special ones come before the general.
const BUILT_IN: [&str; 8] = [
    include_str!("data/kyma.toml"),
    include_str!("data/control-plane.toml"),
    include_str!("data/cni.toml"),
    include_str!("data/sidecar.toml"),
    include_str!("data/gateway.toml"),
    include_str!("data/ambient.toml"),
    include_str!("data/waypoint.toml"),
    include_str!("data/multi-network.toml"),
];

impl Default for Catalogue {
    fn default() -> Self {
        Self::built_in()
    }
}

impl Catalogue {
    /// The catalogue that comes with Weir.
    ///
    /// # Panics
    /// Never in a build whose tests passed: a test reads every file.
    #[must_use]
    pub fn built_in() -> Self {
        let mut all = Self { flows: Vec::new() };
        for text in BUILT_IN {
            all.add(text).expect("the built-in catalogue is read by a test");
        }
        all
    }

    /// Adds a file's flows; one with the id of an earlier flow replaces it.
    ///
    /// # Errors
    /// [`CatalogueError`]; nothing has been added then.
    pub fn add(&mut self, text: &str) -> Result<(), CatalogueError> {
        let file: File = toml::from_str(text).map_err(|e| CatalogueError::Syntax {
            line: e.span().map_or(1, |s| 1 + text[..s.start.min(text.len())].matches('\n').count()),
            message: e.message().to_owned(),
        })?;
        if file.schema != 1 {
            return Err(CatalogueError::Schema(file.schema));
        }
        let mut ids = BTreeSet::new();
        for flow in &file.flow {
            let wrong =
                |message| Err(CatalogueError::Flow { line: line_of(text, &flow.id), id: flow.id.to_string(), message });
            if flow.id.is_empty()
                || flow.id.chars().any(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
            {
                return wrong("an id is kebab-case: lower-case letters, digits and dashes");
            }
            if !ids.insert(flow.id.clone()) {
                return wrong("the id is used twice in this file");
            }
            if !flow.configured && flow.ports.is_empty() == flow.port_from.is_none() {
                return wrong("give either ports = [numbers] or port-from = \"…\"");
            }
            if !flow.configured && flow.source.is_empty() && flow.learn_source.is_empty() {
                return wrong("give source or learn-source");
            }
            if flow.protocols.is_empty() || flow.destination.is_empty() {
                return wrong("protocols and destination must not be empty");
            }
        }
        for mut flow in file.flow {
            if flow.profile.is_empty() {
                flow.profile = file.profile.clone();
            }
            let flow = Arc::new(flow);
            match self.flows.iter_mut().find(|f| f.id == flow.id) {
                Some(old) => *old = flow,
                None => self.flows.push(flow),
            }
        }
        Ok(())
    }

    /// Every flow.
    pub fn flows(&self) -> impl Iterator<Item = &Arc<Requirement>> {
        self.flows.iter()
    }

    /// One flow, by id or code.
    #[must_use]
    pub fn flow(&self, id: &str) -> Option<&Arc<Requirement>> {
        self.flows.iter().find(|f| &*f.id == id || &*f.code == id)
    }
}

/// Where a flow's id is written, last if it is more than once; the first line if it cannot be found.
fn line_of(text: &str, id: &str) -> usize {
    let is_it = |line: &str| {
        let value = line.trim_start().strip_prefix("id").map(str::trim_start).and_then(|l| l.strip_prefix('='));
        value.is_some_and(|value| value.contains(id))
    };
    text.lines().enumerate().filter(|(_, line)| is_it(line)).last().map_or(1, |(n, _)| n + 1)
}

fn tcp() -> Vec<Protocol> {
    vec![Protocol::Tcp]
}

fn empty() -> Arc<str> {
    "".into()
}
