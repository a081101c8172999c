//! A cgroup of our own whose threads have children of theirs: a socket belongs to the cgroup of the thread that made it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use anyhow::{Context, Result};

/// A threaded cgroup below this process' own. Removed with the value, if nobody is in it any more.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one. The first moves this process into a cgroup below the root of the cgroup2 hierarchy.
    pub fn new(name: &str) -> Result<Self> {
        let path = home()?.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::write(path.join("cgroup.type"), "threaded").context("cannot make a threaded cgroup")?;
        Ok(Self(path))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs something on a thread inside; threads that it starts are inside too.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = || {
            let own = nix::unistd::gettid().to_string();
            fs::write(self.0.join("cgroup.threads"), own).context("cannot enter the cgroup")?;
            inside()
        };
        thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Takes this process back to the root of the hierarchy and removes its cgroup.
pub fn leave() {
    if let Some(Some(home)) = HOME.get() {
        if let Some(root) = home.parent() {
            let _ = fs::write(root.join("cgroup.procs"), std::process::id().to_string());
        }
        let _ = fs::remove_dir(home);
    }
}

static HOME: OnceLock<Option<PathBuf>> = OnceLock::new();

fn home() -> Result<&'static PathBuf> {
    HOME.get_or_init(|| make_home().ok()).as_ref().context("no cgroup2 hierarchy in which a cgroup can be made")
}

fn make_home() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.find(|fields| fields.get(2) == Some(&"cgroup2")).context("no cgroup2")?;
    let path = Path::new(mount[1]).join(format!("weir-matrix-{}", std::process::id()));
    fs::create_dir(&path)?;
    fs::write(path.join("cgroup.procs"), std::process::id().to_string())?;
    Ok(path)
}
