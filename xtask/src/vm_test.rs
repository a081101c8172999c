//! The probe tests and the matrix on other kernels: Debian's packages, booted by QEMU under software emulation (no
//! virtualisation needed).
//!
//! The guest is a first file system and nothing else: `weir-vm-init` as process 1, the agent and the test programs as static
//! binaries, modules, and Debian's `ip`, `nft`, `tc` and iptables with their libraries. Everything is kept below `target/vm`,
//! but the programs, which are built below `target/static`.

mod apt;
mod architecture;
mod guest;
mod kernels;
mod machine;
mod programs;
mod userland;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{build_ebpf, tools};
use architecture::Architecture;
use kernels::{Files, Kernel};
pub use machine::Ending;
use machine::Qemu;
use programs::Programs;
use userland::Userland;

/// `cargo xtask vm-test`
#[derive(clap::Args)]
pub struct VmTest {
    /// Kernels by version (`6.1`, `6.1-arm64`); all of them if none is named.
    kernels: Vec<String>,
    /// Only the oldest kernel, the most used and the newest, all of amd64, with the short matrix.
    #[arg(long, conflicts_with = "kernels")]
    quick: bool,
    /// Only tests whose name contains this, and no matrix.
    #[arg(long)]
    filter: Option<String>,
    /// Only the matrix.
    #[arg(long, conflicts_with = "filter")]
    matrix: bool,
    /// Fetch each kernel again, the newest of its version.
    #[arg(long)]
    refresh: bool,
    /// Seconds after which a guest counts as hung.
    #[arg(long, default_value_t = LIMIT)]
    limit: u64,
    /// Print all that the guests print, not only of those that failed.
    #[arg(long, short)]
    verbose: bool,
    /// One address family, non-blocking connects and no floods in the matrix; nothing is written into the documentation.
    #[arg(long)]
    short: bool,
}

/// The shorter selection: the oldest kernel, the one that is most in use, and the newest.
const QUICK: [&str; 3] = ["5.10", "6.1", "7.2"];

/// Seconds for a guest: several times what the slowest takes on two processors with nothing else to do.
const LIMIT: u64 = 3_600;
/// The same of the shorter selection with the short matrix.
const QUICK_LIMIT: u64 = 900;

impl VmTest {
    /// Exit codes: 0 all passed, 1 a test failed, 2 could not be run, 3 a kernel panicked, 4 a guest hung.
    pub fn run(self) -> Result<ExitCode> {
        let Self { kernels, quick, filter, matrix, refresh, limit, verbose, short } = self;
        let kernels = if quick { QUICK.map(str::to_owned).to_vec() } else { kernels };
        let short = short || quick;
        let options =
            Options { filter, matrix, refresh, limit: Duration::from_secs(limit), verbose, short, document: !short };
        let verdicts = all(&kernels::choose(&kernels)?, &options)?;
        let worst = verdicts.iter().map(|(_, ending)| ending.as_ref().map_or(2, Ending::code)).max();
        Ok(ExitCode::from(worst.unwrap_or(2)))
    }
}

/// One kernel, and how its guest ended; an error where something of ours is broken.
pub type Verdict = (&'static str, Result<Ending>);

/// Whether this machine can run the shorter selection: it has apt for the kernels, and QEMU, which is installed if it can be.
///
/// # Errors
/// What is missing.
pub fn possible() -> Result<()> {
    apt::require_debian()?;
    machine::ensure_qemu(Architecture::Amd64).map(drop)
}

/// Runs the shorter selection, for other commands.
///
/// # Errors
/// The guests could not be run at all: no packages, no QEMU, nothing built.
pub fn quick() -> Result<Vec<Verdict>> {
    let options = Options {
        filter: None,
        matrix: false,
        refresh: false,
        limit: Duration::from_secs(QUICK_LIMIT),
        verbose: false,
        short: true,
        document: false,
    };
    all(&kernels::choose(&QUICK.map(str::to_owned))?, &options)
}

/// The agent as a static program for this machine, which other tests put into a container.
///
/// # Errors
/// When it cannot be built.
pub fn static_agent() -> Result<PathBuf> {
    Ok(programs::build(Architecture::host()?)?.agent)
}

struct Options {
    filter: Option<String>,
    matrix: bool,
    refresh: bool,
    limit: Duration,
    verbose: bool,
    short: bool,
    /// Put what the matrix found into the documentation.
    document: bool,
}

/// What the guests of one architecture have in common.
struct Common {
    architecture: Architecture,
    qemu: Qemu,
    programs: Programs,
}

/// Runs the guests one after the other, and prints a line for each. Two at once would starve each other: the matrix is about
/// what happens in time.
fn all(chosen: &[&'static Kernel], options: &Options) -> Result<Vec<Verdict>> {
    apt::require_debian()?;
    build_ebpf::build()?;
    thread::scope(|scope| {
        let (fetching, fetched) = mpsc::channel();
        // While one is run, the next ones are fetched.
        scope.spawn(move || {
            for kernel in chosen {
                if fetching.send(fetch(kernel, options.refresh)).is_err() {
                    break;
                }
            }
        });
        let mut commons = BTreeMap::new();
        let mut verdicts = Vec::new();
        for kernel in chosen {
            let parts = fetched.recv().context("fetching ended early")?;
            let mut begin = Instant::now();
            let ending = match parts {
                Err(error) => Ok(Ending::NotFetched(format!("{error:#}"))),
                Ok((files, userland)) => match commons.entry(kernel.architecture) {
                    Entry::Occupied(common) => one(&files, &userland, common.into_mut(), options),
                    Entry::Vacant(vacant) => {
                        let common = vacant.insert(common(kernel.architecture)?);
                        begin = Instant::now();
                        one(&files, &userland, common, options)
                    }
                },
            };
            let text = match &ending {
                Ok(ending) => ending.to_string(),
                Err(error) => format!("could not be run: {error:#}"),
            };
            println!("kernel {:10} {text} ({:.0} s)", kernel.name, begin.elapsed().as_secs_f64());
            verdicts.push((kernel.name, ending));
        }
        Ok(verdicts)
    })
}

fn fetch(kernel: &Kernel, refresh: bool) -> Result<(Files, Userland)> {
    Ok((kernels::fetch(kernel, refresh)?, Userland::fetch(kernel.architecture)?))
}

fn common(architecture: Architecture) -> Result<Common> {
    let qemu = machine::ensure_qemu(architecture)?;
    let begin = Instant::now();
    let programs = programs::build(architecture)?;
    eprintln!("programs for {}: {:.0} s", architecture.debian(), begin.elapsed().as_secs_f64());
    Ok(Common { architecture, qemu, programs })
}

fn one(files: &Files, userland: &Userland, common: &Common, options: &Options) -> Result<Ending> {
    let mut commands = vec!["/bin/weir doctor".to_owned()];
    if options.filter.is_none() {
        let quick = if options.short { " --quick" } else { "" };
        commands.push(format!("/bin/weir-matrix --agent /bin/weir --json /tmp/out{quick}"));
    }
    if !options.matrix {
        let filter = options.filter.as_ref().map(|filter| format!(" {filter}")).unwrap_or_default();
        commands.push(format!("/bin/probes --test-threads 1 --show-output{filter}"));
    }
    let initrd = guest::build(files, &common.programs, userland, &commands)?;
    let (log, out) = (files.folder.join("console.log"), files.folder.join("matrix.json"));
    let _ = fs::remove_file(&out);
    let ending = machine::run(&common.qemu, &files.image, &initrd, options.limit, &log, &out)?;
    if options.verbose || ending.code() != 0 {
        eprint!("{}", fs::read_to_string(&log).unwrap_or_default());
    }
    eprintln!("console: {}", log.display());
    if options.document && fs::metadata(&out).is_ok_and(|file| file.len() > 0) {
        // A program of this machine's, whatever the guest was.
        let host = Architecture::host()?;
        let program = match common.architecture == host {
            true => common.programs.matrix.clone(),
            false => programs::build(host)?.matrix,
        };
        let document = tools::root().join("docs/accuracy.md");
        let mut merge = Command::new(program);
        merge.arg("--read").arg(&out).arg("--markdown").arg(document).stdout(Stdio::null());
        let status = merge.status().context("cannot start weir-matrix")?;
        ensure!(status.code().is_some_and(|code| code < 2), "the guest's matrix cannot be read: {}", out.display());
    }
    Ok(ending)
}
