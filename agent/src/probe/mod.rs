//! The active check of `weir probe`: which connections the required flows of a pod need, and what becomes of each when it is
//! opened from inside the pod's network namespace. Nothing is run in the pod, and no application data is sent.

mod attempt;
pub mod plan;
mod run;

pub use crate::netns::sees_all_processes;
pub use attempt::{Answered, Reached};
pub use run::{Limits, Result, run};
