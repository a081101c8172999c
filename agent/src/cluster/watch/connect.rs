//! Connections to the API server: HTTP/2 where TLS negotiates it, so that all watches of an agent share one connection. kube's
//! own client speaks HTTP/1.1 and opens one for each watch, which thousands of agents would make a hundred thousand.

use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

const CONNECT: Duration = Duration::from_secs(10);

/// A server that went away without a word is noticed after this long plus [`ANSWER`], by probes of TCP or pings of HTTP/2.
const PROBE: Duration = Duration::from_secs(30);

const ANSWER: Duration = Duration::from_secs(15);

/// # Errors
/// When the configuration's certificates or credentials can't be used, or it asks for a proxy.
pub(super) fn client(config: &Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        // Says that proxies are not built in.
        return Client::try_from(config.clone());
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(ANSWER / 3));
    tcp.set_keepalive_retries(Some(3));
    let mut https = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = config.tls_server_name.clone().and_then(|name| name.try_into().ok()) {
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PROBE)
        .http2_keep_alive_timeout(ANSWER)
        .http2_keep_alive_while_idle(true)
        .build(https.enable_all_versions().wrap_connector(tcp));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
