//! Cluster objects from the Kubernetes API.
//!
//! [`start`] follows every kind that Weir reads and says what there is and what changes as [`Change`]s. Nothing that the API
//! server does ends it: what is known stays in force, and [`Change::Health`] tells how old it is and why. Without all essential
//! kinds (pods of the node, namespaces, policies, services) there is no [`Change::Synced`].
//!
//! Reading order: `settings`, `target` (what is watched), `fault`, `connect`, `api` (requests), `reduce`, `decode` (objects), `follow` (one
//! watch), `hub` (many watches, one cluster), `discovery`, `lookup` (peers by address).

mod api;
mod connect;
mod decode;
mod discovery;
mod fault;
mod follow;
mod hub;
mod lookup;
mod reduce;
mod settings;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kube::core::params::ListParams;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

pub use fault::Fault;
pub use lookup::Lookups;
pub use settings::{ConfigMaps, Ends, LookupSettings, Nodes, Pods, Settings, well_known};

use super::change::{Change, Health, State};
use api::Api;
use decode::Page;
use discovery::{Discovery, Served};
use fault::Failure;
use follow::{Follower, Shared, delays};
use hub::{Hub, News, Report, WatchId};
use target::{Resource, Target, built_in};

/// A running source. Dropping it ends everything.
pub struct Source {
    /// What there is and what changes. Bounded: a slow reader slows down the watches, and nothing is lost.
    pub changes: mpsc::Receiver<Change>,
    /// Asks for peers by address. Answers come as changes.
    pub lookups: Lookups,
    _tasks: JoinSet<()>,
}

const CHANGES: usize = 1024;
const REPORTS: usize = 256;
const FIRST_CONTACT: Duration = Duration::from_secs(2);
const DISCOVERY: WatchId = 0;
const LOOKUPS: WatchId = 1;
const FIRST: WatchId = 2;

/// Starts to follow an API server. It need not be there yet.
///
/// # Errors
/// When the configuration's certificates or credentials can't be used.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn start(config: kube::Config, settings: Settings) -> Result<Source, kube::Error> {
    let api = Api::new(config, settings.patience)?;
    let (changes, received) = mpsc::channel(CHANGES);
    let (reports, reported) = mpsc::channel(REPORTS);
    let mut tasks = JoinSet::new();
    let (lookups, looked_up) = lookup::Lookup::new(api.clone(), &settings, LOOKUPS, reports.clone());
    let shared = Shared {
        api,
        settings: Arc::new(settings),
        reports,
        rediscover: Arc::new(Notify::new()),
        streaming: Arc::new(AtomicBool::new(true)),
    };
    tasks.spawn(Hub::new(changes).run(reported));
    tasks.spawn(lookups.run());
    tasks.spawn(Supervisor::new(shared).run());
    Ok(Source { changes: received, lookups: looked_up, _tasks: tasks })
}

/// Starts a follower for each target: at once for what every API server has, and for what discovery finds when it finds it.
struct Supervisor {
    shared: Shared,
    followers: JoinSet<()>,
    next: WatchId,
    found: BTreeMap<Resource, (WatchId, AbortHandle)>,
    nodes_counted: bool,
    health: Health,
}

impl Supervisor {
    fn new(shared: Shared) -> Self {
        let health = Health {
            part: "discovery".into(),
            kind: None,
            essential: false,
            state: State::Starting,
            reason: None,
            confirmed: None,
            undecodable: 0,
        };
        Self { shared, followers: JoinSet::new(), next: FIRST, found: BTreeMap::new(), nodes_counted: false, health }
    }

    async fn run(mut self) {
        self.say(DISCOVERY, News::Health(self.health.clone())).await;
        // One connection first, which all watches can share then.
        drop(tokio::time::timeout(FIRST_CONTACT, self.shared.api.discover("/api", "application/json", None)).await);
        for target in built_in(&self.shared.settings) {
            self.follow(target).await;
        }
        let settings = self.shared.settings.clone();
        let mut discovery = Discovery::new(self.shared.api.clone(), settings.optional.clone());
        let mut waits = delays(&settings);
        loop {
            let asked = match self.count_nodes().await {
                Ok(()) => discovery.ask().await,
                Err(failure) => Err(failure),
            };
            let delay = match asked {
                Ok(served) => {
                    waits = delays(&settings);
                    self.discovered(served).await;
                    settings.rediscover.mul_f64(0.75 + fastrand::f64() / 2.0)
                }
                Err(failure) => {
                    self.shared_fault(&failure.fault).await;
                    waits.next().unwrap_or(settings.max_delay).max(failure.retry_after.unwrap_or_default())
                }
            };
            let asked = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.shared.reports.closed() => return,
                () = self.shared.rediscover.notified() => {
                    // Many watches of a gone group ask at once, and again until they are ended.
                    tokio::time::sleep(settings.delay.saturating_sub(asked.elapsed())).await;
                }
            }
        }
    }

    /// Decides once whether all nodes are watched.
    async fn count_nodes(&mut self) -> Result<(), Failure> {
        let settings = self.shared.settings.clone();
        let Nodes::UpTo(most, own) = &settings.nodes else { return Ok(()) };
        if self.nodes_counted {
            return Ok(());
        }
        let params = ListParams { limit: Some(1), ..ListParams::default() };
        let counted = match self.shared.api.list(&Resource::nodes().path(None), &params).await {
            Ok(text) => {
                let page: Page<'_> = serde_json::from_str(&text).map_err(|e| Fault::Unreadable(e.to_string()))?;
                let more = page.metadata.remaining_item_count.unwrap_or(0);
                u64::try_from(more).unwrap_or(0) + page.items.map_or(0, |items| items.len() as u64)
            }
            // The watch says so as well, and is what people look at.
            Err(Failure { fault: Fault::Forbidden(_), .. }) => 0,
            Err(failure) => return Err(failure),
        };
        self.nodes_counted = true;
        let only = (counted > *most).then_some(&**own);
        if only.is_some() {
            tracing::info!(nodes = counted, most, "too many nodes to watch all of them; others are fetched when met");
        }
        self.follow(Target::nodes(only)).await;
        self.follow(Target::slices(only.map(|_| &*settings.services))).await;
        Ok(())
    }

    async fn discovered(&mut self, served: Option<Served>) {
        if let Some(served) = served {
            let gone: Vec<Resource> = self
                .found
                .keys()
                .filter(|known| !served.resources.contains(known) && !served.unsure.contains(&known.group))
                .cloned()
                .collect();
            for resource in gone {
                self.end(&resource).await;
            }
            for resource in served.resources {
                if !self.found.contains_key(&resource) {
                    tracing::info!(
                        kind = resource.api_kind,
                        version = resource.api_version(),
                        "the API server has this kind"
                    );
                    let (id, handle) = self.follow(Target::optional(resource.clone())).await;
                    self.found.insert(resource, (id, handle));
                }
            }
        }
        self.health.confirmed = Some(Instant::now());
        if self.health.state != State::Current {
            self.health.state = State::Current;
            self.health.reason = None;
            self.say(DISCOVERY, News::Health(self.health.clone())).await;
            self.say(DISCOVERY, News::AllKnown).await;
        }
    }

    async fn end(&mut self, resource: &Resource) {
        let Some((id, handle)) = self.found.remove(resource) else { return };
        handle.abort();
        tracing::info!(
            kind = resource.api_kind,
            version = resource.api_version(),
            "the API server no longer has this kind"
        );
        let mut health = Follower::new(id, Target::optional(resource.clone()), self.shared.clone()).health();
        health.state = State::Absent;
        self.say(id, News::Health(health)).await;
        self.say(id, News::Over).await;
    }

    async fn shared_fault(&mut self, fault: &Fault) {
        if matches!(fault, Fault::Unauthorized(_)) {
            self.shared.api.renew();
        }
        let reason = fault.to_string().into();
        let state = fault.state();
        if self.health.state != state || self.health.reason.as_ref() != Some(&reason) {
            tracing::warn!(%reason, "discovery failed; kinds of CRDs stay as they are");
            self.health.state = state;
            self.health.reason = Some(reason);
            self.say(DISCOVERY, News::Health(self.health.clone())).await;
        }
        // Without leave to discover there is nothing to wait for.
        if matches!(fault, Fault::Forbidden(_)) {
            self.say(DISCOVERY, News::AllKnown).await;
        }
    }

    async fn follow(&mut self, target: Target) -> (WatchId, AbortHandle) {
        let id = self.next;
        self.next += 1;
        let follower = Follower::new(id, target, self.shared.clone());
        self.say(id, News::Health(follower.health())).await;
        (id, self.followers.spawn(follower.run()))
    }

    async fn say(&self, watch: WatchId, news: News) {
        // Nobody listens any more only when everything ends.
        drop(self.shared.reports.send(Report { watch, news }).await);
    }
}
