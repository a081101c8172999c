//! What changes objects besides create: merge patches, replacing and deleting; and the two questions of kubectl that are no
//! objects, logs and what an account may do. Clients send JSON, or Kubernetes' protobuf where they know the kind.

use serde_json::{Map, Value, json};

use super::Inner;
use super::fault::Verb;
use super::request::Asked;
use super::serve::{Refusal, of};

/// What Kubernetes' protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";

/// The object of a request, JSON or protobuf.
pub(super) fn object(asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let bad = |why: &str| Refusal::new(400, why);
    let Some(unknown) = body.strip_prefix(MAGIC) else {
        return serde_json::from_slice(body).map_err(|e| bad(&e.to_string()));
    };
    let read = || -> Option<Value> {
        let unknown = fields(unknown)?;
        let meta = fields(message(&unknown, 1)?)?;
        let raw = fields(message(&unknown, 2)?)?;
        let mut object = json!({"apiVersion": text(&meta, 1), "kind": text(&meta, 2)});
        // Of every kind that this server is asked to make this way, the first field is the metadata.
        let meta = fields(message(&raw, 1).unwrap_or_default())?;
        let mut metadata = Map::new();
        for (number, name) in [(1, "name"), (3, "namespace")] {
            if let Some(value) = message(&meta, number).filter(|v| !v.is_empty()) {
                metadata.insert(name.to_owned(), String::from_utf8_lossy(value).into());
            }
        }
        object["metadata"] = metadata.into();
        match &*asked.plural {
            "namespaces" => Some(object),
            "configmaps" => {
                for (_, entry) in raw.iter().filter(|(number, _)| *number == 2) {
                    let entry = fields(entry)?;
                    object["data"][text(&entry, 1)] = text(&entry, 2).into();
                }
                Some(object)
            }
            "selfsubjectaccessreviews" => {
                let spec = fields(message(&raw, 2)?)?;
                let wanted = fields(message(&spec, 1)?)?;
                let names = [(1, "namespace"), (2, "verb"), (3, "group"), (5, "resource"), (7, "name")];
                for (number, name) in names {
                    object["spec"]["resourceAttributes"][name] = text(&wanted, number).into();
                }
                Some(object)
            }
            _ => None,
        }
    };
    read().ok_or_else(|| bad(&format!("{} in protobuf cannot be read here", asked.plural)))
}

/// Number and bytes of each field that has bytes; none where it is no protobuf.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => drop(varint(&mut bytes)?),
            1 => bytes = bytes.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (field, rest) = bytes.split_at_checked(length)?;
                found.push((key >> 3, field));
                bytes = rest;
            }
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    Some(found)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn message<'a>(fields: &[(u64, &'a [u8])], number: u64) -> Option<&'a [u8]> {
    fields.iter().find(|(n, _)| *n == number).map(|(_, bytes)| *bytes)
}

fn text(fields: &[(u64, &[u8])], number: u64) -> String {
    String::from_utf8_lossy(message(fields, number).unwrap_or_default()).into_owned()
}

fn name(asked: &Asked) -> (String, String) {
    (asked.namespace.clone().unwrap_or_default(), asked.name.clone().unwrap_or_default())
}

/// A merge patch; a strategic one is taken as one, for there is no schema here to tell lists apart.
pub(super) fn patch(inner: &Inner, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let kind = of(inner, asked)?;
    let patch: Value = serde_json::from_slice(body).map_err(|e| Refusal::new(400, &e.to_string()))?;
    let missing = || Refusal::new(404, &format!("{} {:?} not found", asked.plural, name(asked).1));
    let mut object = inner.store().object(&kind, &name(asked)).map(|o| Value::clone(o)).ok_or_else(missing)?;
    merge(&mut object, &patch);
    put(inner, object)
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        into.clone_from(patch);
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in patch.iter().filter(|(field, _)| !field.starts_with('$')) {
        match (value, into.as_object_mut()) {
            (Value::Null, Some(object)) => drop(object.remove(field)),
            _ => merge(&mut into[field], value),
        }
    }
}

/// Replaces an object that is there.
pub(super) fn update(inner: &Inner, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let kind = of(inner, asked)?;
    if inner.store().object(&kind, &name(asked)).is_none() {
        return Err(Refusal::new(404, &format!("{} {:?} not found", asked.plural, name(asked).1)));
    }
    put(inner, object(asked, body)?)
}

fn put(inner: &Inner, object: Value) -> Result<Value, Refusal> {
    let applied = inner.apply(object).map_err(|e| Refusal::new(422, &e.to_string()))?;
    Ok(Value::clone(&applied))
}

/// Removes an object at once.
pub(super) fn delete(inner: &Inner, asked: &Asked) -> Result<Value, Refusal> {
    let kind = of(inner, asked)?;
    let (namespace, object) = name(asked);
    let missing = |_| Refusal::new(404, &format!("{} {object:?} not found", asked.plural));
    inner.store().delete(&kind.0, &kind.1, &namespace, &object).map_err(missing)?;
    inner.announce();
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": {"name": object}}))
}

/// Whether the account may do something, by the roles that are required; everything where none are.
pub(super) fn review(inner: &Inner, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let mut review = object(asked, body)?;
    let wanted = review["spec"]["resourceAttributes"].clone();
    let text = |field: &str| wanted[field].as_str().unwrap_or_default().to_owned();
    let verb = match &*text("verb") {
        "get" => Some(Verb::Get),
        "list" => Some(Verb::List),
        "watch" => Some(Verb::Watch),
        "create" => Some(Verb::Create),
        "patch" => Some(Verb::Patch),
        "update" => Some(Verb::Update),
        "delete" => Some(Verb::Delete),
        _ => None,
    };
    let some = |text: String| (!text.is_empty()).then_some(text);
    let allowed = verb.is_some_and(|verb| {
        inner.grants(&Asked {
            verb,
            path: Vec::new(),
            group: text("group"),
            version: String::new(),
            plural: text("resource"),
            namespace: some(text("namespace")),
            name: some(text("name")),
            subresource: None,
            query: std::collections::BTreeMap::new(),
        })
    });
    review["status"] = json!({"allowed": allowed});
    Ok(review)
}
