//! Runs that the kernel skipped because the same program was already running on that CPU, as it counts them itself.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;

use aya::Ebpf;

use super::programs::PROGRAMS;

/// The kernel's word on each program: `recursion_misses` in its descriptor's `fdinfo` (5.12 and later). Kept open, for it is
/// asked again with every batch of events, and opening is dearer than reading.
pub(super) struct Skips(Vec<(&'static str, Option<File>)>);

impl Skips {
    /// Of every program, loaded or not.
    pub fn new(ebpf: &Ebpf) -> Self {
        let info = |name: &str| {
            let fd = ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd();
            File::open(format!("/proc/self/fdinfo/{fd}")).ok()
        };
        Self(PROGRAMS.iter().map(|program| (program.stage, info(program.name))).collect())
    }

    /// Skipped runs since the program was loaded, by stage: one per program, for a missed drop is another loss than a missed
    /// attempt. 0 where the kernel does not count them.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        self.0.iter().map(|(stage, file)| (*stage, file.as_ref().and_then(skipped).unwrap_or(0))).collect()
    }
}

fn skipped(info: &File) -> Option<u64> {
    // About 300 bytes; read from the start, the file is written anew.
    let mut bytes = [0; 1024];
    let length = info.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}
