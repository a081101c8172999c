//! Real servers inside the namespaces. A TCP server says its host's name and a newline to whoever connects; a UDP
//! server answers DNS queries, and echoes everything else.
//!
//! Sockets are made by a thread inside the namespace and served by one runtime outside: a socket keeps its namespace.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use crate::dns;
use crate::fixture::Protocol;
use crate::netns::Netns;
use crate::topology::Topology;
use crate::topology::plan::{Host, Plan, ServerPlan};

/// How long a server keeps a connection whose client says and does nothing.
const IDLE: Duration = Duration::from_secs(30);
const BACKLOG: i32 = 64;
/// How long a port may still be taken by a socket that was closed.
const CLOSING: Duration = Duration::from_secs(5);

/// All servers of a mesh.
#[derive(Debug)]
pub struct Servers {
    runtime: Option<Runtime>,
    running: Mutex<BTreeMap<ServerPlan, Vec<AbortHandle>>>,
}

impl Servers {
    /// Starts all servers of a plan, each host's at once.
    pub fn start(topology: &Topology) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("mesh-servers")
            .enable_all()
            .build()
            .context("cannot start the servers' runtime")?;
        let servers = Self { runtime: Some(runtime), running: Mutex::default() };
        let mut by_host: BTreeMap<Host, Vec<ServerPlan>> = BTreeMap::new();
        for server in &topology.plan.servers {
            by_host.entry(server.host).or_default().push(server.clone());
        }
        std::thread::scope(|scope| {
            let starting: Vec<_> = by_host
                .into_values()
                .map(|list| {
                    let servers = &servers;
                    scope.spawn(move || list.into_iter().try_for_each(|server| servers.listen(topology, server)))
                })
                .collect();
            starting.into_iter().try_for_each(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        Ok(servers)
    }

    /// Starts one server; nothing happens if it runs already or its host is far.
    pub fn listen(&self, topology: &Topology, server: ServerPlan) -> Result<()> {
        let Some(namespace) = topology.namespace(server.host) else { return Ok(()) };
        if self.running().contains_key(&server) {
            return Ok(());
        }
        let name = topology.plan.name(server.host);
        let what = format!("{} {} of {name}", server.protocol, server.port);
        let tasks = match server.protocol {
            Protocol::Tcp => vec![self.tcp(namespace, server.port, name)],
            Protocol::Udp => addresses(&topology.plan, server.host)
                .into_iter()
                .map(|address| self.udp(namespace, SocketAddr::new(address, server.port)))
                .collect(),
        };
        let tasks = tasks.into_iter().collect::<Result<_>>().with_context(|| format!("cannot serve {what}"))?;
        self.running().insert(server, tasks);
        Ok(())
    }

    /// Stops one server: its port is closed from then on. Says whether it ran.
    pub fn stop(&self, server: &ServerPlan) -> bool {
        let Some(tasks) = self.running().remove(server) else { return false };
        let runtime = self.runtime.as_ref();
        tasks.iter().for_each(AbortHandle::abort);
        // The socket closes when the runtime drops the task, a moment after it was told to.
        while runtime.is_some() && tasks.iter().any(|task| !task.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Replaces a TCP server by one that never accepts and whose queue is full: the kernel drops each SYN without a
    /// word (`ListenOverflows`). [`Servers::stop`] closes it.
    pub fn stall(&self, topology: &Topology, server: ServerPlan) -> Result<()> {
        ensure!(server.protocol == Protocol::Tcp, "only TCP servers have a queue");
        self.stop(&server);
        let namespace = topology.namespace(server.host).context("a far host has no servers")?;
        let held = namespace.run(|| {
            let socket = listening(server.port, 0)?;
            // A queue of length 0 holds one connection and is full then (include/net/sock.h: sk_acceptq_is_full).
            Ok((socket, std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, server.port))?))
        })?;
        let task = self.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        })?;
        self.running().insert(server, vec![task]);
        Ok(())
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServerPlan, Vec<AbortHandle>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tcp(&self, namespace: &Netns, port: u16, name: String) -> Result<AbortHandle> {
        let listener = namespace.run(|| listening(port, BACKLOG))?;
        let greeting: Arc<[u8]> = format!("{name}\n").into_bytes().into();
        self.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { continue };
                let greeting = greeting.clone();
                tokio::spawn(async move {
                    // A client that is gone already has seen what it wanted to see.
                    if stream.write_all(&greeting).await.is_ok() {
                        let mut ignored = [0; 256];
                        let drained = async { while matches!(stream.read(&mut ignored).await, Ok(1..)) {} };
                        let _ = tokio::time::timeout(IDLE, drained).await;
                    }
                });
            }
        })
    }

    fn udp(&self, namespace: &Netns, address: SocketAddr) -> Result<AbortHandle> {
        let socket = namespace.run(|| {
            let socket = once_free(|| UdpSocket::bind(address))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        self.spawn(async move {
            let Ok(socket) = tokio::net::UdpSocket::from_std(socket) else { return };
            let mut buffer = vec![0; 4096];
            loop {
                match socket.recv_from(&mut buffer).await {
                    Ok((length, client)) => {
                        let query = &buffer[..length];
                        let answer = dns::answer(query, address.ip()).unwrap_or_else(|| query.to_vec());
                        // Lost answers are part of what is tested.
                        let _ = socket.send_to(&answer, client).await;
                    }
                    // An error of an earlier answer (a client that closed), not of this socket.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Result<AbortHandle> {
        let runtime = self.runtime.as_ref().context("the servers have been stopped")?;
        Ok(runtime.spawn(task).abort_handle())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

/// A socket of both families that listens in the calling thread's namespace.
pub(crate) fn listening(port: u16, backlog: i32) -> Result<std::net::TcpListener> {
    once_free(|| listen(port, backlog)).with_context(|| format!("cannot listen on port {port}"))
}

/// Binds a port, waiting for a socket that is being closed. A program that is just being started still has all of this process's
/// sockets: those closed meanwhile too.
pub(crate) fn once_free<T>(bind: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    let begin = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begin.elapsed() < CLOSING => {
                std::thread::sleep(Duration::from_millis(10));
            }
            bound => return bound,
        }
    }
}

fn listen(port: u16, backlog: i32) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// The addresses that a host's UDP servers bind, one socket each: an answer must leave from the address that was asked.
fn addresses(plan: &Plan, host: Host) -> Vec<IpAddr> {
    let mut addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    addresses.extend(plan.addresses(host));
    if let Host::Node(node) = host {
        addresses.extend(&plan.nodes[node].local);
    }
    addresses
}
