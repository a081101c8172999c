//! Every fixture on real packets: each state's policies in force, each flow driven, and the running agent's pairs held against
//! what the fixture says is right: a pair for each flow with a code of the catalogue, its state, the policies it names, and no
//! accusation besides.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Enforcement, Family, Fixture, Rehearsal, agent, fixture};

const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! fixtures {
    ($($name:ident: $folder:literal,)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            rehearse(Fixture::load(&fixture::fixtures_dir().join($folder))?)
        }
    )*};
}

fixtures! {
    sidecar_to_sidecar: "scenarios/02-sidecar-to-sidecar",
    exposed_by_a_virtual_service: "scenarios/03-expose-virtualservice",
    jwt_with_jwks: "scenarios/04-jwt-jwks",
    the_webhooks_service_port: "gotchas/g01-webhook-service-port",
    peers_as_or_and_as_and: "gotchas/g02-peer-or-vs-and",
    a_pod_selector_means_its_own_namespace: "gotchas/g03-podselector-own-namespace",
    a_namespace_label_that_nobody_has: "gotchas/g04-namespace-label",
    the_node_local_dns_cache: "gotchas/g07-node-local-dns",
    ambient_hbone: "gotchas/g08-ambient-hbone",
    ambient_to_sidecar: "gotchas/g11-ambient-to-sidecar",
    a_revisioned_control_plane: "gotchas/g12-revisioned-istiod-label",
    named_ports_and_ranges: "gotchas/g14-named-port-and-endport",
    policy_types_by_default: "gotchas/g15-policytypes-default",
    the_egress_gateways_pod_port: "gotchas/g17-egress-gateway-port",
}

#[test]
fn the_control_plane_on_6443() -> Result<()> {
    let folder = fixture::fixtures_dir().join("scenarios/00-control-plane-install");
    rehearse(Fixture::load_expected(&folder.join("expected-kubeadm-6443.yaml"))?)
}

#[test]
fn istios_own_policies() -> Result<()> {
    shared("istio-upstream", "expected.yaml")
}

#[test]
fn istios_own_policies_of_1_29() -> Result<()> {
    shared("istio-upstream", "expected-1.29-empty-from.yaml")
}

#[test]
fn kymas_managed_policies() -> Result<()> {
    shared("kyma-managed", "expected.yaml")
}

#[test]
fn kymas_managed_policies_with_the_api_server_on_6443() -> Result<()> {
    shared("kyma-managed", "expected-k3d-6443.yaml")
}

fn shared(folder: &str, expected: &str) -> Result<()> {
    let Some(folder) = fixture::shared_dir(folder) else {
        println!("SKIPPED: the fixture {folder} is not part of the source; WEIR_SHARED says where it is");
        return Ok(());
    };
    rehearse(Fixture::load_expected(&folder.join(Path::new(expected)))?)
}

/// Every state of a fixture in turn.
fn rehearse(fixture: Fixture) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
    let name = fixture.name.clone();
    let states: Vec<String> = fixture.states.iter().map(|state| state.name.clone()).collect();
    let rehearsal = Rehearsal::begin(fixture, agent::binary()?, Enforcement::Drop)?;
    let mut faults = String::new();
    for (index, state) in states.iter().enumerate() {
        if index > 0 {
            rehearsal.enter(state, Enforcement::Drop)?;
        }
        let comparison = rehearsal.compare(state, Family::V4, PATIENCE)?;
        ensure!(!comparison.rows.is_empty(), "{name}: no flow was compared");
        if !comparison.faultless() {
            faults += &format!("{name}, {state}:\n{}", comparison.faults());
        }
    }
    ensure!(faults.is_empty(), "{faults}\n{}", rehearsal.agent.log());
    Ok(())
}
