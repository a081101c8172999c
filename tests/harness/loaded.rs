//! eBPF programs in the kernel: whose they are, and that nothing of them is left.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Ids of the programs that a process holds, from its descriptors' `fdinfo`.
///
/// # Errors
/// When there is no such process.
pub fn held_by(pid: u32) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

/// Waits until none of these is loaded: the kernel frees programs after a grace period.
///
/// # Errors
/// When some still are after this long.
pub fn until_gone(programs: &BTreeSet<u32>, patience: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        // One that goes while they are listed is gone.
        let living: BTreeSet<u32> = aya::programs::loaded_programs().flatten().map(|program| program.id()).collect();
        let left: Vec<_> = programs.intersection(&living).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < patience, "still loaded: {left:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
