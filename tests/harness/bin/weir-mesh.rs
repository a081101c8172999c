//! Brings a fixture up and does what it is told on standard input, one JSON line on standard output for each thing that
//! happened. Ends, and removes everything, with `quit`, at the end of the input, on SIGTERM and on SIGINT.
//!
//! Commands: `state NAME [drop|reject|reset]` and `policies FILE…` put policies into force, `none` takes them out,
//! `drive [ID…]` drives all flows or these, `manifests FILE` writes the cluster as it was built.

use std::fs;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use harness::{DriveOptions, Enforcement, Fixture, Flow, Mesh, Objects};
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

/// A mesh of network namespaces from a fixture, driven over standard input.
#[derive(Parser)]
struct Arguments {
    /// A fixture's folder, or one of its expected*.yaml files.
    fixture: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { fixture } = Arguments::parse();
    let fixture = if fixture.is_dir() { Fixture::load(&fixture)? } else { Fixture::load_expected(&fixture)? };
    let (sender, commands) = channel();
    // Before any other thread exists, so that all of them leave the signals to the one that waits.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let on_signal = sender.clone();
    thread::spawn(move || {
        let _ = signals.wait();
        let _ = on_signal.send("quit".to_owned());
    });
    let mesh = Mesh::up(&fixture)?;
    let namespaces: Vec<Value> =
        mesh.namespaces().map(|(host, namespace)| json!({ "host": host, "namespace": namespace.name() })).collect();
    print(&json!({ "event": "up", "fixture": fixture.name, "run": mesh.run_id(), "namespaces": namespaces }));
    thread::spawn(move || read_commands(&sender));
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.split_first() {
            Some((&"quit", _)) => break,
            Some((name, arguments)) => {
                if let Err(error) = run(&mesh, &fixture, name, arguments) {
                    print(&json!({ "event": "error", "command": command, "error": format!("{error:#}") }));
                }
            }
            None => {}
        }
    }
    Ok(())
}

fn read_commands(sender: &Sender<String>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        if sender.send(line).is_err() {
            return;
        }
    }
    let _ = sender.send("quit".to_owned());
}

fn run(mesh: &Mesh, fixture: &Fixture, command: &str, arguments: &[&str]) -> Result<()> {
    match (command, arguments) {
        ("state", [name]) => state(mesh, fixture, name, Enforcement::Drop),
        ("state", [name, enforcement]) => state(mesh, fixture, name, enforcement_of(enforcement)?),
        ("policies", [_, ..]) => {
            let mut policies = Vec::new();
            for file in arguments {
                policies.extend(Objects::read(Path::new(file))?.policies);
            }
            mesh.apply_policies(&policies, Enforcement::Drop)?;
            print(&json!({ "event": "policies", "count": policies.len() }));
            Ok(())
        }
        ("none", []) => {
            mesh.remove_policies()?;
            print(&json!({ "event": "policies", "count": 0 }));
            Ok(())
        }
        ("drive", ids) => drive(mesh, fixture, ids),
        ("manifests", [file]) => {
            let documents: Vec<String> = mesh.manifests().iter().map(Value::to_string).collect();
            // A JSON document is a YAML document.
            fs::write(file, documents.join("\n---\n")).with_context(|| format!("cannot write {file}"))?;
            print(&json!({ "event": "manifests", "file": file }));
            Ok(())
        }
        _ => bail!(
            "commands are: state NAME [drop|reject|reset], policies FILE…, none, drive [ID…], manifests FILE, quit"
        ),
    }
}

fn state(mesh: &Mesh, fixture: &Fixture, name: &str, enforcement: Enforcement) -> Result<()> {
    let state = fixture.state(name)?;
    mesh.apply_policies(&state.policies, enforcement)?;
    print(&json!({ "event": "policies", "state": name, "count": state.policies.len() }));
    Ok(())
}

fn enforcement_of(name: &str) -> Result<Enforcement> {
    match name {
        "drop" => Ok(Enforcement::Drop),
        "reject" => Ok(Enforcement::Reject),
        "reset" => Ok(Enforcement::RejectWithReset),
        other => bail!("policies can be enforced by drop, reject or reset, not {other}"),
    }
}

fn drive(mesh: &Mesh, fixture: &Fixture, ids: &[&str]) -> Result<()> {
    for id in ids {
        ensure!(fixture.flows.iter().any(|flow| flow.id == *id), "{} has no flow {id}", fixture.name);
    }
    let options = DriveOptions::default();
    let mut flows: Vec<Flow> = Vec::new();
    for flow in fixture.flows.iter().filter(|flow| ids.is_empty() || ids.contains(&flow.id.as_str())) {
        match mesh.cannot_carry(flow, &options) {
            Some(reason) => print(&json!({ "event": "skipped", "id": flow.id, "reason": reason })),
            None => flows.push(flow.clone()),
        }
    }
    for result in mesh.drive(&flows, &options)? {
        let mut line = serde_json::to_value(&result)?;
        line["event"] = "flow".into();
        line["reachable"] = result.outcome.reachable().into();
        line["elapsed"] = result.elapsed.as_secs_f64().into();
        print(&line);
    }
    print(&json!({ "event": "driven", "count": flows.len() }));
    Ok(())
}

fn print(line: &Value) {
    println!("{line}");
}
