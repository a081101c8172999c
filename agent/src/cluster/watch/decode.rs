//! The API server's JSON: pages and watch lines whose objects are borrowed text, and objects that are reduced while decoded.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use serde::Deserialize;
use serde_json::value::RawValue;
use weir_engine::cluster::{AdminPolicy, Form, Key, Kind, Object};
use weir_engine::words::Name;

use super::reduce;

/// One page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub metadata: ListMeta,
    #[serde(borrow, default)]
    pub items: Option<Vec<&'a RawValue>>,
}

/// One line of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type")]
    pub type_: &'a str,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// What every object and bookmark has.
#[derive(Deserialize)]
pub(super) struct Head {
    #[serde(default)]
    pub metadata: HeadMeta,
}

/// The part of `metadata` that identifies.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HeadMeta {
    pub name: String,
    pub namespace: Option<String>,
    pub resource_version: Arc<str>,
    pub uid: String,
    pub annotations: serde_json::Value,
}

impl HeadMeta {
    /// The bookmark that ends the initial events of a streaming list.
    pub(super) fn ends_initial_events(&self) -> bool {
        self.annotations.get("k8s.io/initial-events-end").and_then(|v| v.as_str()) == Some("true")
    }

    pub(super) fn key(&self, kind: Kind) -> Key {
        let namespace = if kind.namespaced() { self.namespace.as_deref().unwrap_or("default") } else { "" };
        Key { kind, name: Name::new(namespace, self.name.as_str()) }
    }
}

/// An object of a list or watch.
pub(super) struct Decoded {
    pub object: Object,
    /// Hash of what is left after reduction: equal content, equal hash.
    pub content: u64,
}

/// Decodes and reduces one object. Lists of built-in kinds leave `apiVersion` and `kind` out of their items, so both come from
/// the request.
pub(super) fn object(
    kind: Kind,
    api_version: &str,
    api_kind: &str,
    text: &RawValue,
) -> Result<Decoded, serde_json::Error> {
    let text = text.get();
    let object = match kind.form() {
        Form::Pod => Object::Pod(Box::new(serde_json::from_str::<reduce::Pod>(text)?.into())),
        Form::Node => Object::Node(Box::new(serde_json::from_str::<reduce::Node>(text)?.into())),
        Form::Namespace => Object::Namespace(from(text, |o: &mut core::Namespace| slim(&mut o.metadata))?),
        Form::Service => Object::Service(from(text, |o: &mut core::Service| slim(&mut o.metadata))?),
        Form::EndpointSlice => Object::EndpointSlice(from(text, |o: &mut EndpointSlice| slim(&mut o.metadata))?),
        Form::NetworkPolicy => Object::NetworkPolicy(from(text, |o: &mut NetworkPolicy| slim(&mut o.metadata))?),
        Form::AdminPolicy => {
            let policy = from(text, |o: &mut AdminPolicy| {
                slim(&mut o.metadata);
                o.api_version = api_version.to_owned();
                o.kind = api_kind.to_owned();
            });
            Object::AdminPolicy(kind, policy?)
        }
        // Workloads are not watched: a pod names its owner. One given all the same is kept whole and does no harm.
        Form::Template => {
            let mut value: serde_json::Value = serde_json::from_str(text)?;
            reduce::raw(&mut value, api_version, api_kind);
            Object::from_value(value).map_err(<serde_json::Error as serde::de::Error>::custom)?
        }
        Form::Raw => {
            let mut value: serde_json::Value = serde_json::from_str(text)?;
            reduce::raw(&mut value, api_version, api_kind);
            Object::Raw(kind, Arc::new(value))
        }
    };
    let content = content(&object)?;
    Ok(Decoded { object, content })
}

fn from<T: serde::de::DeserializeOwned>(text: &str, reduce: impl FnOnce(&mut T)) -> Result<Box<T>, serde_json::Error> {
    let mut object: Box<T> = serde_json::from_str(text)?;
    reduce(&mut object);
    Ok(object)
}

/// What changes with every write and means nothing to Weir.
fn slim(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.resource_version = None;
    meta.generation = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, value| reduce::keeps_annotation(key, value));
    }
}

fn content(object: &Object) -> Result<u64, serde_json::Error> {
    let mut hash = Hash(DefaultHasher::new());
    match object {
        Object::Namespace(o) => serde_json::to_writer(&mut hash, o),
        Object::Node(o) => serde_json::to_writer(&mut hash, o),
        Object::Pod(o) | Object::Template(_, o) => serde_json::to_writer(&mut hash, o),
        Object::Service(o) => serde_json::to_writer(&mut hash, o),
        Object::EndpointSlice(o) => serde_json::to_writer(&mut hash, o),
        Object::NetworkPolicy(o) => serde_json::to_writer(&mut hash, o),
        Object::AdminPolicy(_, o) => serde_json::to_writer(&mut hash, o),
        Object::Raw(_, o) => serde_json::to_writer(&mut hash, o),
    }?;
    Ok(hash.0.finish())
}

struct Hash(DefaultHasher);

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
