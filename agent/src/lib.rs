//! The agent: probes, cluster objects, outputs and command line around the pure engine.

pub mod cli;
pub mod cluster;
pub mod explain;
mod memory;
mod netns;
pub mod outputs;
pub mod probe;
pub mod probes;
pub mod report;
pub mod run;
