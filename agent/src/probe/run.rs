//! Works a plan off: one source pod after the other, never faster than allowed.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::attempt::{Answered, Reached, attempt};
use super::plan::{Check, Plan};
use crate::netns;

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For each connection.
    pub timeout: Duration,
    /// Connections begun in a second.
    pub rate: u32,
}

/// A check and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Result {
    /// What was to be opened.
    #[serde(flatten)]
    pub check: Check,
    /// What became of it; nothing where the source is not on this machine.
    pub answered: Option<Answered>,
}

impl Result {
    /// It did what the flow needs.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.answered.as_ref().is_some_and(|a| a.reached == Reached::Established && a.right)
    }
}

/// Opens every connection of a plan; `progress` is told of each. Sources that are not on this machine are left untried.
///
/// # Errors
/// When network namespaces cannot be listed or entered.
pub fn run(plan: Plan, limits: Limits, mut progress: impl FnMut(&Result) + Send) -> anyhow::Result<Vec<Result>> {
    let namespaces = netns::all()?;
    let pause = Duration::from_secs(1) / limits.rate.max(1);
    let mut results: Vec<Result> = Vec::new();
    for pod in plan.checks.chunk_by(|a, b| a.source == b.source) {
        let home = pod.first().and_then(|check| netns::with_address(&namespaces, check.address));
        let Some(home) = home else {
            results.extend(pod.iter().map(|check| Result { check: check.clone(), answered: None }));
            continue;
        };
        let done = netns::inside(home, || {
            let mut done = Vec::new();
            for check in pod {
                let begin = Instant::now();
                let result = Result { check: check.clone(), answered: Some(attempt(check, limits.timeout)) };
                progress(&result);
                done.push(result);
                thread::sleep(pause.saturating_sub(begin.elapsed()));
            }
            done
        })?;
        results.extend(done);
    }
    Ok(results)
}
