//! Peers by address: a pod of another node is asked for when it is first met, and forgotten when it was not met for long. So are
//! the endpoints of a dialled Service, where not all EndpointSlices are watched.
//!
//! Requests are coalesced, limited in number and pace, and answered from the API server's cache. "No pod has this address" is
//! remembered for a while that doubles. An answer is checked when the peer is met again after some time, since its address may
//! be another pod's by then: by the metadata of the same name, which costs the API server nothing, where the first question
//! makes it look through all pods.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::params::ListParams;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_engine::cluster::{Cluster, Key, Kind, Object, Pod};
use weir_engine::words::Name;

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
    wishes: mpsc::Sender<Wish>,
}

#[derive(Debug)]
struct Wish {
    about: About,
    /// How old what is known may be.
    age: Option<Duration>,
    /// Only a sign of life of what was asked for earlier.
    known: bool,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum About {
    Address(IpAddr),
    Service(Name),
}

impl Lookups {
    /// A packet has this address. Asks for whatever of it the cluster does not know, and keeps what was asked for earlier.
    ///
    /// Never waits: of more wishes than fit, some get lost, and come again with the next packet. Asking often for the same
    /// address costs nothing.
    pub fn meet(&self, cluster: &Cluster, address: IpAddr) {
        let address = address.to_canonical();
        if cluster.pod_by_address(address).is_some() || cluster.node_by_address(address).is_some() {
            self.wish(Wish { about: About::Address(address), age: None, known: true });
        } else if let Some(service) = cluster.service_by_address(address) {
            let known = cluster.slices_of(&service.name).next().is_some();
            self.wish(Wish { about: About::Service(service.name.clone()), age: None, known });
        } else {
            self.want(address);
        }
    }

    /// A peer with this address was met and the cluster does not know it.
    pub fn want(&self, address: IpAddr) {
        self.wish(Wish { about: About::Address(address.to_canonical()), age: None, known: false });
    }

    /// Much depends on who has this address: what a lookup found must not be older than this.
    pub fn want_fresh(&self, address: IpAddr, age: Duration) {
        self.wish(Wish { about: About::Address(address.to_canonical()), age: Some(age), known: true });
    }

    /// An answer is waited for: what is known, be it "nobody", must not be older than this.
    pub fn ask(&self, address: IpAddr, age: Duration) {
        self.wish(Wish { about: About::Address(address.to_canonical()), age: Some(age), known: false });
    }

    fn wish(&self, wish: Wish) {
        let local = match wish.about {
            About::Address(address) => is_local(address),
            About::Service(_) => false,
        };
        if !local {
            let _ = self.wishes.try_send(wish);
        }
    }
}

fn is_local(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast()
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
    wishes: mpsc::Receiver<Wish>,
    entries: HashMap<About, Entry>,
    queue: VecDeque<About>,
    under_way: JoinSet<(About, Result<Answer, Failure>)>,
    tokens: Tokens,
    failures: u32,
    not_before: Instant,
    health: Health,
}

struct Entry {
    /// What the address led to: pods, or the node of hostNetwork pods.
    known: Vec<Known>,
    queued: bool,
    answered: Option<Instant>,
    /// When to ask again if it is wanted.
    again: Instant,
    wanted: Instant,
    tombstone: Duration,
}

/// An object that was found, and what tells that it is still the same.
#[derive(Clone)]
struct Known {
    key: Key,
    uid: String,
    version: Arc<str>,
}

/// What the API server knows of an address.
enum Answer {
    /// The same as before.
    Same,
    /// These, and nothing else.
    Found(Vec<(Known, Applied)>),
}

struct Tokens {
    left: f64,
    filled: Instant,
}

impl Lookup {
    pub(super) fn new(api: Api, settings: &Settings, id: WatchId, reports: mpsc::Sender<Report>) -> (Self, Lookups) {
        let (sender, wishes) = mpsc::channel(WANTED);
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
            wishes,
            entries: HashMap::new(),
            queue: VecDeque::new(),
            under_way: JoinSet::new(),
            tokens: Tokens { left: f64::from(settings.lookups.burst), filled: now },
            failures: 0,
            not_before: now,
            health,
        };
        (lookup, Lookups { wishes: sender })
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
                wish = self.wishes.recv() => match wish {
                    Some(wish) => self.want(wish, Instant::now()),
                    None => return,
                },
                Some(done) = self.under_way.join_next() => {
                    let Ok((about, answer)) = done else { continue };
                    if self.answered(about, answer).await.is_err() {
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

    fn want(&mut self, Wish { about, age, known }: Wish, now: Instant) {
        let is_new = !self.entries.contains_key(&about);
        if is_new && (known || self.entries.len() >= self.settings.capacity) {
            // A watch has it. Or all places are taken by peers that were met lately, and the next sweep makes room.
            return;
        }
        let tombstone = self.settings.tombstone;
        let first = Entry { known: Vec::new(), queued: false, answered: None, again: now, wanted: now, tombstone };
        let entry = self.entries.entry(about.clone()).or_insert(first);
        entry.wanted = now;
        let old = age.is_some_and(|age| entry.answered.is_none_or(|at| now.saturating_duration_since(at) >= age));
        if !entry.queued && (old || entry.again <= now) {
            entry.queued = true;
            self.queue.push_back(about);
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
        let Some(about) = self.queue.pop_front() else { return };
        let known = self.entries.get(&about).map(|e| e.known.clone()).unwrap_or_default();
        let (api, fetch_nodes) = (self.api.clone(), self.fetch_nodes);
        self.under_way.spawn(async move {
            let answer = match is_same(&api, &known).await {
                Ok(true) => Ok(Answer::Same),
                Ok(false) => match &about {
                    About::Address(address) => ask(&api, *address, fetch_nodes).await.map(Answer::Found),
                    About::Service(name) => endpoints(&api, name).await.map(Answer::Found),
                },
                Err(failure) => Err(failure),
            };
            (about, answer)
        });
    }

    async fn answered(&mut self, about: About, answer: Result<Answer, Failure>) -> Result<(), Deaf> {
        let now = Instant::now();
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.failed(about, &failure, now).await,
        };
        self.failures = 0;
        self.health.confirmed = Some(now);
        if self.health.state != State::Current {
            self.health.state = State::Current;
            self.health.reason = None;
            self.tell().await?;
        }
        let Some(entry) = self.entries.get_mut(&about) else { return Ok(()) };
        entry.queued = false;
        entry.answered = Some(now);
        let Answer::Found(found) = answer else {
            entry.again = now + self.settings.check.mul_f64(1.0 + fastrand::f64() / 4.0);
            return self.tell_answer(about, true).await;
        };
        let nobody = found.is_empty();
        if nobody {
            entry.again = now + entry.tombstone.mul_f64(1.0 + fastrand::f64() / 4.0);
            entry.tombstone = (entry.tombstone * 2).min(self.settings.max_tombstone);
        } else {
            entry.again = now + self.settings.check;
            entry.tombstone = self.settings.tombstone;
        }
        let (known, found): (Vec<Known>, Vec<Applied>) = found.into_iter().unzip();
        let before = std::mem::replace(&mut entry.known, known);
        for applied in found {
            self.say(News::Applied(Box::new(applied))).await?;
        }
        self.release(before).await?;
        self.tell_answer(about, !nobody).await
    }

    async fn tell_answer(&self, about: About, somebody: bool) -> Result<(), Deaf> {
        match about {
            About::Address(address) => self.say(News::Answered(address, somebody)).await,
            About::Service(_) => Ok(()),
        }
    }

    async fn failed(&mut self, about: About, failure: &Failure, now: Instant) -> Result<(), Deaf> {
        self.failures += 1;
        if matches!(failure.fault, Fault::Unauthorized(_)) {
            self.api.renew();
        }
        let doubled = self.delay.saturating_mul(1 << self.failures.min(16)).min(self.max_delay);
        let delay = doubled.mul_f64(0.5 + fastrand::f64() / 2.0).max(failure.retry_after.unwrap_or_default());
        self.not_before = self.not_before.max(now + delay);
        self.queue.push_back(about);
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
        let mut released = Vec::new();
        self.entries.retain(|_, entry| {
            let keep = entry.queued || now.saturating_duration_since(entry.wanted) < limit;
            if !keep {
                released.append(&mut entry.known);
            }
            keep
        });
        self.release(released).await
    }

    /// Gives up objects that no entry has any more: a pod with two addresses is held by both.
    async fn release(&self, known: Vec<Known>) -> Result<(), Deaf> {
        for Known { key, .. } in known {
            if !self.entries.values().flat_map(|e| &e.known).any(|k| k.key == key) {
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

/// Whether what was found earlier is still there, unchanged.
async fn is_same(api: &Api, known: &[Known]) -> Result<bool, Failure> {
    for Known { key, uid, version } in known {
        let (path, name) = match key.kind {
            Kind::Node => (Resource::nodes().path(None), &key.name.name),
            Kind::Pod => (Resource::pods().path(Some(&key.name.namespace)), &key.name.name),
            // Slices come and go with endpoints, and a list of a few is as cheap.
            _ => return Ok(false),
        };
        let text = match api.get_metadata(&path, name).await {
            Ok(text) => text,
            Err(Failure { fault: Fault::NotFound, .. }) => return Ok(false),
            Err(failure) => return Err(failure),
        };
        let head: Head = serde_json::from_str(&text).map_err(|e| Fault::Unreadable(e.to_string()))?;
        // A new version of a pod may be new labels, or its end, which gives the address back. Of a node it is its heartbeat.
        let changed = key.kind == Kind::Pod && head.metadata.resource_version != *version;
        if changed || head.metadata.uid != *uid {
            return Ok(false);
        }
    }
    Ok(!known.is_empty())
}

/// The pod that has the address. Where only hostNetwork pods have it, it is a node's: then the node.
async fn ask(api: &Api, address: IpAddr, fetch_nodes: bool) -> Result<Vec<(Known, Applied)>, Failure> {
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
        let Some(one) = applied(&pods, item) else { continue };
        let Object::Pod(pod) = &one.1.object else { continue };
        let pod = Pod::from_api(pod);
        if pod.host_network {
            node = node.or(pod.node);
        } else if !pod.finished() {
            found.push(one);
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

/// The EndpointSlices of a Service.
async fn endpoints(api: &Api, service: &Name) -> Result<Vec<(Known, Applied)>, Failure> {
    let slices = Resource::endpoint_slices();
    let params = ListParams {
        label_selector: Some(format!("kubernetes.io/service-name={}", service.name)),
        resource_version: Some("0".to_owned()),
        ..ListParams::default()
    };
    let text = api.list(&slices.path(Some(&service.namespace)), &params).await?;
    let page: Page<'_> = serde_json::from_str(&text).map_err(|e| Fault::Unreadable(e.to_string()))?;
    Ok(page.items.into_iter().flatten().filter_map(|item| applied(&slices, item)).collect())
}

fn applied(resource: &Resource, item: &RawValue) -> Option<(Known, Applied)> {
    let head = serde_json::from_str::<Head>(item.get()).ok()?.metadata;
    let decoded = object(resource.kind, &resource.api_version(), &resource.api_kind, item).ok()?;
    let key = head.key(resource.kind);
    let version = head.resource_version;
    let known = Known { key: key.clone(), uid: head.uid, version: version.clone() };
    Some((known, Applied { key, object: decoded.object, content: decoded.content, version }))
}
