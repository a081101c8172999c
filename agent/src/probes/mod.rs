//! The probes from user space: load, read events, report what is on.
//!
//! ```no_run
//! # async fn example() -> Result<(), weir::probes::ProbeError> {
//! use weir::probes::{ProbeSettings, Probes};
//! let mut probes = Probes::load(&ProbeSettings::default())?;
//! for status in probes.status() {
//!     println!("{} on {}: {:?}", status.name, status.hook, status.reason);
//! }
//! let mut batch = Vec::new();
//! loop {
//!     probes.next_batch(&mut batch).await?;
//!     for event in batch.drain(..) {
//!         println!("{event:?}");
//!     }
//! }
//! # }
//! ```
//!
//! Programs and links are file descriptors of this process: dropping [`Probes`] detaches them, and so does any death of the
//! process. Nothing is pinned.

pub mod btf;
pub mod cgroup;
mod decode;
mod error;
pub mod host;
mod load;
mod programs;
mod skips;
pub mod symbols;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
};
use aya_log::EbpfLogger;
use serde::Serialize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Interval, MissedTickBehavior, interval},
};
use weir_common::{Event, counter};

pub use decode::Decoder;
pub use error::ProbeError;
pub use load::root_cgroup;

/// The probes as built for the kernel; empty where they were not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir-ebpf"));

/// Ports watched unless set otherwise: DNS, HTTP(S), the API server, Istio's proxies and control plane.
pub const DEFAULT_PORTS: [u16; 14] =
    [53, 80, 443, 6443, 8080, 8443, 15008, 15010, 15012, 15014, 15017, 15020, 15021, 15090];

/// How often the ring buffer is drained. The probes wake the agent earlier only when much is waiting.
const DRAIN: Duration = Duration::from_millis(100);

/// What to load and where to find the kernel's facts.
#[derive(Clone, Debug)]
pub struct ProbeSettings {
    /// Destination ports of interest, TCP and UDP.
    pub ports: BTreeSet<u16>,
    /// The kernel's BTF.
    pub btf: PathBuf,
    /// Root of cgroup v2; `None`: as the mount table says.
    pub cgroup: Option<PathBuf>,
    /// Addresses of kernel functions.
    pub kallsyms: PathBuf,
    /// Size of the ring buffer in bytes: a power of two, and of pages.
    pub ring_bytes: u32,
    /// Follow DNS queries of UDP sockets that are not connected: four programs that run for each of their datagrams.
    pub dns_replies: bool,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            ports: DEFAULT_PORTS.into(),
            btf: "/sys/kernel/btf/vmlinux".into(),
            cgroup: None,
            kallsyms: "/proc/kallsyms".into(),
            ring_bytes: 1 << 20,
            dns_replies: false,
        }
    }
}

/// Whether one probe is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    /// `tcp_state`, `packet_drop`, …
    pub name: &'static str,
    /// `skb:kfree_skb`, `cgroup:sock_release`, …
    pub hook: String,
    /// Loaded and attached.
    pub active: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// What the probes have counted since they were loaded, all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Events written.
    pub events: u64,
    /// Events lost because the ring buffer was full.
    pub lost_events: u64,
    /// Attempts that could not be remembered.
    pub lost_attempts: u64,
    /// Drops counted into a later event of their kind: no loss.
    pub aggregated_drops: u64,
    /// Drops of a new kind held back by the rate limit.
    pub suppressed_drops: u64,
    /// Socket errors held back by the rate limit.
    pub suppressed_errors: u64,
    /// ICMP answers and repeated SYN-ACKs held back by the rate limit.
    pub suppressed_answers: u64,
    /// Drops told without their stack, which the rate limit held back: no loss.
    pub suppressed_stacks: u64,
    /// UDP sockets whose creation could not be remembered: their age is unknown at their end.
    pub lost_sockets: u64,
    /// Events whose bytes made no sense: probes and agent are of different builds.
    pub malformed_events: u64,
}

/// Loaded probes. Dropping it detaches them.
pub struct Probes {
    status: Vec<ProbeStatus>,
    types: btf::KernelTypes,
    events: AsyncFd<RingBuf<MapData>>,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    counters: PerCpuArray<MapData, u64>,
    timer: Interval,
    malformed: u64,
    skips: skips::Skips,
    kallsyms: PathBuf,
    ebpf: Ebpf,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Was the agent built with the probes?
#[must_use]
pub fn embedded() -> bool {
    !OBJECT.is_empty()
}

/// Loads and attaches the probes, then detaches them: what [`Probes::load`] would find on this machine. Needs no runtime.
///
/// # Errors
/// [`ProbeError`] if it does not come to single probes.
pub fn try_all(settings: &ProbeSettings) -> Result<(Vec<ProbeStatus>, btf::KernelTypes), ProbeError> {
    attach(settings).map(|(_, status, types)| (status, types))
}

fn attach(settings: &ProbeSettings) -> Result<(Ebpf, Vec<ProbeStatus>, btf::KernelTypes), ProbeError> {
    if !embedded() {
        return Err(ProbeError::Stub);
    }
    host::require_capabilities()?;
    let known = load::Known::read(&settings.btf);
    let (ebpf, status) = load::load(OBJECT, known.as_ref().ok(), settings)?;
    let types = known.map_or_else(btf::KernelTypes::unreadable, |known| known.types);
    Ok((ebpf, status, types))
}

impl Probes {
    /// Loads and attaches every probe that this kernel takes. Needs a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// [`ProbeError`] if nothing useful could be loaded: without `tcp_state`, what stands in for it, and `packet_drop` there is
    /// nothing to tell.
    pub fn load(settings: &ProbeSettings) -> Result<Self, ProbeError> {
        let (mut ebpf, status, types) = attach(settings)?;
        let essential = [programs::TCP_STATE, programs::TCP_CALLBACK, "packet_drop"];
        if !status.iter().any(|probe| probe.active && essential.contains(&probe.name)) {
            return Err(useless(&status, types));
        }
        let log =
            EbpfLogger::init(&mut ebpf).inspect_err(|error| tracing::debug!(%error, "the probes write no log")).ok();
        let events = ebpf.take_map("EVENTS").ok_or(ProbeError::Object("no map EVENTS"))?;
        let events = RingBuf::try_from(events).map_err(|_| ProbeError::Object("map EVENTS is no ring buffer"))?;
        let counters = ebpf.take_map("COUNTERS").ok_or(ProbeError::Object("no map COUNTERS"))?;
        let counters = PerCpuArray::try_from(counters).map_err(|_| ProbeError::Object("map COUNTERS is no array"))?;
        let mut timer = interval(DRAIN);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // SAFETY: `RingBuf` owns its map's descriptor and keeps it open, and the same, until it is dropped.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .map_err(|error| ProbeError::Read(error.into_parts().1))?;
        Ok(Self {
            status,
            types,
            events,
            log,
            counters,
            timer,
            malformed: 0,
            skips: skips::Skips::new(&ebpf),
            kallsyms: settings.kallsyms.clone(),
            ebpf,
        })
    }

    /// What is on, and why the rest is not.
    #[must_use]
    pub fn status(&self) -> &[ProbeStatus] {
        &self.status
    }

    /// What the kernel's BTF said.
    #[must_use]
    pub fn types(&self) -> &btf::KernelTypes {
        &self.types
    }

    /// Gives names to what events carry as numbers. Reads kallsyms: takes a fraction of a second.
    #[must_use]
    pub fn decoder(&self) -> Decoder {
        Decoder::new(self.types.drop_reasons.clone(), &self.kallsyms).with_cgroups(load::root_cgroup())
    }

    /// Waits for the next tenth of a second (or less, if much is waiting) and appends all events since, in kernel order.
    /// May append nothing. Cancel safe: no event is lost when the future is dropped.
    ///
    /// # Errors
    /// [`ProbeError::Read`] if the ring buffer cannot be polled.
    pub async fn next_batch(&mut self, into: &mut Vec<Event>) -> Result<(), ProbeError> {
        tokio::select! {
            _ = self.timer.tick() => {}
            ready = self.events.readable_mut() => ready?.clear_ready(),
        }
        self.drain(into);
        Ok(())
    }

    /// Appends all events that are waiting now.
    pub fn drain(&mut self, into: &mut Vec<Event>) {
        while let Some(bytes) = self.events.get_mut().next() {
            match Event::from_bytes(&bytes) {
                Ok(event) => into.push(event),
                Err(error) => {
                    self.malformed += 1;
                    tracing::warn!(?error, "an event of the probes was not understood");
                }
            }
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Watches these destination ports from now on, in place of those before.
    ///
    /// # Errors
    /// [`ProbeError`] when the kernel does not take them.
    pub fn watch(&mut self, ports: &BTreeSet<u16>) -> Result<(), ProbeError> {
        load::watch(&mut self.ebpf, ports)
    }

    /// Reads the probes' counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let sum = |index: u32| self.counters.get(&index, 0).map(|values| values.iter().sum()).unwrap_or(0);
        Counters {
            events: sum(counter::EVENTS),
            lost_events: sum(counter::LOST_EVENTS),
            lost_attempts: sum(counter::LOST_ATTEMPTS),
            aggregated_drops: sum(counter::AGGREGATED_DROPS),
            suppressed_drops: sum(counter::SUPPRESSED_DROPS),
            suppressed_errors: sum(counter::SUPPRESSED_ERRORS),
            suppressed_answers: sum(counter::SUPPRESSED_ANSWERS),
            suppressed_stacks: sum(counter::SUPPRESSED_STACKS),
            lost_sockets: sum(counter::LOST_SOCKETS),
            malformed_events: self.malformed,
        }
    }

    /// Runs that the kernel skipped because the same program was already running on that CPU, by stage.
    #[must_use]
    pub fn skipped_runs(&self) -> Vec<(&'static str, u64)> {
        self.skips.read()
    }
}

/// Why none of the probes that the agent cannot do without is on, and what to do.
fn useless(status: &[ProbeStatus], types: btf::KernelTypes) -> ProbeError {
    let reason = |probe: &ProbeStatus| probe.reason.clone();
    let stand_in = status.iter().find(|probe| probe.name == programs::TCP_CALLBACK).and_then(reason);
    match (types.unreadable, stand_in) {
        (Some(btf), Some(stand_in)) => ProbeError::NoBtf { btf, stand_in },
        _ if host::lockdown().as_deref() == Some("confidentiality") => ProbeError::Lockdown,
        _ => ProbeError::None { reason: status.iter().find_map(reason).unwrap_or_default() },
    }
}

/// The agent's task may move between threads.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Probes>();
    is_send::<Decoder>();
};
