//! `weir run`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use weir_engine::engine::{Settings, WATCHED_PORTS};

use super::Exit;
use crate::outputs::log::{self, LogFormat};
use crate::outputs::socket;
use crate::run::{self, Config, Kernel, record};

/// Watches the connections of this kernel, judges them against NetworkPolicies and what the mesh needs, and serves the result
/// as metrics, pages and to `weir status`. Needs root, or the capabilities that `weir doctor` names.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Run {
    /// File or folder with cluster objects (YAML, JSON), re-read when it changes; - is standard input, read once. Repeatable.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,

    /// Destination ports to watch
    #[arg(long, value_delimiter = ',', value_name = "PORT,…", default_values_t = WATCHED_PORTS, hide_default_value = true,
          value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,

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

    /// Node whose traffic this kernel sees; repeatable. Without it: all nodes
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
}

const EXAMPLES: &str = "Examples:
  weir run --manifests cluster.yaml policies/
  weir run --manifests /etc/weir/objects --listen 0.0.0.0:15099 --log-format json";

impl Run {
    /// Runs until told to stop.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { manifests, ports, listen, socket, window, grace, node, btf, log_format, record, record_limit } =
            self;
        log::init(log_format)?;
        let settings = Settings { window, grace, watched_ports: ports, nodes: node, ..Settings::default() };
        let config = Config { manifests, listen, socket, settings, record, record_limit };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the event loop")?;
        let load = |settings: &Settings| Ok(Kernel::load(settings.watched_ports.iter().copied(), btf)?);
        runtime.block_on(run::run(config, load))?;
        Ok(Exit::Fine)
    }
}

/// `90s`, `5m`, `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "not a time; try 90s, 5m or 1h".to_owned())?;
    Duration::try_from(span).map_err(|_| "a time cannot be negative".to_owned())
}
