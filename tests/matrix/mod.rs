//! The confusion matrix: each cause of a failed connection made for real, and what the running agent says of it.
//!
//! Every cause has a pair of pods of its own (a [`world::Lane`]) for each place it can be in, so that all of them run at
//! once in one mesh. Two agents watch the same packets: for one the policies in its manifests explain a denial, for the
//! other they admit everything; with each round they change places, so that nothing seen before counts.

pub mod bpf;
pub mod cgroup;
mod conntrack;
pub mod document;
pub mod load;
mod nfq;
mod programs;
pub mod report;
mod routes;
mod rules;
pub mod run;
mod sockets;
pub mod table;
pub mod traffic;
pub mod world;

use std::any::Any;
use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::clients::Waiting;
use crate::fixture::Protocol;
use crate::ipv6::Family;

/// Keeps a cause in force for as long as it lives.
pub type Held = Option<Box<dyn Any + Send + Sync>>;

/// Where a cause sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the client's own network namespace.
    ClientPod,
    /// On the client's node; the server is on another one.
    SourceNode,
    /// On the server's node; the client is on another one.
    DestinationNode,
    /// On the node of both.
    OneNode,
    /// In the server's own network namespace.
    ServerPod,
    /// On a node that this kernel is not.
    FarNode,
}

/// What is true of a cause, and with it what may be said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// Requests die by a means of policies, and the kernel shows it: `denied` if the policies do not admit, else
    /// `unexplained`.
    Policy,
    /// Requests die by a means of policies that the kernel does not show, for this reason.
    Hidden(&'static str),
    /// Answers die by a means of policies: the request got through, so no policy of the request is accused.
    Answer,
    /// No policy at all.
    Fault,
    /// The connection stands; what follows is not the agent's to judge.
    Works,
}

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Gives up after a second and a third: one SYN more.
    Usual,
    /// Gives up after a moment.
    GivesUp,
    /// Gives up after more than three seconds.
    TimesOut,
    /// Gives up after many seconds.
    WaitsLong,
    /// Waits until the kernel gives up.
    KernelTimesOut,
    /// From inside the cause's cgroup.
    InCgroup,
    /// Sends much more than a packet once connected.
    SendsMuch,
    /// Through a local proxy that connects on its own behalf.
    ThroughProxy,
}

/// A cause.
#[derive(Debug, Clone, Copy)]
pub struct Cause {
    /// Its name.
    pub id: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// What is true of it.
    pub truth: Truth,
    /// Drop classes that may be reported; `none` where no drop is.
    pub classes: &'static [&'static str],
    /// The hook of netfilter, where there is one: no other may be reported. A stack that was held back tells none.
    pub hook: Option<&'static str>,
    /// Outcomes that may be reported of a TCP connect; empty where it has no TCP.
    pub tcp: &'static [&'static str],
    /// Outcomes that may be reported of a UDP query; empty where it has no UDP.
    pub udp: &'static [&'static str],
    /// Where it can be.
    pub places: &'static [Place],
    /// Address families it exists in.
    pub families: &'static [Family],
    /// Brings it about.
    pub setup: fn(&world::Site<'_>) -> Result<Held>,
    /// What the client does.
    pub act: Act,
    /// Why a kernel that gives no drop a reason does not show it.
    pub needs_reasons: Option<&'static str>,
}

/// Which policies an agent was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// None: everything is admitted.
    Admits,
    /// The clients' egress is isolated and nothing admitted.
    DoesNotAdmit,
}

/// What an agent said of one pair of pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Said {
    /// State of the pair; empty if there was no such pair.
    pub state: String,
    /// Outcome of the evidence; empty without evidence.
    pub outcome: String,
    /// Class of its drop.
    pub class: String,
    /// Netfilter's hook of its drop; empty where the stack did not show it.
    #[serde(default)]
    pub hook: String,
    /// Reason of its drop.
    pub reason: String,
    /// Function of its drop.
    pub location: String,
    /// The answer was dropped.
    pub reply: bool,
}

/// One cell of the matrix.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// The cause.
    pub cause: String,
    /// Where it is.
    pub place: Place,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Transport.
    pub protocol: Protocol,
    /// `blocking` or `non-blocking`.
    pub connect: String,
    /// The policies.
    pub model: Model,
    /// What the client was told.
    pub client: String,
    /// What was reported.
    pub said: Said,
    /// States that are right.
    pub allowed: Vec<String>,
    /// What is wrong with it; empty if nothing is.
    pub faults: Vec<String>,
}

impl Cause {
    /// What is true of it on a kernel that has drop reasons, or none.
    #[must_use]
    pub fn on(self, reasons: bool) -> Self {
        match self.needs_reasons {
            Some(why) if !reasons => Self {
                truth: Truth::Hidden(why),
                classes: &["other", "normal"],
                tcp: &["timed-out", "dropped"],
                udp: &["no-reply", "dropped"],
                ..self
            },
            _ => self,
        }
    }

    /// The states that are right.
    pub fn allowed(&self, model: Model) -> Vec<&'static str> {
        let policy_class = self.classes.iter().any(|class| policy_capable(class));
        match (self.truth, model) {
            // On a machine that is busy a moment is long, and then nothing has answered for long enough to say so.
            (_, Model::DoesNotAdmit) if self.act == Act::GivesUp => vec!["at-risk", "predicted", "unknown"],
            (_, Model::Admits) if self.act == Act::GivesUp => vec!["silent", "failing", "unknown"],
            (Truth::Policy, Model::DoesNotAdmit) => vec!["denied"],
            (Truth::Policy | Truth::Answer, Model::Admits) => vec!["unexplained"],
            (Truth::Answer, Model::DoesNotAdmit) => vec!["predicted"],
            (Truth::Hidden(_) | Truth::Fault, Model::DoesNotAdmit) if !self.shown() => vec!["at-risk", "unknown"],
            (Truth::Hidden(_) | Truth::Fault, Model::DoesNotAdmit) => vec!["predicted", "unknown"],
            (Truth::Hidden(_) | Truth::Fault, Model::Admits) if !self.shown() => vec!["silent", "unknown"],
            (Truth::Fault, Model::Admits) if policy_class => vec!["unexplained", "failing", "unknown"],
            (Truth::Hidden(_) | Truth::Fault, Model::Admits) => vec!["failing", "unknown"],
            (Truth::Works, Model::DoesNotAdmit) => vec!["unenforced"],
            (Truth::Works, Model::Admits) => vec!["verified"],
        }
    }

    /// Whether an attempt is seen that says something.
    pub fn shown(&self) -> bool {
        !matches!(self.tcp, ["none"] | ["cancelled", ..])
    }

    /// The outcomes that are right; empty if there is no such cell.
    pub fn outcomes(&self, protocol: Protocol) -> &'static [&'static str] {
        match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        }
    }

    /// What is wrong with what an agent said.
    pub fn faults(&self, model: Model, protocol: Protocol, said: &Said) -> Vec<String> {
        let mut faults = Vec::new();
        if said.outcome.is_empty() && self.shown() && said.state != "unknown" {
            faults.push("no evidence".to_owned());
        }
        let allowed = self.allowed(model);
        if !allowed.contains(&said.state.as_str()) {
            faults.push(format!("reported {:?}, right is {}", said.state, allowed.join(" or ")));
        }
        let outcomes = self.outcomes(protocol);
        // A state without evidence stands for no outcome.
        if !said.outcome.is_empty() && !outcomes.contains(&said.outcome.as_str()) {
            faults.push(format!("outcome {:?}, right is {}", said.outcome, outcomes.join(" or ")));
        }
        if !said.class.is_empty() && !self.classes.contains(&said.class.as_str()) {
            faults.push(format!("drop class {:?}, right is {}", said.class, self.classes.join(" or ")));
        }
        if !said.hook.is_empty() && self.hook != Some(said.hook.as_str()) {
            faults.push(format!("hook {:?}, right is {}", said.hook, self.hook.unwrap_or("none")));
        }
        faults
    }

    /// Whether what was said is below the floor: an accusation without a policy, or a policy's drop missed.
    pub fn below_floor(&self, model: Model, state: &str) -> bool {
        match self.truth {
            Truth::Policy => !self.allowed(model).contains(&state),
            Truth::Hidden(_) | Truth::Answer | Truth::Fault | Truth::Works => state == "denied",
        }
    }
}

/// Classes of drops that a policy may be behind (DESIGN: drop class).
pub fn policy_capable(class: &str) -> bool {
    matches!(class, "netfilter" | "nfqueue" | "tc" | "netkit" | "xdp" | "ovs" | "cgroup")
}

/// The word of the report.
pub fn connect_word(waiting: Waiting) -> &'static str {
    match waiting {
        Waiting::NonBlocking => "non-blocking",
        Waiting::Blocking => "blocking",
    }
}

/// The word of the report.
pub fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientPod => "client pod",
            Self::SourceNode => "source node",
            Self::DestinationNode => "destination node",
            Self::OneNode => "one node",
            Self::ServerPod => "server pod",
            Self::FarNode => "far node",
        })
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admits => "admits",
            Self::DoesNotAdmit => "does not admit",
        })
    }
}
