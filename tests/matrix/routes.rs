//! Causes made of routes, neighbours and devices.

use std::fmt::Write;

use anyhow::Result;

use super::Held;
use super::world::Site;
use crate::ipv6::Family;
use crate::topology::wiring::host_prefix;

pub fn blackhole(site: &Site<'_>) -> Result<Held> {
    instead(site, "blackhole")
}

pub fn prohibit(site: &Site<'_>) -> Result<Held> {
    instead(site, "prohibit")
}

pub fn unreachable(site: &Site<'_>) -> Result<Held> {
    instead(site, "unreachable")
}

/// `throw` ends the lookup in the main table, and no other has the address.
pub fn missing(site: &Site<'_>) -> Result<Held> {
    instead(site, "throw")
}

/// The way back to the client leads elsewhere, and the node insists that it does not.
pub fn rp_filter(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.client)?;
    node.sysctl(&[(&format!("ipv4/conf/{device}/rp_filter"), "1")])?;
    let client = site.address(&site.lane.client, Family::V4)?;
    node.ip(&format!("route replace {} dev out\n", host_prefix(client)))?;
    Ok(None)
}

/// The server is behind a router that is not there: nobody answers for its address.
pub fn dead_next_hop(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.server)?;
    let mut batch = String::new();
    for family in [Family::V4, Family::V6] {
        let server = site.address(&site.lane.server, family)?;
        let router = match family {
            Family::V4 => "169.254.99.99",
            Family::V6 => "fe80::dead",
        };
        let _ = writeln!(batch, "route replace {} via {router} dev {device} onlink", host_prefix(server));
    }
    node.sysctl(&[
        (&format!("ipv4/neigh/{device}/retrans_time_ms"), "150"),
        (&format!("ipv6/neigh/{device}/retrans_time_ms"), "150"),
    ])?;
    node.ip(&batch)?;
    Ok(None)
}

/// The server's device has gone, as when a pod is deleted, and its routes with it; as network plugins do, the block of
/// pod addresses has a route to nowhere beneath.
pub fn gone(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.server)?;
    let mut batch = format!("link delete {device}\n");
    for family in [Family::V4, Family::V6] {
        let server = site.address(&site.lane.server, family)?;
        let _ = writeln!(batch, "route replace blackhole {}", host_prefix(server));
    }
    node.ip(&batch)?;
    Ok(None)
}

/// The client's own namespace knows no way.
pub fn no_default(site: &Site<'_>) -> Result<Held> {
    site.here()?.ip("route delete default\nroute delete ::/0\n")?;
    Ok(None)
}

/// A route of another type in place of the one to the server.
fn instead(site: &Site<'_>, kind: &str) -> Result<Held> {
    let mut batch = String::new();
    for family in [Family::V4, Family::V6] {
        let prefix = host_prefix(site.address(&site.lane.server, family)?);
        let _ = writeln!(batch, "route delete {prefix}");
        let _ = writeln!(batch, "route add {kind} {prefix}");
    }
    site.here()?.ip(&batch)?;
    Ok(None)
}
