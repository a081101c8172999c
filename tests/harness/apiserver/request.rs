//! Requests: from path and query to what is asked for.

use std::collections::BTreeMap;

use hyper::http::request::Parts;

use super::fault::Verb;

/// A request for a resource or for discovery.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub verb: Verb,
    pub path: Vec<String>,
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// What of the object, `log` for one.
    pub subresource: Option<String>,
    pub query: BTreeMap<String, String>,
}

impl Asked {
    /// Reads a request; none where no API server would understand it.
    pub(super) fn read(parts: &Parts) -> Option<Self> {
        let path: Vec<String> = parts.uri.path().split('/').filter(|p| !p.is_empty()).map(decode).collect();
        let query = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query: BTreeMap<String, String> = query.map(|(k, v)| (decode(k), decode(v))).collect();
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let (group, version, rest) = match &*words {
            ["api"] | ["apis"] | ["api", _] | ["apis", _] | ["apis", _, _] => {
                let nothing = String::new;
                return Some(Self {
                    verb: Verb::Discovery,
                    group: nothing(),
                    version: nothing(),
                    plural: nothing(),
                    namespace: None,
                    name: None,
                    subresource: None,
                    path,
                    query,
                });
            }
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (rest, subresource) = match rest {
            ["namespaces", namespace, "pods", name, "log"] => {
                (&["namespaces", namespace, "pods", name][..], Some("log"))
            }
            rest => (rest, None),
        };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural] => (Some(*namespace), *plural, None),
            ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, Some(*name)),
            [plural] => (None, *plural, None),
            [plural, name] => (None, *plural, Some(*name)),
            _ => return None,
        };
        let verb = match (&parts.method, name) {
            (&hyper::Method::POST, None) => Verb::Create,
            (&hyper::Method::PATCH, Some(_)) => Verb::Patch,
            (&hyper::Method::PUT, Some(_)) => Verb::Update,
            (&hyper::Method::DELETE, Some(_)) => Verb::Delete,
            (&hyper::Method::GET, Some(_)) => Verb::Get,
            (&hyper::Method::GET, None) if query.get("watch").is_some_and(|w| w == "true" || w == "1") => Verb::Watch,
            (&hyper::Method::GET, None) => Verb::List,
            _ => return None,
        };
        Some(Self {
            verb,
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            subresource: subresource.map(str::to_owned),
            path,
            query,
        })
    }

    /// A parameter; empty where it is not given.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

/// Undoes the encoding of a form.
pub(super) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |b: Option<u8>| char::from(b?).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => bytes.push(hex(rest.next()).unwrap_or(0) << 4 | hex(rest.next()).unwrap_or(0)),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
