//! Denials beside floods.

use anyhow::Result;

use super::report::Report;
use super::world::{Lane, Watcher};
use crate::mesh::Mesh;

pub fn run(_mesh: &Mesh, _lanes: &[Lane], _agents: &[Watcher; 2], _report: &mut Report) -> Result<()> {
    Ok(())
}
