//! `weir explain`.

use std::path::PathBuf;

use clap::Args;
use weir_engine::check::Verdict;

use super::Exit;
use super::manifests::{Reading, Source};
use super::out::{self, Output};
use crate::explain::{self, Port};
use crate::outputs::socket::{self, Question};

/// Say what policies make of one connection, and why
///
/// Says what the policies make of a connection, and why; without -f as the agent on this node sees it, with what its kernel
/// saw of that connection lately, and by which edit the decision last changed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// Who connects: NAMESPACE/POD, NAMESPACE/WORKLOAD, NAMESPACE/KIND/NAME, an address, apiserver, kubelet@NODE or external
    from: String,

    /// To whom: the same, and NAMESPACE/svc/NAME
    to: String,

    /// PORT or PORT/PROTOCOL; a Service's port is followed to the pods' port
    port: Port,

    /// Manifests to judge in place of what the agent sees: files, folders, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "PATH", num_args = 1..)]
    files: Vec<PathBuf>,

    /// Manifests of the cluster that they are meant for, such as `kubectl get -A -o yaml` prints
    #[arg(long, value_name = "PATH", num_args = 1.., requires = "files")]
    cluster: Vec<PathBuf>,

    #[command(flatten)]
    reading: Reading,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir explain shop/cart istio-system/istiod 15012
  weir explain shop/cart istio-system/istiod 15012 -f policies/ --cluster cluster.yaml
  weir explain shop/deploy/cart kube-system/svc/kube-dns 53/UDP -f - < cluster.yaml

Exit codes: 0 admitted, 1 denied, 2 could not tell or failed.";

impl Explain {
    /// Reads or asks, judges, prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { from, to, port, files, cluster, reading, output, socket } = self;
        if files.is_empty() {
            let port = format!("{}/{}", port.number, port.protocol);
            let said = socket::question(&socket, &Question::Explain { from, to, port })?;
            match output {
                Output::Table => out::print(&said.text)?,
                Output::Json => out::json(&said.json)?,
            }
            return Ok(Exit::of(said.exit));
        }
        let source = Source { files, cluster, reading };
        let loaded = source.load()?;
        let explanation = explain::explain(&loaded.model, &from, &to, port)?;
        match output {
            Output::Table => {
                out::print(&explain::render(
                    &explanation,
                    &loaded.model.cluster,
                    &loaded.inputs,
                    &source.arguments(),
                )?)?;
            }
            Output::Json => out::json(&explanation)?,
        }
        Ok(match explanation.verdict {
            Verdict::Denied => Exit::Findings,
            Verdict::Admitted if loaded.inputs.broken() == 0 => Exit::Fine,
            Verdict::Admitted | Verdict::Undecidable => Exit::Failed,
        })
    }
}
