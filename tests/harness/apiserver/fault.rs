//! What the fake API server can be told to do wrong.

use std::time::Duration;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// `/api` and `/apis` and below, up to the resource lists.
    Discovery,
    /// One object.
    Get,
    /// Many objects.
    List,
    /// Many objects and what becomes of them.
    Watch,
    /// A new object.
    Create,
    /// Some fields of an object.
    Patch,
    /// All of an object.
    Update,
    /// The end of an object.
    Delete,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error status, with `Retry-After` in seconds.
    Status(u16, Option<u32>),
    /// An error status of a proxy: a page of text in place of a Status.
    Page(u16),
    /// The answer takes this long to begin.
    Slow(Duration),
    /// A watch ends in order after this many events.
    CloseAfter(usize),
    /// The connection of a watch is cut within the line after this many events.
    CutAfter(usize),
    /// A watch begins with 200, and its first event is the error 410.
    GoneInWatch,
    /// Continue tokens have expired: 410 for every page but the first.
    ExpiredContinue,
    /// 200, and a body that is no JSON.
    Garbage,
}

/// A fault and the requests that it hits.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only requests for this resource.
    pub plural: Option<String>,
    /// Only requests of this kind.
    pub verb: Option<Verb>,
    /// What goes wrong.
    pub fault: Fault,
    /// How many times; for ever if none.
    pub times: Option<usize>,
}

impl Rule {
    /// A fault that hits every request.
    #[must_use]
    pub fn all(fault: Fault) -> Self {
        Self { plural: None, verb: None, fault, times: None }
    }

    /// Only requests for this resource.
    #[must_use]
    pub fn of(self, plural: &str) -> Self {
        Self { plural: Some(plural.to_owned()), ..self }
    }

    /// Only requests of this kind.
    #[must_use]
    pub fn on(self, verb: Verb) -> Self {
        Self { verb: Some(verb), ..self }
    }

    /// Only so many times.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times: Some(times), ..self }
    }

    pub(super) fn hits(&self, plural: &str, verb: Verb) -> bool {
        self.plural.as_deref().is_none_or(|p| p == plural) && self.verb.is_none_or(|v| v == verb)
    }
}

/// How the server answers a request for a streaming list (`sendInitialEvents`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// With the initial events and the bookmark that ends them.
    #[default]
    Offered,
    /// With 422, as a server whose feature gate is off.
    Refused,
    /// By ignoring the parameter, as a server that does not know it: events, and no bookmark.
    Ignored,
    /// With 200 and an error 500 as the first event, as a server whose etcd is too old for it (before 3.4.25 and 3.5.8).
    Broken,
}
