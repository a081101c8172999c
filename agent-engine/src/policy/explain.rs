//! Reasons as text: one sentence each, naming what the reader has to change.

use std::fmt;

use super::decision::{Invalid, Miss, NotAPod, Ports, RuleRef, Undecided, Wanted, Why};

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0 | 1, 65535) => f.write_str("every port"),
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.policy, self.rule)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is { key, value } => write!(f, "{key}={value}"),
            Self::In { key, values } => write!(f, "{key} in ({})", values.join(", ")),
            Self::NotIn { key, values } => write!(f, "{key} not in ({})", values.join(", ")),
            Self::Exists { key } => write!(f, "the label {key}"),
            Self::Absent { key } => write!(f, "no label {key}"),
        }
    }
}

impl fmt::Display for NotAPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address} is no pod's address"),
            Self::Node(node) => write!(f, "the other end is the host network of node {node}"),
            Self::HostNetworkPod(pod) => write!(f, "pod {pod} is on its node's network"),
            Self::External => f.write_str("the other end is outside the cluster"),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(text) => write!(f, "the address block {text} is not valid"),
            Self::Peer(text) => write!(f, "the peer is not valid: {text}"),
            Self::Port(text) => write!(f, "the port is not valid: {text}"),
            Self::Selector(text) => write!(f, "the selector is not valid: {text}"),
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}: {}", self.rule, self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServicePort { service, opens, pod_port } => {
                write!(f, "opens {opens}, the port of Service {service}; the pod listens on {pod_port}")
            }
            Self::Port { opens, pod_port, protocol } if opens.is_empty() => {
                write!(f, "opens no {protocol} port; the flow goes to {protocol} {pod_port}")
            }
            Self::Port { opens, pod_port, protocol } => {
                let opens: Vec<String> = opens.iter().map(ToString::to_string).collect();
                write!(f, "opens {protocol} {}, not {pod_port}", opens.join(", "))
            }
            Self::Protocol { opens, protocol, pod_port } => {
                write!(f, "opens {pod_port} for {opens}, the flow is {protocol}")
            }
            Self::PortName { name, found: Some(found), pod_port, .. } => {
                write!(f, "opens the port named {name}, which is {found} on the destination pod, not {pod_port}")
            }
            Self::PortName { name, found: None, called: Some(called), pod_port } => {
                write!(
                    f,
                    "opens the port named {name}; the destination pod has no such port, it calls {pod_port} {called}"
                )
            }
            Self::PortName { name, found: None, called: None, .. } => {
                write!(f, "opens the port named {name}; the destination pod has no container port of that name")
            }
            Self::PodLabel { wanted, found } => {
                write!(f, "wants a pod with {wanted}; ")?;
                found_label(f, "the pod", wanted, found.as_deref())
            }
            Self::NamespaceLabel { namespace, wanted, found, matches_none } => {
                write!(f, "wants a namespace with {wanted}; ")?;
                found_label(f, &format!("namespace {namespace}"), wanted, found.as_deref())?;
                f.write_str(if *matches_none { "; no namespace matches this selector" } else { "" })
            }
            Self::OtherNamespace { wanted, found, labels_match } => {
                write!(f, "a podSelector alone means the policy's own namespace {wanted}; the pod is in {found}")?;
                f.write_str(if *labels_match { " (its labels match)" } else { "" })
            }
            Self::OutsideBlock { block, address } => write!(f, "{address} is outside {block}"),
            Self::Excepted { block, except, address } => write!(f, "{address} is in {except}, excepted from {block}"),
            Self::NotAPod { end } => write!(f, "selectors match pods only; {end}"),
            Self::BlockNotCompared { block } => {
                write!(f, "this engine does not compare {block} with addresses of pods and nodes")
            }
            Self::BlockElsewhere { block } => write!(f, "names {block}; the other end cannot be there"),
            Self::OtherKind => f.write_str("names nodes or domains; the other end is neither"),
            Self::Invalid { part } => write!(f, "{part}"),
        }
    }
}

fn found_label(f: &mut fmt::Formatter<'_>, who: &str, wanted: &Wanted, found: Option<&str>) -> fmt::Result {
    let key = wanted.key();
    match found {
        Some(value) => write!(f, "{who} has {key}={value}"),
        None => write!(f, "{who} has no label {key}"),
    }
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPod { pod } => write!(f, "pod {pod} is not known"),
            Self::SomeAddresses { rule } => {
                write!(f, "{rule} admits some addresses outside the cluster and not others")
            }
            Self::NoAddress { rule, pod } => write!(f, "{rule} names addresses, and pod {pod} has none yet"),
            Self::Addresses => f.write_str("the addresses of the other end fare differently"),
            Self::MaybeNodeLocal { pod } => {
                write!(
                    f,
                    "the node of pod {pod} is not known: traffic of its own node is admitted, another node's is not"
                )
            }
            Self::PodToOwnNode { node } => write!(
                f,
                "traffic to the pod's own node {node} is always admitted by the specification, but some engines apply \
                 egress policies to it"
            ),
            Self::AmbientProbe { address } => write!(
                f,
                "{address} is the kubelet probing an ambient pod; engines take it for the node or for a stranger; an \
                 ipBlock rule for {address}/{} settles it",
                if address.is_ipv4() { 32 } else { 128 }
            ),
            Self::DomainNames { rule } => write!(f, "{rule} names domains, which only the engine resolves"),
            Self::SamePriority { one, other } => {
                write!(f, "{one} and {other} have one priority and disagree; the result is left to the engine")
            }
            Self::Backends => f.write_str("the backends of the Service fare differently"),
            Self::NoBackends { service } => write!(f, "Service {service} leads to no pod or address that is known"),
        }
    }
}
