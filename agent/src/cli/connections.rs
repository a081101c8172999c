//! `--connections FILE`: connections that were seen, for the pairs that no object tells of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;
use weir_engine::check::{Connection, Model, Party, connections};
use weir_engine::snapshot::Snapshot;

use super::manifests::quote;
use crate::outputs::text::clean;

/// Told of one by one, for a file at most.
const SHOWN: usize = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    connections: Vec<Connection>,
}

/// Files that tell of traffic.
#[derive(Clone, Debug, Args)]
pub struct Seen {
    /// Connections that were seen, so that application traffic is judged too: an agent's snapshot, or a list (see docs/flows.md)
    #[arg(long, value_name = "FILE")]
    connections: Vec<PathBuf>,
}

impl Seen {
    /// Takes in what the files tell: an agent's snapshot (`weir status --all --output json`), or a list of connections.
    ///
    /// # Errors
    /// When a file cannot be read, or is neither: which, the line, what is wrong, what is allowed.
    pub fn observe(&self, model: &mut Model) -> anyhow::Result<()> {
        for file in &self.connections {
            let text =
                fs::read_to_string(file).with_context(|| format!("cannot read traffic from {}", file.display()))?;
            let connections = read(&text, file, model)?;
            let useless = model.observe(&connections);
            for connection in useless.iter().take(SHOWN) {
                let text = format!("{}: {}", file.display(), line(connection));
                anstream::eprintln!("weir: {}: tells of no required flow", clean(&text));
            }
            if useless.len() > SHOWN {
                anstream::eprintln!("weir: {}: and {} more connections", file.display(), useless.len() - SHOWN);
            }
        }
        Ok(())
    }

    /// The arguments as a shell would read them, each with a space before it.
    #[must_use]
    pub fn arguments(&self) -> String {
        self.connections.iter().map(|file| format!(" --connections {}", quote(file))).collect()
    }
}

fn read(text: &str, file: &Path, model: &Model) -> anyhow::Result<Vec<Connection>> {
    if let Ok(snapshot) = serde_json::from_str::<Snapshot>(text) {
        return Ok(connections(&snapshot, model));
    }
    let allowed = "a file of traffic is a snapshot of an agent (`weir status --all --output json`), or YAML: connections: \
                   [{from: {pod: namespace/name}, to: {ip: 192.0.2.1}, protocol: TCP, port: 8080, established: true}], \
                   where an end is pod, node or ip";
    match serde_saphyr::from_str::<File>(text) {
        Ok(file) => Ok(file.connections),
        Err(error) => bail!("{}: {error}; {allowed}", file.display()),
    }
}

fn line(connection: &Connection) -> String {
    let party = |party: &Party| match party {
        Party::Pod(name) => name.clone(),
        Party::Node(name) => format!("node {name}"),
        Party::Ip(address) => address.to_string(),
    };
    let Connection { from, to, protocol, port, .. } = connection;
    format!("{} → {} {port}/{protocol}", party(from), party(to))
}
