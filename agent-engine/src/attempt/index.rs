//! Which attempts are open, found by socket, by flow and by when something is due.

use super::open::{FlowKey, Id, Open, key};
use super::table::{Attempts, EXPIRE, SILENT};
use crate::observation::Tuple;
use crate::time::Time;

impl Attempts {
    /// The attempt of a socket, from now on with this tuple; one whose start was lost begins here.
    pub(super) fn known(&mut self, socket: u64, started: Time, at: Time, tuple: &Tuple, netns: u32) -> Id {
        let id = self.find(socket, started).unwrap_or_else(|| {
            let start_seen = started != Time(0);
            let started = if start_seen { started } else { at };
            let open = Open { start_seen, ..Open::new(*tuple, started, netns, None) };
            self.insert((started, socket), open)
        });
        self.learn(&id, tuple);
        id
    }

    pub(super) fn find(&self, socket: u64, started: Time) -> Option<Id> {
        let newest = *self.sockets.get(&socket)?;
        (started == Time(0) || started == newest).then_some((newest, socket))
    }

    pub(super) fn insert(&mut self, id: Id, open: Open) -> Id {
        while self.open.len() >= self.max {
            let Some((oldest, _)) = self.open.first_key_value() else { break };
            let oldest = *oldest;
            self.close(&oldest);
            self.evicted += 1;
        }
        self.sockets.insert(id.1, id.0);
        self.flows.entry(open.flow).or_default().insert(id);
        self.timers.insert((open.due, id));
        self.open.insert(id, open);
        id
    }

    pub(super) fn close(&mut self, id: &Id) -> Option<Open> {
        let open = self.open.remove(id)?;
        self.timers.remove(&(open.due, *id));
        if self.sockets.get(&id.1) == Some(&id.0) {
            self.sockets.remove(&id.1);
        }
        self.unindex(&open.flow, id);
        self.listeners.forget(id, &open);
        let client = (open.tuple.source, open.tuple.source_port);
        if self.established.get(&client) == Some(id) {
            self.established.remove(&client);
        }
        Some(open)
    }

    fn unindex(&mut self, flow: &FlowKey, id: &Id) {
        if let Some(ids) = self.flows.get_mut(flow) {
            ids.remove(id);
            if ids.is_empty() {
                self.flows.remove(flow);
            }
        }
    }

    /// Takes over addresses and ports that a later event knows better.
    fn learn(&mut self, id: &Id, tuple: &Tuple) {
        let Some(open) = self.open.get_mut(id) else { return };
        let (old, new) = (open.flow, key(tuple));
        if old != new {
            self.listeners.forget(id, open);
        }
        open.tuple = *tuple;
        if old != new {
            open.flow = new;
            self.unindex(&old, id);
            self.flows.entry(new).or_default().insert(*id);
        }
    }

    pub(super) fn reschedule(&mut self, id: &Id) {
        let Some(open) = self.open.get_mut(id) else { return };
        let due = match (&open.ending, open.report_drop_at) {
            (Some((_, hold)), _) => *hold,
            (None, Some(at)) => at,
            (None, None) if !open.silence_reported => id.0.plus(SILENT),
            (None, None) => id.0.plus(EXPIRE),
        };
        if due != open.due {
            self.timers.remove(&(open.due, *id));
            open.due = due;
        }
        self.timers.insert((due, *id));
    }
}
