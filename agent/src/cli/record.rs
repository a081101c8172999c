//! `weir record`.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use indicatif::ProgressBar;
use weir_engine::engine::{Settings, WATCHED_PORTS};

use super::manifests::own_flows;
use super::run::{WhichPods, duration, source};
use super::{Exit, progress};
use crate::outputs::log::{self, LogFormat};
use crate::outputs::recording::Recorded;
use crate::outputs::socket;
use crate::outputs::text::clean;
use crate::probes::ProbeSettings;
use crate::run::record::RecordError;
use crate::run::{self, Config, Kernel, Recorder, record};

/// Record what verdicts on this node are made from, for `weir replay`
///
/// Records what enters the engine of the agent on this node, for `weir replay`: everything that verdicts are made from, from now
/// on, after the objects as they are known. Ends by itself, or with Ctrl-C. The agent waits for nobody: a recording that cannot
/// be written as fast as things happen ends. Without an agent, with probes of its own: --standalone, --manifests, --kubeconfig.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("own").multiple(true))]
pub struct Record {
    /// File to write, readable by its owner only; one of that name is replaced; - for standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,

    /// Probes of its own in place of an agent's; needs root
    #[arg(long, group = "own")]
    standalone: bool,

    /// File or folder with cluster objects in place of a cluster's API server, with probes of its own; repeatable
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "kubeconfig", group = "own")]
    manifests: Vec<PathBuf>,

    /// Kubeconfig of the cluster to follow, with probes of its own; its current context counts
    #[arg(long, value_name = "FILE", group = "own")]
    kubeconfig: Option<PathBuf>,

    /// Node whose traffic this kernel sees, where probes are its own; repeatable
    #[arg(long, value_name = "NAME", env = "WEIR_NODE")]
    node: Vec<String>,

    /// Catalogue file with flows to add, or to replace by id, where probes are its own; repeatable
    #[arg(long, value_name = "FILE", requires = "own")]
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
  weir record incident.jsonl --for 5m --redact
  weir record incident.jsonl --kubeconfig ~/.kube/config --node worker-1
  kubectl weir shop/cart record - > incident.jsonl";

/// How often what was recorded is handed to the system.
const FLUSH: Duration = Duration::from_secs(1);

impl Record {
    /// Records until the time is over.
    pub fn run(self) -> anyhow::Result<Exit> {
        let file = self.file.clone();
        let bar = progress::seconds(self.span.as_secs());
        let ended = if self.standalone || !self.manifests.is_empty() || self.kubeconfig.is_some() {
            self.own(&bar).map(|()| Exit::Fine)
        } else {
            self.agents(&bar)
        };
        bar.finish_and_clear();
        let exit = ended?;
        if file != Path::new(record::STANDARD_OUTPUT) {
            let size = std::fs::metadata(&file).map_or(0, |m| m.len());
            anstream::eprintln!("weir: {} has {size} bytes; next: weir replay {0}", file.display());
        } else {
            anstream::eprintln!("weir: recorded; next: weir replay FILE, where FILE is what you wrote it to");
        }
        Ok(exit)
    }

    /// What the agent sees.
    fn agents(self, bar: &ProgressBar) -> anyhow::Result<Exit> {
        let Self { file, socket, span, limit, redact, .. } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the event loop")?.block_on(async {
            tick(bar);
            let stop = run::stop_signal()?;
            let mut recorded = Recorded::ask(&socket).await?;
            let mut recorder = Recorder::create(&file, &recorded.settings, limit, redact)?;
            let over = tokio::time::sleep(span);
            let mut flush = tokio::time::interval(FLUSH);
            tokio::pin!(stop, over);
            let exit = loop {
                let input = tokio::select! {
                    () = &mut stop => break Exit::Fine,
                    () = &mut over => break Exit::Fine,
                    _ = flush.tick() => {
                        recorder.flush()?;
                        continue;
                    }
                    input = recorded.next() => input,
                };
                match input {
                    Ok(Some((now, input))) => match recorder.write(now, &input) {
                        Ok(()) => {}
                        // What is there replays.
                        Err(full @ RecordError::Full { .. }) => {
                            anstream::eprintln!("weir: {full}");
                            break Exit::Fine;
                        }
                        Err(error) => return Err(error.into()),
                    },
                    Ok(None) => {
                        anstream::eprintln!("weir: the agent has stopped, and the recording ends with it");
                        break Exit::Failed;
                    }
                    Err(error) => {
                        anstream::eprintln!("weir: {}", clean(&error.to_string()));
                        break Exit::Failed;
                    }
                }
            };
            recorder.flush()?;
            Ok(exit)
        })
    }

    /// What probes of its own see.
    fn own(self, bar: &ProgressBar) -> anyhow::Result<()> {
        let Self { file, manifests, kubeconfig, mut node, flows, span, limit, redact, .. } = self;
        // On a terminal the bar says that it works, and lines between would break it.
        if io::stderr().is_terminal() {
            log::init_quiet()
        } else {
            log::init(LogFormat::Text)?
        }
        let (_, flows) = own_flows(&flows)?;
        let runtime = run::runtime()?;
        let source = source(manifests, kubeconfig.as_deref(), WhichPods::Own, &mut node, &runtime)?;
        let settings = Settings { watched_ports: WATCHED_PORTS.to_vec(), nodes: node, flows, ..Settings::default() };
        let load = |settings: &Settings| {
            let ports = settings.watched_ports.iter().copied().collect();
            Ok(Kernel::load(&ProbeSettings { ports, ..ProbeSettings::default() })?)
        };
        // Nobody asks what only records; where it could be asked goes away with it.
        let socket = std::env::temp_dir().join(format!("weir-record-{}.sock", std::process::id()));
        let config = Config {
            source,
            candidates: Vec::new(),
            events: false,
            listen: ([127, 0, 0, 1], 0).into(),
            socket,
            settings,
            record: Some(file),
            record_limit: limit,
            redact,
        };
        runtime.block_on(async {
            tick(bar);
            run::run_for(config, load, span).await
        })
    }
}

/// Moves the bar on while the event loop runs.
fn tick(bar: &ProgressBar) {
    let bar = bar.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            bar.set_position(bar.elapsed().as_secs());
        }
    });
}
