//! A policy daemon of one line: every packet of a netfilter queue gets the verdict "drop".

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nfq::{Queue, Verdict};

use crate::netns::Netns;

/// A reader of a queue. Dropping it ends it.
#[derive(Debug)]
pub struct Dropper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Dropper {
    /// Binds a queue of a namespace.
    pub fn start(namespace: &Netns, queue: u16) -> Result<Self> {
        let mut reader = namespace.run(|| {
            let mut reader = Queue::open().context("cannot open nfnetlink_queue")?;
            reader.bind(queue).with_context(|| format!("cannot bind netfilter queue {queue}"))?;
            reader.set_nonblocking(true);
            Ok(reader)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match reader.recv() {
                    Ok(mut message) => {
                        message.set_verdict(Verdict::Drop);
                        reader.verdict(message)?;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Dropper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A reader that failed has ended as well; its cell shows it.
            let _ = thread.join();
        }
    }
}
