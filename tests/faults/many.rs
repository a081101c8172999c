//! A hundred thousand NetworkPolicies, spread over a cluster or all upon the same pods: they are taken in, and the agent
//! answers all the while. `WEIR_POLICIES` says how many; a release build takes the hundred thousand of either kind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::apiserver::ApiServer;
use harness::{Agent, AgentOptions, agent, usage};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{PATIENCE, deny, follower, istiod, namespace, pod, until};

/// The shipped liveness probe ends an agent that has not answered for a minute; far less is to be seen here.
const SILENCE: Duration = Duration::from_secs(20);

fn how_many(usual: u32) -> u32 {
    std::env::var("WEIR_POLICIES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// A pod with a sidecar: one that requires flows, which the policies upon it do not admit.
fn sidecar(namespace: &str, name: &str, address: &str) -> Value {
    pod(namespace, name, json!({"security.istio.io/tlsMode": "istio", "app": name}), address)
}

/// Of a hundred in each of a thousand namespaces, some select a pod.
#[test]
fn a_hundred_thousand_policies_in_a_thousand_namespaces_are_taken_in() -> Result<()> {
    const NAMESPACES: u32 = 1_000;
    let policies = how_many(100_000);
    let runtime = Runtime::new()?;
    let (server, agent, folder) = follower(&runtime, &[])?;
    server.try_apply(namespace("istio-system"))?;
    server.try_apply(istiod())?;
    for n in 0..NAMESPACES {
        server.try_apply(namespace(&format!("team-{n}")))?;
    }
    for n in 0..3 {
        server.try_apply(sidecar("team-0", &format!("web-{n}"), &format!("10.99.1.{n}")))?;
    }
    for n in 0..policies {
        let mut policy = deny(&format!("team-{}", n % NAMESPACES), &format!("deny-{n}"));
        policy["spec"]["podSelector"] = json!({"matchLabels": {"app": format!("web-{}", n / NAMESPACES)}});
        policy["spec"]["egress"] =
            json!([{"to": [{"namespaceSelector": {"matchLabels": {"team": format!("{}", n % 50)}}}]}]);
        server.try_apply(policy)?;
    }
    let judged =
        |pair: &Value| pair["source"]["workload"] == "web-2" && pair["policies"] == json!(["team-0/deny-2000"]);
    twice(&server, agent, &folder, policies, judged)
}

/// All in one namespace, and each selects all pods there.
#[test]
fn tens_of_thousands_of_policies_that_select_the_same_pods_are_taken_in() -> Result<()> {
    let policies = how_many(ONE_NAMESPACE);
    let runtime = Runtime::new()?;
    let (server, agent, folder) = follower(&runtime, &[])?;
    server.try_apply(namespace("istio-system"))?;
    server.try_apply(istiod())?;
    for n in 0..3 {
        server.try_apply(sidecar("istio-system", &format!("web-{n}"), &format!("10.99.1.{n}")))?;
    }
    for n in 0..policies {
        server.try_apply(deny("istio-system", &format!("deny-{n}")))?;
    }
    let named = |pair: &Value| {
        let named = pair["policies"].as_array().map_or(0, Vec::len);
        named as u64 + pair["policies_left_out"].as_u64().unwrap_or(0)
    };
    twice(&server, agent, &folder, policies, |pair| named(pair) == u64::from(policies))
}

/// What a debug build takes in within half a minute on a busy machine.
const ONE_NAMESPACE: u32 = 30_000;

/// As they come to a running agent, and at the start of one.
fn twice(
    server: &ApiServer,
    agent: Agent,
    folder: &tempfile::TempDir,
    policies: u32,
    judged: impl Fn(&Value) -> bool,
) -> Result<()> {
    settles(&agent, policies, &judged).with_context(|| format!("as they come: {}", agent.log()))?;
    ensure!(agent.stop()?.success(), "it stops in good order");
    let kubeconfig = folder.path().join("kubeconfig").to_str().context("a path that is no text")?.to_owned();
    let arguments = ["--kubeconfig", &kubeconfig, "--node", "node-a"].map(str::to_owned).to_vec();
    let begin = Instant::now();
    let agent = Agent::start(&AgentOptions { binary: agent::binary()?, manifests: None, arguments })?;
    println!("ready {:.1} s after its start", begin.elapsed().as_secs_f64());
    settles(&agent, policies, &judged).with_context(|| format!("at the start: {}", agent.log()))?;
    let asked = server.requests().iter().filter(|line| line.contains("networkpolicies")).count();
    ensure!(asked < 1_000, "{asked} requests for policies");
    ensure!(agent.stop()?.success(), "it stops in good order");
    Ok(())
}

fn settles(agent: &Agent, policies: u32, judged: impl Fn(&Value) -> bool) -> Result<()> {
    let begin = Instant::now();
    let (mut answered, mut silent) = (Instant::now(), Duration::ZERO);
    loop {
        let alive = agent.get("/livez").is_ok_and(|(status, _)| status == 200);
        silent = silent.max(answered.elapsed());
        ensure!(silent < SILENCE, "silent for {silent:?}");
        if alive {
            answered = Instant::now();
        }
        // Too busy to answer is an answer, for a while.
        let metrics = agent.metrics().unwrap_or_default();
        let line = metrics.lines().find(|l| l.starts_with("weir_cluster_objects{kind=\"NetworkPolicy\"}"));
        if line.and_then(|l| l.rsplit(' ').next()?.parse::<u32>().ok()) == Some(policies) {
            break;
        }
        ensure!(begin.elapsed() < 5 * PATIENCE, "not all are known");
        std::thread::sleep(Duration::from_millis(200));
    }
    let known = begin.elapsed();
    let mut length = 0;
    let is_judged = || {
        let snapshot = agent.snapshot()?;
        Ok(snapshot["pairs"].as_array().into_iter().flatten().any(&judged))
    };
    until("judged by all of them", agent, is_judged)?;
    // At rest it answers at once and keeps quiet; names of policies fill neither its answers nor its memory.
    until("ready", agent, || Ok(agent.get("/readyz").is_ok_and(|(status, _)| status == 200)))?;
    let (cpu, since) = (usage::processor_time(agent.pid())?, Instant::now());
    let mut slowest = Duration::ZERO;
    while since.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        let metrics = agent.metrics()?;
        slowest = slowest.max(asked.elapsed());
        length = metrics.len();
        std::thread::sleep(Duration::from_millis(500));
    }
    let busy = (usage::processor_time(agent.pid())? - cpu).as_secs_f64() / since.elapsed().as_secs_f64();
    let (memory, snapshot) = (usage::resident(agent.pid())?, agent.get("/snapshot")?.1.len());
    println!(
        "{policies} policies known after {:.1} s, longest silence {:.1} s; then {busy:.2} cores, {} MiB, slowest answer {} ms, \
         metrics {} KiB, snapshot {} KiB",
        known.as_secs_f64(),
        silent.as_secs_f64(),
        memory >> 20,
        slowest.as_millis(),
        length >> 10,
        snapshot >> 10
    );
    ensure!(length < 1 << 20, "{length} bytes of metrics");
    ensure!(snapshot < 16 << 20, "{snapshot} bytes of snapshot");
    ensure!(busy < 0.8, "{busy:.2} cores at rest");
    ensure!(memory < 1 << 30, "{memory} bytes");
    Ok(())
}
