//! A fixture brought up: hosts, services, servers and policies, with real packets between them.

use std::net::IpAddr;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

use crate::clients::{Attempt, Attempted};
use crate::cni::{self, Denials, Enforcement};
use crate::drive::{self, DriveOptions, Steering};
use crate::far::{FarAnswer, FarLinks};
use crate::fixture::{End, Fixture, Flow, Protocol};
use crate::ipv6::add_ipv6;
use crate::netns::{self, Netns, RunId};
use crate::objects::Objects;
use crate::outcome::FlowResult;
use crate::servers::Servers;
use crate::topology::Topology;
use crate::topology::plan::{Host, Plan, ServerPlan};
use crate::topology::services::Services;
use crate::topology::wiring::{self, pod_device};

/// A running mesh. Dropping it stops the servers and removes every namespace.
#[derive(Debug)]
pub struct Mesh {
    /// The cluster as built: the fixture's, with IPv6 addresses added.
    pub cluster: Objects,
    pub(crate) services: Services,
    pub(crate) steering: Mutex<Steering>,
    // Dropped in this order: whatever holds a namespace open goes before the namespaces.
    servers: Servers,
    far: FarLinks,
    pub(crate) topology: Topology,
    run: RunId,
}

/// What a mesh is made of besides its fixture.
#[derive(Debug, Clone, Default)]
pub struct MeshOptions {
    /// Nodes that no namespace is made for, by name: packets to them and their pods leave through a TUN device, and
    /// what becomes of them there is not seen by this kernel.
    pub far: Vec<(String, FarAnswer)>,
}

impl Mesh {
    /// Brings up a fixture's cluster with servers and services and without any policy. Needs root.
    pub fn up(fixture: &Fixture) -> Result<Self> {
        Self::with(&fixture.cluster, &fixture.flows, &MeshOptions::default())
            .with_context(|| format!("cannot bring up {}", fixture.name))
    }

    /// Brings up a cluster and what the flows need besides: external hosts, extra servers.
    pub fn with(cluster: &Objects, flows: &[Flow], options: &MeshOptions) -> Result<Self> {
        netns::sweep();
        let mut cluster = cluster.clone();
        add_ipv6(&mut cluster);
        let services = Services::new(&cluster);
        let mut plan = Plan::new(&cluster, &services, flows)?;
        for (name, _) in &options.far {
            let node = plan.node(name).with_context(|| format!("there is no node {name}"))?;
            plan.far.insert(node);
        }
        let run = RunId::new()?;
        let topology = Topology::new(&run, plan)?;
        let far = FarLinks::attach(&topology, &options.far)?;
        let servers = Servers::start(&topology)?;
        let mesh = Self { cluster, services, steering: Mutex::default(), servers, far, topology, run };
        drive::prepare(&mesh, flows)?;
        Ok(mesh)
    }

    /// Puts policies into force, in place of those before: on each node at once.
    pub fn apply_policies(&self, policies: &[NetworkPolicy], enforcement: Enforcement) -> Result<()> {
        cni::apply(&self.topology, &self.cluster, policies, enforcement)
    }

    /// Takes all policies out of force.
    pub fn remove_policies(&self) -> Result<()> {
        cni::remove(&self.topology)
    }

    /// Which pods' policies have denied packets since [`Mesh::apply_policies`], and on which side.
    pub fn denials(&self) -> Result<Vec<Denials>> {
        cni::denials(&self.topology)
    }

    /// Drives flows with real packets, as many at once as possible, and returns their results in the same order.
    pub fn drive(&self, flows: &[Flow], options: &DriveOptions) -> Result<Vec<FlowResult>> {
        drive::drive(self, flows, options)
    }

    /// Why a flow cannot be driven in this mesh; none if it can.
    pub fn cannot_carry(&self, flow: &Flow, options: &DriveOptions) -> Option<String> {
        drive::route(self, flow, options).err().map(|error| format!("{error:#}"))
    }

    /// Makes one attempt of any kind from one end.
    pub fn attempt(&self, from: &End, attempt: &Attempt) -> Result<Attempted> {
        attempt.run(self.namespace(from)?)
    }

    /// The namespace an end lives in: a pod's own, its node's if it uses the node's network, or the outside.
    pub fn namespace(&self, end: &End) -> Result<&Netns> {
        let host = self.host(end)?;
        self.topology.namespace(host).with_context(|| format!("{end} is far: it has no namespace here"))
    }

    /// The addresses of an end.
    pub fn addresses(&self, end: &End) -> Result<&[IpAddr]> {
        Ok(self.topology.plan.addresses(self.host(end)?))
    }

    /// The name of the host an end lives in, as [`FlowResult::reached`] has it.
    pub fn host_name(&self, end: &End) -> Result<String> {
        Ok(self.topology.plan.name(self.host(end)?))
    }

    /// Starts a server on a port of a pod, node or the outside, if none is there.
    pub fn listen(&self, end: &End, protocol: Protocol, port: u16) -> Result<()> {
        self.servers.listen(&self.topology, ServerPlan { host: self.host(end)?, protocol, port })
    }

    /// Stops the server on a port: it is closed from then on. Says whether there was one.
    pub fn stop_listening(&self, end: &End, protocol: Protocol, port: u16) -> Result<bool> {
        Ok(self.servers.stop(&ServerPlan { host: self.host(end)?, protocol, port }))
    }

    /// Makes a TCP port one whose server does not accept and whose queue is full: each SYN is lost there.
    pub fn stall(&self, end: &End, port: u16) -> Result<()> {
        self.servers.stall(&self.topology, ServerPlan { host: self.host(end)?, protocol: Protocol::Tcp, port })
    }

    /// The namespace of a pod's node and the name of the pod's device in it: where network plugins put their programs
    /// and rules.
    pub fn node_side(&self, pod: &End) -> Result<(&Netns, String)> {
        let Host::Pod(index) = self.host(pod)? else { bail!("{pod} has no device of its own") };
        let node = self.topology.plan.pods[index].node;
        let namespace = self.topology.namespace(Host::Node(node)).with_context(|| format!("{pod} is far"))?;
        Ok((namespace, pod_device(index)))
    }

    /// Joins a pod to its node by a netkit device in place of its veth pair; names, addresses and routes stay.
    ///
    /// # Errors
    /// The kernel has no netkit devices.
    pub fn join_by_netkit(&self, pod: &End) -> Result<()> {
        let Host::Pod(index) = self.host(pod)? else { bail!("{pod} has no device of its own") };
        wiring::join_by_netkit(&self.topology, index)
    }

    /// All namespaces with the names of their hosts (`namespace/pod`, `node NAME`, `outside`).
    pub fn namespaces(&self) -> impl Iterator<Item = (String, &Netns)> {
        self.topology.hosts().map(|(host, namespace)| (self.topology.plan.name(host), namespace))
    }

    /// The cluster as built, as Kubernetes JSON: what an agent must be given so that it knows every address.
    pub fn manifests(&self) -> Vec<Value> {
        self.cluster.to_json()
    }

    /// The prefix of this mesh's namespaces.
    pub fn run_id(&self) -> &str {
        self.run.as_str()
    }

    /// Packets that far nodes have taken in.
    pub fn far_packets(&self) -> u64 {
        self.far.packets()
    }

    pub(crate) fn host(&self, end: &End) -> Result<Host> {
        let host = self.topology.plan.end_host(end, &self.cluster)?;
        host.with_context(|| format!("{end} is no host of this mesh"))
    }
}
