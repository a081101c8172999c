//! Peers by address: a pod of another node is asked for when it is first met, and forgotten when it was not met for long.
//!
//! Requests are coalesced, limited in number and pace, and answered from the API server's cache. "No pod has this address" is
//! remembered for a while that doubles. An answer is checked again when the peer is met after some time: its address may be
//! another pod's by then.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kube::core::params::ListParams;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_engine::cluster::{Key, Kind, Object, Pod};

use super::super::change::{Health, State};
use super::api::Api;
use super::decode::{Head, Page, object};
use super::fault::{Failure, Fault};
use super::hub::{Applied, News, Report, WatchId};
use super::settings::{LookupSettings, Nodes, Settings};
use super::target::Resource;

/// Asks for peers by address. Cheap to clone and to call.
#[derive(Clone, Debug)]
pub struct Lookups {
    wanted: mpsc::Sender<IpAddr>,
}

impl Lookups {
    /// A peer with this address was met and the cluster does not know it. Never waits: of more wishes than fit, some get lost,
    /// and come again with the next packet. Asking often for the same address costs nothing.
    pub fn want(&self, address: IpAddr) {
        let address = address.to_canonical();
        let local = address.is_loopback() || address.is_unspecified() || address.is_multicast();
        let link_local = match address {
            IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        if !local && !link_local {
            let _ = self.wanted.try_send(address);
        }
    }
}

const WANTED: usize = 1024;

/// The task behind [`Lookups`].
pub(super) struct Lookup {
    api: Api,
    settings: LookupSettings,
    delay: Duration,
    max_delay: Duration,
    /// Nodes are fetched when one of their hostNetwork pods is met.
    fetch_nodes: bool,
    id: WatchId,
    reports: mpsc::Sender<Report>,
    wanted: mpsc::Receiver<IpAddr>,
    entries: HashMap<IpAddr, Entry>,
    queue: VecDeque<IpAddr>,
    under_way: JoinSet<(IpAddr, Result<Vec<Applied>, Failure>)>,
    tokens: Tokens,
    failures: u32,
    not_before: Instant,
    health: Health,
}

struct Entry {
    /// What the address led to: pods, and the node of a hostNetwork pod.
    keys: Vec<Key>,
    queued: bool,
    /// When to ask again if it is wanted.
    again: Instant,
    wanted: Instant,
    tombstone: Duration,
}

struct Tokens {
    left: f64,
    filled: Instant,
}

impl Lookup {
    pub(super) fn new(api: Api, settings: &Settings, id: WatchId, reports: mpsc::Sender<Report>) -> (Self, Lookups) {
        let (sender, wanted) = mpsc::channel(WANTED);
        let now = Instant::now();
        let health = Health {
            part: "pods (by address)".into(),
            kind: Some(Kind::Pod),
            essential: false,
            state: State::Current,
            reason: None,
            confirmed: None,
            undecodable: 0,
        };
        let lookup = Self {
            api,
            settings: settings.lookups.clone(),
            delay: settings.delay,
            max_delay: settings.max_delay,
            fetch_nodes: settings.nodes != Nodes::All,
            id,
            reports,
            wanted,
            entries: HashMap::new(),
            queue: VecDeque::new(),
            under_way: JoinSet::new(),
            tokens: Tokens { left: f64::from(settings.lookups.burst), filled: now },
            failures: 0,
            not_before: now,
            health,
        };
        (lookup, Lookups { wanted: sender })
    }

    pub(super) async fn run(mut self) {
        if self.tell().await.is_err() {
            return;
        }
        let mut sweep = tokio::time::interval(self.settings.forget.min(Duration::from_secs(30)));
        loop {
            let ready = self.ready_at();
            let due = async move {
                match ready {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                wanted = self.wanted.recv() => match wanted {
                    Some(address) => self.want(address, Instant::now()),
                    None => return,
                },
                Some(done) = self.under_way.join_next() => {
                    let Ok((address, answer)) = done else { continue };
                    if self.answered(address, answer).await.is_err() {
                        return;
                    }
                }
                () = due => self.send(Instant::now()),
                _ = sweep.tick() => if self.forget(Instant::now()).await.is_err() {
                    return;
                },
            }
        }
    }

    fn want(&mut self, address: IpAddr, now: Instant) {
        if !self.entries.contains_key(&address) && self.entries.len() >= self.settings.capacity {
            // Full of peers that were all met lately. The next sweep makes room.
            return;
        }
        let first =
            Entry { keys: Vec::new(), queued: false, again: now, wanted: now, tombstone: self.settings.tombstone };
        let entry = self.entries.entry(address).or_insert(first);
        entry.wanted = now;
        if !entry.queued && entry.again <= now {
            entry.queued = true;
            self.queue.push_back(address);
        }
    }

    /// When the next request may go out; none while there is none to send.
    fn ready_at(&self) -> Option<Instant> {
        if self.queue.is_empty() || self.under_way.len() >= self.settings.in_flight {
            return None;
        }
        Some(self.not_before.max(self.tokens.ready_at(&self.settings)))
    }

    fn send(&mut self, now: Instant) {
        if !self.tokens.take(&self.settings, now) {
            return;
        }
        let Some(address) = self.queue.pop_front() else { return };
        let (api, fetch_nodes) = (self.api.clone(), self.fetch_nodes);
        self.under_way.spawn(async move { (address, ask(&api, address, fetch_nodes).await) });
    }

    async fn answered(&mut self, address: IpAddr, answer: Result<Vec<Applied>, Failure>) -> Result<(), Deaf> {
        let now = Instant::now();
        let found = match answer {
            Ok(found) => found,
            Err(failure) => return self.failed(address, &failure, now).await,
        };
        self.failures = 0;
        self.health.confirmed = Some(now);
        if self.health.state != State::Current {
            self.health.state = State::Current;
            self.health.reason = None;
            self.tell().await?;
        }
        let Some(entry) = self.entries.get_mut(&address) else { return Ok(()) };
        entry.queued = false;
        if found.is_empty() {
            entry.again = now + entry.tombstone.mul_f64(1.0 + fastrand::f64() / 4.0);
            entry.tombstone = (entry.tombstone * 2).min(self.settings.max_tombstone);
        } else {
            entry.again = now + self.settings.check;
            entry.tombstone = self.settings.tombstone;
        }
        let keys: Vec<Key> = found.iter().map(|a| a.key.clone()).collect();
        let before = std::mem::replace(&mut entry.keys, keys);
        for applied in found {
            self.say(News::Applied(Box::new(applied))).await?;
        }
        self.release(before).await
    }

    async fn failed(&mut self, address: IpAddr, failure: &Failure, now: Instant) -> Result<(), Deaf> {
        self.failures += 1;
        if matches!(failure.fault, Fault::Unauthorized(_)) {
            self.api.renew();
        }
        let doubled = self.delay.saturating_mul(1 << self.failures.min(16)).min(self.max_delay);
        let delay = doubled.mul_f64(0.5 + fastrand::f64() / 2.0).max(failure.retry_after.unwrap_or_default());
        self.not_before = self.not_before.max(now + delay);
        self.queue.push_back(address);
        let (state, reason) = (failure.fault.state(), failure.fault.to_string().into());
        if self.health.state != state || self.health.reason.as_ref() != Some(&reason) {
            tracing::warn!(%reason, "peers can't be looked up by address and stay unknown");
            self.health.state = state;
            self.health.reason = Some(reason);
            self.tell().await?;
        }
        Ok(())
    }

    async fn forget(&mut self, now: Instant) -> Result<(), Deaf> {
        let limit = self.settings.forget;
        let mut keys = Vec::new();
        self.entries.retain(|_, entry| {
            let keep = entry.queued || now.saturating_duration_since(entry.wanted) < limit;
            if !keep {
                keys.append(&mut entry.keys);
            }
            keep
        });
        self.release(keys).await
    }

    /// Gives up objects that no entry has any more: a pod with two addresses is held by both.
    async fn release(&self, keys: Vec<Key>) -> Result<(), Deaf> {
        for key in keys {
            if !self.entries.values().any(|e| e.keys.contains(&key)) {
                self.say(News::Deleted(key)).await?;
            }
        }
        Ok(())
    }

    async fn tell(&self) -> Result<(), Deaf> {
        self.say(News::Health(self.health.clone())).await
    }

    async fn say(&self, news: News) -> Result<(), Deaf> {
        self.reports.send(Report { watch: self.id, news }).await.map_err(|_| Deaf)
    }
}

/// Nobody listens any more.
struct Deaf;

impl Tokens {
    fn ready_at(&self, settings: &LookupSettings) -> Instant {
        let missing = (1.0 - self.left).max(0.0);
        self.filled + Duration::from_secs_f64(missing / f64::from(settings.per_second.max(1)))
    }

    fn take(&mut self, settings: &LookupSettings, now: Instant) -> bool {
        let filled = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(settings.per_second.max(1));
        self.left = (self.left + filled).min(f64::from(settings.burst.max(1)));
        self.filled = now;
        let enough = self.left >= 1.0 - 1e-6;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// The pod that has the address. Where only hostNetwork pods have it, it is a node's: then the node.
async fn ask(api: &Api, address: IpAddr, fetch_nodes: bool) -> Result<Vec<Applied>, Failure> {
    let pods = Resource::pods();
    let params = ListParams {
        field_selector: Some(format!("status.podIP={address}")),
        // From the API server's cache: without it every lookup would read all pods.
        resource_version: Some("0".to_owned()),
        ..ListParams::default()
    };
    let text = api.list(&pods.path(None), &params).await?;
    let page: Page<'_> = serde_json::from_str(&text).map_err(|e| Fault::Unreadable(e.to_string()))?;
    let mut found = Vec::new();
    let mut node = None;
    for item in page.items.into_iter().flatten() {
        // What can't be decoded can't be told from another pod: the peer stays unknown.
        let Some(applied) = applied(&pods, item) else { continue };
        let Object::Pod(pod) = &applied.object else { continue };
        let pod = Pod::from_api(pod);
        if pod.host_network {
            node = node.or(pod.node);
        } else if !pod.finished() {
            found.push(applied);
        }
    }
    if found.is_empty()
        && fetch_nodes
        && let Some(name) = node
    {
        let nodes = Resource::nodes();
        let text = api.get(&nodes.path(None), &name).await?;
        let item: &RawValue = serde_json::from_str(&text).map_err(|e| Fault::Unreadable(e.to_string()))?;
        found.extend(applied(&nodes, item));
    }
    Ok(found)
}

fn applied(resource: &Resource, item: &RawValue) -> Option<Applied> {
    let head = serde_json::from_str::<Head>(item.get()).ok()?.metadata;
    let decoded = object(resource.kind, &resource.api_version(), &resource.api_kind, item).ok()?;
    Some(Applied {
        key: head.key(resource.kind),
        object: decoded.object,
        content: decoded.content,
        version: head.resource_version,
    })
}
