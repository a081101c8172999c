//! The command line on a node, on real packets: what an attempt looks like live, why it is denied, and what becomes of one
//! that is opened on purpose.

mod attempts;
mod documents;
mod explain;
mod host_network;
mod pages;
mod plugin;
mod probing;
mod progress;
mod recording;
mod screens;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::apiserver::{ApiServer, Exec, Fault, Ran, Rule, Verb};
use harness::fixture::{End, Protocol};
use harness::tls::TlsServer;
use harness::{DriveOptions, Enforcement, Fixture, Rehearsal, Terminal, agent, fixture, loaded};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::runtime::Runtime;

const SCENARIO: &str = "scenarios/01-sidecar-injection";
const FLOW: &str = "sc-02-xds-ca";
const PATIENCE: Duration = Duration::from_secs(60);

/// A command that runs, its lines as they come.
struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(agent::binary()?);
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = read(child.stdout.take().context("no stdout")?);
        let errors = read(child.stderr.take().context("no stderr")?);
        Ok(Self { child, lines, errors })
    }

    /// Waits until standard error has a line with this in it.
    fn said(&mut self, what: &str) -> Result<()> {
        let mut all = String::new();
        while let Ok(line) = self.errors.recv_timeout(PATIENCE) {
            if line.contains(what) {
                return Ok(());
            }
            all += &line;
            all.push('\n');
        }
        bail!("it does not say {what:?}: {all}")
    }

    fn interrupt(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(begin.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Drives the flow again and again until a line is as awaited: who begins to watch misses what was before.
fn drive_until(rehearsal: &Rehearsal, watch: &mut Running, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    let flow = rehearsal.flow(FLOW)?;
    let begin = Instant::now();
    let own: BTreeSet<String> = addresses(&rehearsal.mesh.manifests());
    while begin.elapsed() < PATIENCE {
        rehearsal.mesh.drive(std::slice::from_ref(flow), &DriveOptions::default())?;
        let until = Instant::now() + Duration::from_secs(2);
        while let Ok(line) = watch.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            // Others on this machine connect too.
            let ours = line["attempt"]["dialled"]["source"].as_str().is_some_and(|a| own.contains(a));
            if ours && fits(&line) {
                return Ok(line);
            }
        }
    }
    let said: Vec<String> = watch.errors.try_iter().collect();
    bail!("no such line; {}", said.join("\n"))
}

fn addresses(objects: &[Value]) -> BTreeSet<String> {
    let pods = objects.iter().filter_map(|o| o["status"]["podIPs"].as_array()).flatten();
    pods.filter_map(|a| a["ip"].as_str().map(str::to_owned)).collect()
}

/// A pod by the beginning of its name.
fn pod_of(rehearsal: &Rehearsal, namespace: &str, name: &str) -> Result<String> {
    let keys = rehearsal.mesh.cluster.pods.iter().map(|pod| harness::objects::key_of(&pod.metadata));
    let found = keys.into_iter().find(|key| key.starts_with(&format!("{namespace}/{name}")));
    found.with_context(|| format!("there is no pod {namespace}/{name}…"))
}

fn begin() -> Result<Rehearsal> {
    ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
    let fixture = Fixture::load(&fixture::fixtures_dir().join(SCENARIO))?;
    Rehearsal::begin(fixture, agent::binary()?, Enforcement::Drop)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
