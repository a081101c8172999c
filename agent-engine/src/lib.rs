//! Weir's pure core: cluster objects and kernel observations in, verdicts out.
//!
//! No I/O, no clock, no async, no unsafe code: every input carries its time, every output is a value, so the same inputs in
//! the same order give the same outputs, byte for byte. Modules in reading order (a file uses only
//! those before it): words, time, cluster, observation, attempt, identity, requirement, policy, verdict, ledger, snapshot,
//! engine.
#![forbid(unsafe_code)]

pub mod attempt;
pub mod check;
pub mod cluster;
pub mod engine;
pub mod identity;
pub mod ledger;
pub mod observation;
pub mod policy;
pub mod requirement;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod time;
pub mod verdict;
pub mod words;
