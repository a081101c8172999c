//! The smallest BPF programs there are: a few instructions, loaded and linked by bpf(2) itself, so that neither a compiler nor
//! an object file is needed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::libc;

/// Commands, program and attach types of bpf(2) (include/uapi/linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;

/// A kind of program, the verdict that denies, and where it is attached.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    kind: u32,
    attach: u32,
    value: u32,
}

/// `BPF_PROG_TYPE_SCHED_CLS`, `TC_ACT_SHOT`, at tcx ingress.
pub const TCX_INGRESS: Verdict = Verdict { kind: 3, attach: 46, value: 2 };
/// The same at tcx egress.
pub const TCX_EGRESS: Verdict = Verdict { kind: 3, attach: 47, value: 2 };
/// The same for what the other end of a netkit device sends (`NETKIT_DROP`).
pub const NETKIT_PEER: Verdict = Verdict { kind: 3, attach: 55, value: 2 };
/// `BPF_PROG_TYPE_SCHED_CLS` for a filter of clsact: attached by `tc`.
pub const CLSACT: Verdict = Verdict { kind: 3, attach: 0, value: 2 };
/// `BPF_PROG_TYPE_XDP`, `XDP_DROP`.
pub const XDP: Verdict = Verdict { kind: 6, attach: 37, value: 1 };
/// `BPF_PROG_TYPE_CGROUP_SKB`, deny, ingress.
pub const CGROUP_INGRESS: Verdict = Verdict { kind: 8, attach: 0, value: 0 };
/// The same at egress.
pub const CGROUP_EGRESS: Verdict = Verdict { kind: 8, attach: 1, value: 0 };
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, deny, connect() over IPv4.
pub const CONNECT4: Verdict = Verdict { kind: 18, attach: 10, value: 0 };
/// The same over IPv6.
pub const CONNECT6: Verdict = Verdict { kind: 18, attach: 11, value: 0 };

/// `BPF_PROG_TYPE_SOCK_OPS`, leaving everything as it is.
pub const SOCK_OPS: Verdict = Verdict { kind: 13, attach: 3, value: 1 };

/// `XDP_FLAGS_SKB_MODE`: generic, after the packet became an skb.
pub const XDP_GENERIC: u32 = 2;
/// `XDP_FLAGS_DRV_MODE`: the driver's own.
pub const XDP_NATIVE: u32 = 4;

/// A loaded program that always returns its verdict.
pub fn load(verdict: Verdict) -> Result<OwnedFd> {
    // r0 = VALUE; exit
    program(verdict, &[instruction(0xb7, 0, 0, verdict.value), instruction(0x95, 0, 0, 0)])
}

/// A loaded program of the verdict's kind, with these instructions.
pub fn program(of: Verdict, instructions: &[u64]) -> Result<OwnedFd> {
    let license = c"GPL";
    let mut attributes = [0u32; 32];
    attributes[0] = of.kind;
    attributes[1] = u32::try_from(instructions.len())?;
    put(&mut attributes, 2, instructions.as_ptr() as u64);
    put(&mut attributes, 4, license.as_ptr() as u64);
    // prog_flags, name and ifindex are between: see union bpf_attr.
    attributes[17] = of.attach;
    bpf(PROG_LOAD, &attributes, 72).context("cannot load a BPF program")
}

/// One instruction: operation, registers (destination in the low four bits), offset, immediate value.
pub const fn instruction(operation: u8, registers: u8, offset: i16, value: u32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([operation, registers, low, high, a, b, c, d])
}

/// Links a program to a device of the calling thread's namespace, or to a cgroup; it goes with the descriptor.
pub fn link(program: &OwnedFd, verdict: Verdict, target: u32, flags: u32) -> Result<OwnedFd> {
    let mut attributes = [0u32; 32];
    attributes[0] = u32::try_from(program.as_raw_fd())?;
    attributes[1] = target;
    attributes[2] = verdict.attach;
    attributes[3] = flags;
    bpf(LINK_CREATE, &attributes, 48).with_context(|| format!("cannot link a BPF program (type {})", verdict.attach))
}

/// Gives a program a name in a BPF file system.
pub fn pin(program: &OwnedFd, path: &Path) -> Result<()> {
    let path = CString::new(path.to_string_lossy().as_bytes())?;
    let mut attributes = [0u32; 32];
    put(&mut attributes, 0, path.as_ptr() as u64);
    attributes[2] = u32::try_from(program.as_raw_fd())?;
    call(OBJ_PIN, &attributes, 16).map(drop).context("cannot pin a BPF program")
}

fn put(attributes: &mut [u32; 32], at: usize, value: u64) {
    let bytes = value.to_ne_bytes();
    for half in 0..2 {
        let half_bytes = [bytes[half * 4], bytes[half * 4 + 1], bytes[half * 4 + 2], bytes[half * 4 + 3]];
        attributes[at + half] = u32::from_ne_bytes(half_bytes);
    }
}

fn bpf(command: libc::c_long, attributes: &[u32; 32], size: usize) -> io::Result<OwnedFd> {
    let fd = call(command, attributes, size)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: libc::c_long, attributes: &[u32; 32], size: usize) -> io::Result<i32> {
    // SAFETY: `attributes` holds at least `size` bytes, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(-1)) }
}
