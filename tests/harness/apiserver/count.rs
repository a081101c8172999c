//! What the fake API server was asked for and what it sent.

use std::collections::BTreeMap;

use super::fault::Verb;

/// Requests and response bytes of one resource and verb.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests, failed ones included.
    pub requests: u64,
    /// Bytes of response bodies.
    pub bytes: u64,
    /// Watches open now.
    pub open: i64,
}

/// Counts by resource and verb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By plural and verb; discovery has an empty plural.
    pub by: BTreeMap<(String, Verb), Count>,
    /// Connections accepted.
    pub connections: u64,
}

impl Counts {
    /// Requests for a resource; all resources if none is named.
    #[must_use]
    pub fn requests(&self, plural: Option<&str>, verb: Option<Verb>) -> u64 {
        self.select(plural, verb).map(|c| c.requests).sum()
    }

    /// Bytes sent of a resource; of all resources if none is named.
    #[must_use]
    pub fn bytes(&self, plural: Option<&str>, verb: Option<Verb>) -> u64 {
        self.select(plural, verb).map(|c| c.bytes).sum()
    }

    /// Watches open now.
    #[must_use]
    pub fn open(&self, plural: Option<&str>) -> i64 {
        self.select(plural, Some(Verb::Watch)).map(|c| c.open).sum()
    }

    /// What was added since an earlier count; open watches are those of now.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let by = self.by.iter().map(|(key, now)| {
            let old = before.by.get(key).copied().unwrap_or_default();
            let count = Count { requests: now.requests - old.requests, bytes: now.bytes - old.bytes, open: now.open };
            (key.clone(), count)
        });
        Self { by: by.collect(), connections: self.connections - before.connections }
    }

    fn select(&self, plural: Option<&str>, verb: Option<Verb>) -> impl Iterator<Item = &Count> {
        let wanted = move |key: &(String, Verb)| plural.is_none_or(|p| p == key.0) && verb.is_none_or(|v| v == key.1);
        self.by.iter().filter(move |(key, _)| wanted(key)).map(|(_, count)| count)
    }
}
