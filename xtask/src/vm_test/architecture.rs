//! What differs between guests of two processor architectures.

use std::env;

use anyhow::{Context as _, Result};

/// An architecture of Debian that guests are run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// As Debian names it.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust names what is built for it.
    pub fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As the C compiler's programs for it begin.
    pub fn gnu(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// The C compiler for it on a machine of another architecture.
    pub fn cross_packages(self) -> [&'static str; 2] {
        match self {
            Self::Amd64 => ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            Self::Arm64 => ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        }
    }

    /// This machine's.
    pub fn host() -> Result<Self> {
        let host = [Self::Amd64, Self::Arm64].into_iter().find(|known| known.triple().starts_with(env::consts::ARCH));
        host.with_context(|| format!("vm-test knows amd64 and arm64, not {}", env::consts::ARCH))
    }

    /// The emulator, and Debian's package of it.
    pub fn qemu(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
            Self::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
        }
    }

    /// The emulated machine. An arm64 guest spends most of its time on signing pointers unless that is made cheap.
    pub fn machine(self) -> [&'static str; 4] {
        match self {
            Self::Amd64 => ["-machine", "pc", "-cpu", "max"],
            Self::Arm64 => ["-machine", "virt", "-cpu", "max,pauth-impdef=on"],
        }
    }

    /// Its first serial port, as the kernel names it.
    pub fn console(self) -> &'static str {
        match self {
            Self::Amd64 => "ttyS0",
            Self::Arm64 => "ttyAMA0",
        }
    }
}
