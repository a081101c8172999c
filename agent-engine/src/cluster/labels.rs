//! Label and annotation sets: small sorted slices, shared between the many pods that carry the same ones.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels or annotations: sorted by key, each key once. Cloning is a reference count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Default for Labels {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl Labels {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        // Sets are small: walking a dozen keys is faster than searching them.
        self.0.iter().find(|(k, _)| **k == *key).map(|(_, v)| v)
    }

    /// Whether the key is there.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All keys and values, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(k, v)| (k, v))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same set with one more entry, or another value for it.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Self {
        self.iter().map(|(k, v)| (k.clone(), v.clone())).chain([(key.into(), value.into())]).collect()
    }

    pub(super) fn slice(&self) -> &Arc<[(Arc<str>, Arc<str>)]> {
        &self.0
    }

    pub(super) fn from_slice(slice: Arc<[(Arc<str>, Arc<str>)]>) -> Self {
        Self(slice)
    }
}

/// Of equal keys the last value stays.
impl FromIterator<(Arc<str>, Arc<str>)> for Labels {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(iter: I) -> Self {
        let map: BTreeMap<Arc<str>, Arc<str>> = iter.into_iter().collect();
        Self(map.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a Arc<str>, &'a Arc<str>);
    type IntoIter = std::iter::Map<
        std::slice::Iter<'a, (Arc<str>, Arc<str>)>,
        fn(&'a (Arc<str>, Arc<str>)) -> (&'a Arc<str>, &'a Arc<str>),
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(k, v)| (k, v))
    }
}

/// Labels of an API object.
#[must_use]
pub fn labels_of(map: Option<&BTreeMap<String, String>>) -> Labels {
    Labels(map.into_iter().flatten().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect())
}
