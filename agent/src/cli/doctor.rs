//! `weir doctor`: what this node's kernel offers, and what is missing.
//!
//! Nothing is guessed: a running agent says which of its probes are attached; without one they are loaded, attached and detached
//! again.

mod agent;
mod engine;
mod page;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use agent::{AgentReport, Lost, Part};
pub use engine::{Engine, Network};

use crate::netns;
use crate::outputs::{ProbeView, socket};
use crate::probes::{self, ProbeSettings, host, symbols};

/// Without these the agent has nothing to tell, unless [`STAND_IN`] is on.
const ESSENTIAL: [&str; 2] = ["tcp_state", "packet_drop"];
/// Sees TCP attempts where the kernel has no BTF. Drops are for nobody to see there: a lack that cannot be mended.
const STAND_IN: &str = "tcp_callback";
/// Everything that decides what the agent can see on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    /// `uname -r`.
    pub kernel: String,
    /// `x86_64`, `aarch64`, …
    pub architecture: &'static str,
    /// Were the probes built into this agent?
    pub probes_embedded: bool,
    /// Where the kernel's BTF is expected.
    pub btf: PathBuf,
    /// Is it there, and can it be read?
    pub btf_present: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub btf_error: Option<String>,
    /// `none`, `integrity`, `confidentiality`; absent if the kernel does not say.
    pub lockdown: Option<String>,
    /// Capabilities that this process lacks.
    pub missing_capabilities: Vec<&'static str>,
    /// Root of the cgroup v2 hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Are addresses of kernel functions readable? If not, drop locations stay without names.
    pub kernel_symbols: bool,
    /// Drop reasons that the kernel has names for; 0: drops are classified by location alone.
    pub drop_reasons: usize,
    /// Are drops given with their tuple before service translation?
    pub conntrack: bool,
    /// Are the node's processes visible, through which network namespaces are asked for what their listeners turned away?
    pub processes: bool,
    /// Struct members that the kernel's BTF lacks.
    pub missing_members: Vec<&'static str>,
    /// Each probe: of the agent that runs here, else loaded and attached for this report.
    pub probes: Vec<ProbeView>,
    /// Why no probe could even be tried.
    pub error: Option<String>,
    /// Network plugin and policy engine.
    pub network: Network,
    /// The agent that runs here, if one answers.
    pub agent: Option<AgentReport>,
}

/// Looks at this machine.
#[must_use]
pub fn report(settings: &ProbeSettings, agent: &Path) -> DoctorReport {
    let running = socket::ask(agent).ok();
    let (statuses, types, error) = match &running {
        Some(view) => (view.agent.probes.clone(), None, None),
        None => match probes::try_all(settings) {
            Ok((statuses, types)) => (statuses.iter().map(ProbeView::from).collect(), Some(types), None),
            Err(error) => (Vec::new(), None, Some(error.to_string())),
        },
    };
    // Even where nothing can be loaded the types may be readable.
    let types = types.map_or_else(|| probes::btf::KernelTypes::read(&settings.btf), Ok);
    let types = types.unwrap_or_else(probes::btf::KernelTypes::unreadable);
    let kernel = engine::Kernel {
        reasons: types.layout.has_drop_reason == 1,
        open_vswitch: types.drop_reasons.values().any(|r| r.starts_with("OVS_DROP")),
    };
    DoctorReport {
        network: Network::look(Path::new("/"), kernel),
        agent: running.as_ref().map(AgentReport::of),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        architecture: std::env::consts::ARCH,
        probes_embedded: probes::embedded(),
        btf: settings.btf.clone(),
        btf_present: types.unreadable.is_none(),
        btf_error: types.unreadable.map(|why| why.reason),
        lockdown: host::lockdown(),
        missing_capabilities: host::missing_capabilities(),
        cgroup: settings.cgroup.clone().or_else(probes::root_cgroup),
        kernel_symbols: symbols::readable(&settings.kallsyms),
        drop_reasons: if types.layout.has_drop_reason == 1 { types.drop_reasons.len() } else { 0 },
        conntrack: types.layout.conn_original != weir_common::ABSENT,
        processes: netns::sees_all_processes(),
        missing_members: types.missing,
        probes: statuses,
        error,
    }
}

impl DoctorReport {
    /// 0 if the agent can do its work here, 2 if not.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.stands_in() || ESSENTIAL.into_iter().all(|name| self.active(name)) { 0 } else { 2 }
    }

    fn active(&self, name: &str) -> bool {
        self.probes.iter().any(|probe| probe.name == name && probe.active)
    }

    /// The agent works, and sees TCP attempts by other means, and less of them.
    fn stands_in(&self) -> bool {
        self.active(STAND_IN)
    }
}
