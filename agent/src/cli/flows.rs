//! `weir flows`.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;
use weir_engine::requirement::{Catalogue, PortSource, Requirement, Role};

use super::Exit;
use super::manifests::own_flows;
use super::out;
use super::table::{Cell, Table, wrap};

/// List the flows that a mesh needs, explain one, or find one by its symptom
///
/// Lists the flows that a mesh needs, or explains one. With --symptom: which blocked flows look like that.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Flows {
    /// Flow by id or code: sidecar-xds, SC-XDS
    #[arg(value_name = "ID", conflicts_with = "symptom")]
    id: Option<String>,

    /// Words of an error message or symptom; flows whose symptom has all of them
    #[arg(long, value_name = "TEXT")]
    symptom: Option<String>,

    /// Catalogue file with flows to add, or to replace by id; repeatable
    #[arg(long, value_name = "FILE")]
    flows: Vec<PathBuf>,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

/// How flows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs; versioned
    Json,
    /// For documentation
    Markdown,
}

const EXAMPLES: &str = "Examples:
  weir flows sidecar-xds
  weir flows --symptom 'failed calling webhook'";

/// Version of the JSON.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    flows: Vec<&'a Requirement>,
}

impl Flows {
    /// Looks the catalogue up and prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { id, symptom, flows, output } = self;
        let (catalogue, _) = own_flows(&flows)?;
        let found: Vec<&Requirement> = match (&id, &symptom) {
            (Some(id), _) => match catalogue.flow(id) {
                Some(flow) => vec![&**flow],
                None => bail!("there is no flow {id:?}; `weir flows` lists them{}", similar(&catalogue, id)),
            },
            (None, Some(text)) => {
                let found: Vec<_> = catalogue.flows().map(|f| &**f).filter(|f| matches(f, text)).collect();
                if found.is_empty() {
                    bail!("no flow's symptom has all the words of {text:?}; try fewer, or `weir flows` for all");
                }
                found
            }
            (None, None) => catalogue.flows().map(|f| &**f).collect(),
        };
        match output {
            Format::Json => out::json(&Listing { version: VERSION, flows: found })?,
            Format::Markdown => out::print(&markdown(&found))?,
            Format::Table if id.is_some() => out::print(&found.iter().map(|f| details(f)).collect::<String>())?,
            Format::Table => out::print(&listing(&found, symptom.is_some()))?,
        }
        Ok(Exit::Fine)
    }
}

fn listing(flows: &[&Requirement], symptoms: bool) -> String {
    let mut table = Table::new(&["flow", "severity", "port", "source → destination"], 3);
    for flow in flows {
        let cells = [
            Cell::from(&*flow.id),
            flow.severity.as_str().into(),
            format!("{}/{}", ports(flow), protocols(flow)).into(),
            format!("{} → {}", sources(flow), roles(&flow.destination)).into(),
        ];
        table.row(cells, Some(if symptoms { &flow.symptom } else { &flow.purpose }));
    }
    format!("{}\n`weir flows ID` explains one\n", table.render())
}

/// The table of the documentation.
fn markdown(flows: &[&Requirement]) -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let mut text =
        "| Flow | Severity | Source → destination | Pod port | Purpose |\n|---|---|---|---|---|\n".to_owned();
    for flow in flows {
        let ends = format!("{} → {}", sources(flow), roles(&flow.destination));
        let port = format!("{}/{}", ports(flow), protocols(flow));
        text += &format!(
            "| `{}` | {} | {} | {} | {} |\n",
            flow.id,
            flow.severity,
            cell(&ends),
            cell(&port),
            cell(&flow.purpose)
        );
    }
    text
}

fn details(flow: &Requirement) -> String {
    let sides: Vec<&str> = flow.sides.iter().map(|d| d.as_str()).collect();
    let mut rows = vec![
        ("code", flow.code.to_string()),
        ("profile", flow.profile.to_string()),
        ("severity", flow.severity.to_string()),
        ("source", sources(flow)),
        ("destination", roles(&flow.destination)),
        ("pod port", format!("{}/{}", ports(flow), protocols(flow))),
        (
            "policies must admit",
            if sides.is_empty() { "nothing: it stays on its node".to_owned() } else { sides.join(", ") },
        ),
        ("purpose", flow.purpose.to_string()),
        ("when blocked", flow.symptom.to_string()),
        ("known from", flow.fact.to_string()),
    ];
    if let Some(port) = flow.service_port {
        rows.insert(6, ("dialled as", format!("Service port {port}; policies judge the pod port")));
    }
    match (&flow.since, &flow.until) {
        (None, None) => {}
        (since, until) => {
            let bound = |word: &str, v: &Option<_>| v.as_ref().map(|v: &std::sync::Arc<str>| format!("{word} {v}"));
            let versions: Vec<String> = [bound("since", since), bound("until", until)].into_iter().flatten().collect();
            rows.push(("Istio versions", versions.join(", ")));
        }
    }
    if flow.configured {
        rows.push((
            "judged",
            "only where configuration names its ends: mesh config, routes, RequestAuthentication".to_owned(),
        ));
    }
    let mut table = Table::plain();
    for (name, value) in rows {
        table.row([Cell::from(name), value.into()], None);
    }
    let next = format!(
        "next: `weir status --flow {0} --all` on a node shows who needs it, `weir watch --flow {0}` its attempts",
        flow.id
    );
    format!("{}\n{}\n{}", flow.id, table.render(), wrap(&next))
}

/// Every word occurs in what is seen when the flow is blocked; marks and letter case do not count.
fn matches(flow: &Requirement, text: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
    };
    let known = words(&format!("{} {}", flow.symptom, flow.purpose));
    let wanted = words(text);
    !wanted.is_empty() && wanted.iter().all(|w| known.iter().any(|k| k.starts_with(w.as_str())))
}

fn similar(catalogue: &Catalogue, id: &str) -> String {
    let id = id.to_lowercase();
    let near: Vec<&str> = catalogue.flows().map(|f| &*f.id).filter(|f| f.contains(&id)).take(5).collect();
    if near.is_empty() { String::new() } else { format!("; like it: {}", near.join(", ")) }
}

/// Possible ends are those that traffic has to show.
fn sources(flow: &Requirement) -> String {
    match (flow.source.is_empty(), flow.learn_source.is_empty()) {
        (_, true) => roles(&flow.source),
        (true, false) => format!("{} (when seen)", roles(&flow.learn_source)),
        (false, false) => format!("{}, {} (when seen)", roles(&flow.source), roles(&flow.learn_source)),
    }
}

fn roles(roles: &[Role]) -> String {
    if roles.is_empty() {
        return "as configured".to_owned();
    }
    let name = |role: &Role| serde_json::to_value(role).ok().and_then(|v| v.as_str().map(str::to_owned));
    roles.iter().filter_map(name).collect::<Vec<_>>().join(", ")
}

fn ports(flow: &Requirement) -> String {
    let numbers: Vec<String> = flow.ports.iter().map(ToString::to_string).collect();
    match flow.port_from {
        None if numbers.is_empty() => "as configured".to_owned(),
        None => numbers.join(","),
        Some(PortSource::ApiServer) => "API server".to_owned(),
        Some(PortSource::ClusterDns) => "cluster DNS".to_owned(),
        Some(PortSource::PublicService) => "public Service".to_owned(),
        Some(PortSource::Service) => "Service".to_owned(),
        Some(PortSource::Application) => "application".to_owned(),
    }
}

fn protocols(flow: &Requirement) -> String {
    flow.protocols.iter().map(|p| p.as_str()).collect::<Vec<_>>().join(",")
}
