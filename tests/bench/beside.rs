//! What is attached while the network is measured: nothing, Weir, or the nearest that others offer.

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beside {
    Nothing,
    Weir,
    /// By its place in [`TOOLS`].
    Tool(usize),
}

/// Another program that watches the same.
struct Tool {
    name: &'static str,
    program: &'static str,
    /// Debian's package of it.
    package: &'static str,
    arguments: &'static [&'static str],
}

const TOOLS: [Tool; 6] = [
    // bpftrace's `BEGIN` would need uprobes, which not every kernel has.
    Tool {
        name: "bpftrace, as tcpdrop",
        program: "bpftrace",
        package: "bpftrace",
        arguments: &["-e", "tracepoint:skb:kfree_skb { @[args->protocol, args->location] = count(); }"],
    },
    Tool {
        name: "bpftrace, as tcpstates",
        program: "bpftrace",
        package: "bpftrace",
        arguments: &[
            "-e",
            "tracepoint:sock:inet_sock_set_state { @[args->oldstate, args->newstate, args->dport] = count(); }",
        ],
    },
    Tool { name: "libbpf-tools, tcpstates", program: "tcpstates", package: "libbpf-tools", arguments: &[] },
    Tool { name: "libbpf-tools, tcpconnect", program: "tcpconnect", package: "libbpf-tools", arguments: &[] },
    Tool { name: "bcc, tcpdrop", program: "tcpdrop-bpfcc", package: "bpfcc-tools", arguments: &[] },
    Tool { name: "bcc, tcpconnect", program: "tcpconnect-bpfcc", package: "bpfcc-tools", arguments: &[] },
];

impl Beside {
    /// All of them, in the order of a round.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Nothing, Self::Weir].into_iter().chain((0..TOOLS.len()).map(Self::Tool))
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no probes",
            Self::Weir => "Weir",
            Self::Tool(index) => TOOLS[index].name,
        }
    }
}

/// A tool, attached for as long as the value lives.
pub struct Running(Child);

impl Running {
    /// Starts a tool and waits until it is attached.
    ///
    /// # Errors
    /// It is not installed, or does not run on this kernel: with its own last words.
    pub fn start(tool: usize) -> Result<Self> {
        let Tool { program, package, arguments, .. } = &TOOLS[tool];
        let path = std::env::var_os("PATH").unwrap_or_default();
        ensure!(
            std::env::split_paths(&path).any(|folder| folder.join(program).is_file()),
            "no `{program}` on this machine (Debian package {package})"
        );
        let mut command = Command::new("unshare");
        // Tracepoints are found in tracefs only, which need not be mounted here.
        let inside =
            "mount -t tracefs tracefs /sys/kernel/tracing; mount -t debugfs debugfs /sys/kernel/debug; exec \"$@\"";
        command.args(["--mount", "sh", "-c", inside, "sh", program]).args(*arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Self(command.spawn().context("unshare cannot be started")?);
        let begin = Instant::now();
        while !running.is_attached() {
            if running.0.try_wait()?.is_some() {
                let mut said = String::new();
                running.0.stderr.take().context("it was piped")?.read_to_string(&mut said)?;
                bail!("{}", said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it ended").trim());
            }
            if begin.elapsed() > Duration::from_secs(20) {
                bail!("not attached after 20 s");
            }
            thread::sleep(Duration::from_millis(20));
        }
        // A program that is attached as an event of perf has just been.
        thread::sleep(Duration::from_millis(300));
        Ok(running)
    }

    /// Does it hold an event of perf, or a link of BPF?
    fn is_attached(&self) -> bool {
        let folder = format!("/proc/{}/fd", self.0.id());
        let targets = fs::read_dir(folder).into_iter().flatten().flatten();
        targets.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| {
            let target = target.to_string_lossy();
            target.contains("[perf_event]") || target.contains("bpf_link")
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
