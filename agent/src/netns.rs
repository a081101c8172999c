//! The network namespace that has an address: found by asking each, because runtimes keep them in different places.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where runtimes and people keep namespaces that no process need be in.
pub const FOLDERS: [&str; 2] = ["/run/netns", "/var/run/docker/netns"];

/// Every network namespace of this machine, opened.
///
/// # Errors
/// When not even the own one can be opened.
pub fn all() -> anyhow::Result<Vec<File>> {
    let own = File::open("/proc/self/ns/net").context("cannot open the network namespace; is /proc mounted?")?;
    let mut seen = BTreeSet::from([own.metadata()?.ino()]);
    let mut found = vec![own];
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    let processes = entries("/proc")
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .map(|e| e.path().join("ns/net"));
    let named: Vec<PathBuf> = FOLDERS.iter().flat_map(|f| entries(f)).map(|e| e.path()).collect();
    for path in processes.chain(named) {
        // Processes end, and some belong to others.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if seen.insert(meta.ino())
            && let Ok(file) = File::open(&path)
        {
            found.push(file);
        }
    }
    Ok(found)
}

/// Inode of the PID namespace that the kernel makes first: `PROC_PID_INIT_INO` of its `include/linux/proc_ns.h`.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether all processes of the machine can be seen from here, as in a container only with `hostPID`.
pub fn sees_all_processes() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_PID_NAMESPACE)
}

/// The one of these that has an address.
pub fn with_address(namespaces: &[File], address: IpAddr) -> Option<&File> {
    namespaces.iter().find(|netns| inside(netns, || UdpSocket::bind((address, 0)).is_ok()).unwrap_or(false))
}

/// Does something on a thread of its own inside a network namespace; the rest of the process stays where it is.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn inside<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // A mount of something else is no namespace, and is refused.
            move_into_link_name_space(std::os::fd::AsFd::as_fd(netns), Some(LinkNameSpaceType::Network))
                .context("cannot enter a pod's network namespace; this takes CAP_SYS_ADMIN, as root has")?;
            Ok(work())
        });
        worker.join().map_err(|_| anyhow!("the probing thread failed"))?
    })
}
