//! Which pod a task belongs to, by its cgroup: how pods that share their node's network namespace are told apart.
//!
//! On cgroup v2 the kernel's id of a cgroup is the inode of its directory below the mount, so that one walk names them all. Where
//! pods are in v1 hierarchies only, that id is the root's for everybody, and `/proc/PID/cgroup` is read instead, as long as the
//! task lives (and only where its pid is visible, which takes `hostPID`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often unknown cgroups are looked for at most.
const WALK: Duration = Duration::from_secs(1);
/// How long what `/proc` said of a pid is believed.
const FRESH: Duration = Duration::from_secs(5);
/// Levels below the mount; a container in a pod in a nested kubelet is at the eighth.
const DEPTH: usize = 9;
const MAX: usize = 16_384;

/// The UID of the pod (for a static pod the hash of its manifest, as in the annotation `kubernetes.io/config.hash` of its mirror
/// pod) that a cgroup's path names; none for what is no pod's.
///
/// Forms: cgroupfs `/kubepods/burstable/podUID/CONTAINER`, systemd
/// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-CONTAINER.scope` with `_` for `-` in
/// the UID, containerd's v1 `…-podUID.slice:cri-containerd:CONTAINER`, each of them also below a prefix (kind's
/// `/kubelet.slice/kubelet-kubepods.slice/…`, a node that is itself a container).
#[must_use]
pub fn pod_uid(path: &str) -> Option<String> {
    let mut inside = false;
    let mut found = None;
    for part in path.split(['/', ':']) {
        let name = part.strip_suffix(".slice").unwrap_or(part);
        let uid = match name.rsplit_once("-pod") {
            Some((before, uid)) if before.contains("kubepods") => Some(uid.replace('_', "-")),
            _ if inside => name.strip_prefix("pod").map(str::to_owned),
            _ => None,
        };
        inside |= name.split('-').any(|word| word == "kubepods");
        // The innermost: a node may itself be a pod.
        found = uid.filter(|uid| is_uid(uid)).or(found);
    }
    found
}

/// A UUID, or a hash of 32 digits.
fn is_uid(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes: Vec<usize> = text.bytes().enumerate().filter(|(_, b)| *b == b'-').map(|(at, _)| at).collect();
    digits == 32 && digits + dashes.len() == text.len() && (dashes.is_empty() || dashes == [8, 13, 18, 23])
}

/// Pods by cgroup id and by pid.
#[derive(Debug, Default)]
pub struct Pods {
    mount: Option<PathBuf>,
    /// Every cgroup of the last walk.
    cgroups: BTreeMap<u64, Option<Arc<str>>>,
    walked: Option<Instant>,
    tasks: BTreeMap<u32, (Instant, Option<Arc<str>>)>,
}

impl Pods {
    /// With the root of the cgroup v2 hierarchy, where one is mounted.
    #[must_use]
    pub fn new(mount: Option<PathBuf>) -> Self {
        Self { mount, ..Self::default() }
    }

    /// UID of the pod of this cgroup, or else of this task.
    pub fn uid(&mut self, cgroup: u64, pid: u32) -> Option<Arc<str>> {
        // 1 is the root: nobody's own.
        if cgroup > 1 && self.mount.is_some() {
            if !self.cgroups.contains_key(&cgroup) && self.walked.is_none_or(|at| at.elapsed() >= WALK) {
                self.walk();
            }
            if let Some(found) = self.cgroups.get(&cgroup) {
                return found.clone();
            }
        }
        self.task(pid)
    }

    fn walk(&mut self) {
        self.walked = Some(Instant::now());
        self.cgroups.clear();
        let Some(mount) = self.mount.clone() else { return };
        let mut open = vec![(mount.clone(), 0)];
        while let Some((folder, depth)) = open.pop() {
            let below = fs::read_dir(&folder).into_iter().flatten().flatten();
            for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                let path = entry.path();
                let Ok(inode) = entry.metadata().map(|meta| meta.ino()) else { continue };
                let name = path.strip_prefix(&mount).unwrap_or(Path::new("")).to_string_lossy();
                self.cgroups.insert(inode, pod_uid(&name).map(Into::into));
                if depth < DEPTH && self.cgroups.len() < MAX {
                    open.push((path, depth + 1));
                }
            }
        }
    }

    fn task(&mut self, pid: u32) -> Option<Arc<str>> {
        if let Some((at, known)) = self.tasks.get(&pid)
            && at.elapsed() < FRESH
        {
            return known.clone();
        }
        if self.tasks.len() >= MAX {
            self.tasks.clear();
        }
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let found: Option<Arc<str>> = of_task(&text).map(Into::into);
        self.tasks.insert(pid, (Instant::now(), found.clone()));
        found
    }
}

/// From `/proc/PID/cgroup` (cgroups(7)): `hierarchy:controllers:path`, one line for each hierarchy.
fn of_task(text: &str) -> Option<String> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(pod_uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "7f3c1a52-90de-4b1b-8c55-3a1be0d6f001";
    const UNDERLINED: &str = "7f3c1a52_90de_4b1b_8c55_3a1be0d6f001";
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    const CONTAINER: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn paths_of_cgroups_name_their_pods() {
        let (u, h, c, s) = (UID, HASH, CONTAINER, UNDERLINED);
        for (path, uid) in [
            // cgroupfs
            (format!("/kubepods/pod{u}/{c}"), Some(u)),
            (format!("/kubepods/burstable/pod{u}/{c}"), Some(u)),
            (format!("/kubepods/besteffort/pod{u}"), Some(u)),
            // systemd: containerd, CRI-O, docker; guaranteed pods have no class
            (format!("/kubepods.slice/kubepods-pod{s}.slice/cri-containerd-{c}.scope"), Some(u)),
            (
                format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{s}.slice/crio-{c}.scope"),
                Some(u),
            ),
            (
                format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{s}.slice/docker-{c}.scope"),
                Some(u),
            ),
            (format!("/kubepods.slice/kubepods-pod{s}.slice/crio-{c}.scope/container"), Some(u)),
            // containerd on v1 with the systemd driver
            (format!("/system.slice/containerd.service/kubepods-burstable-pod{s}.slice:cri-containerd:{c}"), Some(u)),
            // static pods
            (format!("/kubepods/burstable/pod{h}/{c}"), Some(h)),
            (format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{h}.slice"), Some(h)),
            // kind, and a node in a container of docker
            (
                format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{s}.slice/cri-containerd-{c}.scope"),
                Some(u),
            ),
            (format!("/docker/{c}/kubelet/kubepods/besteffort/pod{u}/{c}"), Some(u)),
            // a node in a pod: the inner pod
            (format!("/kubepods/pod{h}/{c}/kubepods/pod{u}/{c}"), Some(u)),
            // nobody's
            ("/".to_owned(), None),
            ("/system.slice/kubelet.service".to_owned(), None),
            ("/kubepods.slice/kubepods-burstable.slice".to_owned(), None),
            (format!("/docker/{c}"), None),
            ("/podruntime/kubelet".to_owned(), None),
            ("/system/podd".to_owned(), None),
            (format!("/machine.slice/libpod-{c}.scope"), None),
            (format!("/user.slice/pod{u}"), None),
            ("/kubepods/podcache".to_owned(), None),
        ] {
            assert_eq!(pod_uid(&path).as_deref(), uid, "{path}");
        }
    }

    #[test]
    fn a_task_in_v1_hierarchies_is_found_in_any_of_them() {
        let text = format!("12:pids:/kubepods/pod{UID}/{CONTAINER}\n1:name=systemd:/\n0::/\n");
        assert_eq!(of_task(&text).as_deref(), Some(UID));
        assert_eq!(of_task("0::/user.slice\n"), None);
    }

    #[test]
    fn directories_below_the_mount_are_known_by_their_inodes() {
        let mount = tempfile::tempdir().expect("a folder");
        let name = format!("kubepods.slice/kubepods-pod{UNDERLINED}.slice/crio-{CONTAINER}.scope");
        let folder = mount.path().join(&name);
        fs::create_dir_all(&folder).expect("folders");
        let inode = fs::metadata(&folder).expect("it is there").ino();
        let other = fs::metadata(mount.path().join("kubepods.slice")).expect("it is there").ino();
        let mut pods = Pods::new(Some(mount.path().to_owned()));
        assert_eq!(pods.uid(inode, 0).as_deref(), Some(UID));
        assert_eq!(pods.uid(other, 0), None);
    }
}
