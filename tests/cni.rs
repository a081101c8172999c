//! The harness's network plugin against the specification of networking.k8s.io/v1, corner by corner, with real packets:
//! each row is a set of policies and who may then talk to whom. Needs root.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::objects::Objects;
use harness::{DriveOptions, End, Enforcement, Family, Flow, Mesh, MeshOptions, Protocol};

/// Pods by what they are: `a` and `b` are namespaces of teams, `c` has no labels. Node one carries `a`.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: blue}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: c}}
---
{apiVersion: v1, kind: Node, metadata: {name: one}, status: {addresses: [{type: InternalIP, address: 10.9.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: two}, status: {addresses: [{type: InternalIP, address: 10.9.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web, tier: front}},
 spec: {nodeName: one, containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: admin, containerPort: 9090},
 {name: dns, containerPort: 53, protocol: UDP}]}]}, status: {podIP: 10.9.1.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: a, labels: {app: client}},
 spec: {nodeName: one, containers: [{name: c}]}, status: {podIP: 10.9.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: b, labels: {app: web, tier: back}},
 spec: {nodeName: two, containers: [{name: c, ports: [{name: http, containerPort: 8081}]}]}, status: {podIP: 10.9.2.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: b, labels: {app: client, tier: back}},
 spec: {nodeName: two, containers: [{name: c}]}, status: {podIP: 10.9.2.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: c, labels: {app: client}},
 spec: {nodeName: one, containers: [{name: c}]}, status: {podIP: 10.9.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: a, labels: {app: client}},
 spec: {nodeName: two, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 8080}]}]}, status: {podIP: 10.9.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ended, namespace: a, labels: {app: client}},
 spec: {nodeName: two, containers: [{name: c}]}, status: {phase: Succeeded, podIP: 10.9.2.2}}
";

/// What a row's policies do: `from > to:port`, `!` in front where it may not pass. Ports are TCP unless `/udp` says
/// otherwise; `one` and `two` are nodes, addresses are outside of the cluster.
struct Row {
    what: &'static str,
    policies: &'static [&'static str],
    flows: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        what: "without policyTypes and rules: ingress only",
        policies: &["{podSelector: {matchLabels: {app: web}}}"],
        flows: "!a/client > a/web:8080, !b/client > a/web:53/udp, a/web > b/web:8081, a/client > b/web:8081",
    },
    Row {
        what: "policyTypes of one direction leave the other alone, even with rules for it",
        policies: &["{podSelector: {}, policyTypes: [Egress], ingress: []}"],
        flows: "!a/client > a/web:8080, b/client > a/web:8080, !a/web > b/web:8081, one > a/web:8080, two > a/web:8080",
    },
    Row {
        what: "egress rules without policyTypes isolate both directions",
        policies: &["{podSelector: {matchLabels: {app: web}}, egress: [{}]}"],
        flows: "a/web > b/web:8081, !b/client > a/web:8080, !192.0.2.7 > a/web:8080",
    },
    Row {
        what: "an empty rule admits everything",
        policies: &["{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}"],
        flows: "a/client > a/web:8080, two > a/web:8080, 192.0.2.7 > a/web:9090, b/client > a/web:53/udp",
    },
    Row {
        what: "an empty list of peers is everybody, an empty list of ports is every port",
        policies: &["{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [], ports: []}]}"],
        flows: "a/client > a/web:8080, two > a/web:53/udp, 192.0.2.7 > a/web:9090",
    },
    Row {
        what: "an answer passes without a rule, in both directions",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 53, protocol: UDP}]}], ingress: \
             [{ports: [{port: 8080}]}]}",
        ],
        flows: "!a/client > a/web:8080, b/client > a/web:8080, !a/web > b/web:8081, !b/client > a/web:53/udp",
    },
    Row {
        what: "a podSelector peer means the policy's own namespace",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        ],
        flows: "a/client > a/web:8080, !b/client > a/web:8080, !c/client > a/web:8080",
    },
    Row {
        what: "an empty namespaceSelector is every pod, but no node and nobody outside",
        policies: &["{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}"],
        flows: "a/client > a/web:8080, b/client > a/web:8080, c/client > a/web:8080, !two > a/web:8080, \
                !a/host > a/web:8080, one > a/web:8080, !192.0.2.7 > a/web:8080",
    },
    Row {
        what: "both selectors in one peer: both must hold",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: \
             blue}}, podSelector: {matchLabels: {app: client}}}]}]}",
        ],
        flows: "b/client > a/web:8080, !b/web > a/web:8080, !a/client > a/web:8080, !c/client > a/web:8080",
    },
    Row {
        what: "the selectors in two peers: one must hold",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: \
             blue}}}, {podSelector: {matchLabels: {app: client}}}]}]}",
        ],
        flows: "b/client > a/web:8080, b/web > a/web:8080, a/client > a/web:8080, !c/client > a/web:8080",
    },
    Row {
        what: "the API server labels every namespace with its name",
        policies: &["{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: \
             {kubernetes.io/metadata.name: c}}}]}]}"],
        flows: "c/client > a/web:8080, !b/client > a/web:8080",
    },
    Row {
        what: "In needs the label, NotIn does not",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}], from: [{namespaceSelector: \
             {matchExpressions: [{key: team, operator: In, values: [red, blue]}]}}]}, {ports: [{port: 9090}], from: \
             [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [blue]}]}}]}]}",
        ],
        flows: "a/client > a/web:8080, b/client > a/web:8080, !c/client > a/web:8080, a/client > a/web:9090, \
                !b/client > a/web:9090, c/client > a/web:9090",
    },
    Row {
        what: "Exists and DoesNotExist; several expressions must all hold",
        policies: &[
            "{podSelector: {matchExpressions: [{key: tier, operator: Exists}, {key: app, operator: In, values: \
             [web]}]}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: \
             [{key: tier, operator: DoesNotExist}]}}]}]}",
        ],
        flows: "a/client > a/web:8080, !b/client > a/web:8080, c/client > a/web:8080, c/client > a/client:7000",
    },
    Row {
        what: "a block without its exceptions; by address, whoever has it",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.9.0.0/16, except: \
             [10.9.2.0/24, 10.9.1.3/32]}}]}]}",
        ],
        flows: "a/client > a/web:8080, !b/client > a/web:8080, !c/client > a/web:8080, two > a/web:8080, \
                a/host > a/web:8080, !192.0.2.7 > a/web:8080",
    },
    Row {
        what: "every IPv4 address but one",
        policies: &["{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: \
             [192.0.2.7/32]}}]}]}"],
        flows: "a/client > 192.0.2.8:443, !a/client > 192.0.2.7:443, a/client > b/web:8081",
    },
    Row {
        what: "a port without protocol is TCP, a protocol without port is all its ports",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 53}, {port: 9090}]}, {ports: \
             [{protocol: UDP}]}]}",
        ],
        flows: "b/client > a/web:53, b/client > a/web:53/udp, b/client > a/web:999/udp, b/client > a/web:9090, \
                !b/client > a/web:8080",
    },
    Row {
        what: "a range has both its ends",
        policies: &["{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080, endPort: 9090}]}]}"],
        flows: "b/client > a/web:8080, b/client > a/web:9090, b/client > a/web:8500, !b/client > a/web:8079, \
                !b/client > a/web:9091, !b/client > a/web:8500/udp",
    },
    Row {
        what: "a named port of ingress is the selected pod's, if its protocol fits",
        policies: &["{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: admin}, {port: dns}]}]}"],
        flows: "b/client > a/web:9090, !b/client > a/web:8080, !b/client > a/web:53, !b/client > a/web:53/udp, \
                !b/client > a/client:9090",
    },
    Row {
        what: "a named port of egress is each destination pod's",
        policies: &[
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: http}]}]}",
        ],
        flows: "a/client > a/web:8080, a/client > b/web:8081, !a/client > a/web:8081, !a/client > b/web:8080",
    },
    Row {
        what: "a named port of egress to anywhere",
        policies: &["{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}"],
        flows: "a/client > a/web:8080, a/client > b/web:8081, !a/client > b/web:8080, !a/client > 192.0.2.7:8080",
    },
    Row {
        what: "policies add up",
        policies: &[
            "{podSelector: {}, policyTypes: [Ingress, Egress]}",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{port: 9090}]}]}",
        ],
        flows: "b/client > a/web:8080, b/client > a/web:9090, !b/client > a/web:53, !a/client > a/web:8080, \
                !b/client > a/client:7000",
    },
    Row {
        what: "both sides must admit",
        policies: &[
            "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: 8080}]}]}",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{port: 9090}]}]}",
        ],
        flows: "!a/client > a/web:8080, !a/client > a/web:9090, b/client > a/web:9090, a/client > b/web:8080",
    },
    Row {
        what: "a pod on the host network is not selected; its node's policies don't exist",
        policies: &["{podSelector: {}, policyTypes: [Ingress, Egress]}"],
        flows: "a/host > b/web:8081, b/client > a/host:8080, c/client > a/host:8080, !a/host > a/web:8080, one > a/web:8080",
    },
    Row {
        what: "a pod reaches itself",
        policies: &["{podSelector: {}, policyTypes: [Ingress, Egress]}"],
        flows: "a/web > a/web:8080, !a/client > a/web:8080",
    },
    Row {
        what: "egress to the pod's own node is the policies' business too",
        policies: &["{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.9.0.1/32}}], ports: \
             [{port: 10250}]}]}"],
        flows: "a/client > one:10250, !a/client > one:9100, !a/client > two:10250, b/client > two:10250",
    },
];

#[test]
fn specification() -> Result<()> {
    let cluster = Objects::parse(CLUSTER)?;
    let rows: Vec<Vec<(Flow, bool)>> =
        ROWS.iter().map(|row| flows(row).with_context(|| row.what.to_owned())).collect::<Result<_>>()?;
    let all: Vec<Flow> = rows.iter().flatten().map(|(flow, _)| flow.clone()).collect();
    let mesh = Mesh::with(&cluster, &all, &MeshOptions::default())?;
    let options = DriveOptions { timeout: Duration::from_millis(500), ..DriveOptions::default() };
    for result in mesh.drive(&all, &options)? {
        ensure!(result.outcome.reachable(), "without policies: {result:?}");
    }
    let mut wrong = Vec::new();
    for (row, flows) in ROWS.iter().zip(&rows) {
        let text = row.policies.iter().enumerate().map(|(index, spec)| {
            format!(
                "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{index}, namespace: a}}, \
                 spec: {spec}}}\n"
            )
        });
        let policies = Objects::parse(&text.collect::<String>()).context(row.what)?.policies;
        ensure!(policies.len() == row.policies.len());
        mesh.apply_policies(&policies, Enforcement::Drop).context(row.what)?;
        let driven: Vec<Flow> = flows.iter().map(|(flow, _)| flow.clone()).collect();
        // A block of one family says nothing of the other: those rows hold in IPv4 only.
        let with_block = row.policies.iter().any(|policy| policy.contains("ipBlock"));
        let families: &[Family] = if with_block { &[Family::V4] } else { &[Family::V4, Family::V6] };
        for family in families {
            let options = DriveOptions { family: Some(*family), ..options };
            for ((flow, passes), result) in flows.iter().zip(mesh.drive(&driven, &options)?) {
                if result.outcome.reachable() != *passes {
                    wrong.push(format!("{}: {} in {family:?} is {}", row.what, flow.id, result.outcome));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{} flows are not as specified:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn flows(row: &Row) -> Result<Vec<(Flow, bool)>> {
    row.flows
        .split(',')
        .map(|text| {
            let text = text.trim();
            let passes = !text.starts_with('!');
            let (from, to) = text.trim_matches(['!', ' ']).split_once(" > ").context("written FROM > TO:PORT")?;
            let (to, protocol) = match to.strip_suffix("/udp") {
                Some(to) => (to, Protocol::Udp),
                None => (to, Protocol::Tcp),
            };
            let (to, port) = to.rsplit_once(':').context("written FROM > TO:PORT")?;
            let flow = Flow {
                id: text.to_owned(),
                catalog: None,
                from: end(from),
                to: end(to),
                via_service: None,
                protocol,
                port: port.parse()?,
                results: BTreeMap::new(),
                severity: None,
                note: None,
            };
            Ok((flow, passes))
        })
        .collect()
}

fn end(text: &str) -> End {
    match text.parse() {
        Ok(address) => End::Ip(address),
        Err(_) if text.contains('/') => End::Pod(text.to_owned()),
        Err(_) => End::Node { name: text.to_owned(), ip: None },
    }
}
