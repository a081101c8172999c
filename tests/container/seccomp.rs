//! Default seccomp profiles of container runtimes, as the OCI runtime specification has them for one container.
//!
//! containerd's is a function in its source, which its Debian package for developers carries; CRI-O's and Podman's is a file of
//! JSON. `cargo xtask setup` puts both below `target/tools/share`. Both decide by the container's capabilities.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sched::CloneFlags;
use serde_json::{Value, json};

/// Whose profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// `RuntimeDefault` of containerd.
    Containerd,
    /// `RuntimeDefault` of CRI-O, from containers-common.
    ContainersCommon,
}

impl Runtime {
    /// Where `cargo xtask setup` puts it.
    pub fn file(self) -> PathBuf {
        let name = match self {
            Self::Containerd => "seccomp_default.go",
            Self::ContainersCommon => "seccomp.json",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/share").join(name)
    }

    /// `linux.seccomp` of a container with these capabilities (`CAP_…`).
    pub fn profile(self, capabilities: &[String]) -> Result<Value> {
        let file = self.file();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let profile = match self {
            Self::Containerd => containerd(&text, capabilities)?,
            Self::ContainersCommon => containers_common(&serde_json::from_str(&text)?, capabilities)?,
        };
        let rules = profile["syscalls"].as_array().map_or(0, Vec::len);
        ensure!(rules > 5 && allows(&profile, "openat"), "{} is not understood", file.display());
        Ok(profile)
    }
}

/// Does the profile allow a system call, whatever its arguments?
pub fn allows(profile: &Value, call: &str) -> bool {
    let rules = profile["syscalls"].as_array().into_iter().flatten();
    let mut of_call = rules.filter(|rule| rule["names"].as_array().is_some_and(|n| n.iter().any(|n| n == call)));
    of_call.any(|rule| rule["action"] == "SCMP_ACT_ALLOW")
}

/// The architecture as Go and the profiles name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn architectures() -> Value {
    match architecture() {
        "amd64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "arm64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!([]),
    }
}

/// Blocks with `includes` and `excludes`, of which those that fit are kept.
fn containers_common(profile: &Value, capabilities: &[String]) -> Result<Value> {
    let listed = |condition: &Value, has: &dyn Fn(&str) -> bool| -> Option<bool> {
        let listed = condition.as_array()?;
        Some(listed.iter().filter_map(Value::as_str).any(has))
    };
    let capability = |name: &str| capabilities.iter().any(|c| c == name);
    let ours = |name: &str| name == architecture();
    let mut rules = Vec::new();
    for block in profile["syscalls"].as_array().context("no syscalls")? {
        let (includes, excludes) = (&block["includes"], &block["excludes"]);
        // `minKernel` means nothing here: the tests need a newer one than any profile names.
        let fits = listed(&includes["caps"], &capability) != Some(false)
            && listed(&includes["arches"], &ours) != Some(false)
            && listed(&excludes["caps"], &capability) != Some(true)
            && listed(&excludes["arches"], &ours) != Some(true);
        if !fits {
            continue;
        }
        let mut rule = json!({"names": block["names"], "action": block["action"]});
        if let Some(error) = block["errnoRet"].as_u64() {
            rule["errnoRet"] = error.into();
        }
        if let Some(arguments) = block["args"].as_array().filter(|a| !a.is_empty()) {
            rule["args"] = arguments.clone().into();
        }
        rules.push(rule);
    }
    let mut whole =
        json!({"defaultAction": profile["defaultAction"], "architectures": architectures(), "syscalls": rules});
    if let Some(error) = profile["defaultErrnoRet"].as_u64() {
        whole["defaultErrnoRet"] = error.into();
    }
    Ok(whole)
}

/// The rules that Go's `DefaultProfile` makes: literals, most of them behind `case "…":` of an architecture or a capability,
/// the last behind `if !admin`. A line that is none of what is known here means nothing to a profile.
fn containerd(source: &str, capabilities: &[String]) -> Result<Value> {
    let (_, body) = source.split_once("func DefaultProfile(").context("no DefaultProfile")?;
    let admin = capabilities.iter().any(|c| c == "CAP_SYS_ADMIN");
    let mut rules: Vec<Value> = Vec::new();
    // Whether the branch is taken that a line is in, and whether another one of its switch was.
    let (mut taken, mut another) = (true, false);
    for line in body.lines().map(str::trim) {
        if line.starts_with("switch ") {
            another = false;
        } else if let Some(names) = line.strip_prefix("case ") {
            let of_capabilities = names.contains("\"CAP_");
            taken = quoted(names).any(|name| name == architecture() || capabilities.iter().any(|c| c == name));
            another = !of_capabilities && (another || taken);
        } else if line == "default:" {
            taken = !another;
        } else if line.starts_with("if !admin") {
            taken = !admin;
        } else if line.starts_with("admin :=") {
            taken = true;
        }
        // What follows `if !admin { switch … }` is again for who is not.
        if line.contains("clone3 is explicitly requested") {
            taken = !admin;
        }
        if !taken {
            continue;
        }
        if line.starts_with("Names:") {
            let names: Vec<&str> = quoted(line.split_once('{').map_or("", |(_, names)| names)).collect();
            rules.push(json!({"names": names}));
            continue;
        }
        let Some(rule) = rules.last_mut() else { continue };
        if let Some(name) = line.strip_prefix('"').and_then(|l| l.strip_suffix("\",")) {
            rule["names"].as_array_mut().context("names")?.push(name.into());
        } else if let Some(action) = line.strip_prefix("Action:") {
            rule["action"] = match action.trim() {
                "specs.ActAllow," => "SCMP_ACT_ALLOW".into(),
                "specs.ActErrno," => "SCMP_ACT_ERRNO".into(),
                other => anyhow::bail!("an action that is not known: {other}"),
            };
        } else if line.starts_with("ErrnoRet:") {
            rule["errnoRet"] = nix::libc::ENOSYS.into();
        } else if let Some(index) = line.strip_prefix("Index:") {
            let index: u64 = index.trim().trim_end_matches(',').parse()?;
            let arguments = rule.as_object_mut().context("a rule")?.entry("args").or_insert_with(|| json!([]));
            arguments.as_array_mut().context("arguments")?.push(json!({"index": index}));
        } else if let Some(value) = line.strip_prefix("Value:") {
            argument(rule)?["value"] = number(value.trim().trim_end_matches(','))?.into();
        } else if let Some(operator) = line.strip_prefix("Op:") {
            argument(rule)?["op"] = match operator.trim() {
                "specs.OpEqualTo," => "SCMP_CMP_EQ".into(),
                "specs.OpNotEqual," => "SCMP_CMP_NE".into(),
                // The mask is the value, and nothing of it may be set.
                "specs.OpMaskedEqual," => "SCMP_CMP_MASKED_EQ".into(),
                other => anyhow::bail!("an operator that is not known: {other}"),
            };
        }
    }
    rules.retain(|rule| rule["action"].is_string());
    Ok(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures(), "syscalls": rules}))
}

fn argument(rule: &mut Value) -> Result<&mut Value> {
    rule["args"].as_array_mut().and_then(|a| a.last_mut()).context("a field of no argument")
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

/// `0x20000`, or names of flags of clone(2) with bars between.
fn number(text: &str) -> Result<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return Ok(u64::from_str_radix(digits, 16)?);
    }
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let mut flags = CloneFlags::empty();
    for name in text.split('|').map(|name| name.trim().trim_start_matches("unix.")) {
        flags |= CloneFlags::from_name(name).with_context(|| format!("no flag {name}"))?;
    }
    Ok(u64::try_from(flags.bits())?)
}
