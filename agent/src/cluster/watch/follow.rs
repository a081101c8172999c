//! Follows one target: says all its objects, then what changes, for ever and whatever happens to the API server.
//!
//! A list comes as a stream where the server offers that (`sendInitialEvents`) and it works, else in pages. A watch that ends is resumed at
//! the last version seen, bookmarks included; one whose version is too old (410) begins with a new list. Between two requests
//! there is always a delay, which doubles with jitter until a watch lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kube::core::Status;
use kube::core::params::{ListParams, WatchParams};
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};
use weir_engine::cluster::Key;

use super::super::change::{Health, State};
use super::api::{Api, Lines};
use super::decode::{Head, HeadMeta, Line, Page, object};
use super::fault::{Failure, Fault};
use super::hub::{Applied, News, Report, WatchId};
use super::settings::Settings;
use super::target::Target;

/// What all followers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub api: Api,
    pub settings: Arc<Settings>,
    pub reports: mpsc::Sender<Report>,
    /// Rung when a kind that was there is not served any more.
    pub rediscover: Arc<Notify>,
    /// Cleared by the first watch to find out that the server has no streaming lists.
    pub streaming: Arc<AtomicBool>,
}

/// Follows one target.
pub(super) struct Follower {
    id: WatchId,
    target: Target,
    path: String,
    api_version: String,
    shared: Shared,
    health: Health,
    /// Objects that can't be decoded, and why.
    undecodable: BTreeMap<Key, String>,
    /// Where the next watch begins; none when a list is due.
    version: Option<Arc<str>>,
    /// Lists are streamed where the server has that; not any more once it offered one and could not make it, as with an etcd that
    /// is too old for it.
    streamed: bool,
    /// Lists are paged; not any more once a continue token has expired.
    paged: bool,
    failures: u32,
    delays: ExponentialBackoff,
}

/// How a list or a watch ended.
enum End {
    /// By the server, in order.
    Closed,
    /// The server has no streaming lists.
    NotStreaming,
    Failed(Failure),
    /// Nobody listens any more.
    Deaf,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault.into())
    }
}

/// A watch that lived this long is not one of a series that the server closes at once.
const LIVED: Duration = Duration::from_secs(10);

/// Undecodable objects named at most; more help nobody.
const MAX_NAMED: usize = 1000;

impl Follower {
    pub(super) fn new(id: WatchId, target: Target, shared: Shared) -> Self {
        let health = Health {
            part: target.title(),
            kind: Some(target.resource.kind),
            essential: target.essential,
            state: State::Starting,
            reason: None,
            confirmed: None,
            undecodable: 0,
        };
        Self {
            id,
            path: target.path(),
            api_version: target.resource.api_version(),
            delays: delays(&shared.settings),
            target,
            shared,
            health,
            undecodable: BTreeMap::new(),
            version: None,
            streamed: true,
            paged: true,
            failures: 0,
        }
    }

    /// How it is doing before it began.
    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }

    /// Follows until nobody listens any more.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let mut heard = false;
            let end = match self.version.clone() {
                None if self.streamed && self.shared.streaming.load(Ordering::Relaxed) => self.stream(&mut heard).await,
                None => self.pages().await,
                Some(version) => self.watch(&version, &mut heard).await,
            };
            if heard || began.elapsed() >= LIVED {
                self.delays = delays(&self.shared.settings);
            }
            let least = match end {
                // Pages are followed by a watch without a pause.
                Ok(()) => continue,
                Err(End::NotStreaming) => {
                    tracing::debug!(watch = %self.health.part, "no streaming lists, listing in pages");
                    self.shared.streaming.store(false, Ordering::Relaxed);
                    continue;
                }
                Err(End::Closed) => None,
                Err(End::Failed(failure)) => {
                    if self.failed(&failure.fault).await.is_err() {
                        return;
                    }
                    failure.retry_after
                }
                Err(End::Deaf) => return,
            };
            let delay = self.delays.next().unwrap_or(self.shared.settings.max_delay);
            // A server that names a time would have everybody back at once.
            let spread = least.unwrap_or_default().mul_f64(1.0 + fastrand::f64() / 4.0);
            tokio::select! {
                () = tokio::time::sleep(delay.max(spread)) => {}
                () = self.shared.reports.closed() => return,
            }
        }
    }

    /// A streaming list and the watch that it becomes.
    async fn stream(&mut self, heard: &mut bool) -> Result<(), End> {
        let mut params = self.watch_params();
        params.send_initial_events = true;
        let lines = match self.shared.api.watch(&self.path, &params, "").await {
            Ok(lines) => lines,
            Err(Failure { fault: Fault::Invalid(..), .. }) => return Err(End::NotStreaming),
            Err(failure) => return Err(failure.into()),
        };
        self.say(News::Begin).await?;
        self.read(lines, true, heard).await
    }

    /// A list in pages.
    async fn pages(&mut self) -> Result<(), End> {
        let mut params = ListParams {
            label_selector: self.target.labels.clone(),
            field_selector: self.target.fields.clone(),
            ..ListParams::default()
        };
        if self.target.is_selective() {
            params.resource_version = Some("0".to_owned());
        } else if self.paged {
            params.limit = Some(self.shared.settings.page);
        }
        self.say(News::Begin).await?;
        loop {
            let text = match self.shared.api.list(&self.path, &params).await {
                Ok(text) => text,
                Err(failure) => {
                    self.paged &= !(failure.fault == Fault::Gone && params.continue_token.is_some());
                    return Err(failure.into());
                }
            };
            let page: Page<'_> = serde_json::from_str(&text).map_err(|e| Fault::Unreadable(e.to_string()))?;
            for item in page.items.into_iter().flatten() {
                self.apply(&head(item), item).await?;
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.metadata.resource_version.filter(|v| !v.is_empty());
                let version = version.ok_or_else(|| Fault::Unreadable("the list has no resourceVersion".to_owned()))?;
                self.paged = true;
                return self.complete(version.as_str().into()).await;
            }
        }
    }

    /// A watch from a version on.
    async fn watch(&mut self, version: &str, heard: &mut bool) -> Result<(), End> {
        let lines = self.shared.api.watch(&self.path, &self.watch_params(), version).await?;
        self.current().await?;
        self.read(lines, false, heard).await
    }

    async fn read(&mut self, mut lines: Lines, mut initial: bool, heard: &mut bool) -> Result<(), End> {
        let settings = self.shared.settings.clone();
        let mut patience = settings.watch_time.mul_f64(1.25) + Duration::from_secs(15);
        let began = Instant::now();
        loop {
            if initial && began.elapsed() > settings.patience {
                return Err(End::NotStreaming);
            }
            let next = tokio::select! {
                next = lines.next(if initial { settings.stream_patience } else { patience }) => next,
                () = self.shared.reports.closed() => return Err(End::Deaf),
            };
            let text = match next {
                Ok(Some(text)) => text,
                Ok(None) => return Err(End::Closed),
                Err(Fault::Silent(_)) if initial => return Err(End::NotStreaming),
                Err(fault) => return Err(fault.into()),
            };
            *heard = true;
            self.health.confirmed = Some(Instant::now());
            let line: Line<'_> = serde_json::from_str(text).map_err(|e| {
                // What the line said is lost: only a list can tell.
                self.version = None;
                Fault::Unreadable(e.to_string())
            })?;
            if line.type_ == "ERROR" {
                let status: Status = serde_json::from_str(line.object.get()).unwrap_or_default();
                self.streamed &= !(initial && status.code >= 500);
                return Err(Fault::from_status(status.code, &status.message).into());
            }
            let head = head(line.object);
            match line.type_ {
                "ADDED" | "MODIFIED" => self.apply(&head, line.object).await?,
                "DELETED" => {
                    let key = head.key(self.target.resource.kind);
                    self.readable(&key).await?;
                    self.say(News::Deleted(key)).await?;
                }
                "BOOKMARK" => {
                    patience = patience.min(settings.quiet);
                    if initial {
                        // A server that knows streaming lists ends them with this mark before any other bookmark.
                        if !head.ends_initial_events() {
                            return Err(End::NotStreaming);
                        }
                        initial = false;
                        self.complete(head.resource_version.clone()).await?;
                    }
                }
                // A type that this version does not know may have changed anything.
                _ => {
                    self.version = None;
                    return Err(Fault::Unreadable("a watch event of unknown type".to_owned()).into());
                }
            }
            if !initial && !head.resource_version.is_empty() {
                self.version = Some(head.resource_version);
            }
        }
    }

    async fn apply(&mut self, head: &HeadMeta, text: &RawValue) -> Result<(), End> {
        let resource = &self.target.resource;
        let key = head.key(resource.kind);
        let decoded = object(resource.kind, &self.api_version, &resource.api_kind, text);
        match decoded {
            Ok(decoded) if !head.name.is_empty() => {
                self.readable(&key).await?;
                let version = head.resource_version.clone();
                let applied = Applied { key, object: decoded.object, content: decoded.content, version };
                self.say(News::Applied(Box::new(applied))).await
            }
            Ok(_) => self.unreadable(key, "metadata.name is missing".to_owned()).await,
            Err(error) => self.unreadable(key, error.to_string()).await,
        }
    }

    async fn readable(&mut self, key: &Key) -> Result<(), End> {
        if self.undecodable.remove(key).is_none() {
            return Ok(());
        }
        self.describe();
        self.tell().await
    }

    async fn unreadable(&mut self, key: Key, why: String) -> Result<(), End> {
        let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
        tracing::warn!(watch = %self.health.part, object = %key, why, "an object can't be decoded and is skipped");
        self.say(News::Kept(key.clone())).await?;
        if self.undecodable.len() >= MAX_NAMED || self.undecodable.insert(key, why.clone()) == Some(why) {
            return Ok(());
        }
        self.describe();
        // During a list the rest follows; it is told once at the end.
        if self.health.state == State::Current { self.tell().await } else { Ok(()) }
    }

    fn describe(&mut self) {
        self.health.undecodable = u32::try_from(self.undecodable.len()).unwrap_or(u32::MAX);
        self.health.reason = self.undecodable.iter().next().map(|(key, why)| match self.undecodable.len() - 1 {
            0 => format!("{key} can't be decoded: {why}").into(),
            more => format!("{key} and {more} more can't be decoded: {why}").into(),
        });
    }

    async fn complete(&mut self, version: Arc<str>) -> Result<(), End> {
        self.version = Some(version);
        self.say(News::Complete).await?;
        self.current().await
    }

    async fn current(&mut self) -> Result<(), End> {
        self.failures = 0;
        self.health.confirmed = Some(Instant::now());
        if self.health.state == State::Current {
            return Ok(());
        }
        tracing::debug!(watch = %self.health.part, "current");
        self.health.state = State::Current;
        self.describe();
        self.tell().await
    }

    async fn failed(&mut self, fault: &Fault) -> Result<(), End> {
        self.failures += 1;
        match fault {
            Fault::Gone => self.version = None,
            Fault::NotFound => self.shared.rediscover.notify_one(),
            Fault::Unauthorized(_) => self.shared.api.renew(),
            Fault::Unreachable(_)
            | Fault::Silent(_)
            | Fault::Forbidden(_)
            | Fault::Invalid(..)
            | Fault::Throttled
            | Fault::Status(..)
            | Fault::Unreadable(_) => {}
        }
        tracing::debug!(watch = %self.health.part, failures = self.failures, %fault, "failed");
        // A single break that the next request mends makes nothing stale.
        let state = fault.state();
        if self.failures == 1 && state == State::Stale && self.health.state == State::Current {
            return Ok(());
        }
        let reason: Arc<str> = fault.to_string().into();
        if self.health.state != state || self.health.reason.as_ref() != Some(&reason) {
            if self.health.state != state {
                tracing::warn!(watch = %self.health.part, state = state.as_str(), %reason, "what is known grows old");
            }
            self.health.state = state;
            self.health.reason = Some(reason);
            self.tell().await?;
        }
        Ok(())
    }

    async fn tell(&self) -> Result<(), End> {
        self.say(News::Health(self.health.clone())).await
    }

    async fn say(&self, news: News) -> Result<(), End> {
        self.shared.reports.send(Report { watch: self.id, news }).await.map_err(|_| End::Deaf)
    }

    fn watch_params(&self) -> WatchParams {
        let seconds = self.shared.settings.watch_time.mul_f64(1.0 + fastrand::f64() / 4.0).as_secs();
        WatchParams {
            label_selector: self.target.labels.clone(),
            field_selector: self.target.fields.clone(),
            timeout: u32::try_from(seconds).ok(),
            bookmarks: true,
            send_initial_events: false,
        }
    }
}

pub(super) fn delays(settings: &Settings) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(settings.delay)
        .with_max_delay(settings.max_delay)
        .without_max_times()
        .with_jitter()
        .build()
}

/// An object without readable metadata has none.
fn head(object: &RawValue) -> HeadMeta {
    serde_json::from_str::<Head>(object.get()).map(|h| h.metadata).unwrap_or_default()
}
