//! The page of `weir doctor`: a line for each thing, marked by how much depends on it.

use std::fmt;

use super::engine::{Engine, Network};
use super::{DoctorReport, ESSENTIAL, Lost, Part, STAND_IN, agent};

/// What [`STAND_IN`] tells in their place, and what would sharpen drops.
const COVERED: [&str; 3] = ["syn_retransmit", "reset_received", "icmp_sent"];

/// Begins the names of the probes that are only there where they are asked for.
const CHOSEN: &str = "dns_";
/// Said where they are not.
const NOT_CHOSEN: &str = "off by choice: of resolvers that do not connect their sockets (musl, dnsmasq) only drops are seen; \
    `weir run --dns-replies` (the chart's agent.dnsReplies) tells their replies too, at a cost per datagram";

/// Of the node's processes.
const VISIBLE: &str = "the node's are visible: a full accept queue is told from a time-out";
/// Likewise.
const INVISIBLE: &str = "the node's are not visible, by choice: a full accept queue looks like a time-out; the chart's \
    hostPID shows them";

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

impl DoctorReport {
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
        lines.push(Line::fine("processes", if self.processes { VISIBLE } else { INVISIBLE }.to_owned()));
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
