//! From YAML events to JSON values, with the positions and doubts that serde would lose.
//!
//! Iterative, so that depth is a number and not a stack; aliases are copied against a budget, so that a few lines cannot
//! unfold into gigabytes.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

use super::scalar::resolve;

/// Nesting allowed. Kubernetes objects of the kinds that Weir reads stay below 20.
pub const MAX_DEPTH: usize = 100;
/// Bytes (estimated) that anchors and aliases of one document may copy.
pub const MAX_COPIED_BYTES: usize = 16 << 20;
/// Duplicate keys reported for one document.
const MAX_DUPLICATES: usize = 50;

/// One document as a value.
#[derive(Debug)]
pub struct Composed {
    /// The content.
    pub value: Value,
    /// Line at which the content begins.
    pub line: u32,
    /// Line of each element of the top-level `items`: where a List's objects stand.
    pub item_lines: Vec<u32>,
    /// Keys defined twice: path and line of the later one.
    pub duplicates: Vec<(String, u32)>,
}

/// Why a document could not be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken {
    /// Line in the file.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

/// Composes the documents of `text` (usually one); lines count from `first_line`. What stands before a fault is returned too.
pub fn compose(text: &str, first_line: u32) -> (Vec<Composed>, Option<Broken>) {
    let mut done = Vec::new();
    let mut composer = Composer::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let line = line_of(first_line, error.marker().line());
                let message = match error.info() {
                    // The parser's own bound, met first where brackets stand close together.
                    "recursion limit exceeded" => too_deep(),
                    info => info.to_owned(),
                };
                return (done, Some(Broken { line, message }));
            }
        };
        let line = line_of(first_line, span.start.line());
        match composer.event(event, line) {
            Ok(Some(document)) => done.push(document),
            Ok(None) => {}
            Err(message) => return (done, Some(Broken { line, message })),
        }
    }
    (done, None)
}

fn line_of(first_line: u32, line: usize) -> u32 {
    first_line.saturating_add(u32::try_from(line.saturating_sub(1)).unwrap_or(u32::MAX))
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

enum Collection {
    Map { map: Map<String, Value>, key: Option<(String, u32)>, merged: Vec<Map<String, Value>> },
    Seq(Vec<Value>),
}

struct Frame {
    collection: Collection,
    anchor: usize,
}

#[derive(Default)]
struct Composer {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Value>,
    copied: usize,
    root: Option<(Value, u32)>,
    begins: Option<u32>,
    item_lines: Vec<u32>,
    duplicates: Vec<(String, u32)>,
}

impl Composer {
    fn event(&mut self, event: Event<'_>, line: u32) -> Result<Option<Composed>, String> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::DocumentStart(_) => *self = Self::default(),
            Event::DocumentEnd => return Ok(self.finish()),
            Event::Alias(id) => {
                let Some(value) = self.anchors.get(&id) else {
                    return Err("an alias stands inside the node that its anchor names".to_owned());
                };
                let weight = weigh(value);
                self.charge(weight)?;
                let value = self.anchors[&id].clone();
                self.begin(line);
                self.place(value, line, true)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.begin(line);
                // `<<` merges only as a plain key.
                let plain = matches!(style, ScalarStyle::Plain);
                let value = scalar(text, plain, tag.as_deref());
                self.anchor(anchor, &value)?;
                self.place(value, line, plain)?;
            }
            Event::SequenceStart(anchor, _) => self.open(Collection::Seq(Vec::new()), anchor, line)?,
            Event::MappingStart(anchor, _) => {
                self.open(Collection::Map { map: Map::new(), key: None, merged: Vec::new() }, anchor, line)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(line)?,
        }
        Ok(None)
    }

    fn finish(&mut self) -> Option<Composed> {
        let this = std::mem::take(self);
        let (value, line) = this.root?;
        Some(Composed { value, line, item_lines: this.item_lines, duplicates: this.duplicates })
    }

    /// Notes where the content, and each element of the top-level `items`, begins.
    fn begin(&mut self, line: u32) {
        self.begins.get_or_insert(line);
        if let [Frame { collection: Collection::Map { key: Some((key, _)), .. }, .. }, seq] = self.stack.as_slice()
            && key == "items"
            && matches!(seq.collection, Collection::Seq(_))
        {
            self.item_lines.push(line);
        }
    }

    fn open(&mut self, collection: Collection, anchor: usize, line: u32) -> Result<(), String> {
        self.begin(line);
        if self.stack.len() == MAX_DEPTH {
            return Err(too_deep());
        }
        self.stack.push(Frame { collection, anchor });
        Ok(())
    }

    fn close(&mut self, line: u32) -> Result<(), String> {
        let Some(Frame { collection, anchor }) = self.stack.pop() else { return Ok(()) };
        let value = match collection {
            Collection::Seq(items) => Value::Array(items),
            Collection::Map { mut map, merged, .. } => {
                for (key, value) in merged.into_iter().flatten() {
                    map.entry(key).or_insert(value);
                }
                Value::Object(map)
            }
        };
        self.anchor(anchor, &value)?;
        self.place(value, line, false)
    }

    fn anchor(&mut self, id: usize, value: &Value) -> Result<(), String> {
        if id != 0 {
            self.charge(weigh(value))?;
            self.anchors.insert(id, value.clone());
        }
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), String> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > MAX_COPIED_BYTES {
            return Err(format!("its aliases unfold into more than {} MiB", MAX_COPIED_BYTES >> 20));
        }
        Ok(())
    }

    fn place(&mut self, value: Value, line: u32, plain: bool) -> Result<(), String> {
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some((value, self.begins.unwrap_or(line)));
            return Ok(());
        };
        let (map, key, merged) = match &mut frame.collection {
            Collection::Seq(items) => {
                items.push(value);
                return Ok(());
            }
            Collection::Map { map, key, merged } => (map, key, merged),
        };
        let Some((name, at)) = key.take() else {
            // A merge key is told from a quoted "<<" by a name that no text can have: see `MERGE`.
            let name = match value {
                Value::String(s) if plain && s == "<<" => MERGE.to_owned(),
                Value::String(s) => s,
                Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
                Value::Array(_) | Value::Object(_) => return Err("a mapping key must be plain text".to_owned()),
            };
            *key = Some((name, line));
            return Ok(());
        };
        if name == MERGE {
            match value {
                Value::Object(map) => merged.push(map),
                Value::Array(maps) if maps.iter().all(Value::is_object) => {
                    merged
                        .extend(maps.into_iter().filter_map(|m| if let Value::Object(m) = m { Some(m) } else { None }));
                }
                _ => return Err("the merge key << needs a mapping or a list of mappings".to_owned()),
            }
            return Ok(());
        }
        if map.contains_key(&name) && self.duplicates.len() < MAX_DUPLICATES {
            map.insert(name.clone(), value);
            let path = self.path(&name);
            self.duplicates.push((path, at));
        } else {
            map.insert(name, value);
        }
        Ok(())
    }

    fn path(&self, last: &str) -> String {
        let mut path = String::new();
        for frame in self.stack.iter().take(self.stack.len() - 1) {
            match &frame.collection {
                Collection::Map { key: Some((key, _)), .. } => {
                    path.push_str(key);
                    path.push('.');
                }
                Collection::Map { key: None, .. } => {}
                Collection::Seq(items) => {
                    path.pop();
                    path.push_str(&format!("[{}].", items.len()));
                }
            }
        }
        path.push_str(last);
        path
    }
}

/// Stands for a plain `<<` while its value is read; YAML text cannot hold U+0000.
const MERGE: &str = "\0<<";

fn scalar(text: Cow<'_, str>, plain: bool, tag: Option<&Tag>) -> Value {
    match tag {
        None if plain => resolve(&text),
        Some(tag) if tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "int" | "float" | "bool" | "null") => {
            resolve(&text)
        }
        None | Some(_) => Value::String(text.into_owned()),
    }
}

/// Estimated bytes of a value in memory.
fn weigh(value: &Value) -> usize {
    let own = size_of::<Value>();
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => own,
        Value::String(s) => own + s.len(),
        Value::Array(items) => own + items.iter().map(weigh).sum::<usize>(),
        Value::Object(map) => own + map.iter().map(|(k, v)| size_of::<String>() + k.len() + weigh(v)).sum::<usize>(),
    }
}
