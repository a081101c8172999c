//! Joins what several watches say of the same objects. A pod of this node that is also a gateway comes twice, and is gone only
//! when nobody has it any more; what differs only in fields that Weir does not read is not said again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use weir_engine::cluster::{Key, Kind, Object, Origin};
use weir_engine::words::Name;

use super::super::change::{Change, Health, State};
use crate::memory;

/// From this many objects on, a list leaves so much freed memory that it is worth giving back.
const MANY: u32 = 1_000;

/// Names a watch towards the hub.
pub(super) type WatchId = u32;

/// What a watch says.
pub(super) struct Report {
    pub watch: WatchId,
    pub news: News,
}

/// One piece of news.
pub(super) enum News {
    /// All objects will be said again.
    Begin,
    /// An object was added or replaced.
    Applied(Box<Applied>),
    /// An object is there, and can't be read: its last good version stays in force.
    Kept(Key),
    /// An object is gone from this watch.
    Deleted(Key),
    /// Who has this address was looked up: somebody, or nobody.
    Answered(IpAddr, bool),
    /// All objects have been said; what was not said since `Begin` is gone.
    Complete,
    /// How the watch is doing. The first one makes it known.
    Health(Health),
    /// The watch is over and so is all it held.
    Over,
    /// No further watch will be made known before the first synchronisation.
    AllKnown,
}

/// An object and its version.
pub(super) struct Applied {
    pub key: Key,
    pub object: Object,
    pub content: u64,
    pub version: Arc<str>,
}

/// The receiving end of all reports.
pub(super) struct Hub {
    held: BTreeMap<Key, Held>,
    watches: BTreeMap<WatchId, Watch>,
    all_known: bool,
    synced: bool,
    changes: mpsc::Sender<Change>,
}

#[derive(Default)]
struct Held {
    /// Who has it, and in which round of saying everything it was last seen.
    by: Vec<(WatchId, u32)>,
    /// `metadata.resourceVersion` as a number; 0 where it is none.
    version: u64,
    content: u64,
    /// Whether it was ever said.
    said: bool,
}

struct Watch {
    kind: Option<Kind>,
    round: u32,
    /// Objects said in this round.
    said: u32,
    essential: bool,
    complete: bool,
    state: State,
}

impl Hub {
    pub(super) fn new(changes: mpsc::Sender<Change>) -> Self {
        Self { held: BTreeMap::new(), watches: BTreeMap::new(), all_known: false, synced: false, changes }
    }

    /// Runs until nobody reports or nobody listens any more.
    pub(super) async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        while let Some(report) = reports.recv().await {
            let mut out = Vec::new();
            self.take(report, &mut out);
            for change in out {
                if self.changes.send(change).await.is_err() {
                    return;
                }
            }
        }
    }

    fn take(&mut self, Report { watch, news }: Report, out: &mut Vec<Change>) {
        let round = self.watches.get(&watch).map_or(0, |w| w.round);
        match news {
            News::Begin => {
                if let Some(w) = self.watches.get_mut(&watch) {
                    w.round += 1;
                    w.said = 0;
                }
            }
            News::Applied(applied) => self.applied(watch, round, *applied, out),
            News::Kept(key) => {
                if let Some(held) = self.held.get_mut(&key) {
                    held.mark(watch, round);
                }
            }
            News::Deleted(key) => self.release(watch, &key, out),
            News::Answered(address, somebody) => out.push(Change::Answered { address, somebody }),
            News::Complete => {
                self.sweep(watch, |seen| seen != round, out);
                if let Some(w) = self.watches.get_mut(&watch) {
                    w.complete = true;
                    if w.said >= MANY {
                        memory::give_back_soon();
                    }
                }
            }
            News::Health(health) => {
                let w = self.watches.entry(watch).or_insert(Watch {
                    kind: health.kind,
                    round: 0,
                    said: 0,
                    essential: health.essential,
                    complete: false,
                    state: health.state,
                });
                w.state = health.state;
                out.push(Change::Health(health));
            }
            News::Over => {
                self.sweep(watch, |_| true, out);
                self.watches.remove(&watch);
            }
            News::AllKnown => self.all_known = true,
        }
        if !self.synced && self.all_known && self.watches.values().all(Watch::has_settled) {
            self.synced = true;
            out.push(Change::Synced);
        }
    }

    fn applied(&mut self, watch: WatchId, round: u32, new: Applied, out: &mut Vec<Change>) {
        let version = new.version.parse().unwrap_or(0);
        if let Some(w) = self.watches.get_mut(&watch) {
            w.said = w.said.saturating_add(1);
        }
        let held = self.held.entry(new.key).or_default();
        let others = held.by.iter().any(|(other, _)| *other != watch);
        held.mark(watch, round);
        // Another watch may be ahead of this one. Alone, a lower version is what the server has (it was restored).
        if others && version != 0 && version < held.version {
            return;
        }
        held.version = version;
        if held.said && held.content == new.content {
            return;
        }
        held.said = true;
        held.content = new.content;
        let origin = Origin { resource_version: Some(new.version), ..Origin::default() };
        out.push(Change::Apply { object: new.object, origin });
    }

    fn release(&mut self, watch: WatchId, key: &Key, out: &mut Vec<Change>) {
        let Some(held) = self.held.get_mut(key) else { return };
        held.by.retain(|(by, _)| *by != watch);
        if held.by.is_empty() {
            self.held.remove(key);
            out.push(Change::Delete(key.clone()));
        }
    }

    fn sweep(&mut self, watch: WatchId, gone: impl Fn(u32) -> bool, out: &mut Vec<Change>) {
        let Some(kind) = self.watches.get(&watch).and_then(|w| w.kind) else { return };
        let first = Key { kind, name: Name::new("", "") };
        let of_kind = self.held.range(first..).take_while(|(key, _)| key.kind == kind);
        let swept = of_kind.filter(|(_, held)| held.by.iter().any(|(by, round)| *by == watch && gone(*round)));
        let swept: Vec<Key> = swept.map(|(key, _)| key.clone()).collect();
        for key in swept {
            self.release(watch, &key, out);
        }
    }
}

impl Held {
    fn mark(&mut self, watch: WatchId, round: u32) {
        match self.by.iter_mut().find(|(by, _)| *by == watch) {
            Some((_, seen)) => *seen = round,
            None => self.by.push((watch, round)),
        }
    }
}

impl Watch {
    /// Essential kinds must be known in full: without all policies or namespaces every decision could be wrong. Of others it is
    /// enough that they are known to fail.
    fn has_settled(&self) -> bool {
        match self.state {
            State::Starting => false,
            State::Absent => true,
            State::Current | State::Stale | State::Refused => self.complete || !self.essential,
        }
    }
}
