//! The harness held against its own fixtures, without the engine: what its rules do to real packets must be what the
//! fixtures say is right. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::fixture::{ServicePort, fixtures_dir, shared_dir};
use harness::netns::{self, Netns};
use harness::{
    Attempt, Direction, DriveOptions, End, Enforcement, Family, FarAnswer, Fixture, Flow, FlowResult, Mesh,
    MeshOptions, Outcome, Protocol, Side, State, Verdict, Waiting,
};

#[test]
fn scenarios_are_enforced_as_expected() -> Result<()> {
    ground_truth(&Fixture::load_all(&fixtures_dir().join("scenarios"))?, DriveOptions::default())
}

#[test]
fn gotchas_are_enforced_as_expected() -> Result<()> {
    ground_truth(&Fixture::load_all(&fixtures_dir().join("gotchas"))?, DriveOptions::default())
}

#[test]
fn published_policies_are_enforced_as_expected() -> Result<()> {
    for name in ["istio-upstream", "kyma-managed"] {
        match shared_dir(name) {
            Some(dir) => ground_truth(&Fixture::load_all(&dir)?, DriveOptions::default())?,
            None => println!("SKIPPED {name}: its fixtures do not come with the source (WEIR_SHARED)"),
        }
    }
    Ok(())
}

#[test]
fn scenarios_are_the_same_in_ipv6() -> Result<()> {
    let mut fixtures = Fixture::load_all(&fixtures_dir().join("scenarios"))?;
    // A block of IPv4 addresses means nothing to the same flow in IPv6.
    for fixture in &mut fixtures {
        fixture.states.retain(|state| !has_block(state));
    }
    fixtures.retain(|fixture| !fixture.states.is_empty());
    ensure!(fixtures.len() >= 5, "only {} scenarios are without blocks", fixtures.len());
    ground_truth(&fixtures, DriveOptions { family: Some(Family::V6), ..DriveOptions::default() })
}

#[test]
fn blocking_clients_see_the_same() -> Result<()> {
    let fixture = scenario("01-sidecar-injection")?;
    ground_truth(&[fixture], DriveOptions { waiting: Waiting::Blocking, ..DriveOptions::default() })
}

#[test]
fn rejected_flows_are_refused() -> Result<()> {
    let fixture = scenario("00-control-plane-install")?;
    let mesh = Mesh::up(&fixture)?;
    let state = fixture.state("before")?;
    let denied: Vec<Flow> = flows_with(&fixture, state, Verdict::Denied);
    ensure!(denied.iter().any(|flow| flow.protocol == Protocol::Udp), "no UDP flow is denied");
    for enforcement in [Enforcement::Reject, Enforcement::RejectWithReset] {
        mesh.apply_policies(&state.policies, enforcement)?;
        for family in [Family::V4, Family::V6] {
            for waiting in [Waiting::NonBlocking, Waiting::Blocking] {
                // An ICMP error that arrives while connect() still holds the socket waits in sk_err_soft
                // (net/ipv4/tcp_ipv4.c, net/ipv6/tcp_ipv6.c: tcp_v4_err, tcp_v6_err). Only poll() on an IPv4 socket is
                // woken by it; the others learn of the next one, which answers the first retransmission after 1 s.
                let soft = (family, waiting) != (Family::V4, Waiting::NonBlocking);
                let late = enforcement == Enforcement::Reject && soft;
                let options = DriveOptions { family: Some(family), waiting, timeout: Duration::from_secs(4) };
                for result in mesh.drive(&denied, &options)? {
                    let in_time =
                        late && result.protocol == Protocol::Tcp || result.elapsed < Duration::from_millis(900);
                    ensure!(
                        result.outcome == Outcome::Refused && in_time,
                        "{enforcement:?} {family:?} {waiting:?}: {result:?}"
                    );
                }
            }
        }
    }
    mesh.remove_policies()?;
    for result in mesh.drive(&denied, &DriveOptions::default())? {
        ensure!(result.outcome.reachable(), "no policy is in force, yet {result:?}");
    }
    Ok(())
}

#[test]
fn everything_is_removed_after_a_panic() -> Result<()> {
    let fixture = scenario("01-sidecar-injection")?;
    let mut run = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mesh = Mesh::up(&fixture).unwrap();
        run = mesh.run_id().to_owned();
        assert!(names(&run).len() > fixture.cluster.pods.len() / 2);
        panic!("as meant");
    }));
    ensure!(panicked.is_err());
    ensure!(names(&run).is_empty(), "left over: {:?}", names(&run));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&run), "a namespace is still mounted");
    Ok(())
}

#[test]
fn leftovers_of_ended_processes_are_swept() -> Result<()> {
    let mut ended = Command::new("true").spawn()?;
    let pid = ended.id();
    ended.wait()?;
    let dead = format!("weir-{pid}-1-0.node-a");
    // The file of a namespace that nobody removes, as a killed process leaves it.
    std::mem::forget(Netns::create(std::slice::from_ref(&dead))?);
    let mesh = Mesh::up(&scenario("01-sidecar-injection")?)?;
    ensure!(names(&dead).is_empty(), "a new mesh did not sweep");
    let before = names(mesh.run_id());
    netns::sweep();
    ensure!(names(mesh.run_id()) == before, "a living mesh was swept");
    Ok(())
}

#[test]
fn meshes_side_by_side_do_not_meet() -> Result<()> {
    let fixture = scenario("02-sidecar-to-sidecar")?;
    let options = DriveOptions::default();
    std::thread::scope(|scope| {
        let running: Vec<_> = fixture
            .states
            .iter()
            .map(|state| {
                let fixture = &fixture;
                scope.spawn(move || {
                    let mesh = Mesh::up(fixture)?;
                    mesh.apply_policies(&state.policies, Enforcement::Drop)?;
                    check(&mesh, fixture, state, &mesh.drive(&fixture.flows, &options)?)
                })
            })
            .collect();
        let wrong: Vec<String> = running.into_iter().map(|it| it.join().unwrap()).collect::<Result<Vec<_>>>()?.concat();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

#[test]
fn far_nodes_answer_as_told() -> Result<()> {
    let fixture = scenario("01-sidecar-injection")?;
    let by_id = |id: &str| fixture.flows.iter().find(|flow| flow.id == id).cloned().context("no such flow");
    let mut tcp = by_id("sc-07-client-to-httpbin")?;
    let udp = by_id("sc-03-dns-udp")?;
    // From the node that stays to the one that is far.
    tcp.from = End::Pod("my-namespace/httpbin-686d9dbbf6-b5c7d".to_owned());
    let far_pod = fixture
        .cluster
        .pods
        .iter()
        .find(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("node-b"));
    let far_pod = far_pod.context("no pod on node-b")?;
    let far_pod = End::Pod(harness::objects::key_of(&far_pod.metadata));
    let flows: Vec<Flow> =
        [tcp, udp].into_iter().map(|flow| Flow { to: far_pod.clone(), via_service: None, ..flow }).collect();
    let unreachable = Outcome::Unreachable(nix::errno::Errno::EHOSTUNREACH);
    let prohibited = Outcome::Failed(nix::errno::Errno::EACCES);
    for (answer, in_v4, in_v6) in [
        (FarAnswer::Discard, [Outcome::GaveUp, Outcome::NoReply], [Outcome::GaveUp, Outcome::NoReply]),
        (FarAnswer::Closed, [Outcome::Refused; 2], [Outcome::Refused; 2]),
        // UDP sockets are not told of an unreachable host (net/ipv4/icmp.c: icmp_err_convert, not fatal), but are of
        // what is prohibited, by another error in each family (also net/ipv6/icmp.c: icmpv6_err_convert).
        (FarAnswer::Unreachable, [unreachable, Outcome::NoReply], [unreachable, Outcome::NoReply]),
        (FarAnswer::Prohibited, [unreachable; 2], [prohibited; 2]),
        (FarAnswer::Serve, [Outcome::Established, Outcome::Replied], [Outcome::Established, Outcome::Replied]),
    ] {
        let far = vec![("node-b".to_owned(), answer)];
        let mesh = Mesh::with(&fixture.cluster, &flows, &MeshOptions { far })?;
        for (family, expected) in [(Family::V4, in_v4), (Family::V6, in_v6)] {
            let before = mesh.far_packets();
            // Long enough for a second answer, if the first comes while connect() still holds the socket.
            let timeout = Duration::from_millis(2500);
            let options = DriveOptions { family: Some(family), timeout, ..DriveOptions::default() };
            let results = mesh.drive(&flows, &options)?;
            let outcomes: Vec<Outcome> = results.iter().map(|result| result.outcome).collect();
            ensure!(outcomes == expected, "{answer:?} in {family:?}: {outcomes:?}");
            ensure!(mesh.far_packets() >= before + 2, "the packets did not leave");
        }
    }
    Ok(())
}

#[test]
fn servers_and_links_can_fail() -> Result<()> {
    let fixture = scenario("01-sidecar-injection")?;
    let mesh = Mesh::up(&fixture)?;
    let flow = fixture.flows.iter().find(|flow| flow.protocol == Protocol::Tcp && flow.via_service.is_some());
    let flow = flow.context("no TCP flow")?.clone();
    let outcome = || anyhow::Ok(mesh.drive(std::slice::from_ref(&flow), &DriveOptions::default())?[0].outcome);
    ensure!(outcome()? == Outcome::Established);
    ensure!(mesh.stop_listening(&flow.to, flow.protocol, flow.port)?, "there was no server");
    ensure!(outcome()? == Outcome::Refused, "{:?}", outcome());
    mesh.listen(&flow.to, flow.protocol, flow.port)?;
    ensure!(outcome()? == Outcome::Established);
    mesh.stall(&flow.to, flow.port)?;
    ensure!(outcome()? == Outcome::GaveUp, "a full queue answered");
    let (node, device) = mesh.node_side(&flow.to)?;
    mesh.stop_listening(&flow.to, flow.protocol, flow.port)?;
    mesh.listen(&flow.to, flow.protocol, flow.port)?;
    node.ip(&format!("link set {device} down\n"))?;
    ensure!(!outcome()?.reachable(), "reached through a device that is down");
    Ok(())
}

#[test]
fn one_client_reaches_each_endpoint_of_a_service() -> Result<()> {
    let fixture = scenario("01-sidecar-injection")?;
    let dns = fixture.flows.iter().find(|flow| flow.protocol == Protocol::Udp).context("no UDP flow")?;
    let flows: Vec<Flow> = ["kube-system/coredns-a", "kube-system/coredns-b", "kube-system/coredns-a"]
        .map(|pod| Flow { to: End::Pod(pod.to_owned()), ..dns.clone() })
        .into();
    let mesh = Mesh::up(&fixture)?;
    for (flow, result) in flows.iter().zip(mesh.drive(&flows, &DriveOptions::default())?) {
        ensure!(result.reached == Some(mesh.host_name(&flow.to)?), "{result:?}");
    }
    let stranger = Flow { to: End::Pod("monitoring/prometheus-0".to_owned()), ..dns.clone() };
    let reason =
        mesh.cannot_carry(&stranger, &DriveOptions::default()).context("driven to a pod not of the service")?;
    ensure!(reason.contains("no endpoint"), "{reason}");
    Ok(())
}

#[test]
fn a_service_can_lead_a_pod_to_itself() -> Result<()> {
    let fixture = scenario("01-sidecar-injection")?;
    let flow = fixture.flows.iter().find(|flow| flow.id == "sc-07-client-to-httpbin").context("no such flow")?;
    let flow = Flow { from: flow.to.clone(), ..flow.clone() };
    let mesh = Mesh::up(&fixture)?;
    mesh.apply_policies(&fixture.state("before")?.policies, Enforcement::Drop)?;
    for family in [Family::V4, Family::V6] {
        let options = DriveOptions { family: Some(family), ..DriveOptions::default() };
        let result = &mesh.drive(std::slice::from_ref(&flow), &options)?[0];
        ensure!(result.outcome == Outcome::Established, "{result:?}");
        ensure!(result.reached == Some(mesh.host_name(&flow.to)?), "{result:?}");
    }
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses() -> Result<()> {
    let mut fixture = scenario("01-sidecar-injection")?;
    let flow = fixture.flows.iter().find(|flow| flow.via_service.is_some()).context("no such flow")?.clone();
    let ServicePort { service, port } = flow.via_service.clone().context("no service")?;
    for candidate in &mut fixture.cluster.services {
        if harness::objects::key_of(&candidate.metadata) == service
            && let Some(spec) = &mut candidate.spec
        {
            spec.selector = Some(BTreeMap::from([("app".to_owned(), "nobody".to_owned())]));
        }
    }
    let mesh = Mesh::up(&fixture)?;
    for address in mesh.cluster.service(&service).and_then(|it| it.spec.as_ref()).iter().flat_map(|it| &it.cluster_ips)
    {
        for address in address {
            let to = SocketAddr::new(address.parse::<IpAddr>()?, port);
            let timeout = Duration::from_secs(4);
            let attempted = mesh.attempt(&flow.from, &Attempt { timeout, ..Attempt::new(flow.protocol, to) })?;
            ensure!(attempted.outcome == Outcome::Refused, "{to}: {attempted:?}");
        }
    }
    Ok(())
}

#[test]
fn nothing_leads_out_of_the_mesh() -> Result<()> {
    let fixture = scenario("00-control-plane-install")?;
    let mesh = Mesh::up(&fixture)?;
    for (name, namespace) in mesh.namespaces() {
        let devices = namespace.tool("ip", &["-o", "link", "show"], "")?;
        for line in devices.lines() {
            let device = line.split_whitespace().nth(1).unwrap_or_default();
            // Both ends of every link are in namespaces of the mesh: none is in this process's own.
            ensure!(device == "lo:" || line.contains("link-netns weir-"), "{name} has {line}");
            ensure!(!line.contains("link-netnsid"), "{name} leads to a namespace without a name: {line}");
        }
    }
    Ok(())
}

/// Drives every flow of fixtures in every state; one mesh per cluster file. First without policies: everything must be
/// reachable then, or a missing answer later would prove nothing.
fn ground_truth(fixtures: &[Fixture], options: DriveOptions) -> Result<()> {
    let mut by_cluster: BTreeMap<PathBuf, Vec<&Fixture>> = BTreeMap::new();
    for fixture in fixtures {
        by_cluster.entry(fixture.cluster_file.clone()).or_default().push(fixture);
    }
    let groups: Vec<_> = by_cluster.into_values().collect();
    let mut wrong = Vec::new();
    // Nearly all of the time is spent waiting for what does not come, so several meshes wait side by side.
    for side_by_side in groups.chunks(4) {
        let found: Result<Vec<_>> = std::thread::scope(|scope| {
            let running: Vec<_> =
                side_by_side.iter().map(|fixtures| scope.spawn(|| drive_cluster(fixtures, &options))).collect();
            running.into_iter().map(|it| it.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        wrong.extend(found?.concat());
    }
    ensure!(wrong.is_empty(), "{} differences from the fixtures:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// All states of the fixtures of one cluster file.
fn drive_cluster(fixtures: &[&Fixture], options: &DriveOptions) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let started = Instant::now();
    let flows: Vec<Flow> = fixtures.iter().flat_map(|fixture| fixture.flows.clone()).collect();
    let mesh = Mesh::with(&fixtures[0].cluster, &flows, &MeshOptions::default())?;
    let up = started.elapsed();
    ensure!(up < Duration::from_secs(10), "{} took {up:?} to come up", fixtures[0].name);
    for fixture in fixtures {
        let flows = carried(&mesh, fixture, options);
        mesh.remove_policies()?;
        for (flow, result) in flows.iter().zip(mesh.drive(&flows, options)?) {
            if !result.outcome.reachable() || !reached_right(&mesh, flow, &result) {
                wrong.push(format!("{} without policies: {result:?}", fixture.name));
            }
        }
        for state in &fixture.states {
            mesh.apply_policies(&state.policies, Enforcement::Drop)?;
            wrong.extend(check(&mesh, fixture, state, &mesh.drive(&flows, options)?)?);
            println!("{} {}: {} flows, up in {up:?}", fixture.name, state.name, flows.len());
        }
    }
    Ok(wrong)
}

/// Compares results with a state's verdicts, and the counters of the rules with the sides that deny.
fn check(mesh: &Mesh, fixture: &Fixture, state: &State, results: &[FlowResult]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut denying = BTreeSet::new();
    for result in results {
        let flow = fixture.flows.iter().find(|flow| flow.id == result.id).context("a result of no flow")?;
        let expected = flow.results.get(&state.name).with_context(|| format!("{} has no such state", flow.id))?;
        let right = match expected.verdict {
            Verdict::Allowed => result.outcome.reachable() && reached_right(mesh, flow, result),
            Verdict::Denied => matches!(result.outcome, Outcome::GaveUp | Outcome::NoReply),
        };
        if !right {
            wrong.push(format!("{} {}: {:?} expected, {result:?}", fixture.name, state.name, expected.verdict));
        }
        // The source's side comes first: what it does not admit never arrives at the other.
        match (&flow.from, &flow.to) {
            (End::Pod(pod), _) if expected.egress == Side::Denied => drop(denying.insert((pod.clone(), true))),
            (_, End::Pod(pod)) if expected.ingress == Side::Denied => drop(denying.insert((pod.clone(), false))),
            _ => {}
        }
    }
    let denials = mesh.denials()?;
    let counted: BTreeSet<(String, bool)> =
        denials.iter().map(|it| (it.pod.clone(), it.direction == Direction::Egress)).collect();
    if counted != denying {
        wrong.push(format!("{} {}: rules of {counted:?} denied, not {denying:?}", fixture.name, state.name));
    }
    Ok(wrong)
}

/// Whether the host that answered is the one the flow means. An address that every node has is only good on one.
fn reached_right(mesh: &Mesh, flow: &Flow, result: &FlowResult) -> bool {
    match mesh.host_name(&flow.to) {
        Ok(name) => result.reached == Some(name),
        Err(_) => result.reached.is_some(),
    }
}

fn carried(mesh: &Mesh, fixture: &Fixture, options: &DriveOptions) -> Vec<Flow> {
    let mut flows = Vec::new();
    for flow in &fixture.flows {
        match mesh.cannot_carry(flow, options) {
            Some(reason) => println!("SKIPPED {} {}: {reason}", fixture.name, flow.id),
            None => flows.push(flow.clone()),
        }
    }
    flows
}

fn scenario(name: &str) -> Result<Fixture> {
    Fixture::load(&fixtures_dir().join("scenarios").join(name))
}

fn flows_with(fixture: &Fixture, state: &State, verdict: Verdict) -> Vec<Flow> {
    let is = |flow: &&Flow| flow.results.get(&state.name).is_some_and(|expected| expected.verdict == verdict);
    fixture.flows.iter().filter(is).cloned().collect()
}

fn has_block(state: &State) -> bool {
    state.policies.iter().any(|policy| serde_json::to_string(policy).is_ok_and(|text| text.contains("ipBlock")))
}

/// Names below /run/netns with a prefix.
fn names(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new("/run/netns")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}
