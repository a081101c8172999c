//! An IPv6 address for everything that has only an IPv4 one, so that every fixture can be driven in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, NodeAddress, PodIP};

use crate::objects::Objects;

/// The IPv6 address that stands for an IPv4 one: `fd77:6569:7200::/96` with it in the last 32 bits.
pub fn derived(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Ipv6Addr::new(0xfd77, 0x6569, 0x7200, 0, 0, 0, high, low)
}

/// The address in the wanted family: itself, or the derived one. None for an IPv4 address of an IPv6 one.
pub fn in_family(address: IpAddr, family: Family) -> Option<IpAddr> {
    match (address, family) {
        (IpAddr::V4(_), Family::V4) | (IpAddr::V6(_), Family::V6) => Some(address),
        (IpAddr::V4(v4), Family::V6) => Some(derived(v4).into()),
        (IpAddr::V6(_), Family::V4) => None,
    }
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Adds derived addresses to nodes, pods, services and endpoint slices that have none in IPv6.
pub fn add_ipv6(objects: &mut Objects) {
    for node in &mut objects.nodes {
        let Some(addresses) = node.status.as_mut().and_then(|status| status.addresses.as_mut()) else { continue };
        let internal: Vec<String> =
            addresses.iter().filter(|entry| entry.type_ == "InternalIP").map(|entry| entry.address.clone()).collect();
        if let Some(address) = missing(&internal) {
            addresses.push(NodeAddress { address, type_: "InternalIP".to_owned() });
        }
    }
    for pod in &mut objects.pods {
        let Some(status) = pod.status.as_mut() else { continue };
        let mut ips: Vec<String> = status.pod_ips.iter().flatten().map(|entry| entry.ip.clone()).collect();
        if ips.is_empty() {
            ips.extend(status.pod_ip.clone());
        }
        ips.extend(missing(&ips));
        if !ips.is_empty() {
            status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
        }
    }
    for service in &mut objects.services {
        if let Some(spec) = service.spec.as_mut() {
            let mut ips = spec.cluster_ips.clone().unwrap_or_default();
            if ips.is_empty() {
                ips.extend(spec.cluster_ip.clone());
            }
            ips.extend(missing(&ips));
            if !ips.is_empty() {
                spec.cluster_ips = Some(ips);
            }
        }
        let ingress = service.status.as_mut().and_then(|status| status.load_balancer.as_mut());
        if let Some(ingress) = ingress.and_then(|balancer| balancer.ingress.as_mut()) {
            let ips: Vec<String> = ingress.iter().filter_map(|entry| entry.ip.clone()).collect();
            ingress.extend(missing(&ips).map(|ip| LoadBalancerIngress { ip: Some(ip), ..Default::default() }));
        }
    }
    add_slices(objects);
}

fn add_slices(objects: &mut Objects) {
    let of_service = |slice: &k8s_openapi::api::discovery::v1::EndpointSlice| {
        let labels = slice.metadata.labels.clone().unwrap_or_default();
        (slice.metadata.namespace.clone(), labels.get("kubernetes.io/service-name").cloned())
    };
    let with_ipv6: Vec<_> =
        objects.slices.iter().filter(|slice| slice.address_type == "IPv6").map(of_service).collect();
    let mut more = Vec::new();
    for slice in &objects.slices {
        if slice.address_type != "IPv4" || with_ipv6.contains(&of_service(slice)) {
            continue;
        }
        let mut twin = slice.clone();
        twin.address_type = "IPv6".to_owned();
        twin.metadata.name = slice.metadata.name.as_ref().map(|name| format!("{name}-ipv6"));
        for address in twin.endpoints.iter_mut().flat_map(|endpoint| &mut endpoint.addresses) {
            if let Ok(v4) = address.parse() {
                *address = derived(v4).to_string();
            }
        }
        more.push(twin);
    }
    objects.slices.extend(more);
}

/// The derived address to add to a list that has IPv4 but no IPv6 addresses.
fn missing(addresses: &[String]) -> Option<String> {
    let parsed: Vec<IpAddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
    if parsed.iter().any(IpAddr::is_ipv6) {
        return None;
    }
    parsed.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(derived(*v4).to_string()),
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_only_ipv4_gets_ipv6_and_the_rest_stays() {
        let text = "
{kind: Node, metadata: {name: node}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}
---
{kind: Pod, metadata: {name: p}, status: {podIP: 10.0.0.2}}
---
{kind: Pod, metadata: {name: q}, status: {podIP: 'fd00::2', podIPs: [{ip: 'fd00::2'}, {ip: 10.0.0.3}]}}
---
{kind: Service, metadata: {name: headless}, spec: {clusterIP: None}}
---
{kind: EndpointSlice, metadata: {name: s}, addressType: IPv4, endpoints: [{addresses: [192.0.2.1]}]}
";
        let mut objects = Objects::parse(text).unwrap();
        add_ipv6(&mut objects);
        let ips = |index: usize| -> Vec<String> {
            let ips = objects.pods[index].status.as_ref().unwrap().pod_ips.as_ref().unwrap();
            ips.iter().map(|entry| entry.ip.clone()).collect()
        };
        assert_eq!(ips(0), ["10.0.0.2", "fd77:6569:7200::a00:2"]);
        assert_eq!(ips(1), ["fd00::2", "10.0.0.3"]);
        assert_eq!(objects.nodes[0].status.as_ref().unwrap().addresses.as_ref().unwrap().len(), 2);
        assert_eq!(objects.services[0].spec.as_ref().unwrap().cluster_ips, Some(vec!["None".to_owned()]));
        assert_eq!(objects.slices[1].address_type, "IPv6");
        assert_eq!(objects.slices[1].endpoints[0].addresses, ["fd77:6569:7200::c000:201"]);
    }
}
