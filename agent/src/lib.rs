//! The agent.

pub mod probes;
