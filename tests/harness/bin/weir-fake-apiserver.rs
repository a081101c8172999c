//! The fake API server as a program: serves manifests until it is stopped, and writes a kubeconfig for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use harness::apiserver::{ApiServer, Type, built_in};
use harness::objects::documents;
use serde::Deserialize;
use serde_json::Value;

/// Serves manifests as a Kubernetes API server would, over plain HTTP on the loopback.
#[derive(Parser)]
struct Arguments {
    /// Manifests: YAML or JSON files, or folders of them.
    manifests: Vec<PathBuf>,
    /// Address to listen at; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Writes a kubeconfig for this server.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Answers only requests with this bearer token.
    #[arg(long)]
    token: Option<String>,
    /// Looks at the manifests again this often (milliseconds): files that changed are applied, objects that are gone deleted.
    #[arg(long, default_value_t = 500)]
    poll: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let server = ApiServer::start_at(arguments.listen).await?;
    server.require_token(arguments.token.as_deref());
    if let Some(path) = &arguments.kubeconfig {
        server.write_kubeconfig(path, arguments.token.as_deref(), None)?;
    }
    let mut served = read(&arguments.manifests)?;
    served.iter().try_for_each(|object| put(&server, object))?;
    println!("{}", server.url());
    let mut poll = tokio::time::interval(Duration::from_millis(arguments.poll.max(10)));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = poll.tick() => match read(&arguments.manifests) {
                Ok(now) => {
                    update(&server, &served, &now);
                    served = now;
                }
                // A file in the middle of being written: what was read earlier stays.
                Err(error) => eprintln!("{error:#}"),
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

fn update(server: &ApiServer, before: &[Value], now: &[Value]) {
    for object in now.iter().filter(|o| !before.contains(o)) {
        if let Err(error) = put(server, object) {
            eprintln!("{error:#}");
        }
    }
    for gone in before.iter().filter(|o| !now.iter().any(|n| identity(n) == identity(o))) {
        let (api_version, kind, namespace, name) = identity(gone);
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let found = server.read(|s| s.types().find(|t| t.group == group && t.kind == kind).cloned());
        if let Some(found) = found {
            let namespace = match (found.namespaced, &*namespace) {
                (false, _) => "",
                (true, "") => "default",
                (true, namespace) => namespace,
            };
            server.delete(&found.group, &found.plural, namespace, &name);
        }
    }
}

fn identity(object: &Value) -> (String, String, String, String) {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/apiVersion"), text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// Applies an object. A kind that is not served yet is served from now on, as if it came with its CRD.
fn put(server: &ApiServer, object: &Value) -> anyhow::Result<()> {
    let (api_version, kind, namespace, _) = identity(object);
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    if !server.read(|s| s.types().any(|t| t.group == group && t.kind == kind)) {
        let plural = plural(&kind);
        let namespaced = !namespace.is_empty() && !built_in().iter().any(|t| t.kind == kind && !t.namespaced);
        server.install(Type::new(group, version, &kind, &plural, namespaced));
    }
    server.try_apply(object.clone())
}

fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    if let Some(stem) = lower.strip_suffix('y').filter(|s| !s.ends_with(['a', 'e', 'o', 'u'])) {
        return format!("{stem}ies");
    }
    if lower.ends_with('s') { format!("{lower}es") } else { format!("{lower}s") }
}

fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in paths {
        collect(path, &mut objects)?;
    }
    Ok(objects)
}

fn collect(path: &Path, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    if path.is_dir() {
        let mut inside: Vec<PathBuf> = std::fs::read_dir(path)?.filter_map(|e| Some(e.ok()?.path())).collect();
        inside.sort();
        let manifests =
            |p: &PathBuf| p.is_dir() || p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        return inside.iter().filter(|p| manifests(p)).try_for_each(|p| collect(p, objects));
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    for document in documents(&text).with_context(|| format!("reading {}", path.display()))? {
        match Vec::deserialize(document.get("items").unwrap_or(&Value::Null)) {
            Ok(items) => objects.extend(items),
            Err(_) => objects.push(document),
        }
    }
    Ok(())
}
