//! Recordings of the running agent: its inputs, handed to whoever asked for them. Nobody is waited for: a reader that does not
//! keep up loses the rest of its recording, because a recording has no holes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};
use weir_engine::engine::{Engine, Input};
use weir_engine::time::Time;

use crate::outputs::Begun;

/// Inputs that wait for one reader at most.
const QUEUE: usize = 16_384;

#[derive(Debug)]
struct Tap {
    inputs: mpsc::Sender<Arc<(Time, Input)>>,
    overrun: Arc<AtomicBool>,
}

/// Everybody who records.
#[derive(Debug, Default)]
pub struct Taps(Vec<Tap>);

impl Taps {
    /// One more: it gets what the engine knows, and every input from now on.
    pub fn add(&mut self, now: Time, engine: &Engine, reader: oneshot::Sender<Box<Begun>>) {
        let (inputs, receiver) = mpsc::channel(QUEUE);
        let overrun = Arc::new(AtomicBool::new(false));
        let candidates = engine.candidate_sources().map(|(source, all)| (source.to_owned(), all.to_vec())).collect();
        let begun = Begun {
            settings: engine.settings().clone(),
            at: now,
            cluster: engine.cluster().clone(),
            answers: engine.identity().answers(),
            candidates,
            synced: engine.is_synced(),
            inputs: receiver,
            overrun: overrun.clone(),
        };
        if reader.send(Box::new(begun)).is_ok() {
            self.0.push(Tap { inputs, overrun });
        }
    }

    /// Nobody records.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Hands an input to everybody.
    pub fn note(&mut self, now: Time, input: Input) {
        if self.0.is_empty() {
            return;
        }
        let input = Arc::new((now, input));
        self.0.retain(|tap| match tap.inputs.try_send(input.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tap.overrun.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::sync::oneshot;
    use weir_engine::engine::{Engine, Input, Settings};
    use weir_engine::time::Time;

    use super::{QUEUE, Taps};

    #[test]
    fn who_does_not_keep_up_loses_the_rest_and_holds_nobody_up() {
        let engine = Engine::new(Settings::default());
        let mut taps = Taps::default();
        let mut join = || {
            let (answer, begun) = oneshot::channel();
            taps.add(Time(1), &engine, answer);
            begun.blocking_recv().unwrap()
        };
        let (mut quick, mut slow) = (join(), join());
        for n in 0..=QUEUE as u64 {
            taps.note(Time(n), Input::Timeout);
            assert_eq!(quick.inputs.try_recv().unwrap().0, Time(n));
        }
        assert!(slow.overrun.load(Ordering::Acquire) && !quick.overrun.load(Ordering::Acquire));
        let all = std::iter::from_fn(|| slow.inputs.try_recv().ok()).count();
        assert_eq!(all, QUEUE, "what was before stays, without a hole");
        drop(quick);
        taps.note(Time(0), Input::Timeout);
        assert!(taps.is_empty());
    }
}
