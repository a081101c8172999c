//! `weir run`: brings everything up in the order in which it can fail, runs until told to stop, takes everything down.

mod clock;
mod event_loop;
mod kernel;
mod listeners;
pub mod live;
pub mod record;
mod redact;
mod source;
mod tap;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::{error, info};
use weir_engine::engine::{Engine, Settings};

use crate::memory;
use crate::outputs::events::Events;
use crate::outputs::socket::{BindError, Socket};
use crate::outputs::{Views, http};
use crate::probes::host;

pub use clock::Clock;
pub use event_loop::{EventLoop, Observer};
pub use kernel::Kernel;
use listeners::Listeners;
pub use record::Recorder;
pub(crate) use source::chain;
pub use source::{Source, connection};

/// How long clients get to finish when the agent stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// What `weir run` was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where cluster objects come from.
    pub source: Source,
    /// Files and folders with policies that are not enforced.
    pub candidates: Vec<PathBuf>,
    /// Whether transitions become Events on the pods that they are about.
    pub events: bool,
    /// Where metrics and pages are served.
    pub listen: SocketAddr,
    /// Where the command line asks.
    pub socket: PathBuf,
    /// The engine's.
    pub settings: Settings,
    /// Where the engine's inputs are recorded.
    pub record: Option<PathBuf>,
    /// Bytes that a recording may have.
    pub record_limit: u64,
    /// Leave out of it what verdicts are not made from.
    pub redact: bool,
}

/// Where the agent's tasks run.
///
/// # Errors
/// When the machine refuses threads or descriptors.
pub fn runtime() -> anyhow::Result<Runtime> {
    memory::keep_little();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("cannot start the event loop")
}

/// Runs the agent until SIGTERM or SIGINT. `observe` loads the probes, once everything cheaper has succeeded.
///
/// # Errors
/// Whatever kept it from starting, as one line that says what to do; or the loss of its probes later.
pub async fn run<O: Observer>(
    config: Config,
    observe: impl FnOnce(&Settings) -> anyhow::Result<O> + Send + 'static,
) -> anyhow::Result<()> {
    run_until(config, observe, stop_signal).await
}

/// Like [`run`], for so long at most.
///
/// # Errors
/// As [`run`].
pub async fn run_for<O: Observer>(
    config: Config,
    observe: impl FnOnce(&Settings) -> anyhow::Result<O> + Send + 'static,
    span: Duration,
) -> anyhow::Result<()> {
    let stop = || {
        let signal = stop_signal()?;
        Ok(async move { drop(tokio::time::timeout(span, signal).await) })
    };
    run_until(config, observe, stop).await
}

/// Like [`run`], until what `stop` gives is done. It is asked when manifests have been read and before anything is made
/// that has to be cleaned up.
///
/// # Errors
/// As [`run`].
pub async fn run_until<O: Observer, S: Future<Output = ()>>(
    config: Config,
    observe: impl FnOnce(&Settings) -> anyhow::Result<O> + Send + 'static,
    stop: impl FnOnce() -> anyhow::Result<S>,
) -> anyhow::Result<()> {
    let Config { source, candidates, events, listen, socket, mut settings, record, record_limit, redact } = config;
    let clock = Clock::start();
    settings.wall_offset_ns = clock.wall_offset_ns();

    settings.lookups = source.looks_up();
    let events = source.cluster().filter(|_| events).map(Events::start).transpose();
    let events = events.context("cannot use the API server's certificates or credentials as they are configured")?;
    let candidates = source::candidates(candidates)?;
    let mut source = source.start()?;
    // Until here a signal simply ends the process: there is nothing to clean up.
    let stopped = stop()?;
    let listener = TcpListener::bind(listen).await.map_err(|e| {
        anyhow!("cannot listen on {listen}: {e}; stop who has it, or choose another address with --listen")
    })?;
    let address = listener.local_addr()?;
    let socket_path = socket;
    let socket = Socket::bind(&socket_path).map_err(unprivileged)?;
    let recorder = record.map(|path| Recorder::create(&path, &settings, record_limit, redact)).transpose()?;
    let loading = load(observe, settings.clone());
    tokio::pin!(stopped);
    let observer = tokio::select! {
        observer = loading => observer?,
        // The kernel takes back what was loaded when the process ends.
        () = &mut stopped => {
            drop(socket);
            info!("weir stops before its probes are loaded");
            return Ok(());
        }
    };

    let (views, requests) = Views::channel();
    let lookups = source.lookups().filter(|_| settings.lookups);
    let listeners = Listeners::start()?;
    let event_loop = EventLoop::new(Engine::new(settings), clock, observer, recorder, lookups, listeners, events);
    memory::give_back();
    info!(version = env!("CARGO_PKG_VERSION"), http = %address, socket = %socket_path.display(), "weir runs");

    let (tell, told) = watch::channel(());
    let server = tokio::spawn(http::serve(listener, views.clone(), until_closed(told)));
    let ended = tokio::select! {
        ended = event_loop.run(source.changes(), candidates, requests, stopped) => ended,
        never = socket.serve(views) => match never {},
    };
    drop(tell);
    drop(socket);
    if let Ok(Ok(Err(failure))) = tokio::time::timeout(FAREWELL, server).await {
        error!(%failure, "the HTTP server failed");
    }
    if ended.is_ok() {
        info!("weir stops");
    }
    ended
}

/// Loads the probes on a thread of their own: reading the kernel's types and its verifier take their time, and whoever wants
/// the agent to stop must not wait for them.
async fn load<O: Observer>(
    observe: impl FnOnce(&Settings) -> anyhow::Result<O> + Send + 'static,
    settings: Settings,
) -> anyhow::Result<O> {
    let (send, loaded) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("probes".to_owned())
        .spawn(move || {
            let _inside = runtime.enter();
            drop(send.send(observe(&settings)));
        })
        .context("cannot start the thread that loads the probes")?;
    loaded.await.context("loading the probes has failed; the log above says where")?
}

/// Who may not even make the socket lacks more than a folder, as a rule: say first what running the agent takes.
fn unprivileged(error: BindError) -> anyhow::Error {
    match &error {
        BindError::Failed { cause, .. } if cause.kind() == std::io::ErrorKind::PermissionDenied => {
            host::require_capabilities().err().map_or_else(|| error.into(), Into::into)
        }
        BindError::Failed { .. } | BindError::Taken(_) | BindError::NotASocket(_) => error.into(),
    }
}

async fn until_closed(mut told: watch::Receiver<()>) {
    while told.changed().await.is_ok() {}
}

/// SIGTERM or SIGINT; caught from now on, not only when waited for.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// What a future becomes that may be absent.
pub(crate) async fn maybe<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
