//! Clients inside the namespaces: TCP connects and connected UDP queries with a precise outcome.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::dns;
use crate::fixture::Protocol;
use crate::netns::Netns;
use crate::outcome::Outcome;

/// The name that queries ask for. Nobody reads the records, only who answers.
const NAME: &str = "istiod.istio-system.svc.cluster.local";

/// How a TCP client waits for its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Waiting {
    /// connect() of a non-blocking socket, then poll(): what Go, Envoy and most servers do.
    #[default]
    NonBlocking,
    /// connect() blocks, for as long as SO_SNDTIMEO allows.
    Blocking,
}

/// One attempt to make.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Source address to bind; none leaves the choice to the kernel.
    pub source: Option<IpAddr>,
    /// Whom to dial.
    pub to: SocketAddr,
    /// Transport.
    pub protocol: Protocol,
    /// When the client gives up.
    pub timeout: Duration,
    /// How a TCP client waits.
    pub waiting: Waiting,
    /// Differentiated-services code point of the packets.
    pub dscp: u8,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Attempted {
    /// Local address and port; none if the attempt failed before it had one.
    pub source: Option<SocketAddr>,
    /// What the client was told.
    pub outcome: Outcome,
    /// What the server said: a TCP server its name, a DNS server its address.
    pub said: Option<String>,
    /// Time from connect() or send() to the outcome.
    pub elapsed: Duration,
}

impl Attempt {
    /// An attempt with the usual settings: source by the kernel, one second, non-blocking.
    pub fn new(protocol: Protocol, to: SocketAddr) -> Self {
        Self { source: None, to, protocol, timeout: Duration::from_secs(1), waiting: Waiting::NonBlocking, dscp: 0 }
    }

    /// Makes the attempt from a namespace. Fails only if it could not be made at all.
    pub fn run(&self, from: &Netns) -> Result<Attempted> {
        from.run(|| {
            let socket = self.socket()?;
            Ok(match self.protocol {
                Protocol::Tcp => self.connect(socket),
                Protocol::Udp => self.ask(&socket),
            })
        })
    }

    fn socket(&self) -> Result<Socket> {
        let kind = match self.protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
        };
        let socket = Socket::new(Domain::for_address(self.to), kind, None)?;
        match self.to {
            SocketAddr::V4(_) => socket.set_tos_v4(u32::from(self.dscp) << 2)?,
            SocketAddr::V6(_) => socket.set_tclass_v6(u32::from(self.dscp) << 2)?,
        }
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(socket)
    }

    fn connect(&self, socket: Socket) -> Attempted {
        let started = Instant::now();
        let connected = match self.waiting {
            Waiting::NonBlocking => self.connect_polling(&socket, started),
            Waiting::Blocking => self.connect_blocking(&socket),
        };
        let elapsed = started.elapsed();
        let source = local(&socket);
        let (outcome, said) = match connected {
            Ok(()) => self.greeting(socket.into(), started),
            Err(outcome) => (outcome, None),
        };
        Attempted { source, outcome, said, elapsed }
    }

    fn connect_polling(&self, socket: &Socket, started: Instant) -> Result<(), Outcome> {
        socket.set_nonblocking(true).map_err(|error| outcome(&error))?;
        match socket.connect(&self.to.into()) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) => return Err(outcome(&error)),
        }
        loop {
            let left = self.timeout.saturating_sub(started.elapsed());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], timeout) {
                Ok(0) if self.timeout <= started.elapsed() => return Err(Outcome::GaveUp),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(Outcome::Failed(errno)),
            }
        }
        match socket.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(outcome(&error)),
        }
    }

    fn connect_blocking(&self, socket: &Socket) -> Result<(), Outcome> {
        let timeout = Some(self.timeout.max(Duration::from_millis(1)));
        socket.set_write_timeout(timeout).map_err(|error| outcome(&error))?;
        match socket.connect(&self.to.into()) {
            Ok(()) => Ok(()),
            // This is how a blocking connect() says that SO_SNDTIMEO is over (socket(7)).
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Err(Outcome::GaveUp),
            Err(error) => Err(outcome(&error)),
        }
    }

    /// Reads the line that a server of the harness begins with.
    fn greeting(&self, mut stream: TcpStream, started: Instant) -> (Outcome, Option<String>) {
        let mut said = Vec::new();
        let left = self.timeout.saturating_sub(started.elapsed()).max(Duration::from_millis(100));
        if stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(left))).is_err() {
            return (Outcome::Established, None);
        }
        let mut byte = [0];
        while said.len() < 512 {
            match stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return (Outcome::Established, String::from_utf8(said).ok()),
                Ok(1) => said.push(byte[0]),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return (Outcome::Reset, None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        (Outcome::Established, None)
    }

    fn ask(&self, socket: &Socket) -> Attempted {
        let started = Instant::now();
        let id = std::process::id() as u16 ^ self.to.port();
        let (outcome, said) = match self.ask_once(socket, id) {
            Ok(packet) => (Outcome::Replied, dns::answered(&packet, id).map(|address| address.to_string())),
            Err(outcome) => (outcome, None),
        };
        Attempted { source: local(socket), outcome, said, elapsed: started.elapsed() }
    }

    fn ask_once(&self, socket: &Socket, id: u16) -> Result<Vec<u8>, Outcome> {
        let failed = |error: io::Error| outcome(&error);
        socket.connect(&self.to.into()).map_err(failed)?;
        socket.set_read_timeout(Some(self.timeout.max(Duration::from_millis(1)))).map_err(failed)?;
        socket.send(&dns::query(id, NAME)).map_err(failed)?;
        let mut packet = [0; 4096];
        match (&mut &*socket).read(&mut packet) {
            Ok(length) => Ok(packet[..length].to_vec()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(Outcome::NoReply)
            }
            Err(error) => Err(outcome(&error)),
        }
    }
}

/// The bound address; none as long as the socket has no port.
fn local(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket().filter(|address| address.port() != 0)
}

fn outcome(error: &io::Error) -> Outcome {
    error.raw_os_error().map_or(Outcome::Failed(Errno::EIO), |errno| Outcome::of_errno(Errno::from_raw(errno)))
}
