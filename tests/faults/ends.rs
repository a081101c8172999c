//! SIGTERM while something is under way: a list, an outage of the API server, a scrape, candidates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::apiserver::{ApiServer, Fault, Rule};
use harness::{Agent, AgentOptions, agent};
use tokio::runtime::Runtime;

use super::{PATIENCE, deny, follower, istiod, namespace, pod, until};

/// Ends in good order, and soon.
fn ends(agent: Agent, what: &str) -> Result<()> {
    let (socket, log) = (agent.socket(), agent.log());
    let ended = agent.stop().with_context(|| format!("{what}: {log}"))?;
    ensure!(ended.success(), "{what}: {ended}: {log}");
    ensure!(!socket.exists(), "{what}: the socket is still there");
    Ok(())
}

#[test]
fn a_list_under_way_does_not_hold_it_up() -> Result<()> {
    let runtime = Runtime::new()?;
    let server = runtime.block_on(ApiServer::start())?;
    server.fault(Rule::all(Fault::Slow(Duration::from_secs(600))));
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, None, None)?;
    let path = kubeconfig.to_str().context("a path that is no text")?;
    let arguments = ["--kubeconfig", path, "--node", "node-a"].map(str::to_owned).to_vec();
    let agent = Agent::launch(&AgentOptions { binary: agent::binary()?, manifests: None, arguments })?;
    // It runs, has asked, and is not answered.
    until("it runs", &agent, || Ok(agent.get("/livez").is_ok_and(|(status, _)| status == 200)))?;
    until("it has asked", &agent, || Ok(!server.requests().is_empty()))?;
    ensure!(agent.get("/readyz")?.0 == 503, "not ready without a list");
    ends(agent, "the first list")?;

    // A list anew, after all was known and then forgotten by the server.
    let (server, agent, _folder) = follower(&runtime, &[])?;
    server.try_apply(namespace("istio-system"))?;
    server.fault(Rule::all(Fault::Slow(Duration::from_secs(600))));
    let before = server.requests().len();
    server.compact();
    let lists = || server.requests().iter().skip(before).any(|line| line.contains("networkpolicies"));
    until("it lists anew", &agent, || Ok(lists()))?;
    ends(agent, "a list anew")
}

#[test]
fn an_outage_of_the_api_server_does_not_hold_it_up() -> Result<()> {
    let runtime = Runtime::new()?;
    let (mut server, agent, _folder) = follower(&runtime, &[])?;
    runtime.block_on(server.stop());
    until("the outage is known", &agent, || Ok(agent.get("/readyz")?.1.contains("old view")))?;
    ends(agent, "an outage")
}

#[test]
fn scrapes_under_way_do_not_hold_it_up() -> Result<()> {
    let runtime = Runtime::new()?;
    let (_server, agent, _folder) = follower(&runtime, &[])?;
    let (address, stop) = (agent.address(), Arc::new(AtomicBool::new(false)));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut answered = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Cut off or refused once it ends.
                    answered += u32::from(agent::get(address, "/metrics").is_ok_and(|(status, _)| status == 200));
                }
                answered
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let ended = ends(agent, "scrapes");
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let answered = reader.join().ok().context("a reader panicked")?;
        ensure!(answered > 0, "a reader was never answered");
    }
    ended
}

#[test]
fn candidates_under_judgement_do_not_hold_it_up() -> Result<()> {
    let runtime = Runtime::new()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_str().context("a path that is no text")?;
    std::fs::write(folder.path().join("next.yaml"), deny("istio-system", "next").to_string())?;
    let (server, agent, _kubeconfig) = follower(&runtime, &["--candidate", path])?;
    server.try_apply(namespace("istio-system"))?;
    server.try_apply(istiod())?;
    let labels = serde_json::json!({"security.istio.io/tlsMode": "istio"});
    server.try_apply(pod("istio-system", "web", labels, "10.99.0.3"))?;
    until("the candidate is judged", &agent, || Ok(agent.metrics()?.contains("weir_candidate_denied{")))?;
    // Policies keep coming: each time everything is judged twice.
    let begin = Instant::now();
    for n in 0..2_000 {
        server.try_apply(deny("istio-system", &format!("deny-{n}")))?;
        if begin.elapsed() > PATIENCE {
            break;
        }
    }
    ends(agent, "candidates")
}
