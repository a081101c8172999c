//! The HTTP side: metrics, health, the snapshot, and the status page.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use weir_engine::check::{Repair, repair};
use weir_engine::cluster::Kind;

use super::metrics::{Format, Metrics};
use super::{View, ViewError, Views};

#[derive(Clone)]
struct Server {
    views: Views,
    metrics: Arc<Metrics>,
    repair: Arc<Mutex<Option<Proposal>>>,
}

/// A proposal and when it was made.
type Proposal = (Instant, Arc<Repair>);

/// Pods and policies of a cluster for which the page works out what to do.
const MAX_PODS: u64 = 2_000;
const MAX_POLICIES: u64 = 500;
/// How long a proposal is shown again.
const REPAIR_AGE: Duration = Duration::from_secs(2);

/// Serves until `stop` is done.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    views: Views,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(views)).with_graceful_shutdown(stop).await
}

/// All routes.
fn router(views: Views) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/snapshot", get(snapshot))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "not here; try / /metrics /snapshot /livez /readyz\n") })
        .with_state(Server { views, metrics: Arc::default(), repair: Arc::default() })
}

/// The engine's task answers: a deadlock or a flood shows here.
async fn livez(Shared(server): Shared<Server>) -> Response {
    match server.views.alive().await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => unavailable(error),
    }
}

async fn readyz(Shared(server): Shared<Server>) -> Response {
    match server.views.get().await {
        Ok(view) => match view.not_ready() {
            // What is known is served however old it is; who asks is told.
            None => match view.agent.degraded() {
                None => "ok\n".into_response(),
                Some(parts) => format!("ok, with an old view of the cluster: {parts}\n").into_response(),
            },
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
        },
        Err(error) => unavailable(error),
    }
}

async fn metrics(Shared(server): Shared<Server>, headers: HeaderMap) -> Response {
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()));
    let view = match server.views.get().await {
        Ok(view) => view,
        Err(error) => return unavailable(error),
    };
    match server.metrics.encode(&view, format) {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn snapshot(Shared(server): Shared<Server>) -> Response {
    let view = match server.views.get().await {
        Ok(view) => view,
        Err(error) => return unavailable(error),
    };
    // Megabytes in a large cluster: readers of other pages don't wait for them.
    let written = tokio::task::spawn_blocking(move || serde_json::to_vec(&*view)).await;
    match written.map_err(anyhow::Error::from).and_then(|json| Ok(json?)) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn page(Shared(server): Shared<Server>) -> Response {
    match server.views.get().await {
        Ok(view) => {
            let policy = "default-src 'none'; style-src 'unsafe-inline'";
            let headers =
                [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
            let repair = proposed(&server, &view).await;
            match super::page::page(&view, repair.as_deref()) {
                Ok(text) => (headers, text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
            }
        }
        Err(error) => unavailable(error),
    }
}

/// What would open what the policies do not admit; nothing where working it out takes too long.
async fn proposed(server: &Server, view: &View) -> Option<Arc<Repair>> {
    if view.snapshot.pairs.iter().all(|p| p.policies.is_empty()) {
        return Some(Arc::default());
    }
    let many = |kind, most| view.snapshot.objects.iter().any(|o| o.kind == kind && o.count > most);
    if many(Kind::Pod, MAX_PODS) || many(Kind::NetworkPolicy, MAX_POLICIES) {
        return None;
    }
    // One at a time, and not again for a page that is loaded again.
    let mut kept = server.repair.lock().await;
    if let Some((at, repair)) = &*kept
        && at.elapsed() < REPAIR_AGE
    {
        return Some(repair.clone());
    }
    let mut model = server.views.known().await.ok()?.model;
    let repair = tokio::task::spawn_blocking(move || Arc::new(repair(&mut model, |_| true))).await.ok()?;
    *kept = Some((Instant::now(), repair.clone()));
    Some(repair)
}

fn unavailable(error: ViewError) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}
