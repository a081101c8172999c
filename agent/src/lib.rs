//! The agent: probes, cluster objects, outputs and command line around the pure engine.

pub mod cluster;
