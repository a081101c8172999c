//! Cluster objects from YAML and JSON: files, folders, standard input.
//!
//! Read as `kubectl apply -R -f` reads them: many documents a file, Lists, comments, anchors, merge keys, the last of two equal
//! keys. What is broken is reported with file, document and line, and everything else still loads. Nothing in a manifest can
//! make the reader hang or run out of memory: size, depth and copying are bounded, and a bound that is hit is a [`Problem`].

mod compose;
mod document;
mod scalar;
mod source;
mod watch;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod watch_tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_engine::cluster::{Key, Object, Origin};

pub use document::parse;
pub use source::{MAX_FILE_BYTES, SourceError};
pub use watch::{Update, Watch};

/// How much a [`Problem`] takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document or file was not read.
    Error,
    /// It was read; what it means may not be what its author thinks.
    Warning,
}

/// Something wrong with one document or file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Not read, or read with doubt.
    pub severity: Severity,
    /// Path as given, `-` for standard input.
    pub file: Arc<str>,
    /// Which document of the file, from 1, empty ones not counted.
    pub document: Option<u32>,
    /// Line in the file, from 1.
    pub line: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(document) = self.document {
            write!(f, ": document {document}")?;
        }
        write!(f, ": {}", self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// One object and where it stands.
#[derive(Clone, Debug)]
pub struct Found {
    /// Kind, namespace and name.
    pub key: Key,
    /// The object.
    pub object: Object,
    /// File and line.
    pub origin: Origin,
    /// As it was written, where that was asked for ([`Keep::Value`]): a recording needs it.
    pub value: Option<serde_json::Value>,
    /// Hash of the content, without position and comments: equal content, equal hash.
    pub content: u64,
}

/// Whether [`Found::value`] is wanted: it doubles the memory of loading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Only the typed object.
    #[default]
    Object,
    /// The value too.
    Value,
}

/// What one file, or all of them together, hold.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// Objects of the kinds that Weir reads, in file order; a key occurs once.
    pub objects: Vec<Found>,
    /// What could not be read or is doubtful, in file order. Bounded; see `problems_left_out`.
    pub problems: Vec<Problem>,
    /// Problems beyond the bound.
    pub problems_left_out: usize,
    /// Objects of other kinds, by `apiVersion kind`.
    pub ignored: BTreeMap<String, usize>,
    /// Documents that are not empty.
    pub documents: usize,
    /// Files read.
    pub files: usize,
}

/// Problems kept; more of them help nobody and a hostile file could make millions.
const MAX_PROBLEMS: usize = 1000;

impl Manifests {
    /// Whether any document or file could not be read.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.problems.iter().any(|p| p.severity == Severity::Error) || self.problems_left_out > 0
    }

    fn report(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.problems_left_out += 1;
        }
    }

    /// Adds another file's content. Of two objects with one key the later wins, as if both were applied in turn; `known` has
    /// the places of all keys so far.
    fn absorb(&mut self, other: Self, known: &mut BTreeMap<Key, usize>) {
        for problem in other.problems {
            self.report(problem);
        }
        self.problems_left_out += other.problems_left_out;
        for (kind, count) in other.ignored {
            *self.ignored.entry(kind).or_default() += count;
        }
        self.documents += other.documents;
        self.files += other.files;
        for found in other.objects {
            match known.get(&found.key) {
                Some(&index) => {
                    self.report(twice(&found.key, &self.objects[index].origin, &found.origin));
                    self.objects[index] = found;
                }
                None => {
                    known.insert(found.key.clone(), self.objects.len());
                    self.objects.push(found);
                }
            }
        }
    }
}

fn twice(key: &Key, first: &Origin, second: &Origin) -> Problem {
    let place = |o: &Origin| format!("{}:{}", o.file.as_deref().unwrap_or("?"), o.line.unwrap_or(0));
    Problem {
        severity: Severity::Warning,
        file: second.file.clone().unwrap_or_else(|| "?".into()),
        document: None,
        line: second.line,
        message: format!("{key} is already defined at {}; the later definition is used", place(first)),
        hint: None,
    }
}

/// Reads every manifest of `paths` once: files, folders (recursive, in name order, `*.yaml`, `*.yml` and `*.json`), and `-`
/// for standard input.
///
/// # Errors
/// [`SourceError`] when one of `paths` itself can't be read; anything below them is a [`Problem`].
pub fn load(paths: &[PathBuf]) -> Result<Manifests, SourceError> {
    let mut all = Manifests::default();
    let mut known = BTreeMap::new();
    let (files, problems) = source::find(paths)?;
    problems.into_iter().for_each(|p| all.report(p));
    for file in files {
        all.absorb(file.read(Keep::Object)?, &mut known);
    }
    Ok(all)
}
