//! What this process and this kernel permit.

use super::ProbeError;

/// The capabilities that loading takes and this process lacks.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    use caps::{CapSet, Capability};
    let Ok(have) = caps::read(None, CapSet::Effective) else { return Vec::new() };
    // Before 5.8 there was only CAP_SYS_ADMIN, and it still implies CAP_BPF and CAP_PERFMON.
    let admin = have.contains(&Capability::CAP_SYS_ADMIN);
    let wanted = [
        (Capability::CAP_BPF, "CAP_BPF", admin),
        (Capability::CAP_PERFMON, "CAP_PERFMON", admin),
        (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN", false),
        (Capability::CAP_SYSLOG, "CAP_SYSLOG", false),
    ];
    wanted
        .into_iter()
        .filter(|(capability, _, implied)| !implied && !have.contains(capability))
        .map(|(_, name, _)| name)
        .collect()
}

/// Loading a program takes these two.
///
/// # Errors
/// [`ProbeError::Capabilities`] with those that are missing.
pub fn require_capabilities() -> Result<(), ProbeError> {
    let missing: Vec<_> =
        missing_capabilities().into_iter().filter(|name| matches!(*name, "CAP_BPF" | "CAP_PERFMON")).collect();
    if missing.is_empty() { Ok(()) } else { Err(ProbeError::Capabilities { missing: missing.join(", ") }) }
}

/// `none`, `integrity` or `confidentiality`; `None` if the kernel does not say.
#[must_use]
pub fn lockdown() -> Option<String> {
    // `none [integrity] confidentiality`: the one in force is in brackets.
    let text = std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}
