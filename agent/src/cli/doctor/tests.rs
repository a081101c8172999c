//! The page and the exit code, lack by lack.

use std::path::{Path, PathBuf};

use super::{DoctorReport, Network, STAND_IN, report};
use crate::outputs::ProbeView;
use crate::probes::ProbeSettings;

fn healthy() -> DoctorReport {
    let probe = |name: &str| ProbeView { name: name.to_owned(), hook: "a:b".to_owned(), active: true, reason: None };
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
        processes: true,
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
    let lacks: [(Lack, &str); 7] = [
        (|r| r.probes_embedded = false, "cargo xtask build-ebpf"),
        (
            |r| (r.btf_present, r.btf_error) = (false, Some("No such file or directory".to_owned())),
            "CONFIG_DEBUG_INFO_BTF=y",
        ),
        (|r| r.lockdown = Some("confidentiality".to_owned()), "lockdown=integrity"),
        (|r| r.missing_capabilities = vec!["CAP_BPF"], "CAP_BPF"),
        (|r| r.cgroup = None, "mount the host's /sys/fs/cgroup"),
        (|r| r.kernel_symbols = false, "CAP_SYSLOG"),
        (|r| r.processes = false, "hostPID"),
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
    let probe = |name: &str| ProbeView { name: name.to_owned(), hook: "a:b".to_owned(), active: true, reason: None };
    let mut report = healthy();
    report.probes.push(probe("udp_release"));
    let page = report.to_string();
    assert!(page.contains("\nok      DNS replies       off by choice: ") && page.contains("--dns-replies"), "{page}");
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
