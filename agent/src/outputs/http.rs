//! The HTTP side: metrics, health, the snapshot, and a plain page.

use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use weir_engine::verdict::State;

use super::metrics::{Format, Metrics};
use super::text::html;
use super::{View, ViewError, Views};

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
            (headers, overview(&view)).into_response()
        }
        Err(error) => unavailable(error),
    }
}

fn unavailable(error: ViewError) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}

/// Counts by state, and the pairs that need attention.
fn overview(view: &View) -> String {
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Weir</title><style>body{font:16px sans-serif;margin:1rem}td,th{text-align:left;padding:.2rem .8rem .2rem 0;\
         vertical-align:top}</style><h1>Weir</h1>",
    );
    let _ =
        write!(out, "<p>{}</p>", view.not_ready().map_or("ready".to_owned(), |r| format!("not ready: {}", html(&r))));
    out.push_str("<table><tr><th>State<th>Pairs");
    for state in State::ALL {
        let count = view.snapshot.pairs.iter().filter(|p| p.state == state).count();
        let _ = write!(out, "<tr><td>{state}<td>{count}");
    }
    out.push_str(
        "</table><h2>Needs attention</h2><table><tr><th>State<th>Flow<th>Source<th>Destination<th>Port<th>Policies",
    );
    let fine = |s: State| matches!(s, State::Verified | State::Silent);
    for pair in view.snapshot.pairs.iter().filter(|p| !fine(p.state)).take(500) {
        let end = |e: &weir_engine::snapshot::EndView| html(&super::log::end(e));
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}/{}<td>{}",
            pair.state,
            html(&pair.flow),
            end(&pair.source),
            end(&pair.destination),
            pair.port,
            pair.protocol,
            html(&pair.policies.join(", ")),
        );
    }
    out.push_str("</table><p><a href=\"/metrics\">metrics</a> <a href=\"/snapshot\">snapshot</a></p></html>\n");
    out
}
