//! Everything a machine with root can do: the probes built and run on this kernel, real packets, the pure tests, format,
//! lints and house rules; one summary line at the end.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{build_ebpf, setup, tools, vm_test};

/// `cargo xtask test`
#[derive(clap::Args)]
pub struct Test {
    /// Only tests whose name contains this; leaves out format, lints, house rules and conformance.
    filter: Option<String>,
}

/// Test targets that make network namespaces and attach probes; they run one after the other, with the machine to themselves.
const ROOT_TARGETS: [&str; 11] =
    ["harness", "cni", "probes", "matrix", "e2e", "istio", "live", "faults", "node", "container", "page"];

/// Programs that the test target `alerts` starts.
const ALERT_PROGRAMS: [&str; 2] = ["prometheus", "prometheus-alertmanager"];

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    reasons: Vec<String>,
    failures: Vec<String>,
}

impl Test {
    /// Exit codes: 0 all passed, 1 something failed, 2 the tests could not be run.
    pub fn run(self) -> Result<ExitCode> {
        let Self { filter } = self;
        if !tools::is_root() {
            bail!(
                "the tests make network namespaces and attach probes: run them as root (`sudo -E cargo xtask test`); \
                 `cargo test` runs what needs no root"
            );
        }
        let begin = Instant::now();
        setup::ensure(setup::For::Tests)?;
        build_ebpf::build()?;
        let mut tally = Tally::default();
        if filter.is_none() {
            tally.check("format", tools::cargo().args(["fmt", "--all", "--check"]));
            tally.check(
                "lints",
                tools::cargo()
                    .args(["clippy", "--quiet", "--workspace", "--all-targets", "--features", "weir-tests/root"])
                    .args(["--", "--deny", "warnings"]),
            );
            tally.check("house rules", tools::cargo().args(["xtask", "tidy"]));
        }
        let mut build = tools::cargo();
        tools::run(build.args(["build", "--quiet", "--package", "weir", "--package", "weir-tests", "--bins"]))?;
        tally.cargo_test(tools::cargo().args(["test", "--workspace", "--no-fail-fast"]), filter.as_deref(), 2)?;
        let mut root = tools::cargo();
        if filter.is_none() {
            // For a container here, and for the guests below.
            match vm_test::static_agent() {
                Ok(agent) => drop(root.env("WEIR_STATIC", agent)),
                Err(error) => tally.fail(format!("static programs: {error:#}")),
            }
        }
        root.args(["test", "--package", "weir-tests", "--features", "root", "--no-fail-fast"]);
        for target in ROOT_TARGETS {
            root.args(["--test", target]);
        }
        tally.cargo_test(&mut root, filter.as_deref(), 1)?;
        if ALERT_PROGRAMS.iter().all(|program| tools::tool(program).is_some()) {
            let mut alerts = tools::cargo();
            alerts.args(["test", "--package", "weir-tests", "--features", "alerts,root", "--test", "alerts"]);
            tally.cargo_test(&mut alerts, filter.as_deref(), 1)?;
        } else {
            tally.skip(format!("alerts end to end: {} are not installed", ALERT_PROGRAMS.join(" and ")));
        }
        if filter.is_none() {
            tally.conformance();
            tally.kernels();
        }
        tally.close(begin)
    }
}

impl Tally {
    /// A command that passes or fails as a whole.
    fn check(&mut self, name: &str, command: &mut Command) {
        let begin = Instant::now();
        let good = tools::run(command);
        println!("{name}: {} ({:.0} s)", if good.is_ok() { "ok" } else { "FAILED" }, begin.elapsed().as_secs_f64());
        match good {
            Ok(()) => self.passed += 1,
            Err(error) => self.fail(format!("{name}: {error:#}")),
        }
    }

    /// Runs `cargo test …`; counts by the closing lines of its programs, prints what failed and what was skipped.
    fn cargo_test(&mut self, command: &mut Command, filter: Option<&str>, threads: usize) -> Result<()> {
        command.arg("--").args(filter).args(["--show-output", "--test-threads", &threads.to_string()]);
        println!("\n{}", tools::show(command));
        let shown = tools::show(command);
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let mut counted = (0, 0);
        let mut in_failures = false;
        for line in BufReader::new(child.stdout.take().expect("it was piped")).lines() {
            let line = line?;
            in_failures = match line.as_str() {
                "failures:" => true,
                "successes:" => false,
                other if other.starts_with("test result:") => false,
                _ => in_failures,
            };
            if let Some(result) = line.strip_prefix("test result: ") {
                let (passed, failed) = (number_before(result, " passed"), number_before(result, " failed"));
                counted = (counted.0 + passed, counted.1 + failed);
                self.skipped += number_before(result, " ignored");
                println!("{line}");
            } else if let Some(reason) = line.strip_prefix("SKIPPED: ") {
                self.skip(reason.to_owned());
            } else if in_failures || line.ends_with(" ... FAILED") {
                println!("{line}");
                if let Some(name) = line.strip_suffix(" ... FAILED") {
                    self.failures.push(name.to_owned());
                }
            }
        }
        let status = child.wait()?;
        self.passed += counted.0;
        self.failed += counted.1;
        if !status.success() && counted.1 == 0 {
            self.fail(format!("`{shown}` ended with {status}"));
        }
        Ok(())
    }

    /// The published cases, where a folder of them exists.
    fn conformance(&mut self) {
        let root = std::env::var_os("WEIR_SHARED").map_or_else(|| tools::root().join("../shared"), PathBuf::from);
        let folders: Vec<PathBuf> =
            ["cases", "fixtures"].iter().map(|name| root.join(name)).filter(|f| f.is_dir()).collect();
        if folders.is_empty() {
            self.skip("conformance: no folder of published cases ($WEIR_SHARED or ../shared)".to_owned());
            return;
        }
        self.check("conformance", tools::cargo().args(["xtask", "conformance"]).args(folders));
    }

    /// Other kernels under QEMU, where it can be had and Debian's packages can.
    fn kernels(&mut self) {
        println!("\ncargo xtask vm-test --quick");
        if let Err(error) = vm_test::possible() {
            return self.skip(format!("other kernels: {error:#}"));
        }
        match vm_test::quick() {
            Ok(verdicts) => verdicts.into_iter().for_each(|(name, ending)| match ending {
                Ok(vm_test::Ending::Passed(_)) => self.passed += 1,
                Ok(ending @ vm_test::Ending::NotFetched(_)) => self.skip(format!("kernel {name}: {ending}")),
                Ok(ending) => self.fail(format!("kernel {name}: {ending}")),
                Err(error) => self.fail(format!("kernel {name}: {error:#}")),
            }),
            Err(error) => self.fail(format!("other kernels: {error:#}")),
        }
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    fn skip(&mut self, reason: String) {
        println!("SKIPPED: {reason}");
        self.skipped += 1;
        self.reasons.push(reason);
    }

    fn close(self, begin: Instant) -> Result<ExitCode> {
        println!();
        for reason in &self.reasons {
            println!("skipped: {reason}");
        }
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("took {:.0} s", begin.elapsed().as_secs_f64());
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        Ok(if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// The number in `… 12 passed; …`.
fn number_before(text: &str, word: &str) -> u64 {
    let Some(end) = text.find(word) else { return 0 };
    text[..end].rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
