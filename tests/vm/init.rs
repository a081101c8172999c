//! Process 1 of a test guest: mounts what a machine has, loads modules, runs programs, says how they ended, stops the machine.
//!
//! `/modules/order` names the modules in the order in which they can be loaded; `/commands` holds one command per line, its
//! words separated by spaces; what they write to `/tmp/out` leaves the guest. Everything is said on the console, which is the
//! standard output; the last line is `VM-EXIT:CODE` with the first exit code that was not 0. A panic here is a panic of the
//! kernel, and meant to be seen.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// Exit code of a command that was killed by a signal, or could not be started.
const NO_CODE: i32 = 255;

const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is process 1 of a test guest: see `cargo xtask vm-test`");
        std::process::exit(2);
    }
    let code = guest().unwrap_or_else(|error| {
        println!("VM: {error:#}");
        NO_CODE
    });
    println!("VM-EXIT:{code}");
    let _ = std::io::stdout().flush();
    nix::unistd::sync();
    // The machine was started so that it ends where it would start again: no ACPI needed.
    reboot(RebootMode::RB_AUTOBOOT).expect("process 1 may");
}

fn guest() -> Result<i32> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {place}"))?;
    }
    for module in fs::read_to_string("/modules/order").context("/modules/order")?.lines() {
        let file = File::open(Path::new("/modules").join(format!("{module}.ko"))).context(module.to_owned())?;
        // Some modules of one kernel are built into another, or refuse the machine: the tests tell what they miss.
        if let Err(error) = finit_module(&file, c"", ModuleInitFlags::empty()) {
            println!("VM: module {module}: {error}");
        }
    }
    let _ = run("ip link set lo up");
    match way_out()? {
        Some(port) => std::os::unix::fs::symlink(port, "/tmp/out")?,
        None => println!("VM: no virtio port: what the programs find stays here"),
    }
    let mut first = 0;
    for command in fs::read_to_string("/commands").context("/commands")?.lines() {
        println!("VM: {command}");
        let begin = Instant::now();
        let code = run(command).unwrap_or_else(|error| {
            println!("VM: {command}: {error:#}");
            NO_CODE
        });
        println!("VM: {command}: exit {code} after {:.1} s", begin.elapsed().as_secs_f64());
        if first == 0 {
            first = code;
        }
    }
    Ok(first)
}

/// The port that the host reads; the driver makes it some time after it was loaded.
fn way_out() -> Result<Option<PathBuf>> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        let mut ports = fs::read_dir("/dev")?.flatten().map(|entry| entry.path());
        let port = ports.find(|path| path.to_string_lossy().starts_with("/dev/vport"));
        if port.is_some() {
            return Ok(port);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Runs a command; of what tests that passed have written, only why they were skipped goes on to the console, which is slow.
fn run(command: &str) -> Result<i32> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    ensure!(!program.is_empty(), "an empty command");
    let mut command = Command::new(program);
    let mut child = command.args(words).env("PATH", "/bin").current_dir("/tmp").stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("it was piped")?);
    let mut console = std::io::stdout();
    let (mut line, mut told, mut of_passed) = (Vec::new(), 0, false);
    loop {
        let bytes = output.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        line.extend_from_slice(&bytes[..end]);
        output.consume(end);
        let complete = line.ends_with(b"\n");
        // `test NAME ... `: one that hangs must have been named.
        if !complete && !line.starts_with(b"test ") {
            continue;
        }
        match line.as_slice() {
            b"successes:\n" => of_passed = true,
            b"failures:\n" => of_passed = false,
            other if other.starts_with(b"test result:") => of_passed = false,
            _ => {}
        }
        if !of_passed || line.starts_with(b"SKIPPED: ") {
            console.write_all(&line[told..])?;
            console.flush()?;
            told = line.len();
        }
        if complete {
            line.clear();
            told = 0;
        }
    }
    Ok(child.wait()?.code().unwrap_or(NO_CODE))
}
