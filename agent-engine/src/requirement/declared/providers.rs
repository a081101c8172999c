//! Extension providers of the mesh configuration: tracing, access logs, external authorization.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Declarations, items, port_of, text};
use crate::cluster::{Kind, Pod};
use crate::requirement::role::Role;
use crate::words::Name;

/// The proxies in a namespace, or in the mesh, with these labels use a provider.
struct User<'c> {
    provider: &'c str,
    namespace: &'c str,
    selector: &'c Value,
}

impl<'c> User<'c> {
    fn of(provider: &'c str, at: &'c Name, spec: &'c Value) -> Self {
        Self { provider, namespace: &at.namespace, selector: &spec["selector"]["matchLabels"] }
    }
}

impl<'a> Declarations<'a> {
    pub fn providers(&mut self) {
        let configs = self.mesh_configs();
        let mut providers: BTreeMap<&str, (&str, &Value)> = BTreeMap::new();
        for provider in configs.iter().flat_map(|c| items(c, "extensionProviders")) {
            let Some(name) = text(provider, "name") else { continue };
            let fields = provider.as_object().into_iter().flatten();
            if let Some((kind, how)) = fields.into_iter().find(|(_, how)| text(how, "service").is_some()) {
                providers.insert(name, (kind, how));
            }
        }
        if providers.is_empty() {
            return;
        }
        for User { provider, namespace: of, selector } in self.users(&configs) {
            let Some((kind, how)) = providers.get(provider) else { continue };
            let (Some(service), Some(port)) = (text(how, "service"), port_of(&how["port"])) else { continue };
            // `namespace/host`, or a full host name.
            let (namespace, host) = service.split_once('/').unwrap_or(("", service));
            let places = self.tunnelled(self.host(host, namespace, Some(port)));
            let sources = self.selected_proxies(of, selector, &places);
            let (gateways, others): (Vec<&Pod>, Vec<&Pod>) =
                sources.into_iter().partition(|pod| self.has(pod, Role::Gateway));
            let at_gateways = if kind.starts_with("envoyExtAuthz") { "gateway-ext-authz" } else { "gateway-otlp" };
            self.add(at_gateways, &gateways, &places);
            self.add("sidecar-provider", &others, &places);
        }
    }

    /// Which proxies use which provider.
    fn users<'c>(&self, configs: &'c [Value]) -> Vec<User<'c>>
    where
        'a: 'c,
    {
        let mut users = Vec::new();
        let everywhere = self.root_namespace().map_or("", |root| root);
        for config in configs {
            let defaults = &config["defaultProviders"];
            let names = ["tracing", "accessLogging", "metrics"].into_iter().flat_map(|kind| items(defaults, kind));
            users.extend(names.filter_map(Value::as_str).map(|provider| User {
                provider,
                namespace: everywhere,
                selector: &Value::Null,
            }));
        }
        for (at, raw) in self.cluster.raw(Kind::Telemetry) {
            let spec = &raw.object["spec"];
            let sections = ["tracing", "accessLogging", "metrics"].into_iter().flat_map(|kind| items(spec, kind));
            let names = sections.flat_map(|s| items(s, "providers")).filter_map(|p| text(p, "name"));
            users.extend(names.map(|provider| User::of(provider, at, spec)));
        }
        for (at, raw) in self.cluster.raw(Kind::AuthorizationPolicy) {
            let spec = &raw.object["spec"];
            let name = text(&spec["provider"], "name").filter(|_| text(spec, "action") == Some("CUSTOM"));
            users.extend(name.map(|provider| User::of(provider, at, spec)));
        }
        users
    }

    /// `meshConfig` of the control planes: the ConfigMaps that istiod reads (key `mesh`) in its namespace, and the part of
    /// Kyma's Istio object that its controller turns into one.
    fn mesh_configs(&self) -> Vec<Value> {
        let root = self.root_namespace();
        let maps = self.cluster.raw(Kind::ConfigMap).filter(|(name, _)| root.is_none_or(|r| *r == name.namespace));
        let meshes = maps.filter_map(|(_, raw)| text(&raw.object["data"], "mesh"));
        let mut configs: Vec<Value> = meshes.filter_map(|yaml| serde_saphyr::from_str(yaml).ok()).collect();
        for (_, raw) in self.cluster.raw(Kind::KymaIstio) {
            let authorizers = items(&raw.object["spec"]["config"], "authorizers")
                .filter_map(|a| Some(serde_json::json!({ "name": text(a, "name")?, "envoyExtAuthzHttp": a })));
            configs.push(serde_json::json!({ "extensionProviders": authorizers.collect::<Vec<_>>() }));
        }
        configs
    }
}
