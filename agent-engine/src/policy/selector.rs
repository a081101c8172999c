//! LabelSelectors over interned labels: a requirement is a handful of integer comparisons.
//!
//! `selector == nil` and `selector == {}` differ only in where they stand: callers keep an `Option`; an empty selector matches
//! everything. A selector that the API server would refuse matches nothing and says so.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::decision::{Invalid, Wanted};
use crate::cluster::Labels;

/// An interned string.
pub(super) type Symbol = u32;

/// Interned keys and values.
pub(super) type LabelSet = Box<[(Symbol, Symbol)]>;

/// The same, borrowed.
pub(super) type Set = [(Symbol, Symbol)];

/// Whether a selector as the API has it selects these labels.
pub(crate) fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    Selector::lower(selector, &mut Symbols::default()).matches_labels(labels)
}

/// Strings of labels and selectors, counted: what nothing uses any longer is forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Symbols {
    ids: HashMap<Arc<str>, Symbol, FixedState>,
    texts: Vec<(Arc<str>, u32)>,
    free: Vec<Symbol>,
}

impl Symbols {
    pub fn take(&mut self, text: &Arc<str>) -> Symbol {
        if let Some(&id) = self.ids.get(text) {
            self.texts[id as usize].1 += 1;
            return id;
        }
        let entry = (text.clone(), 1);
        let id = match self.free.pop() {
            Some(id) => {
                self.texts[id as usize] = entry;
                id
            }
            None => {
                self.texts.push(entry);
                u32::try_from(self.texts.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.ids.insert(text.clone(), id);
        id
    }

    pub fn release(&mut self, id: Symbol) {
        let (text, uses) = &mut self.texts[id as usize];
        *uses -= 1;
        if *uses == 0 {
            self.ids.remove(text);
            *text = Arc::default();
            self.free.push(id);
        }
    }

    pub fn take_set(&mut self, labels: &Labels) -> LabelSet {
        labels.iter().map(|(k, v)| (self.take(k), self.take(v))).collect()
    }

    pub fn release_set(&mut self, set: &Set) {
        for &(k, v) in set {
            self.release(k);
            self.release(v);
        }
    }
}

/// A LabelSelector: all requirements have to hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Selector {
    requirements: Box<[Requirement]>,
    invalid: Option<Invalid>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: Symbol,
    test: Test,
    wanted: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Test {
    Is(Symbol),
    In(Box<[Symbol]>),
    NotIn(Box<[Symbol]>),
    Exists,
    Absent,
}

/// Why a selector does not match a label set.
pub(super) enum Mismatch {
    /// The first requirement that fails, what was found instead, and how many fail.
    Label { wanted: Wanted, found: Option<Arc<str>>, failing: u32 },
    /// The selector matches nothing at all.
    Invalid(Invalid),
}

impl Selector {
    pub fn lower(selector: &LabelSelector, symbols: &mut Symbols) -> Self {
        let mut requirements = Vec::new();
        let mut invalid = None;
        for (key, value) in selector.match_labels.iter().flatten() {
            let (key, value) = (Arc::from(key.as_str()), Arc::from(value.as_str()));
            let (id, test) = (symbols.take(&key), Test::Is(symbols.take(&value)));
            requirements.push(Requirement { key: id, test, wanted: Wanted::Is { key, value } });
        }
        for expression in selector.match_expressions.iter().flatten() {
            let key: Arc<str> = expression.key.as_str().into();
            let values: Arc<[Arc<str>]> = expression.values.iter().flatten().map(|v| v.as_str().into()).collect();
            let mut ids = || values.iter().map(|v| symbols.take(v)).collect();
            let (test, wanted) = match (expression.operator.as_str(), values.len()) {
                ("In", 1..) => (Test::In(ids()), Wanted::In { key: key.clone(), values }),
                ("NotIn", 1..) => (Test::NotIn(ids()), Wanted::NotIn { key: key.clone(), values }),
                ("Exists", 0) => (Test::Exists, Wanted::Exists { key: key.clone() }),
                ("DoesNotExist", 0) => (Test::Absent, Wanted::Absent { key: key.clone() }),
                (operator, _) => {
                    invalid = Some(Invalid::Selector(format!("{key} {operator} [{}]", values.join(", ")).into()));
                    continue;
                }
            };
            requirements.push(Requirement { key: symbols.take(&key), test, wanted });
        }
        Self { requirements: requirements.into(), invalid }
    }

    /// Selects nothing, and says why.
    pub fn nothing(invalid: Invalid) -> Self {
        Self { requirements: Box::default(), invalid: Some(invalid) }
    }

    pub fn release(&self, symbols: &mut Symbols) {
        for requirement in &self.requirements {
            symbols.release(requirement.key);
            match &requirement.test {
                Test::Is(value) => symbols.release(*value),
                Test::In(values) | Test::NotIn(values) => values.iter().for_each(|v| symbols.release(*v)),
                Test::Exists | Test::Absent => {}
            }
        }
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && self.invalid.is_none()
    }

    pub fn invalid(&self) -> Option<&Invalid> {
        self.invalid.as_ref()
    }

    pub fn matches(&self, labels: &Set) -> bool {
        self.invalid.is_none() && self.requirements.iter().all(|r| r.holds(labels))
    }

    /// The same for labels that are not interned.
    pub fn matches_labels(&self, labels: &Labels) -> bool {
        let holds = |wanted: &Wanted| match (wanted, labels.get(wanted.key())) {
            (Wanted::Is { value, .. }, found) => found == Some(value),
            (Wanted::In { values, .. }, found) => found.is_some_and(|v| values.contains(v)),
            (Wanted::NotIn { values, .. }, found) => found.is_none_or(|v| !values.contains(v)),
            (Wanted::Exists { .. }, found) => found.is_some(),
            (Wanted::Absent { .. }, found) => found.is_none(),
        };
        self.invalid.is_none() && self.requirements.iter().all(|r| holds(&r.wanted))
    }

    /// Why it does not match; `None` where it does.
    pub fn mismatch(&self, set: &Set, labels: &Labels) -> Option<Mismatch> {
        if let Some(invalid) = &self.invalid {
            return Some(Mismatch::Invalid(invalid.clone()));
        }
        let mut failing = self.requirements.iter().filter(|r| !r.holds(set));
        let first = failing.next()?;
        let found = labels.get(first.wanted.key()).cloned();
        let failing = 1 + u32::try_from(failing.count()).unwrap_or(u32::MAX);
        Some(Mismatch::Label { wanted: first.wanted.clone(), found, failing })
    }

    pub fn tests(&self) -> impl Iterator<Item = (Symbol, &Test)> {
        self.requirements.iter().map(|r| (r.key, &r.test))
    }
}

impl Requirement {
    fn holds(&self, labels: &Set) -> bool {
        let found = value(labels, self.key);
        match &self.test {
            Test::Is(value) => found == Some(*value),
            Test::In(values) => found.is_some_and(|v| values.contains(&v)),
            Test::NotIn(values) => found.is_none_or(|v| !values.contains(&v)),
            Test::Exists => found.is_some(),
            Test::Absent => found.is_none(),
        }
    }
}

fn value(labels: &Set, key: Symbol) -> Option<Symbol> {
    labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
}
