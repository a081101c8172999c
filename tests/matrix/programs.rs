//! Causes made of BPF programs.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;

use super::bpf::{self, Verdict};
use super::cgroup::Cgroup;
use super::world::Site;
use super::{Held, sockets};
use crate::netns::Netns;

/// A cgroup with what is attached to it; its members are the lane's clients or servers.
#[derive(Debug)]
pub struct Fenced {
    _links: Vec<OwnedFd>,
    /// Where the lane's sockets have to be made.
    pub cgroup: Cgroup,
    _servers: Option<sockets::Servers>,
}

pub fn tcx_ingress(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.client)?;
    on_device(node, &device, bpf::TCX_INGRESS, 0)
}

pub fn tcx_egress(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.server)?;
    on_device(node, &device, bpf::TCX_EGRESS, 0)
}

pub fn clsact_ingress(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.client)?;
    clsact(node, &device, "ingress")
}

pub fn clsact_egress(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.server)?;
    clsact(node, &device, "egress")
}

pub fn clsact_action(site: &Site<'_>) -> Result<Held> {
    let (node, device) = site.mesh.node_side(&site.lane.client)?;
    node.tool("tc", &["qdisc", "add", "dev", &device, "clsact"], "")?;
    let filter = ["filter", "add", "dev", &device, "ingress", "u32", "match", "u32", "0", "0", "action", "drop"];
    node.tool("tc", &filter, "")?;
    Ok(None)
}

/// Where network plugins put a pod's egress policy: at the pod's end, whose program the node's end owns.
pub fn netkit(site: &Site<'_>) -> Result<Held> {
    site.mesh.join_by_netkit(&site.lane.client).map_err(|error| {
        match format!("{error:#}").contains("Unknown device type") {
            true => anyhow!("this kernel has no netkit devices (CONFIG_NETKIT)"),
            false => error,
        }
    })?;
    let (node, device) = site.mesh.node_side(&site.lane.client)?;
    on_device(node, &device, bpf::NETKIT_PEER, 0)
}

pub fn xdp_generic(site: &Site<'_>) -> Result<Held> {
    xdp(site, bpf::XDP_GENERIC)
}

pub fn xdp_native(site: &Site<'_>) -> Result<Held> {
    xdp(site, bpf::XDP_NATIVE)
}

/// Requests die on their way out of the client's cgroup.
pub fn cgroup_egress(site: &Site<'_>) -> Result<Held> {
    fence(site, &[bpf::CGROUP_EGRESS], false)
}

/// Requests die on their way into the server's cgroup.
pub fn cgroup_ingress(site: &Site<'_>) -> Result<Held> {
    fence(site, &[bpf::CGROUP_INGRESS], true)
}

/// connect() itself is refused.
pub fn cgroup_connect(site: &Site<'_>) -> Result<Held> {
    fence(site, &[bpf::CONNECT4, bpf::CONNECT6], false)
}

/// At the receiving end of a link: of the client's on its node, or of the server's in its pod.
fn xdp(site: &Site<'_>, mode: u32) -> Result<Held> {
    match site.lane.place {
        super::Place::ServerPod => on_device(site.here()?, "eth0", bpf::XDP, mode),
        _ => {
            let (node, device) = site.mesh.node_side(&site.lane.client)?;
            on_device(node, &device, bpf::XDP, mode)
        }
    }
}

fn on_device(namespace: &Netns, device: &str, verdict: Verdict, flags: u32) -> Result<Held> {
    let program = bpf::load(verdict)?;
    let link = namespace.run(|| {
        let index = if_nametoindex(device).with_context(|| format!("there is no device {device}"))?;
        bpf::link(&program, verdict, index, flags)
    })?;
    Ok(Some(Box::new(link)))
}

/// The classic filter, which `tc` attaches by the name of a pinned program.
fn clsact(namespace: &Netns, device: &str, hook: &str) -> Result<Held> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let program = bpf::load(bpf::CLSACT)?;
    let files = FileSystem::mount()?;
    let path = files.0.join("deny");
    bpf::pin(&program, &path)?;
    namespace.tool("tc", &["qdisc", "add", "dev", device, "clsact"], "")?;
    let path = path.to_string_lossy();
    let filter = ["filter", "add", "dev", device, hook, "bpf", "direct-action", "object-pinned", &path];
    namespace.tool("tc", &filter, "")?;
    Ok(None)
}

fn fence(site: &Site<'_>, verdicts: &[Verdict], servers: bool) -> Result<Held> {
    let cgroup = Cgroup::new(&site.lane.name)?;
    let directory = fs::File::open(cgroup.path())?;
    let target = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&directory))?;
    let mut links = Vec::new();
    for verdict in verdicts {
        links.push(bpf::link(&bpf::load(*verdict)?, *verdict, target, 0)?);
    }
    let servers = if servers { Some(cgroup.run(|| sockets::Servers::replace(site))?) } else { None };
    Ok(Some(Box::new(Fenced { _links: links, cgroup, _servers: servers })))
}

/// A BPF file system for as long as a name is needed.
struct FileSystem(PathBuf);

impl FileSystem {
    fn mount() -> Result<Self> {
        let path = Path::new("/run").join(format!("weir-matrix-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        let mounted = mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>);
        mounted.context("cannot mount a BPF file system")?;
        Ok(Self(path))
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}
