//! Manifests that change: what to apply and what to delete when files are edited, added, removed or swapped.
//!
//! Polled, not notified: it works on every file system, through links that are replaced as a whole (mounted ConfigMaps), and a
//! stat of each file costs microseconds. A changed file is read once it looked the same in two polls, so that a file caught in
//! the middle of being written is not taken for a shorter one. What can't be read any more keeps its last good objects: a
//! typing error must not look like deleted policies.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use weir_engine::cluster::{Key, Origin};

use super::source::{File, SourceError, Stamp, list};
use super::{Found, Keep, Manifests, Problem, Severity};

/// What changed since the last poll.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Objects that are new or differ, in the order of the files.
    pub apply: Vec<Found>,
    /// Objects that are gone.
    pub delete: Vec<Key>,
    /// All problems there are now, not only new ones.
    pub problems: Vec<Problem>,
    /// Objects that Weir does not read, by `apiVersion kind`.
    pub ignored: BTreeMap<String, usize>,
    /// Files known.
    pub files: usize,
}

/// Where a file stands: the index of the named path, then its name.
type Place = (usize, Arc<str>);

#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    content: u64,
    origin: Origin,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    entries: Vec<Entry>,
    /// Of the last good reading, while documents of the file are broken.
    kept: Vec<Entry>,
    problems: Vec<Problem>,
    ignored: BTreeMap<String, usize>,
}

/// The manifests below some paths, followed.
#[derive(Debug)]
pub struct Watch {
    roots: Vec<PathBuf>,
    keep: Keep,
    files: BTreeMap<Place, Known>,
    unsettled: BTreeMap<Place, Option<Stamp>>,
    current: BTreeMap<Key, (Place, u64)>,
    listing_problems: Vec<Problem>,
    problems: Vec<Problem>,
}

impl Watch {
    /// Reads everything a first time.
    ///
    /// # Errors
    /// [`SourceError`] when one of the paths can't be read; later that is a [`Problem`].
    pub fn new(roots: Vec<PathBuf>, keep: Keep) -> Result<(Self, Update), SourceError> {
        let mut watch = Self {
            roots,
            keep,
            files: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            current: BTreeMap::new(),
            listing_problems: Vec::new(),
            problems: Vec::new(),
        };
        let mut seen = HashSet::new();
        let mut read = BTreeMap::new();
        for (index, root) in watch.roots.iter().enumerate() {
            let listing = list(root, &mut seen)?;
            watch.listing_problems.extend(listing.problems);
            for file in listing.files {
                let place = (index, file.name.clone());
                let manifests = file.read(keep)?;
                watch.files.insert(place.clone(), Known { stamp: file.stamp, ..Known::default() });
                read.insert(place, (file, manifests));
            }
        }
        let files = read.iter().map(|(place, (file, _))| (place.clone(), file.clone())).collect();
        let update = watch.settle(read.into_iter().map(|(p, (_, m))| (p, m)).collect(), &files);
        Ok((watch, update))
    }

    /// Looks again. `None` when nothing changed.
    pub fn poll(&mut self) -> Option<Update> {
        let (files, lost, listing_problems) = self.list();
        let mut read = BTreeMap::new();
        let mut unsettled = BTreeMap::new();
        for (place, file) in &files {
            let known = self.files.get(place);
            // Standard input and pipes were read at the start and can't be read again.
            if known.is_some_and(|k| k.stamp == file.stamp) || file.stamp.is_none() {
                continue;
            }
            if self.unsettled.get(place) == Some(&file.stamp) {
                let manifests = file.read(self.keep).unwrap_or_else(|error| failed(&file.name, error.to_string()));
                self.files.entry(place.clone()).or_default().stamp = file.stamp;
                read.insert(place.clone(), manifests);
            } else {
                unsettled.insert(place.clone(), file.stamp);
            }
        }
        self.unsettled = unsettled;
        let before = self.files.len();
        self.files.retain(|place, known| known.stamp.is_none() || files.contains_key(place) || lost.contains(&place.0));
        let gone = self.files.len() != before;
        if read.is_empty() && !gone && listing_problems == self.listing_problems {
            return None;
        }
        self.listing_problems = listing_problems;
        Some(self.settle(read, &files))
    }

    /// All files below all paths, and the indices of the paths that can't be read any more.
    fn list(&self) -> (BTreeMap<Place, File>, BTreeSet<usize>, Vec<Problem>) {
        let mut seen = HashSet::new();
        let (mut files, mut lost, mut problems) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for (index, root) in self.roots.iter().enumerate() {
            match list(root, &mut seen) {
                Ok(listing) => {
                    problems.extend(listing.problems);
                    files.extend(listing.files.into_iter().map(|f| ((index, f.name.clone()), f)));
                }
                Err(error) => {
                    let name: Arc<str> = root.to_string_lossy().into();
                    problems.extend(failed(&name, format!("{error}; what was read earlier stays in force")).problems);
                    lost.insert(index);
                }
            }
        }
        (files, lost, problems)
    }

    /// Takes in what was read and says what that changes.
    fn settle(&mut self, mut read: BTreeMap<Place, Manifests>, files: &BTreeMap<Place, File>) -> Update {
        for (place, manifests) in &mut read {
            let known = self.files.entry(place.clone()).or_default();
            known.take(&place.1, manifests);
        }
        let (mut wanted, twice) = self.merge();
        let mut update = Update { files: self.files.len(), ..Update::default() };
        update.delete = self.current.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let mut changed: BTreeMap<Place, BTreeSet<Key>> = BTreeMap::new();
        for (key, (place, content)) in &wanted {
            if self.current.get(key).is_none_or(|(_, old)| old != content) {
                changed.entry(place.clone()).or_default().insert(key.clone());
            }
        }
        for (place, keys) in changed {
            // An object that a removed or edited file had covered comes from a file that did not change itself.
            let objects = match read.remove(&place) {
                Some(manifests) => manifests.objects,
                None => files.get(&place).and_then(|f| f.read(self.keep).ok()).map(|m| m.objects).unwrap_or_default(),
            };
            let found: Vec<Found> = objects.into_iter().filter(|f| keys.contains(&f.key)).collect();
            // Gone again since it was listed: the engine still has the old version, and the next poll sees the edit.
            for key in keys.into_iter().filter(|key| !found.iter().any(|f| f.key == *key)) {
                match self.current.get(&key) {
                    Some(old) => drop(wanted.insert(key, old.clone())),
                    None => drop(wanted.remove(&key)),
                }
            }
            update.apply.extend(found);
        }
        self.current = wanted;
        self.problems = self.listing_problems.clone();
        self.problems.extend(self.files.values().flat_map(|k| k.problems.iter().cloned()));
        self.problems.extend(twice);
        update.problems.clone_from(&self.problems);
        for (kind, count) in self.files.values().flat_map(|k| &k.ignored) {
            *update.ignored.entry(kind.clone()).or_default() += count;
        }
        update
    }

    /// Which file's version of each object is in force: the last one, and a kept one only where there is no other.
    fn merge(&self) -> (BTreeMap<Key, (Place, u64)>, Vec<Problem>) {
        let mut wanted: BTreeMap<Key, (Place, u64)> = BTreeMap::new();
        let mut origins: BTreeMap<&Key, &Origin> = BTreeMap::new();
        let mut twice = Vec::new();
        for (place, known) in &self.files {
            for entry in &known.entries {
                if let Some(first) = origins.insert(&entry.key, &entry.origin) {
                    twice.push(super::twice(&entry.key, first, &entry.origin));
                }
                wanted.insert(entry.key.clone(), (place.clone(), entry.content));
            }
        }
        for entry in self.files.values().flat_map(|k| &k.kept) {
            if let Some(version) = self.current.get(&entry.key) {
                wanted.entry(entry.key.clone()).or_insert_with(|| version.clone());
            }
        }
        (wanted, twice)
    }
}

impl Known {
    fn take(&mut self, name: &Arc<str>, manifests: &Manifests) {
        let old = std::mem::take(&mut self.entries);
        self.entries = manifests
            .objects
            .iter()
            .map(|f| Entry { key: f.key.clone(), content: f.content, origin: f.origin.clone() })
            .collect();
        self.problems.clone_from(&manifests.problems);
        self.ignored.clone_from(&manifests.ignored);
        let last_good = old.into_iter().chain(std::mem::take(&mut self.kept));
        if !manifests.is_incomplete() {
            return;
        }
        let present: BTreeSet<&Key> = self.entries.iter().map(|e| &e.key).collect();
        let kept: Vec<Entry> = last_good.filter(|e| !present.contains(&e.key)).collect();
        if !kept.is_empty() {
            let names: Vec<String> = kept.iter().take(3).map(|e| e.key.to_string()).collect();
            let more = if kept.len() > names.len() {
                format!(" and {} more", kept.len() - names.len())
            } else {
                String::new()
            };
            self.problems.push(Problem {
                severity: Severity::Warning,
                file: name.clone(),
                document: None,
                line: None,
                message: format!("not read in full: {}{more} stay in force as last read", names.join(", ")),
                hint: Some("repair the file, or remove it to remove them".to_owned()),
            });
        }
        self.kept = kept;
    }
}

fn failed(name: &Arc<str>, message: String) -> Manifests {
    let mut out = Manifests { files: 1, ..Manifests::default() };
    out.report(Problem {
        severity: Severity::Error,
        file: name.clone(),
        document: None,
        line: None,
        message,
        hint: None,
    });
    out
}
