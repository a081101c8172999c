//! The main job, shown: a mini-mesh of network namespaces under default-deny, the real agent beside it, real connections,
//! and what Weir says before and after the policies that open them. `cargo xtask demo` builds and starts this.

use std::io::{IsTerminal, Write as _, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Comparison, Enforcement, Family, Fixture, Rehearsal, agent, fixture, rehearsal};

/// Fixture folder, its headline, and the states shown, each with what it stands for.
type Act = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const ACTS: [Act; 2] = [
    (
        "scenarios/00-control-plane-install",
        "Istio's control plane, installed into namespaces with default-deny",
        &[("before", "only the deny-all policies"), ("after", "with the policies that a guide prints for it")],
    ),
    (
        "scenarios/01-sidecar-injection",
        "A sidecar in an application namespace with default-deny",
        &[
            ("before", "the namespace has only its deny-all policy"),
            ("after_with_dns", "15012 to istiod and DNS are opened"),
        ],
    ),
];

/// How long one state may take until the agent reports what is right.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let keep = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--keep") => true,
        Some(other) => {
            eprintln!("error: unknown argument {other:?}; the only one is --keep");
            return ExitCode::from(2);
        }
    };
    match run(keep) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(keep: bool) -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo needs root: it makes network namespaces and attaches probes");
    let binary = agent::binary()?;
    let begin = Instant::now();
    let mut right = true;
    for (number, (folder, headline, states)) in ACTS.iter().enumerate() {
        let last = number + 1 == ACTS.len();
        println!("\n━━ {}. {headline}", number + 1);
        let fixture = Fixture::load(&fixture::fixtures_dir().join(Path::new(folder)))?;
        let rehearsal = step("bringing up the mesh and the agent", || {
            Rehearsal::begin(fixture, binary.clone(), Enforcement::Drop)
        })?;
        println!(
            "  {} hosts in namespaces {}*, agent {} with metrics at http://{}/metrics",
            rehearsal.mesh.namespaces().count(),
            rehearsal.mesh.run_id(),
            rehearsal.agent.pid(),
            rehearsal.agent.address(),
        );
        for (index, (state, meaning)) in states.iter().enumerate() {
            println!("\n── {state}: {meaning}");
            if index > 0 {
                rehearsal.enter(state, Enforcement::Drop)?;
            }
            let comparison =
                step("driving every flow with real connections", || rehearsal.compare(state, Family::V4, PATIENCE))?;
            show(&comparison);
            right &= comparison.faultless();
        }
        if last && keep {
            stay(&rehearsal)?;
        }
        let status = rehearsal.agent.stop()?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
    }
    let verdict =
        if right { "both scenes showed what their fixtures say" } else { "NOT what the fixtures say, see above" };
    println!("\n{verdict} ({:.0} s)", begin.elapsed().as_secs_f64());
    Ok(right)
}

/// What the agent says of each flow that was driven, and how that compares with the fixture.
fn show(comparison: &Comparison) {
    for row in &comparison.rows {
        let Some(pair) = &row.pair else { continue };
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
        println!("  {:9} {:22} {}", text(&pair["state"]), text(&pair["flow"]), rehearsal::ends(pair));
        let policies: Vec<String> = pair["policies"].as_array().into_iter().flatten().map(text).collect();
        if !policies.is_empty() {
            println!("            no rule admits it in: {}", policies.join(", "));
        }
    }
    let denied = comparison.rows.iter().filter(|row| row.expected == "denied").count();
    let right = comparison.rows.iter().filter(|row| row.faults.is_empty()).count();
    println!(
        "  {right} of {} flows as they should be: {denied} denied, {} verified",
        comparison.rows.len(),
        comparison.rows.len() - denied
    );
    print!("{}", comparison.faults());
}

/// Runs something slow with a line that says so, and how long it took.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T>
where
    T: Send,
{
    let begin = Instant::now();
    let done = AtomicBool::new(false);
    let live = stdout().is_terminal();
    thread::scope(|scope| {
        if live {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    print!("\r  {what} … {:.0} s ", begin.elapsed().as_secs_f64());
                    drop(stdout().flush());
                    thread::sleep(Duration::from_millis(200));
                }
            });
        }
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
    .inspect(|_| {
        let start = if live { "\r" } else { "" };
        println!("{start}  {what}: {:.1} s    ", begin.elapsed().as_secs_f64());
    })
}

/// Leaves everything running until Enter, end of input or a signal.
fn stay(rehearsal: &Rehearsal) -> Result<()> {
    let socket = rehearsal.agent.socket();
    println!("\nEverything stays up. Have a look around:");
    println!("  weir status --socket {}", socket.display());
    println!("  curl http://{}/metrics", rehearsal.agent.address());
    println!("  nsenter --net=/run/netns/NAME ip addr      with NAME one of `ip netns`");
    println!("Press Enter to take it down.");
    std::io::stdin().read_line(&mut String::new()).context("standard input")?;
    Ok(())
}
