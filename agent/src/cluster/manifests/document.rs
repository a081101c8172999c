//! From the text of one file to its objects.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::Value;
use weir_engine::cluster::{Object, ObjectError, Origin};

use super::compose::{Broken, Composed, compose};
use super::{Found, Keep, Manifests, Problem, Severity};

/// Documents in one file.
const MAX_DOCUMENTS: usize = 200_000;
/// Lists inside Lists; kubectl flattens them, nobody writes them on purpose.
const MAX_LIST_DEPTH: usize = 8;

/// Reads all objects of one file. `name` is what problems and origins call it.
#[must_use]
pub fn parse(name: &Arc<str>, bytes: &[u8], keep: Keep) -> Manifests {
    let mut file = File { name: name.clone(), keep, document: 0, out: Manifests { files: 1, ..Manifests::default() } };
    match std::str::from_utf8(bytes) {
        Ok(text) => file.text(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            file.report(Severity::Error, u32::try_from(line).ok(), "not UTF-8 text".to_owned(), hint_encoding(bytes));
        }
    }
    let mut merged = Manifests::default();
    merged.absorb(file.out, &mut BTreeMap::new());
    merged
}

fn hint_encoding(bytes: &[u8]) -> Option<String> {
    let utf16 = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
    utf16.then(|| "it looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`".to_owned())
}

struct File {
    name: Arc<str>,
    keep: Keep,
    document: u32,
    out: Manifests,
}

impl File {
    fn text(&mut self, text: &str) {
        for (first_line, chunk) in chunks(text) {
            if self.out.documents >= MAX_DOCUMENTS {
                let message = format!("more than {MAX_DOCUMENTS} documents in one file; the rest is not read");
                self.report(Severity::Error, Some(first_line), message, Some("split the file".to_owned()));
                return;
            }
            let (documents, broken) = compose(chunk, first_line);
            if let Some(broken) = broken {
                if let Some(values) = json_stream(chunk, first_line) {
                    for composed in values {
                        self.composed(composed);
                    }
                    continue;
                }
                for composed in documents {
                    self.composed(composed);
                }
                self.broken(chunk, broken);
                continue;
            }
            for composed in documents {
                self.composed(composed);
            }
        }
    }

    fn broken(&mut self, chunk: &str, Broken { line, message }: Broken) {
        self.document += 1;
        self.out.documents += 1;
        let hint = if chunk.contains("{{") {
            Some("it looks like a template: render it first, for example with `helm template`".to_owned())
        } else if chunk.lines().any(|l| l.trim_start_matches(' ').starts_with('\t'))
            && !chunk.trim_start().starts_with('{')
        {
            Some("YAML is indented with spaces, this has tabs".to_owned())
        } else {
            None
        };
        self.report(Severity::Error, Some(line), message, hint);
    }

    fn composed(&mut self, composed: Composed) {
        let Composed { value, line, item_lines, duplicates } = composed;
        if value.is_null() {
            return;
        }
        self.document += 1;
        self.out.documents += 1;
        for (path, line) in duplicates {
            let message = format!("{path} is defined twice; the last value is used, as kubectl does");
            self.report(
                Severity::Warning,
                Some(line),
                message,
                Some("remove one of them: strict readers refuse this".to_owned()),
            );
        }
        // A JSON file may hold a bare array of objects.
        if let Value::Array(items) = value {
            for item in items {
                self.value(item, line, &[], None, 0);
            }
        } else {
            self.value(value, line, &item_lines, None, 0);
        }
    }

    /// One object or List. `element` is what a typed List (`PodList`) says its items are.
    fn value(&mut self, mut value: Value, line: u32, item_lines: &[u32], element: Option<(&str, &str)>, depth: usize) {
        if let (Some((api_version, kind)), Value::Object(map)) = (element, &mut value) {
            map.entry("apiVersion").or_insert_with(|| api_version.into());
            map.entry("kind").or_insert_with(|| kind.into());
        }
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        if let Some(element) = kind.strip_suffix("List")
            && value.get("items").is_none_or(|i| i.is_array() || i.is_null())
        {
            let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
            let element = element.to_owned();
            self.list(value, line, item_lines, (&api_version, &element), depth);
            return;
        }
        if !value.is_object() {
            let message = "not a Kubernetes object: a document must be a mapping".to_owned();
            self.report(
                Severity::Error,
                Some(line),
                message,
                Some("every document needs apiVersion, kind and metadata.name".to_owned()),
            );
            return;
        }
        let content = hash(&value);
        let kept = (self.keep == Keep::Value).then(|| value.clone());
        match Object::from_value(value) {
            Ok(object) => {
                let origin = Origin { resource_version: None, file: Some(self.name.clone()), line: Some(line) };
                self.out.objects.push(Found { key: object.key(), object, origin, value: kept, content });
            }
            Err(ObjectError::Ignored { api_version, kind }) => {
                *self.out.ignored.entry(format!("{api_version} {kind}")).or_default() += 1;
            }
            Err(error @ (ObjectError::NotAnObject(_) | ObjectError::Invalid { .. })) => {
                let message = error.to_string();
                let hint = hint_type(&message);
                self.report(Severity::Error, Some(line), message, hint);
            }
        }
    }

    fn list(&mut self, mut value: Value, line: u32, item_lines: &[u32], element: (&str, &str), depth: usize) {
        if depth == MAX_LIST_DEPTH {
            let message = format!("Lists nested deeper than {MAX_LIST_DEPTH} levels");
            self.report(Severity::Error, Some(line), message, None);
            return;
        }
        // An untyped List says nothing of its items.
        let element = if element.1.is_empty() { None } else { Some(element) };
        if let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) {
            for (index, item) in items.into_iter().enumerate() {
                let line = item_lines.get(index).copied().unwrap_or(line);
                self.value(item, line, &[], element, depth + 1);
            }
        }
    }

    fn report(&mut self, severity: Severity, line: Option<u32>, message: String, hint: Option<String>) {
        let document = (self.document > 0).then_some(self.document);
        self.out.report(Problem { severity, file: self.name.clone(), document, line, message, hint });
    }
}

fn hint_type(message: &str) -> Option<String> {
    let bare = message.contains("expected a string")
        && ["invalid type: boolean", "invalid type: integer", "invalid type: floating point"]
            .iter()
            .any(|kind| message.contains(kind));
    bare.then(|| "put the value in quotes: labels and annotations are text".to_owned())
}

/// Content only: `Value` orders its keys, and the hasher has fixed keys.
fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Splits a stream at its `---` lines, so that one broken document does not take the others with it. Such a line cannot stand
/// inside any scalar (YAML 1.2.2, production 206 `c-forbidden`). Chunks without content are left out.
fn chunks(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let mut rest = text;
    let mut line = 1u32;
    std::iter::from_fn(move || {
        let mut end = 0;
        let mut lines = 0;
        for content in rest.split_inclusive('\n') {
            let marker =
                content.strip_prefix("---").is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']));
            if marker && lines > 0 {
                break;
            }
            end += content.len();
            lines += 1;
        }
        let (chunk, after) = rest.split_at(end);
        let first = line;
        rest = after;
        line = line.saturating_add(lines);
        (lines > 0).then_some((first, chunk))
    })
    .filter(|(_, chunk)| {
        // Directives belong to the document that follows; the ones in use say nothing that matters here.
        chunk.lines().any(|l| {
            let l = l.trim();
            !(l.is_empty() || l.starts_with('#') || l.starts_with('%') || l == "---" || l == "...")
        })
    })
}

/// JSON texts one after the other, or with white space that YAML does not take.
fn json_stream(chunk: &str, first_line: u32) -> Option<Vec<Composed>> {
    let body = chunk.strip_prefix("---").unwrap_or(chunk);
    if !body.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let mut stream = serde_json::Deserializer::from_str(body).into_iter::<Value>();
    let mut found = Vec::new();
    let mut lines = Lines { text: body, line: first_line, at: 0 };
    loop {
        let from = stream.byte_offset();
        let value = match stream.next() {
            None => return Some(found),
            Some(value) => value.ok()?,
        };
        let begins = from + body[from..].len() - body[from..].trim_start().len();
        found.push(Composed { value, line: lines.of(begins), item_lines: Vec::new(), duplicates: Vec::new() });
    }
}

/// Line numbers of growing offsets, counted once.
struct Lines<'a> {
    text: &'a str,
    line: u32,
    at: usize,
}

impl Lines<'_> {
    fn of(&mut self, offset: usize) -> u32 {
        let newlines = self.text[self.at..offset].bytes().filter(|b| *b == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(newlines).unwrap_or(u32::MAX));
        self.at = offset;
        self.line
    }
}
