//! Requests to the API server: lists, watches and discovery as text, so that each object is reduced while it is decoded.
//!
//! kube brings configuration, credentials (token files are read again), trust and the requests' form. Its `watcher` is not used:
//! it keeps bookmarks and successful reconnects to itself, so nobody could tell how old what is known is; it reconnects without
//! a pause when a server closes each watch at once; and it needs each object decoded as a whole.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::io::{AsyncBufRead, AsyncBufReadExt};
use futures::{StreamExt, TryStreamExt};
use http::header::{ACCEPT, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use kube::Client;
use kube::client::Body;
use kube::core::params::{GetParams, ListParams, WatchParams};
use kube::core::{Request, Status};

use super::connect;
use super::fault::{Failure, Fault};

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    config: Arc<kube::Config>,
    client: Arc<Mutex<(Client, Instant)>>,
    /// How long an answer may take.
    patience: Duration,
}

/// Credentials are read again at most this often.
const RENEW: Duration = Duration::from_secs(1);

/// The lines of a watch.
pub(super) struct Lines {
    reader: Box<dyn AsyncBufRead + Send + Unpin>,
    line: Vec<u8>,
}

/// A document that is asked for again and again.
pub(super) enum Document {
    /// As the last time.
    Unchanged,
    /// The text and its tag.
    Changed(String, Option<String>),
}

impl Api {
    /// # Errors
    /// When the configuration's certificates or credentials can't be used.
    pub(super) fn new(config: kube::Config, patience: Duration) -> Result<Self, kube::Error> {
        let client = connect::client(&config)?;
        Ok(Self { config: Arc::new(config), client: Arc::new(Mutex::new((client, Instant::now()))), patience })
    }

    /// Reads the credentials again, if that was not done just now: a token file that was replaced counts at once and not only
    /// when kube's cache of it runs out.
    pub(super) fn renew(&self) {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if client.1.elapsed() < RENEW {
            return;
        }
        match connect::client(&self.config) {
            Ok(new) => *client = (new, Instant::now()),
            Err(error) => tracing::warn!(%error, "the credentials can't be read again"),
        }
    }

    /// One page of a list.
    pub(super) async fn list(&self, path: &str, params: &ListParams) -> Result<String, Failure> {
        self.text(build(Request::new(path).list(params))?).await
    }

    /// One object from the API server's cache.
    pub(super) async fn get(&self, path: &str, name: &str) -> Result<String, Failure> {
        let cached = GetParams { resource_version: Some("0".to_owned()) };
        self.text(build(Request::new(path).get(name, &cached))?).await
    }

    /// The metadata of one object from the API server's cache: a tenth of the object.
    pub(super) async fn get_metadata(&self, path: &str, name: &str) -> Result<String, Failure> {
        let cached = GetParams { resource_version: Some("0".to_owned()) };
        self.text(build(Request::new(path).get_metadata(name, &cached))?).await
    }

    /// A watch. Only its beginning is bounded by patience.
    pub(super) async fn watch(&self, path: &str, params: &WatchParams, version: &str) -> Result<Lines, Failure> {
        let request = build(Request::new(path).watch(params, version))?;
        let response = self.within(self.send(request)).await?;
        let body = http_stream(response.into_body());
        Ok(Lines { reader: Box::new(body), line: Vec::new() })
    }

    /// A discovery document, if it is not the one with the tag.
    pub(super) async fn discover(&self, path: &str, accept: &str, tag: Option<&str>) -> Result<Document, Failure> {
        let mut request = http::Request::get(path).header(ACCEPT, accept);
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let request = request.body(Vec::new()).map_err(|e| Fault::Unreadable(e.to_string()))?;
        self.within(async {
            let response = self.send(request).await?;
            if response.status() == http::StatusCode::NOT_MODIFIED {
                return Ok(Document::Unchanged);
            }
            let tag = response.headers().get(ETAG).and_then(|v| v.to_str().ok()).map(str::to_owned);
            Ok(Document::Changed(read(response.into_body()).await?, tag))
        })
        .await
    }

    async fn text(&self, request: http::Request<Vec<u8>>) -> Result<String, Failure> {
        self.within(async { read(self.send(request).await?.into_body()).await }).await
    }

    async fn within<T>(&self, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::time::timeout(self.patience, answer).await.unwrap_or_else(|_| Err(Fault::Silent(self.patience).into()))
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Body>, Failure> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let response = client.send(request.map(Body::from)).await.map_err(unreachable)?;
        let code = response.status();
        if !code.is_client_error() && !code.is_server_error() {
            return Ok(response);
        }
        let header = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let text = read(response.into_body()).await.unwrap_or_default();
        let status: Option<Status> = serde_json::from_str(&text).ok();
        let asked = status.as_ref().and_then(|s| s.details.as_ref()).map(|d| u64::from(d.retry_after_seconds));
        let seconds = header.or(asked.filter(|s| *s > 0));
        let fault = Fault::from_status(code.as_u16(), status.as_ref().map_or(&text, |s| &s.message));
        Err(Failure { fault, retry_after: seconds.map(Duration::from_secs) })
    }
}

impl Lines {
    /// The next line; none at the end of the watch.
    ///
    /// Not to be awaited again after it was dropped half-way.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<&str>, Fault> {
        self.line.clear();
        let read = tokio::time::timeout(patience, self.reader.read_until(b'\n', &mut self.line)).await;
        match read {
            Err(_) => Err(Fault::Silent(patience)),
            Ok(Err(error)) => Err(Fault::Unreachable(chain(&error))),
            // A line without an end is a connection that broke within it.
            Ok(Ok(_)) if self.line.last() != Some(&b'\n') => Ok(None),
            Ok(Ok(_)) => std::str::from_utf8(&self.line).map(Some).map_err(|e| Fault::Unreadable(e.to_string())),
        }
    }
}

fn build(request: Result<http::Request<Vec<u8>>, kube::core::request::Error>) -> Result<http::Request<Vec<u8>>, Fault> {
    request.map_err(|e| Fault::Unreadable(e.to_string()))
}

async fn read(body: Body) -> Result<String, Failure> {
    let bytes = body.collect_bytes().await.map_err(unreachable)?;
    String::from_utf8(bytes.into()).map_err(|e| Fault::Unreadable(e.to_string()).into())
}

fn http_stream(body: Body) -> impl AsyncBufRead + Send + Unpin {
    let chunks = http_body_util::BodyDataStream::new(body).map_err(|e| std::io::Error::other(chain(&e)));
    chunks.boxed().into_async_read()
}

fn unreachable(error: kube::Error) -> Failure {
    match error {
        kube::Error::Service(error) => Fault::Unreachable(chain(&*error)).into(),
        error => Fault::Unreachable(chain(&error)).into(),
    }
}

/// The innermost cause says what happened; what wraps it says "client error".
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
