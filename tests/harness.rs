//! The harness held against its own fixtures, without the engine: what its rules do to real packets must be what the
//! fixtures say is right. Needs root.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use harness::fixture::fixtures_dir;
use harness::{DriveOptions, Enforcement, Family, Fixture, Mesh, Verdict};

/// Drives every flow of a fixture in every state; a fixture's flow that cannot be carried is said.
fn ground_truth(fixtures: &[Fixture]) -> Result<()> {
    let mut by_cluster: BTreeMap<PathBuf, Vec<&Fixture>> = BTreeMap::new();
    for fixture in fixtures {
        by_cluster.entry(fixture.cluster_file.clone()).or_default().push(fixture);
    }
    let mut wrong = Vec::new();
    for (file, fixtures) in by_cluster {
        let started = Instant::now();
        let flows: Vec<_> = fixtures.iter().flat_map(|fixture| fixture.flows.clone()).collect();
        let mesh = Mesh::with(&fixtures[0].cluster, &flows, &Default::default())?;
        println!("{}: up in {:?}", file.display(), started.elapsed());
        for fixture in fixtures {
            wrong.extend(drive_states(&mesh, fixture)?);
        }
    }
    ensure!(wrong.is_empty(), "{} flows differ from their fixture:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn drive_states(mesh: &Mesh, fixture: &Fixture) -> Result<Vec<String>> {
    let options = DriveOptions::default();
    let mut wrong = Vec::new();
    for state in &fixture.states {
        let started = Instant::now();
        mesh.apply_policies(&state.policies, Enforcement::Drop)?;
        let applied = started.elapsed();
        let mut flows = Vec::new();
        for flow in &fixture.flows {
            match mesh.cannot_carry(flow, &options) {
                Some(reason) => println!("SKIPPED {} {}: {reason}", fixture.name, flow.id),
                None => flows.push(flow.clone()),
            }
        }
        let results = mesh.drive(&flows, &options)?;
        for (flow, result) in flows.iter().zip(&results) {
            let Some(expected) = flow.results.get(&state.name) else { continue };
            if result.outcome.reachable() != (expected.verdict == Verdict::Allowed) {
                wrong.push(format!(
                    "{} {} {}: {} -> {} at {} is {:?}, got {}",
                    fixture.name, state.name, flow.id, flow.from, flow.to, result.dialled, expected.verdict, result.outcome
                ));
            }
        }
        println!("  {} {}: {} flows, policies in {applied:?}, all in {:?}", fixture.name, state.name, flows.len(), started.elapsed());
    }
    Ok(wrong)
}

#[test]
fn scenarios() -> Result<()> {
    ground_truth(&Fixture::load_all(&fixtures_dir().join("scenarios"))?)
}

#[test]
fn gotchas() -> Result<()> {
    ground_truth(&Fixture::load_all(&fixtures_dir().join("gotchas"))?)
}
