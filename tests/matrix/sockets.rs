//! Causes made of sockets: servers that are not there, do not accept, or belong to a cgroup; a proxy on the way.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use super::Held;
use super::world::{DNS, Site, XDS};
use crate::fixture::Protocol;
use crate::ipv6::Family;
use crate::servers::{listening, once_free};

/// Packets with this mark are the proxy's own.
const PROXY_MARK: u32 = 1337;
const PROXY_PORT: u16 = 15001;

/// A lane's servers made by the calling thread: they belong to its cgroup.
#[derive(Debug)]
pub struct Servers {
    _tcp: TcpListener,
    _udp: Vec<UdpSocket>,
}

/// Nobody listens.
pub fn closed(site: &Site<'_>) -> Result<Held> {
    site.mesh.stop_listening(&site.lane.server, Protocol::Tcp, XDS)?;
    site.mesh.stop_listening(&site.lane.server, Protocol::Udp, DNS)?;
    Ok(None)
}

/// Somebody listens, and does not accept any more.
pub fn queue_full(site: &Site<'_>) -> Result<Held> {
    site.mesh.stall(&site.lane.server, XDS)?;
    Ok(None)
}

/// Nothing: the far node discards what comes.
pub fn nothing(_site: &Site<'_>) -> Result<Held> {
    Ok(None)
}

/// The kernel gives up after one SYN more.
pub fn few_retries(site: &Site<'_>) -> Result<Held> {
    let client = site.mesh.namespace(&site.lane.client)?;
    client.sysctl(&[("ipv4/tcp_syn_retries", "1")])?;
    Ok(None)
}

impl Servers {
    /// In place of the harness's own on the lane's server.
    pub fn replace(site: &Site<'_>) -> Result<Self> {
        closed(site)?;
        let addresses = site.mesh.addresses(&site.lane.server)?.to_vec();
        site.mesh.namespace(&site.lane.server)?.run(|| {
            let udp = |address: &IpAddr| once_free(|| UdpSocket::bind((*address, DNS)));
            let udp = addresses.iter().map(udp).collect::<io::Result<_>>().context("cannot bind the UDP server")?;
            Ok(Self { _tcp: listening(XDS, 16)?, _udp: udp })
        })
    }
}

/// A proxy in the client's pod that takes over its connections and makes them itself, as a sidecar does; the server's port
/// is closed.
pub fn proxy(site: &Site<'_>) -> Result<Held> {
    closed(site)?;
    let name = site.table();
    let client = site.mesh.namespace(&site.lane.client)?;
    client.nft(&format!(
        "table inet {name} {{ chain o {{ type nat hook output priority -100\n\
         meta mark != {PROXY_MARK} tcp dport {XDS} redirect to :{PROXY_PORT}\n}}\n}}\n"
    ))?;
    let listener = client.run(|| {
        let listener = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        listener.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PROXY_PORT).into())?;
        listener.listen(16)?;
        listener.set_nonblocking(true)?;
        Ok(TcpListener::from(listener))
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let servers: Vec<IpAddr> = [Family::V4, Family::V6]
        .into_iter()
        .map(|family| site.address(&site.lane.server, family))
        .collect::<Result<_>>()?;
    let thread = client.spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, from)) => {
                    drop(stream);
                    let v4 = is_v4(&from);
                    let server = servers.iter().find(|address| address.is_ipv4() == v4).copied();
                    if let Some(server) = server {
                        // That it fails is the point.
                        let _ = onwards(SocketAddr::new(server, XDS));
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Ok(())
    });
    Ok(Some(Box::new(Proxy { stop, thread: Some(thread) })))
}

struct Proxy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn onwards(server: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_mark(PROXY_MARK)?;
    socket.connect_timeout(&server.into(), Duration::from_secs(1))
}

fn is_v4(from: &SocketAddr) -> bool {
    match from.ip() {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    }
}
