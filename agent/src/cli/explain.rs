//! `weir explain`.

mod ends;
mod page;

use std::str::FromStr;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use weir_engine::check::{Case, Model, Repair, Verdict, judge_all, repair_flows};
use weir_engine::policy::{Endpoint, Flow};
use weir_engine::requirement::{Severity, same};
use weir_engine::words::Protocol;

use super::Exit;
use super::manifests::Source;
use super::out::{self, Output};
use crate::report::table::instance_text;

/// Says what the policies make of a connection, and why.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// Who connects: NAMESPACE/POD, NAMESPACE/WORKLOAD, NAMESPACE/KIND/NAME, an address, apiserver, kubelet@NODE or external
    from: String,

    /// To whom: the same, and NAMESPACE/svc/NAME
    to: String,

    /// PORT or PORT/PROTOCOL; a Service's port is followed to the pods' port
    port: Port,

    #[command(flatten)]
    source: Source,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,
}

const EXAMPLES: &str = "Examples:
  weir explain shop/cart istio-system/istiod 15012 -f policies/ --cluster cluster.yaml
  weir explain shop/deploy/cart kube-system/svc/kube-dns 53/UDP -f - < cluster.yaml

Exit codes: 0 admitted, 1 denied, 2 could not tell or failed.";

/// A port with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port {
    number: u16,
    protocol: Protocol,
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => bail!("{other:?} is no protocol; there are tcp, udp and sctp"),
        };
        match number.parse() {
            Ok(number @ 1..) => Ok(Self { number, protocol }),
            _ => bail!("{number:?} is no port; write a number from 1 to 65535, as in 15012 or 53/udp"),
        }
    }
}

/// What is said of a connection.
#[derive(Clone, Debug, Serialize)]
struct Explanation {
    version: u32,
    verdict: Verdict,
    from: String,
    to: String,
    protocol: Protocol,
    /// As asked for.
    port: u16,
    /// One per pod port that it leads to.
    targets: Vec<Answer>,
    /// The smallest policies that open it, tried out, where it is denied.
    fix: Option<Repair>,
}

#[derive(Clone, Debug, Serialize)]
struct Answer {
    verdict: Verdict,
    /// The pod port: what policies see.
    port: u16,
    /// The Service whose port was named.
    service: Option<String>,
    instances: usize,
    cases: Vec<Case>,
    /// Required flows that such a connection belongs to.
    required: Vec<Required>,
}

#[derive(Clone, Debug, Serialize)]
struct Required {
    flow: String,
    code: String,
    severity: Severity,
    purpose: String,
    symptom: String,
}

/// Concrete sources and destinations named per case.
const MAX_INSTANCES: usize = 20;

impl Explain {
    /// Reads, judges, prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { from, to, port, source, output } = self;
        let loaded = source.load()?;
        let explanation = explain(&loaded.model, &from, &to, port)?;
        match output {
            Output::Table => {
                out::print(&page::render(&explanation, &loaded.model.cluster, &loaded.inputs, &source.arguments())?)?;
            }
            Output::Json => out::json(&explanation)?,
        }
        Ok(match explanation.verdict {
            Verdict::Denied => Exit::Findings,
            Verdict::Admitted if loaded.inputs.broken() == 0 => Exit::Fine,
            Verdict::Admitted | Verdict::Undecidable => Exit::Failed,
        })
    }
}

fn explain(model: &Model, from: &str, to: &str, port: Port) -> anyhow::Result<Explanation> {
    let sources = match ends::parse(model, from)? {
        ends::Named::Ends(ends) => ends,
        ends::Named::Service(name) if from == "apiserver" => {
            let targets = ends::targets(&model.cluster, &ends::Named::Service(name), Protocol::Tcp, 443)?;
            targets.into_iter().flat_map(|t| t.ends).collect()
        }
        ends::Named::Service(name) => {
            bail!("{from} is the Service {name}, and Services do not connect; name a workload")
        }
    };
    let destination = ends::parse(model, to)?;
    let targets = ends::targets(&model.cluster, &destination, port.protocol, port.number)?;
    let (mut answers, mut flows) = (Vec::new(), Vec::new());
    for target in targets {
        let pairs =
            || sources.iter().flat_map(|s| target.ends.iter().map(move |d| (s, d))).filter(|(s, d)| !same(s, d));
        let (instances, cases) = judge_all(model, pairs(), port.protocol, target.port, MAX_INSTANCES);
        let Some(first) = cases.first() else { continue };
        if first.verdict == Verdict::Denied {
            flows.extend(pairs().map(|(source, destination)| Flow {
                source: source.clone(),
                destination: destination.clone(),
                protocol: port.protocol,
                port: target.port,
                dialled: None,
            }));
        }
        answers.push(Answer {
            verdict: first.verdict,
            port: target.port,
            service: target.through.as_ref().map(ToString::to_string),
            instances,
            required: required(model, pairs(), port.protocol, target.port),
            cases,
        });
    }
    let Some(verdict) = answers.iter().map(|a| a.verdict).min() else {
        bail!("{from} and {to} are the same: what stays inside a pod is no policy's business")
    };
    answers.sort_by_key(|a| (a.verdict, a.port));
    Ok(Explanation {
        version: 1,
        verdict,
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: port.protocol,
        port: port.number,
        targets: answers,
        fix: (!flows.is_empty()).then(|| repair_flows(&mut model.clone(), &flows)),
    })
}

fn required<'a>(
    model: &Model,
    instances: impl Iterator<Item = (&'a Endpoint, &'a Endpoint)>,
    protocol: Protocol,
    port: u16,
) -> Vec<Required> {
    let asked: Vec<_> = instances.collect();
    let pairs = model.pairs();
    let pairs = pairs.values().filter(|p| p.key.protocol == protocol && p.key.port == port);
    let mut found: Vec<Required> = Vec::new();
    for pair in pairs.filter(|p| asked.iter().any(|(s, d)| p.has(s, d))) {
        let r = &pair.requirement;
        if !found.iter().any(|f| *f.flow == *r.id) {
            found.push(Required {
                flow: r.id.to_string(),
                code: r.code.to_string(),
                severity: r.severity,
                purpose: r.purpose.to_string(),
                symptom: r.symptom.to_string(),
            });
        }
    }
    found.sort_by_key(|r| r.severity);
    found
}

/// `app/web-0 → mesh/istiod-0`.
fn ends_of(case: &Case) -> String {
    case.instances.first().map(instance_text).unwrap_or_default()
}
