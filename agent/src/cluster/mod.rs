//! Where cluster objects come from.

pub mod change;
pub mod manifests;
pub mod watch;
