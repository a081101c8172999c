//! Pods, reduced.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::Kind;
use super::labels::{Labels, labels_of};
use crate::words::{Name, Protocol, Workload};

/// `status.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Scheduled or starting.
    Pending,
    /// At least one container runs. Also the value for a manifest without a status.
    #[default]
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one badly.
    Failed,
    /// The node does not answer.
    Unknown,
}

/// A declared container port: what named ports resolve to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// `name`, empty where there is none.
    pub name: Arc<str>,
    /// `containerPort`.
    pub port: u16,
    /// `protocol`.
    pub protocol: Protocol,
}

/// A pod, or a workload's pod template that stands for its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: Name,
    /// What its cgroup is called by: `metadata.uid`, of a static pod the hash of its manifest (the annotation
    /// `kubernetes.io/config.hash`).
    pub uid: Option<Arc<str>>,
    /// Live labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// The controller that owns it.
    pub workload: Workload,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.podIPs`.
    pub addresses: Arc<[IpAddr]>,
    /// Ports of all containers, native sidecars included.
    pub ports: Arc<[ContainerPort]>,
    /// Names of all containers, native sidecars (init containers with restartPolicy Always) included.
    pub containers: Arc<[Arc<str>]>,
    /// Environment variables of its containers that Weir looks at, in [`SETTINGS`], with a value written out.
    pub settings: Labels,
    /// `status.phase`.
    pub phase: Phase,
    /// `metadata.creationTimestamp` or `status.startTime`, seconds since the epoch.
    pub started: Option<i64>,
    /// Its proxy, and the labels and ports that go with it, are what the injector would add: nobody has injected it yet.
    pub simulated: bool,
    /// It is a template, not a pod: it has no address and stands for all pods of its workload.
    pub template: bool,
}

/// Environment variables that change which flows are required: istiod's `PILOT_JWT_ENABLE_REMOTE_JWKS`.
pub const SETTINGS: [&str; 1] = ["PILOT_JWT_ENABLE_REMOTE_JWKS"];

impl Pod {
    /// An environment variable of [`SETTINGS`].
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(|value| &**value)
    }

    /// Reduces an API pod.
    #[must_use]
    pub fn from_api(o: &core::Pod) -> Self {
        let meta = &o.metadata;
        let name = Name::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or(""));
        let spec = o.spec.as_ref();
        let status = o.status.as_ref();
        let labels = labels_of(meta.labels.as_ref());
        let containers: Vec<&core::Container> = spec
            .into_iter()
            .flat_map(|s| {
                let sidecars = s.init_containers.iter().flatten();
                s.containers.iter().chain(sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always")))
            })
            .collect();
        let hash = meta.annotations.as_ref().and_then(|all| all.get("kubernetes.io/config.hash"));
        Self {
            workload: workload(o, &name, &labels),
            uid: hash.or(meta.uid.as_ref()).map(|uid| uid.as_str().into()),
            labels,
            annotations: labels_of(meta.annotations.as_ref()),
            node: spec.and_then(|s| s.node_name.as_deref()).map(Into::into),
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
            addresses: status
                .map(|s| {
                    let all = s.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok());
                    let mut all: Vec<IpAddr> = all.chain(s.pod_ip.iter().filter_map(|ip| ip.parse().ok())).collect();
                    let mut seen = std::collections::BTreeSet::new();
                    all.retain(|ip| seen.insert(*ip));
                    all.into()
                })
                .unwrap_or_default(),
            ports: containers
                .iter()
                .flat_map(|c| c.ports.iter().flatten())
                .filter_map(|p| {
                    Some(ContainerPort {
                        name: p.name.as_deref().unwrap_or("").into(),
                        port: u16::try_from(p.container_port).ok()?,
                        protocol: protocol(p.protocol.as_deref())?,
                    })
                })
                .collect(),
            containers: containers.iter().map(|c| c.name.as_str().into()).collect(),
            settings: labels_of(Some(
                &containers
                    .iter()
                    .flat_map(|c| c.env.iter().flatten())
                    .filter(|e| SETTINGS.contains(&e.name.as_str()))
                    .filter_map(|e| Some((e.name.clone(), e.value.clone()?)))
                    .collect(),
            )),
            phase: match status.and_then(|s| s.phase.as_deref()) {
                Some("Pending") => Phase::Pending,
                Some("Running") | None => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some(_) => Phase::Unknown,
            },
            started: status
                .and_then(|s| s.start_time.as_ref())
                .or(meta.creation_timestamp.as_ref())
                .map(|t| t.0.as_second()),
            simulated: false,
            template: false,
            name,
        }
    }

    /// The pod template of a workload, standing for its pods. Its name is `kind/name` in lower case, which no pod can have.
    #[must_use]
    pub fn from_template(kind: Kind, o: &core::Pod) -> Self {
        let mut pod = Self::from_api(o);
        let owned = o.metadata.owner_references.iter().flatten().next().is_some();
        let name = pod.name.name.clone();
        if !owned {
            pod.workload =
                Workload { namespace: pod.name.namespace.clone(), kind: kind.as_str().into(), name: name.clone() };
        }
        pod.name.name = Self::template_name(kind, &name);
        pod.template = true;
        pod
    }

    /// Under which name the template of a workload is known.
    #[must_use]
    pub fn template_name(kind: Kind, name: &str) -> Arc<str> {
        format!("{}/{name}", kind.as_str().to_ascii_lowercase()).into()
    }

    /// It ended: its address may be another pod's by now.
    #[must_use]
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

/// `TCP`, `UDP`, `SCTP`, or the default where absent; `None` for anything else.
#[must_use]
pub fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// The owner by `metadata.ownerReferences`; a ReplicaSet whose name ends in the pod-template-hash is its Deployment's.
/// A pod without an owner but with that hash in its name (a manifest copied without ownerReferences) likewise.
fn workload(o: &core::Pod, pod: &Name, labels: &Labels) -> Workload {
    let hash = labels.get("pod-template-hash");
    let deployment_of = |set: &str| hash.and_then(|h| set.strip_suffix(&**h)?.strip_suffix('-').map(Arc::<str>::from));
    let owners = o.metadata.owner_references.iter().flatten();
    let owner = owners.clone().find(|r| r.controller == Some(true)).or_else(|| owners.clone().next());
    let (kind, name): (&str, Arc<str>) = match owner {
        Some(r) if r.kind == "ReplicaSet" => match deployment_of(&r.name) {
            Some(name) => ("Deployment", name),
            None => ("ReplicaSet", r.name.as_str().into()),
        },
        Some(r) if r.kind == "Job" => match cron_job(&r.name) {
            Some(name) => ("CronJob", name.into()),
            None => ("Job", r.name.as_str().into()),
        },
        Some(r) => (r.kind.as_str(), r.name.as_str().into()),
        None => match pod.name.rsplit_once('-').and_then(|(set, _)| deployment_of(set)) {
            Some(name) => ("Deployment", name),
            None => ("Pod", pod.name.clone()),
        },
    };
    Workload { namespace: pod.namespace.clone(), kind: kind.into(), name }
}

/// A CronJob names its Jobs after itself and the minute, counted since the epoch (`cronjob_controllerv2.go`, `getJobName`).
fn cron_job(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    ((8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}
