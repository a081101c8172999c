//! Transitions as Kubernetes Events on the pods that they are about, for `kubectl describe pod`.
//!
//! Only what a person has to know: a required flow came to be denied, a policy is not enforced, a drop has no explanation, and
//! that this is over. The same is not said twice within [`AGAIN`], and no more than a few a minute however much happens: the
//! metrics have everything. Best effort: an Event that the API server does not take is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Config};
use tokio::sync::mpsc;
use tracing::{debug, warn};
use weir_engine::snapshot::Transition;
use weir_engine::verdict::State;
use weir_engine::words::Name;

use super::log::end;
use super::text::clean;
use crate::cluster::watch;

/// The same Event again, at the earliest.
const AGAIN: Duration = Duration::from_secs(300);
/// Events at once at most.
const BURST: u32 = 25;
/// One more every so often.
const REFILL: Duration = Duration::from_secs(6);
/// Events waiting for the API server at most.
const QUEUE: usize = 64;
/// How long the API server has for one of them.
const PATIENCE: Duration = Duration::from_secs(10);
/// What was said and to whom: entries at most.
const MAX_SAID: usize = 4_096;
/// `note` and `reason` have limits of 1,024 and 128 bytes (Kubernetes' validation of events.k8s.io/v1).
const MAX_NOTE: usize = 1_000;
/// `reportingController`.
const CONTROLLER: &str = "weir.io/agent";

/// One Event to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Saying {
    pod: Name,
    reason: &'static str,
    warning: bool,
    note: String,
}

/// Writes Events. Dropping it ends that.
#[derive(Debug)]
pub struct Events {
    sayings: mpsc::Sender<Saying>,
    limits: Limits,
}

impl Events {
    /// Events for the cluster of this API server.
    ///
    /// # Errors
    /// When the configuration's certificates or credentials can't be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: &Config) -> Result<Self, kube::Error> {
        let client = watch::client(config)?;
        let (sayings, queue) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, queue));
        Ok(Self { sayings, limits: Limits::new(Instant::now()) })
    }

    /// A pair changed its state. `pod` is the one of this node that it is about.
    pub fn transition(&mut self, transition: &Transition, pod: &Name) {
        let Some((reason, warning)) = reason(transition.from, transition.to) else { return };
        let about = (pod.clone(), transition.flow.clone(), end(&transition.source), end(&transition.destination));
        let what = (about, transition.port, reason);
        if !self.limits.admit(Instant::now(), what) {
            return;
        }
        let saying = Saying { pod: pod.clone(), reason, warning, note: note(transition) };
        if self.sayings.try_send(saying).is_err() {
            debug!(%pod, reason, "too many Events wait for the API server; one is left out");
        }
    }
}

/// The word for a change that somebody has to know of, and whether it is bad news.
fn reason(from: Option<State>, to: Option<State>) -> Option<(&'static str, bool)> {
    let bad = |state: Option<State>| match state {
        Some(State::Denied) => Some("RequiredFlowDenied"),
        Some(State::Unenforced) => Some("NetworkPolicyNotEnforced"),
        Some(State::Unexplained) => Some("UnexplainedDrop"),
        Some(State::Predicted | State::AtRisk | State::Failing | State::Unknown | State::Silent | State::Verified)
        | None => None,
    };
    match (bad(from), bad(to), to) {
        (_, Some(reason), _) => Some((reason, true)),
        // What can't be told any more is not over, and neither is what only has no new evidence.
        (Some(_), None, Some(State::Verified | State::Silent | State::Failing)) => {
            Some(("RequiredFlowRecovered", false))
        }
        (Some(_) | None, None, _) => None,
    }
}

fn note(t: &Transition) -> String {
    let (source, destination) = (end(&t.source), end(&t.destination));
    let state = t.to.map_or("gone", State::as_str);
    let policies = match t.policies.as_slice() {
        [] => String::new(),
        names => format!(". Policies that select the pods and have no rule for it: {}", names.join(", ")),
    };
    let text = format!(
        "{} is {state}: {source} to {destination}, {} port {}: {}{policies}",
        t.flow, t.protocol, t.port, t.why
    );
    let text = clean(&text);
    let mut end = text.len().min(MAX_NOTE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// What a saying is about: pod, flow, both ends; port; reason.
type About = ((Name, Arc<str>, String, String), u16, &'static str);

/// What was said lately, and how much more may be.
#[derive(Debug)]
struct Limits {
    said: BTreeMap<About, Instant>,
    tokens: u32,
    refilled: Instant,
}

impl Limits {
    fn new(now: Instant) -> Self {
        Self { said: BTreeMap::new(), tokens: BURST, refilled: now }
    }

    fn admit(&mut self, now: Instant, about: About) -> bool {
        self.said.retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        if self.said.contains_key(&about) || self.said.len() >= MAX_SAID {
            return false;
        }
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        let Some(left) = self.tokens.checked_sub(1) else { return false };
        self.tokens = left;
        self.said.insert(about, now);
        true
    }
}

async fn write_all(client: Client, mut queue: mpsc::Receiver<Saying>) {
    let mut failing = false;
    while let Some(saying) = queue.recv().await {
        let written = match tokio::time::timeout(PATIENCE, write(&client, &saying)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        match written {
            Ok(()) if failing => {
                tracing::info!("Events are written again");
                failing = false;
            }
            Ok(()) => {}
            Err(error) if !failing => {
                let error = &*clean(&error);
                warn!(
                    pod = &*clean(&saying.pod.to_string()),
                    error, "an Event was not written; more like it are not logged"
                );
                failing = true;
            }
            Err(_) => {}
        }
    }
}

async fn write(client: &Client, saying: &Saying) -> Result<(), kube::Error> {
    let Name { namespace, name } = &saying.pod;
    // `kubectl describe pod` asks for Events by the pod's uid, too.
    let pod = Api::<Pod>::namespaced(client.clone(), namespace).get_metadata(name).await?;
    let now = Timestamp::now();
    let event = Event {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_string()),
            name: Some(event_name(name, now.as_nanosecond())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if saying.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(saying.reason.to_owned()),
        action: Some("Verify".to_owned()),
        note: Some(saying.note.clone()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.to_string()),
            name: Some(name.to_string()),
            uid: pod.metadata.uid,
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance()),
        ..Event::default()
    };
    Api::<Event>::namespaced(client.clone(), namespace).create(&PostParams::default(), &event).await.map(drop)
}

/// As client-go names them: what it is about, and the time in hexadecimal. A DNS subdomain, whose parts may not end in a dash.
fn event_name(pod: &str, nanoseconds: i128) -> String {
    let pod: String = pod.chars().take(200).collect();
    format!("{}.{nanoseconds:x}", pod.trim_end_matches(['-', '.']))
}

/// Which agent it was: its pod, which is the host's name there.
fn instance() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "weir".to_owned() } else { name.trim().chars().take(128).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(flow: &str, reason: &'static str) -> About {
        let pod = Name::new("shop", "cart");
        ((pod, flow.into(), "shop/cart".to_owned(), "istio-system/istiod".to_owned()), 15012, reason)
    }

    #[test]
    fn only_news_that_somebody_has_to_know() {
        use State::{AtRisk, Denied, Silent, Unenforced, Unexplained, Unknown, Verified};
        for (from, to, expected) in [
            (Some(Verified), Some(Denied), Some(("RequiredFlowDenied", true))),
            (None, Some(Denied), Some(("RequiredFlowDenied", true))),
            (Some(AtRisk), Some(Unenforced), Some(("NetworkPolicyNotEnforced", true))),
            (Some(Silent), Some(Unexplained), Some(("UnexplainedDrop", true))),
            (Some(Denied), Some(Unexplained), Some(("UnexplainedDrop", true))),
            (Some(Denied), Some(Verified), Some(("RequiredFlowRecovered", false))),
            (Some(Unexplained), Some(Silent), Some(("RequiredFlowRecovered", false))),
            (Some(Denied), Some(AtRisk), None),
            (Some(Denied), Some(Unknown), None),
            (Some(Denied), None, None),
            (Some(Silent), Some(Verified), None),
            (None, Some(AtRisk), None),
        ] {
            assert_eq!(reason(from, to), expected, "{from:?} → {to:?}");
        }
    }

    #[test]
    fn a_long_pod_name_is_not_cut_at_a_dash() {
        assert_eq!(event_name("cart-0", 255), "cart-0.ff");
        let long = format!("{}-.{}", "a".repeat(198), "b".repeat(40));
        assert_eq!(event_name(&long, 255), format!("{}.ff", "a".repeat(198)));
    }

    #[test]
    fn the_same_is_said_once_and_everything_is_limited() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        assert!(limits.admit(start, about("a", "x")));
        assert!(!limits.admit(start + AGAIN / 2, about("a", "x")), "said already");
        assert!(limits.admit(start + AGAIN / 2, about("a", "y")), "something else");
        let later = start + AGAIN;
        assert!(limits.admit(later, about("a", "x")), "long ago");

        let flows: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let told = flows.iter().filter(|f| limits.admit(later, about(f, "x"))).count();
        assert_eq!(told, BURST as usize - 1, "one was used up above");
        let after = later + REFILL * 3;
        let told = flows.iter().filter(|f| limits.admit(after, about(f, "z"))).count();
        assert_eq!(told, 3);
    }
}
