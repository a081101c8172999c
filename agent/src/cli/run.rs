//! `weir run`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use tokio::runtime::Runtime;
use weir_engine::engine::{Settings, WATCHED_PORTS};

use super::Exit;
use super::manifests::own_flows;
use crate::cluster::{candidates, watch};
use crate::outputs::log::{self, LogFormat};
use crate::outputs::socket;
use crate::probes::ProbeSettings;
use crate::run::{self, Config, Kernel, Source, record};

/// Run the agent: watch this kernel's connections and judge them
///
/// Watches the connections of this kernel, judges them against NetworkPolicies and what the mesh needs, and serves the result
/// as metrics, pages and to `weir status`. Needs root, or the capabilities that `weir doctor` names.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Run {
    /// File or folder with cluster objects (YAML, JSON), re-read when it changes; - is standard input, read once. Repeatable.
    /// Without it, a cluster's API server is followed: as a pod, or by a kubeconfig
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with_all = ["kubeconfig", "pods"])]
    manifests: Vec<PathBuf>,

    /// Kubeconfig of the cluster to follow; its current context counts
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Pods to watch: those of --node and what many flows lead to, others looked up when met; or all, for small clusters
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = WhichPods::Own)]
    pods: WhichPods,

    /// File or folder with NetworkPolicies that are not enforced yet: shows what they would break; re-read when it changes.
    /// Repeatable
    #[arg(long, num_args = 1.., value_name = "PATH")]
    candidate: Vec<PathBuf>,

    /// Namespace whose ConfigMaps with the label weir.io/candidates=true hold such policies too, in any of their keys
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "manifests", value_parser = NonEmptyStringValueParser::new())]
    candidates_from: Option<String>,

    /// Do not write Kubernetes Events on pods whose required flows are denied
    #[arg(long)]
    no_events: bool,

    /// Destination ports to watch
    #[arg(long, value_delimiter = ',', value_name = "PORT,…", default_values_t = WATCHED_PORTS, hide_default_value = true,
          value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,

    /// Tell DNS replies of resolvers that do not connect their sockets (musl, dnsmasq) too: four more probes, which run for each
    /// datagram that an unconnected UDP socket sends or receives
    #[arg(long)]
    dns_replies: bool,

    /// Catalogue file with flows to add, or to replace by id; repeatable
    #[arg(long, value_name = "FILE")]
    flows: Vec<PathBuf>,

    /// Address for metrics and pages
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15099")]
    listen: SocketAddr,

    /// Unix socket for the command line
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,

    /// How long evidence of a connection counts
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    window: Duration,

    /// How long after a policy change or a pod's start traffic may still follow the old rules
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    grace: Duration,

    /// Node whose traffic this kernel sees; repeatable. Without it: NODE_NAME of the environment in a cluster, else all nodes
    #[arg(long, value_name = "NAME", env = "WEIR_NODE", value_parser = NonEmptyStringValueParser::new())]
    node: Vec<String>,

    /// The kernel's type information, for a kernel that keeps it elsewhere
    #[arg(long, value_name = "PATH", default_value = "/sys/kernel/btf/vmlinux")]
    btf: PathBuf,

    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    log_format: LogFormat,

    /// Record the engine's inputs for `weir replay`; object contents are in it
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    /// Bytes that a recording may have
    #[arg(long, value_name = "BYTES", default_value_t = record::DEFAULT_LIMIT, requires = "record")]
    record_limit: u64,

    /// Leave out of the recording what verdicts are not made from: images, environments, other annotations, processes
    #[arg(long, requires = "record")]
    redact: bool,
}

/// Which pods are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WhichPods {
    /// Those of this node, and well-known ends
    Own,
    /// All of the cluster
    All,
}

const EXAMPLES: &str = "Examples:
  weir run --manifests cluster.yaml policies/
  weir run --manifests /etc/weir/objects --listen 0.0.0.0:15099 --log-format json
  weir run --kubeconfig ~/.kube/config --node worker-1
  weir run --kubeconfig ~/.kube/config --node worker-1 --candidate policies/next/";

impl Run {
    /// Runs until told to stop.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { manifests, kubeconfig, pods, candidate, candidates_from, no_events, ports, flows, .. } = self;
        let Self { listen, socket, window, grace, mut node, btf, dns_replies, .. } = self;
        let Self { log_format, record, record_limit, redact, .. } = self;
        log::init(log_format)?;
        let (_, flows) = own_flows(&flows)?;
        let runtime = run::runtime()?;
        let mut source = source(manifests, kubeconfig.as_deref(), pods, &mut node, &runtime)?;
        if let Source::Kubernetes { settings, .. } = &mut source {
            settings.config_maps.extend(candidates_from.map(candidates::config_maps));
        }
        let settings = Settings { window, grace, watched_ports: ports, nodes: node, flows, ..Settings::default() };
        let (candidates, events) = (candidate, !no_events);
        let config = Config { source, candidates, events, listen, socket, settings, record, record_limit, redact };
        let load = move |settings: &Settings| {
            let ports = settings.watched_ports.iter().copied().collect();
            Ok(Kernel::load(&ProbeSettings { ports, btf, dns_replies, ..ProbeSettings::default() })?)
        };
        runtime.block_on(run::run(config, load))?;
        Ok(Exit::Fine)
    }
}

/// Where objects come from, by the flags that say so.
pub fn source(
    manifests: Vec<PathBuf>,
    kubeconfig: Option<&Path>,
    pods: WhichPods,
    node: &mut Vec<String>,
    runtime: &Runtime,
) -> anyhow::Result<Source> {
    if !manifests.is_empty() {
        return Ok(Source::Manifests(manifests));
    }
    if node.is_empty() {
        node.extend(std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()));
    }
    let settings = Box::new(watched(pods, node)?);
    let config = Box::new(runtime.block_on(run::connection(kubeconfig))?);
    Ok(Source::Kubernetes { config, settings })
}

/// What is watched in a cluster.
fn watched(pods: WhichPods, nodes: &[String]) -> anyhow::Result<watch::Settings> {
    match (pods, nodes) {
        (WhichPods::All, _) => Ok(watch::Settings::all()),
        (WhichPods::Own, [node]) => Ok(watch::Settings::for_node(node)),
        (WhichPods::Own, _) => bail!(
            "which pods are this node's? give one --node NAME (in a pod: WEIR_NODE from spec.nodeName), or --pods all"
        ),
    }
}

/// `90s`, `5m`, `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "not a time; try 90s, 5m or 1h".to_owned())?;
    Duration::try_from(span).map_err(|_| "a time cannot be negative".to_owned())
}
