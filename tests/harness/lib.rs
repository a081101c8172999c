//! The test harness: topologies of network namespaces, servers, clients and a small network plugin of its own.
//!
//! A [`Mesh`] is a cluster of a [`Fixture`] with real packets: [`Mesh::up`] builds it, [`Mesh::apply_policies`] puts
//! NetworkPolicies into force with nftables, [`Mesh::drive`] makes the connections of the fixture's flows and says what
//! came of each. Everything is written from the Kubernetes specifications; no code of the engine is used, so that the
//! two can be held against each other.

pub mod agent;
pub mod aims;
pub mod apiserver;
pub mod clients;
pub mod cni;
pub mod dns;
pub mod drive;
pub mod far;
pub mod fixture;
pub mod ipv6;
pub mod loaded;
#[path = "../matrix/mod.rs"]
pub mod matrix;
pub mod mesh;
pub mod netns;
pub mod objects;
pub mod outcome;
pub mod rehearsal;
pub mod servers;
pub mod terminal;
pub mod tls;
pub mod topology;
pub mod usage;

pub use agent::{Agent, AgentOptions};
pub use clients::{Attempt, Attempted, Waiting};
pub use cni::{Denials, Direction, Enforcement};
pub use drive::DriveOptions;
pub use far::FarAnswer;
pub use fixture::{End, Expected, Fixture, Flow, Protocol, Side, State, Verdict};
pub use ipv6::Family;
pub use mesh::{Mesh, MeshOptions};
pub use objects::Objects;
pub use outcome::{FlowResult, Outcome};
pub use rehearsal::{Comparison, Rehearsal};
pub use terminal::Terminal;
