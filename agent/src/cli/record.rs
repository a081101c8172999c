//! `weir record`.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use weir_engine::engine::{Settings, WATCHED_PORTS};

use super::manifests::own_flows;
use super::run::{WhichPods, duration, source};
use super::{Exit, progress};
use crate::outputs::log::{self, LogFormat};
use crate::probes::ProbeSettings;
use crate::run::{self, Config, Kernel, record};

/// Record what verdicts on this node are made from, for `weir replay`
///
/// Records what enters the engine, with probes of its own, for `weir replay`: everything that verdicts on this node are made
/// from. Ends by itself, or with Ctrl-C; an agent that runs beside it is not disturbed. Needs root.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Record {
    /// File to write, readable by its owner only; one of that name is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// File or folder with cluster objects in place of a cluster's API server; repeatable
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "kubeconfig")]
    manifests: Vec<PathBuf>,

    /// Kubeconfig of the cluster to follow; its current context counts
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Node whose traffic this kernel sees; repeatable
    #[arg(long, value_name = "NAME", env = "WEIR_NODE")]
    node: Vec<String>,

    /// Catalogue file with flows to add, or to replace by id; repeatable
    #[arg(long, value_name = "FILE")]
    flows: Vec<PathBuf>,

    /// How long to record
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = duration)]
    span: Duration,

    /// Bytes that the recording may have; it ends there
    #[arg(long, value_name = "BYTES", default_value_t = record::DEFAULT_LIMIT)]
    limit: u64,

    /// Leave out what verdicts are not made from: images, environments, other annotations, processes. Names, labels and
    /// addresses stay
    #[arg(long)]
    redact: bool,
}

const EXAMPLES: &str = "Examples:
  weir record incident.jsonl --kubeconfig ~/.kube/config --node worker-1 --for 5m
  weir record incident.jsonl --manifests cluster.yaml policies/ --redact";

impl Record {
    /// Records until the time is over.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { file, manifests, kubeconfig, mut node, flows, span, limit, redact } = self;
        // On a terminal the bar says that it works, and lines between would break it.
        let terminal = io::stderr().is_terminal();
        if terminal {
            log::init_quiet()
        } else {
            log::init(LogFormat::Text)?
        }
        let (_, flows) = own_flows(&flows)?;
        let runtime = run::runtime()?;
        let source = source(manifests, kubeconfig.as_deref(), WhichPods::Own, &mut node, &runtime)?;
        let settings = Settings { watched_ports: WATCHED_PORTS.to_vec(), nodes: node, flows, ..Settings::default() };
        let btf = ProbeSettings::default().btf;
        let load = |settings: &Settings| Kernel::load(settings.watched_ports.iter().copied(), btf).map_err(Into::into);
        // Nobody asks what only records; where it could be asked goes away with it.
        let socket = std::env::temp_dir().join(format!("weir-record-{}.sock", std::process::id()));
        let config = Config {
            source,
            candidates: Vec::new(),
            events: false,
            listen: ([127, 0, 0, 1], 0).into(),
            socket,
            settings,
            record: Some(file.clone()),
            record_limit: limit,
            redact,
        };
        let bar = progress::seconds(span.as_secs());
        let ticking = bar.clone();
        runtime.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tick.tick().await;
                ticking.set_position(ticking.elapsed().as_secs());
            }
        });
        let ended = runtime.block_on(run::run_for(config, load, span));
        bar.finish_and_clear();
        ended?;
        let size = std::fs::metadata(&file).map_or(0, |m| m.len());
        anstream::eprintln!("weir: {} has {size} bytes; next: weir replay {0}", file.display());
        Ok(Exit::Fine)
    }
}
