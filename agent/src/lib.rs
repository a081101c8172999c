//! The agent: probes, cluster objects, outputs and command line around the pure engine.

pub mod cli;
pub mod cluster;
pub mod outputs;
pub mod probes;
pub mod report;
pub mod run;
