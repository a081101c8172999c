//! A guest under QEMU's software emulation, and how it ended.
//!
//! QEMU before 8.1 panics a guest of several processors when the kernel patches its own code, which attaching a probe does
//! ("Oops: int3"): such a QEMU gets one processor. Hardware virtualisation is never used, so that the result is the same everywhere.

use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{apt, architecture::Architecture};
use crate::{setup, tools};

/// A QEMU that can be started.
pub struct Qemu {
    architecture: Architecture,
    processors: u32,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Process 1 said so: everything passed.
    Passed(String),
    /// Process 1 said so: the first exit code that was not 0, and what failed.
    Failed(i32, String),
    /// It stopped without a word of process 1: the first line that tells why.
    Panicked(String),
    /// It did not stop in time: the last line on its console.
    Hung(Duration, String),
    /// It was not begun: what could not be fetched.
    NotFetched(String),
}

impl Ending {
    /// 0 to 4: exit code of `vm-test`.
    pub fn code(&self) -> u8 {
        match self {
            Self::Passed(_) => 0,
            Self::Failed(..) => 1,
            Self::NotFetched(_) => 2,
            Self::Panicked(_) => 3,
            Self::Hung(..) => 4,
        }
    }

    /// Reads the console; `hung` if the guest had to be stopped.
    fn read(console: &str, hung: Option<Duration>) -> Self {
        let lines = || console.lines().map(str::trim_end).filter(|line| !line.is_empty());
        let panic = lines().find(|line| ["Kernel panic", "Oops", "BUG:"].iter().any(|sign| line.contains(sign)));
        let code = lines().rev().find_map(|line| line.strip_prefix("VM-EXIT:")?.parse().ok());
        match (panic, code, hung) {
            (Some(line), ..) => Self::Panicked(line.to_owned()),
            (None, Some(0), _) => Self::Passed(summary(console)),
            (None, Some(code), _) => Self::Failed(code, failures(console)),
            (None, None, Some(limit)) => Self::Hung(limit, lines().next_back().unwrap_or("nothing").to_owned()),
            (None, None, None) => Self::Panicked(lines().next_back().unwrap_or("nothing on the console").to_owned()),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(summary) => write!(f, "passed: {summary}"),
            Self::Failed(code, what) => write!(f, "FAILED: {what} (exit {code})"),
            Self::Panicked(line) => write!(f, "KERNEL PANIC: {line}"),
            Self::NotFetched(why) => write!(f, "not run: {why}"),
            Self::Hung(limit, line) => write!(f, "HUNG: not done after {} s; last: {line}", limit.as_secs()),
        }
    }
}

/// The closing lines of the matrix and of the tests.
fn summary(console: &str) -> String {
    let lines = || console.lines().map(str::trim_end);
    let mut parts: Vec<String> = Vec::new();
    // 298 cells on 6.1.0-56-cloud-amd64: 298 as they should be, 0 not, 0 below the floor; …
    let cells = lines().filter(|line| line.contains(" below the floor; ")).filter_map(|line| line.split(';').next());
    parts.extend(cells.map(str::to_owned));
    let results = lines().filter_map(|line| line.strip_prefix("test result: ok. ")?.split(';').next());
    parts.extend(results.map(|passed| passed.replace(" passed", " probe tests passed")));
    let skipped = lines().filter(|line| line.starts_with("SKIPPED: ")).count();
    if skipped > 0 {
        parts.push(format!("{skipped} skipped"));
    }
    if parts.is_empty() { "no test ran".to_owned() } else { parts.join("; ") }
}

fn failures(console: &str) -> String {
    let ended = |line: &str, end: &str| {
        line.trim_end().strip_suffix(end).map(|name| name.trim_start_matches("test ").to_owned())
    };
    let failed: Vec<_> = console.lines().filter_map(|line| ended(line, " ... FAILED")).collect();
    if !failed.is_empty() {
        return failed.join(", ");
    }
    let mut commands = console.lines().filter(|line| line.starts_with("VM: ") && !line.contains(": exit 0 after"));
    commands.next_back().unwrap_or("process 1").trim_end().trim_start_matches("VM: ").to_owned()
}

/// Finds QEMU, or installs it: from backports where the release itself has only an old one.
pub fn ensure_qemu(architecture: Architecture) -> Result<Qemu> {
    let (program, package) = architecture.qemu();
    if !tools::on_path(program) {
        install(program, package)?;
    }
    let said = tools::output(program, &["--version"]).with_context(|| format!("`{program} --version` failed"))?;
    let version = said.strip_prefix("QEMU emulator version ").unwrap_or_default();
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(Qemu { architecture, processors: if version >= (8, 1) { 2 } else { 1 } })
}

fn install(program: &str, package: &str) -> Result<()> {
    if !tools::is_root() {
        println!("sudo apt-get install --no-install-recommends {package}");
        bail!("not root, and there is no {program}: run the command above");
    }
    let codename = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if codename.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        return apt::install_from_backports("bookworm", package);
    }
    if setup::install_packages(&[package])? { Ok(()) } else { bail!("run the commands above") }
}

/// Boots the guest and reads its console until it stops or the time is over.
pub fn run(qemu: &Qemu, image: &Path, initrd: &Path, limit: Duration, log: &Path, out: &Path) -> Result<Ending> {
    let (program, _) = qemu.architecture.qemu();
    let mut command = Command::new(program);
    command
        .args(["-accel", "tcg,thread=multi", "-smp", &qemu.processors.to_string()])
        .args(qemu.architecture.machine())
        .args(["-m", "2G", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        // A way out of the guest for files: /dev/vport0p1, or 1p1.
        .args(["-device", "virtio-serial", "-device", "virtserialport,chardev=out", "-chardev"])
        .arg(format!("file,id=out,path={}", out.display()))
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(format!("console={} panic=-1 oops=panic quiet cryptomgr.notests", qemu.architecture.console()))
        .stdin(Stdio::null())
        .stdout(File::create(log).with_context(|| log.display().to_string())?)
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let begin = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if begin.elapsed() >= limit => break None,
            None => thread::sleep(Duration::from_millis(100)),
        }
    };
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    if status.is_some_and(|status| !status.success()) {
        let mut said = String::new();
        child.stderr.take().context("it was piped")?.read_to_string(&mut said)?;
        bail!("{program}: {}", said.trim());
    }
    let console = String::from_utf8_lossy(&fs::read(log)?).replace('\r', "");
    fs::write(log, &console)?;
    Ok(Ending::read(&console, status.is_none().then_some(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_a_panic_and_a_hang_are_told_apart() {
        let limit = Duration::from_secs(9);
        let passed = "VM: a\nSKIPPED: y\n7 cells on 6.1: 7 as they should be, 0 not, 0 below the floor; 0 of 0\ntest x ... ok\n\
             test result: ok. 12 passed; 0 failed\nVM: a: exit 0 after 1.0 s\nVM-EXIT:0\n";
        let failed = "test x ... FAILED\ntest result: FAILED. 1 passed\nVM: a: exit 101 after 1.0 s\nVM-EXIT:101\n";
        let doctor = "VM: weir doctor: exit 2 after 1.0 s\nVM: a: exit 0 after 1.0 s\nVM-EXIT:2\n";
        let panicked = "VM: a\n[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n[ 1.0] ---[ end\n";
        for (console, hung, code, line) in [
            (
                passed,
                None,
                0,
                "passed: 7 cells on 6.1: 7 as they should be, 0 not, 0 below the floor; 12 probe tests passed; 1 skipped",
            ),
            (failed, None, 1, "FAILED: x (exit 101)"),
            (doctor, None, 1, "FAILED: weir doctor: exit 2 after 1.0 s (exit 2)"),
            (panicked, None, 3, "KERNEL PANIC: [ 1.0] Kernel panic - not syncing: Attempted to kill init!"),
            (panicked, Some(limit), 3, "KERNEL PANIC: [ 1.0] Kernel panic - not syncing: Attempted to kill init!"),
            ("VM: a\n", None, 3, "KERNEL PANIC: VM: a"),
            ("", None, 3, "KERNEL PANIC: nothing on the console"),
            ("VM: a\ntest x ...\n", Some(limit), 4, "HUNG: not done after 9 s; last: test x ..."),
        ] {
            let ending = Ending::read(console, hung);
            assert_eq!((ending.code(), ending.to_string().as_str()), (code, line));
        }
    }
}
