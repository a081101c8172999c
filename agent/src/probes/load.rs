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
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSock, ProgramError},
};
use weir_common::{ABSENT, Layout};

use super::{ProbeError, ProbeSettings, ProbeStatus, btf::KernelTypes, symbols};

/// How a program meets the kernel.
enum Hook {
    /// A BTF tracepoint: subsystem and name.
    Tracepoint(&'static str, &'static str),
    /// A cgroup hook at the root of the v2 hierarchy.
    RootCgroup(&'static str),
}

struct Program {
    name: &'static str,
    hook: Hook,
    /// Members of [`Layout`] without which the program would read the wrong memory.
    needs: fn(&Layout) -> Vec<u32>,
}

const PROGRAMS: [Program; 6] = [
    Program { name: "tcp_state", hook: Hook::Tracepoint("sock", "inet_sock_set_state"), needs: attempt_members },
    Program { name: "syn_retransmit", hook: Hook::Tracepoint("tcp", "tcp_retransmit_skb"), needs: sock_members },
    Program { name: "reset_received", hook: Hook::Tracepoint("tcp", "tcp_receive_reset"), needs: sock_members },
    Program { name: "packet_drop", hook: Hook::Tracepoint("skb", "kfree_skb"), needs: packet_members },
    Program { name: "udp_create", hook: Hook::RootCgroup("sock_create"), needs: |_| Vec::new() },
    Program { name: "udp_release", hook: Hook::RootCgroup("sock_release"), needs: datagram_members },
];

fn sock_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    vec![
        l.sock_family,
        l.sock_state,
        l.sock_num,
        l.sock_dport,
        l.sock_daddr,
        l.sock_rcv_saddr,
        l.sock_net,
        l.sock_protocol,
        l.tcp_sport,
        l.net_inum,
    ]
}

fn attempt_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    let own = [l.sock_err, l.sock_err_soft, l.sock_error_tail, l.sock_error_len, l.skb_error];
    [sock_members(layout), own.to_vec()].concat()
}

fn packet_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    vec![
        l.skb_head,
        l.skb_network_header,
        l.skb_tail,
        l.skb_dev,
        l.skb_sock,
        l.skb_dst,
        l.dst_dev,
        l.dev_index,
        l.dev_net,
        l.net_inum,
        l.sock_net,
        l.sock_state,
    ]
}

fn datagram_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    vec![
        l.sock_family,
        l.sock_num,
        l.sock_dport,
        l.sock_daddr,
        l.sock_rcv_saddr,
        l.sock_net,
        l.sock_err,
        l.sock_incoming_cpu,
        l.net_inum,
    ]
}

/// Creates the maps, fills in the read-only data and the ports, then loads and attaches program by program.
pub(super) fn load(
    object: &[u8],
    types: &KernelTypes,
    settings: &ProbeSettings,
) -> Result<(Ebpf, Vec<ProbeStatus>), ProbeError> {
    let layout = weir_common::bytes_of(&types.layout);
    let conntrack = symbols::addresses(&settings.kallsyms, ["ipv4_conntrack_in", "ipv6_conntrack_in"]);
    let conntrack = conntrack.map(u64::to_ne_bytes).concat();
    // Only to resolve the tracepoints' type ids; dropped at the end, it is large.
    let btf = Btf::parse_file(&settings.btf, aya::Endianness::default())
        .map_err(|error| ProbeError::NoBtf { path: settings.btf.clone(), reason: error.to_string() })?;
    let attempts = (256 * u32::try_from(aya::util::nr_cpus().unwrap_or(1)).unwrap_or(1)).max(16384);
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .verifier_log_level(VerifierLogLevel::empty())
        .override_global("LAYOUT", layout, true)
        .override_global("CONNTRACK", conntrack.as_slice(), true)
        .map_max_entries("EVENTS", settings.ring_bytes)
        .map_max_entries("ATTEMPTS", attempts)
        .load(object)
        .map_err(|error| refused(&error))?;
    watch(&mut ebpf, &settings.ports)?;
    let statuses = PROGRAMS
        .iter()
        .map(|program| {
            let outcome = attach(&mut ebpf, program, &btf, &types.layout, settings);
            let hook = match program.hook {
                Hook::Tracepoint(subsystem, name) => format!("{subsystem}:{name}"),
                Hook::RootCgroup(name) => format!("cgroup:{name}"),
            };
            ProbeStatus { name: program.name, hook, active: outcome.is_ok(), reason: outcome.err() }
        })
        .collect();
    Ok((ebpf, statuses))
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

fn attach(
    ebpf: &mut Ebpf,
    program: &Program,
    btf: &Btf,
    layout: &Layout,
    settings: &ProbeSettings,
) -> Result<(), String> {
    if (program.needs)(layout).contains(&ABSENT) {
        return Err("this kernel's BTF lacks a struct member that the probe reads".to_owned());
    }
    let loaded =
        ebpf.program_mut(program.name).ok_or("the probe object does not hold it: run `cargo xtask build-ebpf`")?;
    match program.hook {
        Hook::Tracepoint(_, tracepoint) => {
            let loaded: &mut BtfTracePoint = loaded.try_into().map_err(|error| explain(&error))?;
            loaded.load(tracepoint, btf).map_err(|error| explain(&error))?;
            loaded.attach().map_err(|error| explain(&error))?;
        }
        Hook::RootCgroup(_) => {
            let root = match &settings.cgroup {
                Some(path) => path.clone(),
                None => root_cgroup().ok_or(
                    "the root of cgroup v2 is not mounted here (in a container: mount the host's /sys/fs/cgroup)",
                )?,
            };
            let folder = File::open(&root).map_err(|error| format!("{}: {error}", root.display()))?;
            let loaded: &mut CgroupSock = loaded.try_into().map_err(|error| explain(&error))?;
            loaded.load().map_err(|error| explain(&error))?;
            // A link always shares the hook with others; a mode that says so is refused (EINVAL) by bpf_link_create.
            loaded.attach(folder, CgroupAttachMode::Single).map_err(|error| explain(&error))?;
        }
    }
    Ok(())
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
