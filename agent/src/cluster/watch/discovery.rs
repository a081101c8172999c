//! Which of the wanted kinds the API server has, and under which version.
//!
//! One aggregated document tells everything; asked for again with its tag it is a 304 without a body. Servers without it
//! (before 1.26) are asked group by group.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList};
use kube::core::discovery::v2::{ACCEPT_AGGREGATED_DISCOVERY_V2, APIGroupDiscoveryList};
use serde::Deserialize;
use weir_engine::cluster::Kind;

use super::api::{Api, Document};
use super::fault::{Failure, Fault};
use super::target::Resource;

/// Groups of the kinds that come with CRDs, for servers that have to be asked one by one.
const GROUPS: [&str; 8] = [
    "policy.networking.k8s.io",
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
    "operator.kyma-project.io",
    "gateway.kyma-project.io",
];

/// What is served.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// One resource for each kind that is there.
    pub resources: Vec<Resource>,
    /// Groups whose document could not be refreshed: what is not listed of them may be there all the same.
    pub unsure: Vec<String>,
}

/// Asks for the wanted kinds; remembers the last document's tag.
pub(super) struct Discovery {
    api: Api,
    wanted: Vec<Kind>,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Type {
    kind: String,
}

impl Discovery {
    pub(super) fn new(api: Api, wanted: Vec<Kind>) -> Self {
        Self { api, wanted, tag: None }
    }

    /// What is served now; none when that has not changed since the last time.
    pub(super) async fn ask(&mut self) -> Result<Option<Served>, Failure> {
        let document = self.api.discover("/apis", ACCEPT_AGGREGATED_DISCOVERY_V2, self.tag.as_deref()).await?;
        let Document::Changed(text, tag) = document else { return Ok(None) };
        let type_: Type = parse(&text)?;
        let served = if type_.kind == "APIGroupList" {
            self.one_by_one(&parse(&text)?).await?
        } else {
            self.aggregated(parse(&text)?)
        };
        // A document that is not sure of itself must be asked for again, tag or not.
        self.tag = tag.filter(|_| served.unsure.is_empty());
        Ok(Some(served))
    }

    fn aggregated(&self, document: APIGroupDiscoveryList) -> Served {
        let mut served = Served::default();
        for group in document.items {
            let Some(name) = group.metadata.and_then(|m| m.name) else { continue };
            for version in group.versions {
                if version.freshness.as_deref() == Some("Stale") {
                    served.unsure.push(name.clone());
                }
                let Some(number) = version.version else { continue };
                for resource in version.resources {
                    let kind = resource.response_kind.and_then(|k| k.kind);
                    if let (Some(plural), Some(kind)) = (resource.resource, kind) {
                        served.add(&self.wanted, &name, &number, &plural, &kind, &resource.verbs);
                    }
                }
            }
        }
        served
    }

    async fn one_by_one(&self, groups: &APIGroupList) -> Result<Served, Failure> {
        let mut served = Served::default();
        for group in groups.groups.iter().filter(|g| GROUPS.contains(&&*g.name)) {
            let preferred = group.preferred_version.as_ref().map(|v| &v.version);
            let mut versions: Vec<&String> = group.versions.iter().map(|v| &v.version).collect();
            versions.sort_by_key(|v| Some(*v) != preferred);
            for version in versions {
                let path = format!("/apis/{}/{version}", group.name);
                let document = match self.api.discover(&path, "application/json", None).await {
                    Ok(Document::Changed(text, _)) => parse::<APIResourceList>(&text)?,
                    Ok(Document::Unchanged) | Err(Failure { fault: Fault::NotFound, .. }) => continue,
                    Err(failure) => return Err(failure),
                };
                for resource in document.resources {
                    served.add(&self.wanted, &group.name, version, &resource.name, &resource.kind, &resource.verbs);
                }
            }
        }
        Ok(served)
    }
}

impl Served {
    /// Adds a resource if its kind is wanted, can be watched, and is not there in a version that the server prefers.
    fn add(&mut self, wanted: &[Kind], group: &str, version: &str, plural: &str, api_kind: &str, verbs: &[String]) {
        let watchable = ["list", "watch"].iter().all(|verb| verbs.iter().any(|v| v == verb));
        let Some(kind) = Kind::of(&format!("{group}/{version}"), api_kind) else { return };
        if !watchable
            || plural.contains('/')
            || !wanted.contains(&kind)
            || self.resources.iter().any(|r| r.kind == kind)
        {
            return;
        }
        self.resources.push(Resource {
            kind,
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            api_kind: api_kind.to_owned(),
        });
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|e| Fault::Unreadable(e.to_string()).into())
}
