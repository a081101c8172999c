//! The HTTP side: metrics, health, the snapshot, and the status page.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics::{Format, Metrics};
use super::{ViewError, Views};

#[derive(Clone)]
struct Server {
    views: Views,
    metrics: Arc<Metrics>,
}

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
        .with_state(Server { views, metrics: Arc::default() })
}

/// The engine's task answers: a deadlock or a flood shows here.
async fn livez(Shared(server): Shared<Server>) -> Response {
    match server.views.get().await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => unavailable(error),
    }
}

async fn readyz(Shared(server): Shared<Server>) -> Response {
    match server.views.get().await {
        Ok(view) => match view.not_ready() {
            None => "ok\n".into_response(),
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
    match serde_json::to_vec(&*view) {
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
            match super::page::page(&view) {
                Ok(text) => (headers, text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
            }
        }
        Err(error) => unavailable(error),
    }
}

fn unavailable(error: ViewError) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}
