//! Watches: the initial events of a streaming list, what happened since a version, what happens, and bookmarks.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Inner;
use super::body::Cut;
use super::fault::{Fault, Streaming};
use super::request::Asked;
use super::selector::Selector;
use super::serve::{Refusal, WATCH_TIME, of, selector};
use super::store::{Happened, TypeKey, status};

struct Watch {
    inner: Arc<Inner>,
    of: TypeKey,
    namespace: Option<String>,
    selector: Selector,
    cursor: u64,
    bookmarks: bool,
    until: Instant,
    fault: Option<Fault>,
    sent: usize,
    lines: mpsc::Sender<Result<Bytes, Cut>>,
}

/// The watch is over.
struct Over;

type Lines = mpsc::Receiver<Result<Bytes, Cut>>;

pub(super) fn open(inner: &Arc<Inner>, asked: &Asked, fault: Option<Fault>) -> Result<Lines, Refusal> {
    let of = of(inner, asked)?;
    let streaming = asked.parameter("sendInitialEvents") == "true";
    if streaming && inner.streaming() == Streaming::Refused {
        return Err(Refusal::new(
            422,
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        ));
    }
    let version = asked.parameter("resourceVersion");
    // Without a version a watch begins with what there is; with one that is remembered, after it.
    let initial = version.is_empty() || version == "0";
    let cursor = if initial {
        inner.store().version()
    } else {
        version.parse().map_err(|_| Refusal::new(400, "bad version"))?
    };
    let (lines, receiver) = mpsc::channel(64);
    let seconds = asked.parameter("timeoutSeconds").parse().map_or(WATCH_TIME, Duration::from_secs);
    let mut watch = Watch {
        inner: inner.clone(),
        namespace: asked.namespace.clone(),
        selector: selector(asked)?,
        of,
        cursor,
        bookmarks: asked.parameter("allowWatchBookmarks") == "true",
        until: Instant::now() + seconds,
        fault,
        sent: 0,
        lines,
    };
    let marks_end = streaming && inner.streaming() == Streaming::Offered;
    let broken = streaming && inner.streaming() == Streaming::Broken;
    tokio::spawn(async move {
        if broken {
            drop(watch.error(500, "InternalError", "a required storage feature is disabled").await);
            return;
        }
        let Over = watch.run(initial, marks_end).await;
    });
    Ok(receiver)
}

impl Watch {
    async fn run(mut self, initial: bool, marks_end: bool) -> Over {
        match self.go(initial, marks_end).await {
            Ok(()) | Err(Over) => Over,
        }
    }

    async fn go(&mut self, initial: bool, marks_end: bool) -> Result<(), Over> {
        if self.fault == Some(Fault::GoneInWatch) {
            return self.gone().await;
        }
        if initial {
            let inner = self.inner.clone();
            let objects: Vec<Arc<Value>> = {
                let store = inner.store();
                self.cursor = store.version();
                store.objects(&self.of).filter(|(_, o)| self.selects(o)).map(|(_, o)| o.clone()).collect()
            };
            for object in objects {
                self.event("ADDED", &object).await?;
            }
            if marks_end {
                self.bookmark(json!({"k8s.io/initial-events-end": "true"})).await?;
            }
        }
        let mut changes = self.inner.changes();
        let every = self.inner.bookmark_every();
        let mut next_bookmark = Instant::now() + every;
        loop {
            changes.mark_unchanged();
            let happened = {
                let store = self.inner.store();
                store.served(&self.of.0, &self.of.1).ok_or(Over)?;
                store.since(&self.of, self.cursor)
            };
            let Some(happened) = happened else { return self.gone().await };
            for change in happened {
                self.cursor = change.version;
                self.change(&change).await?;
            }
            // Everything up to now was looked at, of whatever kind it was.
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Err(Over) },
                () = tokio::time::sleep_until(next_bookmark), if self.bookmarks => {
                    next_bookmark = Instant::now() + every;
                    let newest = self.inner.store().version();
                    if self.inner.store().since(&self.of, self.cursor).is_some_and(|missed| missed.is_empty()) {
                        self.cursor = newest;
                        self.bookmark(json!({})).await?;
                    }
                }
                () = tokio::time::sleep_until(self.until) => return Ok(()),
                () = self.lines.closed() => return Err(Over),
            }
        }
    }

    fn selects(&self, object: &Value) -> bool {
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
        self.namespace.as_ref().is_none_or(|n| n == namespace) && self.selector.matches(object)
    }

    /// What an object's change is to this watch: leaving the selection looks like a deletion, entering it like an addition.
    async fn change(&mut self, change: &Happened) -> Result<(), Over> {
        let before = change.before.as_ref().is_some_and(|o| self.selects(o));
        let after = !change.deleted && self.selects(&change.after);
        match (before, after) {
            (false, false) => Ok(()),
            (false, true) => self.event("ADDED", &change.after).await,
            (true, true) => self.event("MODIFIED", &change.after).await,
            (true, false) => self.event("DELETED", &change.after).await,
        }
    }

    async fn event(&mut self, type_: &str, object: &Value) -> Result<(), Over> {
        // Written by hand: the API server writes the type first.
        let line = format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n");
        match self.fault {
            Some(Fault::CloseAfter(events)) if self.sent >= events => return Err(Over),
            Some(Fault::CutAfter(events)) if self.sent >= events => {
                let half = line.len() / 2;
                drop(self.lines.send(Ok(line.into_bytes()[..half].to_vec().into())).await);
                drop(self.lines.send(Err(Cut)).await);
                return Err(Over);
            }
            _ => {}
        }
        self.sent += 1;
        self.line(line).await?;
        match self.fault {
            Some(Fault::CloseAfter(events)) if self.sent >= events => Err(Over),
            _ => Ok(()),
        }
    }

    async fn bookmark(&mut self, annotations: Value) -> Result<(), Over> {
        let (kind, api_version) = {
            let store = self.inner.store();
            let served = store.served(&self.of.0, &self.of.1).ok_or(Over)?;
            (served.kind.clone(), served.api_version())
        };
        let mut metadata = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if annotations.as_object().is_some_and(|a| !a.is_empty()) {
            metadata["annotations"] = annotations;
        }
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        self.line(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n")).await
    }

    async fn gone(&mut self) -> Result<(), Over> {
        self.error(410, "Expired", &format!("too old resource version: {}", self.cursor)).await
    }

    async fn error(&mut self, code: u16, reason: &str, message: &str) -> Result<(), Over> {
        let object = status(code, reason, message);
        self.line(format!("{{\"type\":\"ERROR\",\"object\":{object}}}\n")).await
    }

    async fn line(&mut self, line: String) -> Result<(), Over> {
        self.lines.send(Ok(line.into())).await.map_err(|_| Over)
    }
}
