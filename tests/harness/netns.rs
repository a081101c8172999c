//! Network namespaces under unique names, entered by threads of their own.
//!
//! A thread enters with setns(2), as nsenter does: mounts stay as they are, so tracefs, bpffs and cgroup2 remain
//! visible (`ip netns exec` hides them behind a fresh /sys).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` looks for namespaces.
const DIR: &str = "/run/netns";
const PREFIX: &str = "weir-";

/// The prefix of every name one topology makes: `weir-PID-STARTED-N`, where `STARTED` is the start time of the
/// process in clock ticks (/proc/PID/stat, field 22), so that a number used again does not pass for the old process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunId(String);

/// A namespace with a name below /run/netns. The name goes with the last clone; the kernel keeps the namespace
/// itself for as long as a thread, socket or device needs it.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Named>);

#[derive(Debug)]
struct Named {
    name: String,
    fd: File,
}

impl RunId {
    /// A prefix that no other topology of this machine uses.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let started = started(pid).context("cannot read /proc/self/stat")?;
        Ok(Self(format!("{PREFIX}{pid}-{started}-{}", NEXT.fetch_add(1, Ordering::Relaxed))))
    }

    /// The name of a host's namespace.
    pub fn name(&self, host: &str) -> String {
        format!("{}.{}", self.0, host.replace('/', "."))
    }

    /// The prefix itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Netns {
    /// Makes empty namespaces with these names. Needs root.
    pub fn create(names: &[String]) -> Result<Vec<Self>> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run as root or with sudo");
        fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR}"))?;
        // One thread makes them all and then ends: unshare() moves the calling thread only.
        thread::scope(|scope| scope.spawn(|| names.iter().map(|name| Self::create_here(name)).collect()).join())
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    fn create_here(name: &str) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET) was refused")?;
        let path = Path::new(DIR).join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let own = Path::new("/proc/thread-self/ns/net");
        let mounted = mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        let opened = mounted.map_err(io::Error::from).and_then(|()| File::open(&path));
        match opened {
            Ok(fd) => Ok(Self(Arc::new(Named { name: name.to_owned(), fd }))),
            Err(error) => {
                remove(&path);
                Err(error).with_context(|| format!("cannot mount the namespace at {}", path.display()))
            }
        }
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that stands for the namespace, for `nsenter --net=PATH`.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(self.name())
    }

    /// Moves the calling thread into the namespace for good. Only for threads that end afterwards.
    pub fn enter(&self) -> Result<()> {
        setns(&self.0.fd, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.name()))
    }

    /// Runs something inside, on a thread of its own, and waits for it. A panic inside goes on outside.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = || self.enter().and_then(|()| inside());
        thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Starts a thread inside.
    pub fn spawn<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let namespace = self.clone();
        thread::spawn(move || namespace.enter().and_then(|()| inside()))
    }

    /// Runs a program inside with this text on its standard input. Fails with what it wrote to its standard error.
    pub fn tool(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| tool(program, arguments, input)).with_context(|| format!("in {}", self.name()))
    }

    /// Runs `ip -batch` inside.
    pub fn ip(&self, commands: &str) -> Result<()> {
        self.tool("ip", &["-batch", "-"], commands).map(drop)
    }

    /// Runs `nft -f` inside: all of it or nothing takes effect.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.tool("nft", &["-f", "-"], rules).map(drop)
    }

    /// Writes kernel settings of the namespace, each named from `net` on: `ipv4/ip_forward`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        remove(&Path::new(DIR).join(&self.name));
    }
}

/// Removes namespaces whose process has ended without doing so (killed), and says which.
pub fn sweep() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIR) else { return Vec::new() };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        if let Some(name) = entry.file_name().to_str()
            && is_leftover(name)
        {
            remove(&entry.path());
            removed.push(name.to_owned());
        }
    }
    removed
}

/// Runs a program with this text on its standard input, in the calling thread's namespace.
pub(crate) fn tool(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}: is it installed and in PATH?"))?;
    let mut stdin = child.stdin.take().context("no pipe to the program")?;
    let (written, output) = thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output();
        (writer.join(), output)
    });
    let output = output.with_context(|| format!("cannot wait for {program}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}\n{}", arguments.join(" "), error.trim(), numbered(input));
    }
    written
        .unwrap_or_else(|panic| panic::resume_unwind(panic))
        .with_context(|| format!("cannot write to {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The input with line numbers: `ip` and `nft` name the line that is wrong.
fn numbered(input: &str) -> String {
    input.lines().enumerate().map(|(index, line)| format!("{:4} {line}\n", index + 1)).collect()
}

fn remove(path: &Path) {
    // Nothing can be done about a failure here, and the next sweep tries again.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

fn is_leftover(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let mut parts = rest.split(['-', '.']);
    let (Some(Ok(pid)), Some(Ok(wanted))) = (parts.next().map(str::parse), parts.next().map(str::parse::<u64>)) else {
        return false;
    };
    started(pid) != Some(wanted)
}

/// Start time of a process in clock ticks; none if there is no such process (or it is a zombie, which has ended).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(OsStr::new(&pid.to_string())).join("stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is field 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ended_processes_are_leftovers() {
        let run = RunId::new().unwrap();
        assert!(!is_leftover(&run.name("node-a")), "this process runs");
        let pid = std::process::id();
        assert!(is_leftover(&format!("weir-{pid}-1-0.node-a")), "the number was used before this process");
        for other in ["weir", "weir-", "weir-x-1-0.a", "cni-1234", "blue"] {
            assert!(!is_leftover(other), "{other} is not ours");
        }
        assert_ne!(run.as_str(), RunId::new().unwrap().as_str());
    }
}
