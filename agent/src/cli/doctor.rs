//! `weir doctor`: what this node's kernel offers, and what is missing.
//!
//! Nothing is guessed: a running agent says which of its probes are attached; without one they are loaded, attached and detached
//! again.

mod agent;
mod engine;

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::Serialize;

pub use agent::{AgentReport, Lost, Part};
pub use engine::{Engine, Network};

use crate::outputs::{ProbeView, socket};
use crate::probes::{self, ProbeSettings, host, symbols};

/// Without these the agent has nothing to tell, unless [`STAND_IN`] is on.
const ESSENTIAL: [&str; 2] = ["tcp_state", "packet_drop"];
/// Sees TCP attempts where the kernel has no BTF. Drops are for nobody to see there: a lack that cannot be mended.
const STAND_IN: &str = "tcp_callback";
/// What [`STAND_IN`] tells in their place, and what would sharpen drops.
const COVERED: [&str; 3] = ["syn_retransmit", "reset_received", "icmp_sent"];

/// Begins the names of the probes that are only there where they are asked for.
const CHOSEN: &str = "dns_";
/// Said where they are not.
const NOT_CHOSEN: &str = "off by choice: of resolvers that do not connect their sockets (musl, dnsmasq) only drops are seen; \
    `weir run --dns-replies` (the chart's agent.dnsReplies) tells their replies too, at a cost per datagram";

/// What the agent does without a probe.
fn without(probe: &str) -> &'static str {
    match probe {
        "socket_error" => "; a UDP refusal that its application reads at once stays unseen",
        "icmp_sent" => "; drops of rejected packets from other nodes count as drops, not as rejections",
        "answer_retransmit" => "; that a listener did answer stays unseen",
        "reset_received" => "; over IPv6 a reset cannot be told from an ICMP error",
        "syn_retransmit" => "; hanging attempts are told late, and their source port only at their end",
        "udp_create" | "udp_release" => "; UDP queries without reply stay unseen",
        "dns_query4" | "dns_query6" | "dns_reply4" | "dns_reply6" => {
            "; DNS replies to sockets that are not connected stay unseen"
        }
        "packet_drop" => "; no drop is seen: nothing is called denied, and what fails is predicted or unknown",
        "tcp_state" => "; why an attempt failed, who made it and in which network namespace stays unknown",
        STAND_IN => "; no TCP attempt is seen",
        _ => "",
    }
}

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

    fn btf(&self) -> Line<'_> {
        let path = self.btf.display();
        let Some(error) = self.btf_error.as_ref().filter(|_| !self.btf_present) else {
            return Line::fine("BTF", path.to_string());
        };
        let instead = if self.stands_in() {
            format!("; {STAND_IN} stands in for tcp_state and syn_retransmit")
        } else {
            String::new()
        };
        let text = format!("{path}: {error}: needs a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys{instead}");
        Line { mark: if self.stands_in() { Mark::Weak } else { Mark::Missing }, name: "BTF", text }
    }

    fn capabilities(&self) -> Line<'_> {
        let missing = self.missing_capabilities.join(", ");
        let essential = self.missing_capabilities.iter().any(|name| matches!(*name, "CAP_BPF" | "CAP_PERFMON"));
        let text = format!("missing {missing}: run as root or grant them");
        match (missing.is_empty(), essential) {
            (true, _) => Line::fine("capabilities", "all that are needed".to_owned()),
            (false, true) => Line { mark: Mark::Missing, name: "capabilities", text },
            (false, false) => Line { mark: Mark::Weak, name: "capabilities", text },
        }
    }

    fn lines(&self) -> Vec<Line<'_>> {
        let confidential = self.lockdown.as_deref() == Some("confidentiality");
        let cgroup = self.cgroup.as_deref().map(|path| path.display().to_string());
        let mut lines = vec![
            Line::fine("kernel", format!("{} {}", self.kernel, self.architecture)),
            Line::or_missing(
                self.probes_embedded,
                "probes",
                "built in".to_owned(),
                "not built into this agent: run `cargo xtask build-ebpf`, then build again".to_owned(),
            ),
            self.btf(),
            Line::or_missing(
                !confidential,
                "lockdown",
                self.lockdown.clone().unwrap_or_else(|| "none reported".to_owned()),
                "confidentiality: packets cannot be read; boot with lockdown=integrity".to_owned(),
            ),
            self.capabilities(),
            Line::or_weak(
                cgroup.is_some(),
                "cgroup v2",
                cgroup.unwrap_or_default(),
                "its root is not mounted here: UDP queries without reply stay unseen (in a container: mount the host's /sys/fs/cgroup)",
            ),
            Line::or_weak(
                self.kernel_symbols,
                "kallsyms",
                "drops are told by the function that dropped".to_owned(),
                "no addresses: needs CAP_SYSLOG and kernel.kptr_restrict below 2; drops without a reason stay unclassified",
            ),
        ];
        // Without BTF there are no drops to tell of.
        if self.btf_present {
            lines.push(Line::or_weak(
                self.drop_reasons > 0,
                "drop reasons",
                format!("{} names", self.drop_reasons),
                "not in this kernel: drops are classified by location alone",
            ));
            lines.push(Line::or_weak(
                self.conntrack,
                "conntrack",
                "drops carry the tuple before service translation".to_owned(),
                "layout unknown: service addresses are resolved by endpoints alone",
            ));
        }
        if !self.missing_members.is_empty() {
            lines.push(Line { mark: Mark::Weak, name: "missing types", text: self.missing_members.join(", ") });
        }
        if let Some(error) = &self.error {
            lines.push(Line { mark: Mark::Missing, name: "loading", text: error.clone() });
        }
        lines.extend(self.probes.iter().map(|probe| match &probe.reason {
            None => Line::fine(&probe.name, probe.hook.clone()),
            Some(reason) => {
                let essential = ESSENTIAL.contains(&&*probe.name) || probe.name == STAND_IN;
                let mark = if essential && !self.stands_in() { Mark::Missing } else { Mark::Weak };
                let lost = if self.stands_in() && COVERED.contains(&&*probe.name) { "" } else { without(&probe.name) };
                let text = format!("{}: {reason}{lost}", probe.hook);
                Line { mark, name: &probe.name, text }
            }
        }));
        if self.active("udp_release") && !self.probes.iter().any(|probe| probe.name.starts_with(CHOSEN)) {
            lines.push(Line::fine("DNS replies", NOT_CHOSEN.to_owned()));
        }
        lines.extend(self.network());
        lines.extend(self.agent());
        lines
    }

    fn network(&self) -> Vec<Line<'_>> {
        let Network { plugins, engines } = &self.network;
        let none = "none recognised in /etc/cni/net.d (in a container: mount it from the host)";
        let mut lines = vec![Line::or_weak(!plugins.is_empty(), "CNI", plugins.join(", "), none)];
        let unknown =
            "none recognised: whether policies are enforced, and whether drops show, is told by traffic alone";
        if engines.is_empty() {
            lines.push(Line { mark: Mark::Weak, name: "policy engine", text: unknown.to_owned() });
        }
        for engine in engines {
            let Engine { name, seen, shows, hides, .. } = engine;
            let mark = if engine.visible { Mark::Fine } else { Mark::Weak };
            lines.push(Line { mark, name: "policy engine", text: format!("{name} (by {})", seen.join(", ")) });
            lines.push(Line { mark, name: "  shows", text: (*shows).to_owned() });
            lines.push(Line { mark, name: "  hides", text: (*hides).to_owned() });
        }
        lines
    }

    fn agent(&self) -> Vec<Line<'_>> {
        let Some(agent) = &self.agent else {
            let text = "none answers on the socket; start one with `weir run`, or name its socket with --socket";
            return vec![Line { mark: Mark::Weak, name: "agent", text: text.to_owned() }];
        };
        let running = format!("version {}, {} of {} probes active", agent.version, agent.probes_active, agent.probes);
        let mut lines = vec![Line::or_weak(
            agent.synced,
            "agent",
            running,
            "it runs, and waits for the cluster's objects; its log says why",
        )];
        let weak: Vec<String> = agent
            .weak_parts()
            .map(|Part { name, state, age_seconds }| format!("{name} {state} {age_seconds} s"))
            .collect();
        let parts = if agent.parts.is_empty() {
            "from manifests".to_owned()
        } else {
            format!("{} parts, all current", agent.parts.len())
        };
        lines.push(Line::or_weak(weak.is_empty(), "cluster view", parts, &weak.join(", ")));
        if agent.problems > 0 {
            let text = format!("{} documents could not be read; weir status names them", agent.problems);
            lines.push(Line { mark: Mark::Weak, name: "manifests", text });
        }
        let lost: Vec<String> = agent
            .lost
            .iter()
            .filter(|l| l.count > 0)
            .map(|Lost { stage, count }| format!("{count} in {stage}"))
            .collect();
        let remedy = format!("{}; what they would have proven stays unknown", lost.join(", "));
        lines.push(Line::or_weak(lost.is_empty(), "lost events", "none".to_owned(), &remedy));
        let moved = agent.clock_moved_ms;
        let steady = moved.abs() <= agent::MAX_CLOCK_MS;
        let found = "the wall clock is where it was when the agent began";
        let otherwise =
            format!("the wall clock has moved by {moved} ms since the agent began: its times are off by that");
        lines.push(Line::or_weak(steady, "clock", found.to_owned(), &otherwise));
        lines
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { mark, name, text } in self.lines() {
            let mark = match mark {
                Mark::Fine => "ok",
                Mark::Weak => "weak",
                Mark::Missing => "MISSING",
            };
            let options = textwrap::Options::new(WIDTH)
                .initial_indent("")
                .subsequent_indent(INDENT)
                .word_separator(textwrap::WordSeparator::AsciiSpace)
                .word_splitter(textwrap::WordSplitter::NoHyphenation);
            for line in textwrap::wrap(&format!("{mark:8}{name:18}{text}"), options) {
                writeln!(f, "{}", line.trim_end())?;
            }
        }
        if self.exit_code() != 0 {
            return writeln!(f, "weir cannot work on this node yet. Next: mend what is MISSING, and ask again");
        }
        let able = if self.stands_in() {
            "weir can work on this node without BTF: it sees connections, and no drop or UDP"
        } else {
            "weir can work on this node"
        };
        let next = if self.agent.is_some() { "weir status" } else { "weir run" };
        writeln!(f, "{able}. Next: {next}")
    }
}

/// Columns of a line.
const WIDTH: usize = 100;
/// Below the text of the line before.
const INDENT: &str = "                          ";

struct Line<'a> {
    mark: Mark,
    name: &'a str,
    text: String,
}

#[derive(Clone, Copy)]
enum Mark {
    Fine,
    /// The agent works, and sees less.
    Weak,
    Missing,
}

impl<'a> Line<'a> {
    fn fine(name: &'a str, text: String) -> Self {
        Self { mark: Mark::Fine, name, text }
    }

    fn or_weak(fine: bool, name: &'a str, found: String, otherwise: &str) -> Self {
        if fine { Self::fine(name, found) } else { Self { mark: Mark::Weak, name, text: otherwise.to_owned() } }
    }

    fn or_missing(fine: bool, name: &'a str, found: String, otherwise: String) -> Self {
        if fine { Self::fine(name, found) } else { Self { mark: Mark::Missing, name, text: otherwise } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> DoctorReport {
        let probe =
            |name: &str| ProbeView { name: name.to_owned(), hook: "a:b".to_owned(), active: true, reason: None };
        DoctorReport {
            kernel: "6.18.0".to_owned(),
            architecture: "x86_64",
            probes_embedded: true,
            btf: "/sys/kernel/btf/vmlinux".into(),
            btf_present: true,
            btf_error: None,
            lockdown: Some("none".to_owned()),
            missing_capabilities: Vec::new(),
            cgroup: Some("/sys/fs/cgroup".into()),
            kernel_symbols: true,
            drop_reasons: 120,
            conntrack: true,
            missing_members: Vec::new(),
            probes: vec![probe("tcp_state"), probe("packet_drop")],
            error: None,
            network: Network { plugins: vec!["calico".to_owned()], engines: Vec::new() },
            agent: None,
        }
    }

    #[test]
    fn each_lack_is_named_with_its_remedy() {
        assert_eq!(healthy().exit_code(), 0);
        assert!(!healthy().to_string().contains("MISSING"), "{}", healthy());
        type Lack = fn(&mut DoctorReport);
        let lacks: [(Lack, &str); 6] = [
            (|r| r.probes_embedded = false, "cargo xtask build-ebpf"),
            (
                |r| (r.btf_present, r.btf_error) = (false, Some("No such file or directory".to_owned())),
                "CONFIG_DEBUG_INFO_BTF=y",
            ),
            (|r| r.lockdown = Some("confidentiality".to_owned()), "lockdown=integrity"),
            (|r| r.missing_capabilities = vec!["CAP_BPF"], "CAP_BPF"),
            (|r| r.cgroup = None, "mount the host's /sys/fs/cgroup"),
            (|r| r.kernel_symbols = false, "CAP_SYSLOG"),
        ];
        for (lack, remedy) in lacks {
            assert!(!healthy().to_string().contains(remedy));
            let mut report = healthy();
            lack(&mut report);
            assert!(report.to_string().contains(remedy), "{report}");
        }
    }

    #[test]
    fn without_an_essential_probe_the_agent_cannot_work() {
        let mut report = healthy();
        report.probes[1].active = false;
        report.probes[1].reason = Some("load: Permission denied".to_owned());
        assert_eq!(report.exit_code(), 2);
        assert!(report.to_string().contains("MISSING packet_drop       a:b: load: Permission denied"), "{report}");
    }

    #[test]
    fn without_btf_what_stands_in_and_what_is_lost_is_said() {
        let mut report = healthy();
        (report.btf_present, report.btf_error) = (false, Some("No such file or directory".to_owned()));
        let off = |name: &str| ProbeView {
            name: name.to_owned(),
            hook: "a:b".to_owned(),
            active: false,
            reason: Some("it needs the kernel's BTF".to_owned()),
        };
        report.probes = vec![off("tcp_state"), off(STAND_IN), off("packet_drop"), off("udp_release")];
        assert_eq!(report.exit_code(), 2, "nothing is seen at all");
        assert!(report.to_string().contains("\nMISSING tcp_callback"), "{report}");
        (report.probes[1].active, report.probes[1].reason) = (true, None);
        assert_eq!(report.exit_code(), 0);
        let page = report.to_string();
        assert!(!page.contains("MISSING") && page.contains("\nok      tcp_callback      a:b\n"), "{page}");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        for said in [
            "weak BTF /sys/kernel/btf/vmlinux: No such file or directory: needs a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys; \
             tcp_callback stands in for tcp_state and syn_retransmit",
            "weak packet_drop a:b: it needs the kernel's BTF; no drop is seen: nothing is called denied",
            "weak tcp_state a:b: it needs the kernel's BTF; why an attempt failed",
            "UDP queries without reply stay unseen",
            "weir can work on this node without BTF: it sees connections, and no drop or UDP. Next: weir run",
        ] {
            assert!(page.contains(said), "{said}\n{page}");
        }
    }

    #[test]
    fn what_is_off_by_choice_is_no_lack() {
        let probe =
            |name: &str| ProbeView { name: name.to_owned(), hook: "a:b".to_owned(), active: true, reason: None };
        let mut report = healthy();
        report.probes.push(probe("udp_release"));
        let page = report.to_string();
        assert!(
            page.contains("\nok      DNS replies       off by choice: ") && page.contains("--dns-replies"),
            "{page}"
        );
        report.probes.push(ProbeView { active: false, reason: Some("load: x".to_owned()), ..probe("dns_reply4") });
        let page = report.to_string();
        assert!(!page.contains("off by choice") && page.contains("weak    dns_reply4"), "{page}");
    }

    #[test]
    fn an_empty_place_is_reported_not_hidden() {
        let nowhere = |name: &str| PathBuf::from("/nowhere").join(name);
        let settings = ProbeSettings {
            btf: nowhere("vmlinux"),
            kallsyms: nowhere("kallsyms"),
            cgroup: Some(nowhere("cgroup")),
            ..ProbeSettings::default()
        };
        let report = report(&settings, Path::new("/nowhere/weir.sock"));
        assert!(!report.btf_present && !report.kernel_symbols, "{report}");
        assert!(report.probes.iter().all(|probe| !probe.active), "{report}");
        assert_eq!(report.exit_code(), 2);
    }
}
