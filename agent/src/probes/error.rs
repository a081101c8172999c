//! Why the probes cannot be loaded at all. Each message says what to do.

use std::io;

use super::btf::BtfUnreadable;

/// Why the probes could not be loaded at all. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Built without the probes.
    #[error("this build holds no probes: run `cargo xtask build-ebpf`, then build again")]
    Stub,
    /// No BTF, or unreadable, and what does without cannot be loaded either.
    #[error(
        "{btf}: the kernel must have CONFIG_DEBUG_INFO_BTF=y and /sys must be mounted; tcp_callback, which does without, failed too: {stand_in}"
    )]
    NoBtf {
        /// Where it was looked for, and what happened.
        btf: BtfUnreadable,
        /// Why the probe that stands in for others is not on.
        stand_in: String,
    },
    /// Not root and not enough capabilities.
    #[error(
        "missing {missing}: run as root, or grant CAP_BPF, CAP_PERFMON (probes), CAP_NET_ADMIN (cgroup hooks: UDP, and TCP where there is no BTF) and CAP_SYSLOG (names of kernel functions)"
    )]
    Capabilities {
        /// `CAP_BPF, CAP_PERFMON`.
        missing: String,
    },
    /// Lockdown forbids what the probes need.
    #[error(
        "the kernel is locked down to `confidentiality`, which forbids probes to read packets: boot with lockdown=integrity"
    )]
    Lockdown,
    /// No probe at all could be loaded.
    #[error("no probe could be loaded: {reason}; `weir doctor` tells more")]
    None {
        /// Of the first.
        reason: String,
    },
    /// The kernel refused a map.
    #[error("the kernel refused the probes' maps: {reason}")]
    Refused {
        /// By the kernel.
        reason: String,
    },
    /// The object is not ours.
    #[error("the embedded probes do not fit this agent ({0}): run `cargo xtask build-ebpf`, then build again")]
    Object(&'static str),
    /// Reading events failed.
    #[error("reading the probes' events: {0}")]
    Read(#[from] io::Error),
}
