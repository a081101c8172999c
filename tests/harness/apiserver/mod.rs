//! A fake API server: real HTTP on the loopback, enough of the Kubernetes API to be followed, and faults on demand.
//!
//! Discovery (also aggregated, with tags), get, list with pages and selectors, watch from a version with bookmarks and streaming
//! lists, create, merge patches, replace and delete. Everything is kept in memory and counted. It takes any object from the test: what a real API server
//! would refuse as malformed is what a reader must survive. Of clients it takes Events alone as a real one does, and where
//! roles are given it refuses whatever they do not grant.

mod body;
mod count;
mod discovery;
mod event;
mod exec;
mod fault;
mod grant;
mod request;
mod selector;
mod serve;
mod store;
mod tls;
mod watch;
mod write;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch as changes;
use tokio::task::JoinSet;

pub use count::{Count, Counts};
pub use exec::{Exec, Ran};
pub use fault::{Fault, Rule, Streaming, Verb};
pub use selector::Selector;
pub use store::{Happened, Store, Type, built_in};

use grant::Grant;
use request::Asked;
use tls::Tls;

/// A running fake API server. Dropping it cuts all connections.
pub struct ApiServer {
    inner: Arc<Inner>,
    address: SocketAddr,
    tls: Option<Tls>,
    task: Option<tokio::task::JoinHandle<()>>,
}

/// What requests share.
struct Inner {
    store: Mutex<Store>,
    newest: changes::Sender<u64>,
    rules: Mutex<Vec<Rule>>,
    settings: Mutex<Settings>,
    counts: Mutex<Counts>,
    log: Mutex<Vec<String>>,
    runner: Mutex<Option<exec::Runner>>,
}

struct Settings {
    token: Option<String>,
    grants: Option<Vec<Grant>>,
    streaming: Streaming,
    aggregated: bool,
    bookmark_every: Duration,
}

/// Request lines remembered.
const LOG: usize = 10_000;

impl ApiServer {
    /// Starts a server on a free port of the loopback that serves the built-in kinds.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// Starts a server on a free port of the loopback that speaks TLS, and HTTP/2 with those who can.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start_tls() -> anyhow::Result<Self> {
        Self::begin(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Some(Tls::new()?)).await
    }

    /// Starts a server at an address.
    ///
    /// # Errors
    /// When it can't be bound.
    pub async fn start_at(address: SocketAddr) -> anyhow::Result<Self> {
        Self::begin(address, None).await
    }

    async fn begin(address: SocketAddr, tls: Option<Tls>) -> anyhow::Result<Self> {
        let store = Store::new(built_in());
        let (newest, _) = changes::channel(store.version());
        let inner = Arc::new(Inner {
            store: Mutex::new(store),
            newest,
            rules: Mutex::default(),
            settings: Mutex::new(Settings {
                token: None,
                grants: None,
                streaming: Streaming::Offered,
                aggregated: true,
                bookmark_every: Duration::from_secs(60),
            }),
            counts: Mutex::default(),
            log: Mutex::default(),
            runner: Mutex::default(),
        });
        let mut server = Self { inner, address, tls, task: None };
        server.resume().await?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://…` or `https://…`
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate that a client must trust, as PEM.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.tls.as_ref().map(|t| &*t.certificate)
    }

    /// Cuts all connections and refuses new ones. Objects stay.
    pub async fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            drop(task.await);
        }
    }

    /// Serves again at the same address.
    ///
    /// # Errors
    /// When the port is taken meanwhile.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(self.address).with_context(|| format!("binding {}", self.address))?;
        let listener = socket.listen(1024)?;
        self.address = listener.local_addr()?;
        self.task = Some(tokio::spawn(accept(self.inner.clone(), listener, self.tls.clone())));
        Ok(())
    }

    /// Adds or replaces an object of a kind that is served; nothing else of it is checked.
    ///
    /// # Panics
    /// When it has no `apiVersion`, `kind` or `metadata.name`, or the kind is not served.
    pub fn apply(&self, object: Value) {
        self.try_apply(object).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Adds or replaces an object.
    ///
    /// # Errors
    /// When it has no `apiVersion`, `kind` or `metadata.name`, or the kind is not served.
    pub fn try_apply(&self, object: Value) -> anyhow::Result<()> {
        self.inner.apply(object).map(drop)
    }

    /// Removes an object.
    ///
    /// # Panics
    /// When there is none.
    pub fn delete(&self, group: &str, plural: &str, namespace: &str, name: &str) {
        self.inner.store().delete(group, plural, namespace, name).unwrap_or_else(|e| panic!("{e:#}"));
        self.inner.announce();
    }

    /// Serves one more kind, as if its CRD had been installed.
    pub fn install(&self, new: Type) {
        self.inner.store().install(new);
    }

    /// Serves a kind no longer; its watches end.
    pub fn uninstall(&self, group: &str, plural: &str) {
        self.inner.store().uninstall(group, plural);
        self.inner.announce();
    }

    /// Runs commands in pods from now on; without, there are none to be run.
    pub fn run_with(&self, runner: impl Fn(&Exec) -> Ran + Send + Sync + 'static) {
        *lock(&self.inner.runner) = Some(Arc::new(runner));
    }

    /// Reads the store.
    pub fn read<T>(&self, read: impl FnOnce(&Store) -> T) -> T {
        read(&self.inner.store())
    }

    /// Forgets what happened so far: watches from an older version get 410.
    pub fn compact(&self) {
        self.inner.store().compact();
        self.inner.announce();
    }

    /// From now on, something goes wrong.
    pub fn fault(&self, rule: Rule) {
        lock(&self.inner.rules).push(rule);
    }

    /// From now on, nothing goes wrong.
    pub fn clear_faults(&self) {
        lock(&self.inner.rules).clear();
    }

    /// Only requests with this bearer token are answered.
    pub fn require_token(&self, token: Option<&str>) {
        lock(&self.inner.settings).token = token.map(str::to_owned);
    }

    /// Only requests are answered that the roles in this file of manifests grant, as if all were bound to who asks.
    ///
    /// # Errors
    /// When there are no roles in it.
    pub fn require_roles(&self, manifests: &Path) -> anyhow::Result<()> {
        lock(&self.inner.settings).grants = Some(grant::read(manifests)?);
        Ok(())
    }

    /// How streaming lists are answered.
    pub fn set_streaming(&self, streaming: Streaming) {
        lock(&self.inner.settings).streaming = streaming;
    }

    /// Whether aggregated discovery is offered.
    pub fn set_aggregated(&self, aggregated: bool) {
        lock(&self.inner.settings).aggregated = aggregated;
    }

    /// How often a watch gets a bookmark; a minute unless set.
    pub fn set_bookmark_every(&self, every: Duration) {
        lock(&self.inner.settings).bookmark_every = every;
    }

    /// What was asked and sent so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.inner.counts).clone()
    }

    /// The request lines so far, oldest first; the newest are left out when there are too many.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.inner.log).clone()
    }

    /// Writes a kubeconfig for this server, with a token or a file that holds one if given.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_kubeconfig(&self, to: &Path, token: Option<&str>, token_file: Option<&Path>) -> anyhow::Result<()> {
        let mut user = json!({});
        if let Some(token) = token {
            user["token"] = token.into();
        }
        if let Some(file) = token_file {
            user["tokenFile"] = file.to_string_lossy().into();
        }
        let mut cluster = json!({"server": self.url()});
        if let Some(tls) = &self.tls {
            cluster["certificate-authority-data"] = tls.base64().into();
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "fake", "user": user}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        std::fs::write(to, serde_json::to_vec_pretty(&config)?).with_context(|| format!("writing {}", to.display()))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn accept(inner: Arc<Inner>, listener: TcpListener, tls: Option<Tls>) {
    // Aborted together with this task, and with them their connections.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                drop(stream.set_nodelay(true));
                lock(&inner.counts).connections += 1;
                let (inner, tls) = (inner.clone(), tls.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let inner = inner.clone();
                        async move { Ok::<_, Infallible>(serve::answer(inner, request).await) }
                    });
                    let builder = http();
                    // A connection that breaks is the client's concern, or a fault that was asked for.
                    match tls {
                        None => drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.acceptor.accept(stream).await {
                                drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    builder
}

impl Inner {
    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn apply(&self, object: Value) -> anyhow::Result<Arc<Value>> {
        let applied = self.store().apply(object)?;
        self.announce();
        Ok(applied)
    }

    fn announce(&self) {
        let version = self.store().version();
        self.newest.send_replace(version);
    }

    fn changes(&self) -> changes::Receiver<u64> {
        self.newest.subscribe()
    }

    fn runner(&self) -> Option<exec::Runner> {
        lock(&self.runner).clone()
    }

    fn token(&self) -> Option<String> {
        lock(&self.settings).token.clone()
    }

    fn grants(&self, asked: &Asked) -> bool {
        lock(&self.settings).grants.as_ref().is_none_or(|grants| grants.iter().any(|grant| grant.covers(asked)))
    }

    fn streaming(&self) -> Streaming {
        lock(&self.settings).streaming
    }

    fn aggregated(&self) -> bool {
        lock(&self.settings).aggregated
    }

    fn bookmark_every(&self) -> Duration {
        lock(&self.settings).bookmark_every
    }

    fn count(&self, key: &(String, Verb), add: impl FnOnce(&mut Count)) {
        add(lock(&self.counts).by.entry(key.clone()).or_default());
    }

    fn log(&self, parts: &Parts) {
        let mut log = lock(&self.log);
        if log.len() < LOG {
            log.push(format!("{} {}", parts.method, parts.uri));
        }
    }

    /// The faults that hit the request.
    /// What goes wrong with a request for a subresource.
    fn fault_of(&self, plural: &str, verb: Verb) -> Option<Fault> {
        lock(&self.rules).iter().find(|rule| rule.hits(plural, verb)).map(|rule| rule.fault.clone())
    }

    fn faults(&self, asked: &Asked) -> Vec<Fault> {
        let mut hits = Vec::new();
        lock(&self.rules).retain_mut(|rule| {
            if !rule.hits(&asked.plural, asked.verb) {
                return true;
            }
            hits.push(rule.fault.clone());
            rule.times = rule.times.map(|times| times.saturating_sub(1));
            rule.times != Some(0)
        });
        hits
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
