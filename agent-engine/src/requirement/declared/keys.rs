//! Keys of RequestAuthentication: who fetches them, and from where.

use serde_json::Value;

use super::{Declarations, items, text};
use crate::cluster::{Kind, Pod};
use crate::policy::Endpoint;
use crate::requirement::population::Whose;
use crate::requirement::role::Role;

/// Istiod's setting that has proxies fetch keys (istio/istio pilot/pkg/features/pilot.go).
pub(super) const REMOTE_JWKS: &str = "PILOT_JWT_ENABLE_REMOTE_JWKS";

impl Declarations<'_> {
    pub fn keys(&mut self) {
        let cluster = self.cluster;
        let istiods: Vec<&Pod> = self.with_role(Role::Istiod, Whose::All).collect();
        let setting = istiods.iter().find_map(|pod| pod.setting(REMOTE_JWKS)).unwrap_or("false");
        for (name, raw) in cluster.raw(Kind::RequestAuthentication) {
            let spec = &raw.object["spec"];
            for uri in items(spec, "jwtRules").filter_map(uri) {
                let Some((host, port)) = host_and_port(uri) else { continue };
                let places = self.host(host, &name.namespace, Some(port));
                let known = places.iter().any(|p| !matches!(p.endpoint, Endpoint::External));
                // `true` and `hybrid`: the proxy where it has a cluster for the host, else istiod.
                let by_proxy = match setting {
                    "envoy" => true,
                    "true" | "hybrid" => known,
                    _ => false,
                };
                if by_proxy {
                    let proxies = self.selected_proxies(&name.namespace, &spec["selector"]["matchLabels"], &places);
                    self.add("sidecar-jwks", &proxies, &places);
                } else {
                    self.add("control-plane-jwks", &istiods, &places);
                }
            }
        }
    }
}

/// Where a rule's keys are: `jwksUri`, or by OpenID discovery at the issuer, unless they are written out.
fn uri(rule: &Value) -> Option<&str> {
    if text(rule, "jwks").is_some_and(|keys| !keys.is_empty()) {
        return None;
    }
    text(rule, "jwksUri").or_else(|| text(rule, "jwks_uri")).or_else(|| text(rule, "issuer"))
}

/// Host and port of an `http` or `https` URI; `None` for anything else.
pub(super) fn host_and_port(uri: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = uri.split_once("://")?;
    let default = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default), |port| port.parse().ok())?;
    (!host.is_empty()).then_some((host, port))
}
