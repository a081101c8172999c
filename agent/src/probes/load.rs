//! Loads and attaches the probes, each on its own: what cannot load is reported and the rest go on.

use std::{
    collections::BTreeSet,
    error::Error as _,
    fs::{self, File},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData},
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, SockOps},
};
use weir_common::{ABSENT, Layout};

use super::{
    ProbeError, ProbeSettings, ProbeStatus,
    btf::{BtfUnreadable, KernelTypes},
    host,
    programs::{Hook, PROGRAMS, Program},
    symbols,
};

/// UDP sockets whose queries are remembered at most.
const QUERIES: u32 = 4096;

/// What the kernel says of its types.
pub(super) struct Known {
    pub types: KernelTypes,
    /// Only to resolve the tracepoints' type ids; large.
    btf: Btf,
}

impl Known {
    pub fn read(path: &Path) -> Result<Self, BtfUnreadable> {
        let types = KernelTypes::read(path)?;
        let btf = Btf::parse_file(path, aya::Endianness::default())
            .map_err(|error| BtfUnreadable { path: path.display().to_string(), reason: error.to_string() })?;
        Ok(Self { types, btf })
    }
}

/// Creates the maps, fills in the read-only data and the ports, then loads and attaches program by program. Without BTF only
/// those that need none.
pub(super) fn load(
    object: &[u8],
    known: Option<&Known>,
    settings: &ProbeSettings,
) -> Result<(Ebpf, Vec<ProbeStatus>), ProbeError> {
    lift_memory_limit();
    let layout = known.map_or(Layout::UNKNOWN, |known| known.types.layout);
    let layout = weir_common::bytes_of(&layout);
    let conntrack = symbols::addresses(&settings.kallsyms, ["ipv4_conntrack_in", "ipv6_conntrack_in"]);
    let conntrack = conntrack.map(u64::to_ne_bytes).concat();
    let dns_replies = [u8::from(settings.dns_replies)];
    let attempts = (256 * u32::try_from(aya::util::nr_cpus().unwrap_or(1)).unwrap_or(1)).max(16384);
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .verifier_log_level(VerifierLogLevel::empty())
        .override_global("LAYOUT", layout, true)
        .override_global("CONNTRACK", conntrack.as_slice(), true)
        .override_global("DNS_REPLIES", dns_replies.as_slice(), true)
        .map_max_entries("EVENTS", settings.ring_bytes)
        .map_max_entries("ATTEMPTS", attempts)
        .map_max_entries("QUERIES", if settings.dns_replies { QUERIES } else { 1 })
        .load(object)
        .map_err(|error| refused(&error))?;
    watch(&mut ebpf, &settings.ports)?;
    let mut statuses: Vec<ProbeStatus> = Vec::new();
    for program in PROGRAMS.iter().filter(|program| (program.wanted)(settings)) {
        let active = |name: &str| statuses.iter().any(|probe| probe.name == name && probe.active);
        if program.stands_in_for.iter().any(|name| active(name)) {
            continue;
        }
        let stand_in = PROGRAMS.iter().find(|other| other.stands_in_for.contains(&program.name) && active(other.name));
        let outcome = match stand_in {
            Some(stand_in) => Err(format!("{} stands in for it", stand_in.name)),
            None => attach(&mut ebpf, program, known, settings),
        };
        let hook = program.hook.to_string();
        statuses.push(ProbeStatus { name: program.name, hook, active: outcome.is_ok(), reason: outcome.err() });
    }
    Ok((ebpf, statuses))
}

/// Kernels before 5.11 count maps and programs against RLIMIT_MEMLOCK, which is smaller than they are. Later ones don't, and
/// whoever may not raise it may still be able to load: a failure is no error here.
fn lift_memory_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

/// Sets the bit of each port and clears those of all others.
pub(super) fn watch(ebpf: &mut Ebpf, ports: &BTreeSet<u16>) -> Result<(), ProbeError> {
    let map = ebpf.map_mut("PORTS").ok_or(ProbeError::Object("no map PORTS"))?;
    let mut map: Array<&mut MapData, u64> =
        Array::try_from(map).map_err(|_| ProbeError::Object("map PORTS is no array"))?;
    let mut words = vec![0_u64; usize::from(u16::MAX / 64) + 1];
    for port in ports {
        words[usize::from(port / 64)] |= 1 << (port % 64);
    }
    for (index, bits) in (0_u32..).zip(words) {
        map.set(index, bits, 0).map_err(|error| ProbeError::Refused { reason: error.to_string() })?;
    }
    Ok(())
}

/// Loads and attaches a program of a cgroup hook at the root. A link always shares its hook with others; a mode that says so is
/// refused (EINVAL) by bpf_link_create.
macro_rules! at_root_cgroup {
    ($loaded:ident as $kind:ty, $settings:expr) => {{
        let folder = open_root_cgroup($settings)?;
        let program: &mut $kind = $loaded.try_into().map_err(|error| explain(&error))?;
        program.load().map_err(|error| explain_cgroup(&error))?;
        program.attach(folder, CgroupAttachMode::Single).map_err(|error| explain_cgroup(&error))?;
    }};
}

fn attach(ebpf: &mut Ebpf, program: &Program, known: Option<&Known>, settings: &ProbeSettings) -> Result<(), String> {
    const NO_BTF: &str = "it needs the kernel's BTF";
    if let Some(needs) = program.needs
        && needs(&known.ok_or(NO_BTF)?.types.layout).contains(&ABSENT)
    {
        return Err("this kernel's BTF lacks a struct member that the probe reads".to_owned());
    }
    let loaded =
        ebpf.program_mut(program.name).ok_or("the probe object does not hold it: run `cargo xtask build-ebpf`")?;
    match program.hook {
        Hook::Tracepoint(subsystem, tracepoint) => {
            let loaded: &mut BtfTracePoint = loaded.try_into().map_err(|error| explain(&error))?;
            loaded.load(tracepoint, &known.ok_or(NO_BTF)?.btf).map_err(|error| match error {
                // Only its type is looked up there.
                ProgramError::Btf(_) => format!("this kernel has no tracepoint {subsystem}:{tracepoint}"),
                error => explain(&error),
            })?;
            loaded.attach().map_err(|error| explain(&error))?;
        }
        Hook::Socket(_) => at_root_cgroup!(loaded as CgroupSock, settings),
        Hook::Datagram(_) => at_root_cgroup!(loaded as CgroupSockAddr, settings),
        Hook::Callbacks => at_root_cgroup!(loaded as SockOps, settings),
    }
    Ok(())
}

fn open_root_cgroup(settings: &ProbeSettings) -> Result<File, String> {
    let root = settings
        .cgroup
        .clone()
        .or_else(root_cgroup)
        .ok_or("the root of cgroup v2 is not mounted here (in a container: mount the host's /sys/fs/cgroup)")?;
    File::open(&root).map_err(|error| format!("{}: {error}", root.display()))
}

/// Cgroup hooks take a capability that the others do not.
fn explain_cgroup(error: &ProgramError) -> String {
    let reason = explain(error);
    let lacks = host::missing_capabilities().contains(&"CAP_NET_ADMIN");
    if lacks { format!("{reason}: grant CAP_NET_ADMIN") } else { reason }
}

/// Where the root of the cgroup v2 hierarchy is mounted, by `/proc/self/mountinfo`.
///
/// A container often sees only its own part, where a hook would miss all other pods' sockets: that is no root.
#[must_use]
pub fn root_cgroup() -> Option<PathBuf> {
    // Documentation/admin-guide/cgroup-v2.rst: `cgroup.type` exists on non-root cgroups.
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    cgroup_mounts(&mounts).find(|path| path.join("cgroup.controllers").exists() && !path.join("cgroup.type").exists())
}

/// `36 35 0:30 / /sys/fs/cgroup/unified rw,… - cgroup2 none rw`: fields of proc_pid_mountinfo(5).
fn cgroup_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        (after.split(' ').next()? == "cgroup2").then(|| Path::new(point).to_owned())
    })
}

fn refused(error: &aya::EbpfError) -> ProbeError {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        reason = format!("{reason}: {inner}");
        source = inner.source();
    }
    ProbeError::Refused { reason }
}

/// One line: the verifier's last words where there are any, else the chain of errors.
fn explain(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let last = log.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed ")).unwrap_or("");
        return if last.is_empty() { format!("load: {io_error}") } else { format!("load: {io_error}: {last}") };
    }
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !reason.ends_with(&text) {
            reason = format!("{reason}: {text}");
        }
        source = inner.source();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_cgroup_v2_are_found() {
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      40 30 0:36 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup_mounts(hybrid).collect::<Vec<_>>(), [PathBuf::from("/sys/fs/cgroup/unified")]);
        let unified = "28 23 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(cgroup_mounts(unified).collect::<Vec<_>>(), [PathBuf::from("/sys/fs/cgroup")]);
        assert_eq!(cgroup_mounts("28 23 0:25 / / rw - ext4 /dev/vda rw\n").count(), 0);
    }
}
