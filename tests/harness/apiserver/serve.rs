//! Answers: discovery, get, list with pages, create; watches are in `watch`.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::body::Answer;
use super::discovery;
use super::event;
use super::exec::Exec;
use super::fault::{Fault, Verb};
use super::request::Asked;
use super::selector::Selector;
use super::store::{TypeKey, status};
use super::{Inner, watch, write};

/// An answer that is not what was asked for.
pub(super) struct Refusal(pub u16, pub Value);

impl Refusal {
    pub(super) fn new(code: u16, message: &str) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "AlreadyExists",
            410 => "Expired",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            _ => "InternalError",
        };
        Self(code, status(code, reason, message))
    }
}

pub(super) async fn answer(inner: Arc<Inner>, request: Request<Incoming>) -> Response<Answer> {
    let (parts, body) = request.into_parts();
    if let (Some(exec), Some(runner)) = (Exec::read(&parts), inner.runner()) {
        inner.log(&parts);
        if let Some(Fault::Status(code, _)) = inner.fault_of("pods/exec", Verb::Get) {
            let body = Refusal::new(code, "a fault of the test").1;
            return respond(&inner, ("pods/exec".to_owned(), Verb::Get), code, &body, &[]);
        }
        return exec.open(&inner, runner, Request::from_parts(parts, body));
    }
    let Some(asked) = Asked::read(&parts) else {
        let refusal = Refusal::new(404, "the server could not find the requested resource");
        return respond(&inner, (String::new(), Verb::Discovery), refusal.0, &refusal.1, &[]);
    };
    let counted = (asked.plural.clone(), asked.verb);
    inner.count(&counted, |c| c.requests += 1);
    inner.log(&parts);
    let bearer = parts.headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    if inner.token().is_some_and(|token| bearer != Some(&*token)) {
        return respond(&inner, counted, 401, &Refusal::new(401, "Unauthorized").1, &[]);
    }
    if !inner.grants(&asked) {
        let (verb, plural) = (asked.verb, &asked.plural);
        let message = format!("{plural} is forbidden: the account cannot {verb:?} resource {plural:?}");
        return respond(&inner, counted, 403, &Refusal::new(403, &message).1, &[]);
    }
    let mut watch_fault = None;
    for fault in inner.faults(&asked) {
        match fault {
            Fault::Slow(time) => tokio::time::sleep(time).await,
            Fault::Status(code, after) => {
                let mut body = Refusal::new(code, "a fault of the test").1;
                let after = after.map(|s| s.to_string());
                if let Some(seconds) = after.as_ref().and_then(|s| s.parse::<u32>().ok()) {
                    body["details"] = json!({"retryAfterSeconds": seconds});
                }
                let headers: Vec<_> = after.iter().map(|s| (RETRY_AFTER, s.clone())).collect();
                return respond(&inner, counted, code, &body, &headers);
            }
            Fault::Page(code) => return page(&inner, counted, code, "<html>upstream connect error</html>"),
            Fault::Garbage => return page(&inner, counted, 200, "{\"kind\": \"List\", \"items\": [{]}"),
            Fault::ExpiredContinue => {
                if !asked.parameter("continue").is_empty() {
                    let refusal = Refusal::new(410, "The provided continue parameter is too old");
                    return respond(&inner, counted, refusal.0, &refusal.1, &[]);
                }
            }
            Fault::CloseAfter(_) | Fault::CutAfter(_) | Fault::GoneInWatch => watch_fault = Some(fault),
        }
    }
    if asked.verb == Verb::Get && asked.subresource.as_deref() == Some("log") {
        return match get(&inner, &asked, false) {
            Ok(_) => {
                build(200, &[(CONTENT_TYPE, "text/plain".to_owned())], Answer::text(&inner, counted, LOG.to_vec()))
            }
            Err(refusal) => respond(&inner, counted, refusal.0, &refusal.1, &[]),
        };
    }
    let answered = match asked.verb {
        Verb::Discovery => {
            let accept = parts.headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let seen = parts.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
            return discover(&inner, counted, &asked, accept, seen);
        }
        Verb::Watch => match watch::open(&inner, &asked, watch_fault) {
            Ok(lines) => {
                let body = Answer::lines(&inner, counted, lines);
                return build(200, &[(CONTENT_TYPE, "application/json".to_owned())], body);
            }
            Err(refusal) => Err(refusal),
        },
        Verb::Get => {
            let accept = parts.headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
            get(&inner, &asked, accept.contains("as=PartialObjectMetadata"))
        }
        Verb::List => list(&inner, &asked),
        Verb::Delete => write::delete(&inner, &asked),
        Verb::Create | Verb::Patch | Verb::Update => match body.collect().await {
            Ok(body) => change(&inner, &asked, &body.to_bytes()),
            Err(error) => Err(Refusal::new(400, &error.to_string())),
        },
    };
    match answered {
        Ok(value) => respond(&inner, counted, if asked.verb == Verb::Create { 201 } else { 200 }, &value, &[]),
        Err(refusal) => respond(&inner, counted, refusal.0, &refusal.1, &[]),
    }
}

/// What a container has said, of every pod.
const LOG: &[u8] = b"weir runs\n";

fn change(inner: &Inner, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    match asked.verb {
        Verb::Patch => write::patch(inner, asked, body),
        Verb::Update => write::update(inner, asked, body),
        _ if asked.plural == "selfsubjectaccessreviews" => write::review(inner, asked, body),
        _ => create(inner, asked, body),
    }
}

/// The kind that is asked for, if it is served in that version.
pub(super) fn of(inner: &Inner, asked: &Asked) -> Result<TypeKey, Refusal> {
    let store = inner.store();
    let found = store.served(&asked.group, &asked.plural).filter(|t| t.version == asked.version);
    let found = found.ok_or_else(|| Refusal::new(404, "the server could not find the requested resource"))?;
    Ok((found.group.clone(), found.plural.clone()))
}

pub(super) fn selector(asked: &Asked) -> Result<Selector, Refusal> {
    let (labels, fields) = (asked.parameter("labelSelector"), asked.parameter("fieldSelector"));
    Selector::parse(&asked.plural, labels, fields).map_err(|e| Refusal::new(400, &e.to_string()))
}

fn discover(
    inner: &Arc<Inner>,
    counted: (String, Verb),
    asked: &Asked,
    accept: &str,
    seen: Option<&str>,
) -> Response<Answer> {
    let aggregated = inner.aggregated() && accept.contains("as=APIGroupDiscoveryList");
    let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
    let Some(document) = discovery::document(&inner.store(), &path, aggregated) else {
        return respond(
            inner,
            counted,
            404,
            &Refusal::new(404, "the server could not find the requested resource").1,
            &[],
        );
    };
    let tag = discovery::tag(&document);
    if !aggregated {
        return respond(inner, counted, 200, &document, &[]);
    }
    if seen == Some(&tag) {
        return build(304, &[(ETAG, tag)], Answer::text(inner, counted, Vec::new()));
    }
    // kubectl takes what has not this type as the other form.
    let headers = [(ETAG, tag), (CONTENT_TYPE, AGGREGATED.to_owned())];
    build(200, &headers, Answer::text(inner, counted, serde_json::to_vec(&document).unwrap_or_default()))
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn get(inner: &Inner, asked: &Asked, metadata_only: bool) -> Result<Value, Refusal> {
    let of = of(inner, asked)?;
    let name = (asked.namespace.clone().unwrap_or_default(), asked.name.clone().unwrap_or_default());
    let store = inner.store();
    let missing = || Refusal::new(404, &format!("{} {:?} not found", asked.plural, name.1));
    let found = store.object(&of, &name).ok_or_else(missing)?;
    if metadata_only {
        let (kind, version) = ("PartialObjectMetadata", "meta.k8s.io/v1");
        return Ok(json!({"kind": kind, "apiVersion": version, "metadata": found["metadata"]}));
    }
    Ok(Value::clone(found))
}

fn list(inner: &Inner, asked: &Asked) -> Result<Value, Refusal> {
    let of = of(inner, asked)?;
    let selector = selector(asked)?;
    let store = inner.store();
    let served = store.served(&of.0, &of.1).ok_or_else(|| Refusal::new(404, "not found"))?;
    // A list from the cache (resourceVersion=0) is never paged.
    let limit =
        if asked.parameter("resourceVersion") == "0" { 0 } else { asked.parameter("limit").parse().unwrap_or(0) };
    let after = asked.parameter("continue").split_once('/');
    let after = after.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let mut found = store
        .objects(&of)
        .filter(|(name, _)| after.as_ref().is_none_or(|a| *name > a))
        .filter(|((namespace, _), object)| {
            asked.namespace.as_ref().is_none_or(|n| n == namespace) && selector.matches(object)
        })
        .peekable();
    let mut items = Vec::new();
    let mut last = None;
    while let Some((name, object)) = found.next_if(|_| limit == 0 || items.len() < limit) {
        let mut item = Value::clone(object);
        if served.is_built_in()
            && let Some(fields) = item.as_object_mut()
        {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        items.push(item);
        last = Some(name);
    }
    let mut metadata = json!({"resourceVersion": store.version().to_string()});
    if let (Some(_), Some((namespace, name))) = (found.peek(), last) {
        metadata["continue"] = format!("{namespace}/{name}").into();
        metadata["remainingItemCount"] = found.count().into();
    }
    Ok(
        json!({"kind": format!("{}List", served.kind), "apiVersion": served.api_version(), "metadata": metadata, "items": items}),
    )
}

fn create(inner: &Inner, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let of = of(inner, asked)?;
    let mut object = write::object(asked, body)?;
    let meta = &mut object["metadata"];
    if let Some(namespace) = &asked.namespace {
        meta["namespace"] = namespace.as_str().into();
    }
    if let (None, Some(prefix)) = (meta.get("name"), meta.get("generateName").and_then(Value::as_str)) {
        meta["name"] = format!("{prefix}{}", inner.store().version()).into();
    }
    let name = meta.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if of.1 == "events" {
        let faults = event::faults(&object, asked.namespace.as_deref().unwrap_or_default());
        if !faults.is_empty() {
            return Err(Refusal::new(422, &format!("Event {name:?} is invalid: {}", faults.join("; "))));
        }
    }
    if inner.store().object(&of, &(asked.namespace.clone().unwrap_or_default(), name)).is_some() {
        return Err(Refusal::new(409, "already exists"));
    }
    let applied = inner.apply(object).map_err(|e| Refusal::new(422, &e.to_string()))?;
    Ok(Value::clone(&applied))
}

fn respond(
    inner: &Arc<Inner>,
    counted: (String, Verb),
    code: u16,
    body: &Value,
    headers: &[(hyper::header::HeaderName, String)],
) -> Response<Answer> {
    let mut all = vec![(CONTENT_TYPE, "application/json".to_owned())];
    all.extend_from_slice(headers);
    build(code, &all, Answer::text(inner, counted, serde_json::to_vec(body).unwrap_or_default()))
}

fn page(inner: &Arc<Inner>, counted: (String, Verb), code: u16, text: &str) -> Response<Answer> {
    build(code, &[(CONTENT_TYPE, "text/html".to_owned())], Answer::text(inner, counted, text.as_bytes().to_vec()))
}

pub(super) fn build(code: u16, headers: &[(hyper::header::HeaderName, String)], body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// How long a watch lives where the client does not say.
pub(super) const WATCH_TIME: Duration = Duration::from_secs(1800);
