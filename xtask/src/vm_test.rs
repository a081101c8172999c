//! The probe tests on other kernels: Debian's packages, booted by QEMU under software emulation (no virtualisation needed).
//!
//! The guest is a first file system and nothing else: `weir-vm-init` as process 1, modules, `ip`, `nft`, the agent, and the
//! test programs as cargo built them for this machine, with their shared libraries. Everything is kept below `target/vm`.

mod guest;
mod kernels;
mod machine;

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build_ebpf, tools};
use kernels::Kernel;
pub use machine::Ending;

/// `cargo xtask vm-test`
#[derive(clap::Args)]
pub struct VmTest {
    /// Kernels by version (`6.1`); all of them if none is named.
    kernels: Vec<String>,
    /// Only the oldest kernel, the most used and the newest.
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
    /// Both address families, blocking and non-blocking connects and floods in the matrix, not only the short one.
    #[arg(long)]
    full: bool,
    /// The agent as it is released; else as it is tested, which is built sooner.
    #[arg(long)]
    released: bool,
}

/// The shorter selection: the oldest kernel, the one that is most in use, and the newest.
const QUICK: [&str; 3] = ["5.10", "6.1", "7.2"];

/// Seconds for a guest: about five times what one takes on two processors with nothing else to do.
const LIMIT: u64 = 900;

impl VmTest {
    /// Exit codes: 0 all passed, 1 a test failed, 2 could not be run, 3 a kernel panicked, 4 a guest hung.
    pub fn run(self) -> Result<ExitCode> {
        let Self { kernels, quick, filter, matrix, refresh, limit, verbose, full, released } = self;
        if quick {
            let worst = self::quick()?.iter().map(|(_, ending)| code(ending)).max();
            return Ok(ExitCode::from(worst.unwrap_or(2)));
        }
        let chosen = kernels::choose(&kernels)?;
        let options = Options {
            filter,
            matrix,
            refresh,
            limit: Duration::from_secs(limit),
            verbose,
            full,
            document: true,
            released,
        };
        let worst = all(&chosen, &options)?.iter().map(|(_, ending)| code(ending)).max();
        Ok(ExitCode::from(worst.unwrap_or(2)))
    }
}

/// One kernel, and how its guest ended; an error where it could not be run.
pub type Verdict = (&'static str, Result<Ending>);

/// Runs the shorter selection, for other commands.
///
/// # Errors
/// The guests could not be run at all: no packages, no QEMU, nothing built.
pub fn quick() -> Result<Vec<Verdict>> {
    let chosen = kernels::choose(&QUICK.map(str::to_owned))?;
    let options = Options {
        filter: None,
        matrix: false,
        refresh: false,
        limit: Duration::from_secs(LIMIT),
        verbose: false,
        full: false,
        document: false,
        // Built for the other tests already; building the released one takes longer than the guests do.
        released: false,
    };
    all(&chosen, &options)
}

/// 2 if a guest could not be run.
fn code(ending: &Result<Ending>) -> u8 {
    ending.as_ref().map_or(2, Ending::code)
}

struct Options {
    filter: Option<String>,
    matrix: bool,
    refresh: bool,
    limit: Duration,
    verbose: bool,
    full: bool,
    /// Put what the matrix found into the documentation.
    document: bool,
    /// The agent as it is released, which is faster under emulation than as it is tested.
    released: bool,
}

/// Runs the guests one after the other and prints a line for each.
fn all(chosen: &[&'static Kernel], options: &Options) -> Result<Vec<Verdict>> {
    kernels::require_debian()?;
    let qemu = machine::ensure_qemu()?;
    build_ebpf::build()?;
    let programs = build(options.released)?;
    let mut verdicts = Vec::new();
    for kernel in chosen {
        let begin = Instant::now();
        let ending = one(kernel, &qemu, &programs, options);
        let text = match &ending {
            Ok(ending) => ending.to_string(),
            Err(error) => format!("could not be run: {error:#}"),
        };
        println!("kernel {:5} {text} ({:.0} s)", kernel.version, begin.elapsed().as_secs_f64());
        verdicts.push((kernel.version, ending));
    }
    Ok(verdicts)
}

fn one(kernel: &Kernel, qemu: &machine::Qemu, programs: &[PathBuf], options: &Options) -> Result<Ending> {
    let files = kernels::fetch(kernel, options.refresh)?;
    let mut tests = "/bin/probes --test-threads 1".to_owned();
    if let Some(filter) = &options.filter {
        tests = format!("{tests} {filter}");
    }
    let matrix =
        format!("/bin/weir-matrix --agent /bin/weir --json /tmp/out{}", if options.full { "" } else { " --quick" });
    let mut commands = vec!["/bin/weir doctor".to_owned()];
    if options.filter.is_none() {
        commands.push(matrix);
    }
    if !options.matrix {
        commands.push(tests);
    }
    let initrd = guest::build(&files, programs, &commands)?;
    let (log, out) = (files.folder.join("console.log"), files.folder.join("matrix.json"));
    let _ = std::fs::remove_file(&out);
    let ending = machine::run(qemu, &files.image, &initrd, options.limit, &log, &out)?;
    if options.verbose || ending.code() != 0 {
        eprint!("{}", std::fs::read_to_string(&log).unwrap_or_default());
    }
    eprintln!("console: {}", log.display());
    if options.document && std::fs::metadata(&out).is_ok_and(|file| file.len() > 0) {
        let document = tools::root().join("docs/accuracy.md");
        let mut merge = Command::new(tools::built("weir-matrix"));
        merge.arg("--read").arg(&out).arg("--markdown").arg(document).stdout(Stdio::null());
        let status = merge.status().context("cannot start weir-matrix")?;
        ensure!(status.code().is_some_and(|code| code < 2), "the guest's matrix cannot be read: {}", out.display());
    }
    Ok(ending)
}

/// The agent (`WEIR_BIN`, or a built one), process 1, the matrix and the tests, in this order, as cargo leaves them.
fn build(released: bool) -> Result<Vec<PathBuf>> {
    let given = std::env::var_os("WEIR_BIN").map(PathBuf::from);
    if given.is_none() && released {
        tools::run(tools::cargo().args(["build", "--quiet", "--release", "--package", "weir", "--bin", "weir"]))?;
    }
    // Both packages in one command, as for the other tests: apart they have other features, and all is built again.
    tools::run(tools::cargo().args(["build", "--quiet", "--package", "weir", "--package", "weir-tests", "--bins"]))?;
    let agent =
        given.unwrap_or_else(|| if released { tools::target().join("release/weir") } else { tools::built("weir") });
    let mut cargo = tools::cargo();
    cargo.args(["test", "--quiet", "--package", "weir-tests", "--features", "root", "--test", "probes", "--no-run"]);
    cargo.arg("--message-format=json").stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let mut tests = None;
    for line in BufReader::new(child.stdout.take().context("it was piped")?).lines() {
        let message: serde_json::Value = serde_json::from_str(&line?).unwrap_or_default();
        if message["target"]["name"] == "probes" && message["executable"].is_string() {
            tests = message["executable"].as_str().map(PathBuf::from);
        }
    }
    ensure!(child.wait()?.success(), "building the probe tests failed");
    let Some(tests) = tests else { bail!("cargo did not say where the probe tests are") };
    Ok(vec![agent, tools::built("weir-vm-init"), tools::built("weir-matrix"), tests])
}
