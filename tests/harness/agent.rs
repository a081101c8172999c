//! The real agent as a process of its own, watched from outside: its HTTP pages, its socket, its log.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long an agent may take from its start until it is ready: the probes are verified by the kernel one by one.
/// Patient enough for a debug build on a machine that is busy with other builds.
const START: Duration = Duration::from_secs(120);

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The `weir` binary.
    pub binary: PathBuf,
    /// File or folder of manifests it reads; without, its arguments say where objects come from.
    pub manifests: Option<PathBuf>,
    /// More arguments of `weir run`.
    pub arguments: Vec<String>,
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    binary: PathBuf,
    address: SocketAddr,
    dir: TempDir,
}

/// The `weir` binary to test: `WEIR_BIN`, or the one built beside the running program.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WEIR_BIN") {
        return Ok(path.into());
    }
    let program = std::env::current_exe().context("cannot find the running program")?;
    let folders = program.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("weir")).find(|path| path.is_file());
    found.with_context(|| format!("no weir binary beside {}: run `cargo build` first", program.display()))
}

impl Agent {
    /// Starts an agent and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; the error carries its log.
    pub fn start(options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::launch(options)?;
        let begin = Instant::now();
        while begin.elapsed() < START {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended with {status}:\n{}", agent.log());
            }
            if matches!(agent.get("/readyz"), Ok((200, _))) {
                return Ok(agent);
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("the agent is not ready after {START:?}:\n{}", agent.log())
    }

    /// Starts an agent without waiting for anything.
    pub fn launch(options: &AgentOptions) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weir-agent-").tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let log = File::create(dir.path().join("log"))?;
        let manifests = options.manifests.iter().flat_map(|path| [OsStr::new("--manifests"), path.as_os_str()]);
        let child = Command::new(&options.binary)
            .arg("run")
            .args(manifests)
            .args(["--listen", &address.to_string()])
            .arg("--socket")
            .arg(dir.path().join("weir.sock"))
            .args(&options.arguments)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", options.binary.display()))?;
        Ok(Self { child, binary: options.binary.clone(), address, dir })
    }

    /// Where it serves HTTP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("weir.sock")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// One page: status code and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(self.address, path)
    }

    /// `/snapshot`.
    pub fn snapshot(&self) -> Result<Value> {
        let (status, body) = self.get("/snapshot")?;
        ensure!(status == 200, "/snapshot answered {status}: {body}");
        serde_json::from_str(&body).context("/snapshot is not JSON")
    }

    /// `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answered {status}: {body}");
        Ok(body)
    }

    /// Runs a command of the same binary against this agent's socket.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--socket").arg(self.socket());
        command.output().with_context(|| format!("cannot run {}", self.binary.display()))
    }

    /// Asks it to stop (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it is still there after five seconds; it is killed then.
    pub fn stop(mut self) -> Result<ExitStatus> {
        kill(self.pid_for_signals(), Signal::SIGTERM)?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the agent did not stop on SIGTERM:\n{}", self.log())
    }

    /// Kills it (SIGKILL), leaving its files where they are; returns the folder they are in.
    pub fn kill(mut self) -> Result<TempDir> {
        self.child.kill()?;
        self.child.wait()?;
        let empty = tempfile::Builder::new().prefix("weir-agent-").tempdir()?;
        Ok(std::mem::replace(&mut self.dir, empty))
    }

    fn pid_for_signals(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One HTTP page from loopback: status code and body.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of its headers")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an answer without a status")?;
    Ok((status, body.to_owned()))
}

/// Writes a file in one step, so that a reader sees the old text or the new one and nothing between.
pub fn replace_file(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)?;
    fs::rename(&beside, path).with_context(|| format!("cannot replace {}", path.display()))
}
