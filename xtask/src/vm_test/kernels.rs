//! Kernels of Debian, by pattern: exact packages come and go.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::{
    apt::{self, Apt},
    architecture::Architecture::{self, Amd64, Arm64},
};
use crate::tools;

/// A kernel that the probes are tested on.
pub struct Kernel {
    /// As the user names it.
    pub name: &'static str,
    pub architecture: Architecture,
    /// Debian's release whose archives hold it, with its security and backports archives.
    suite: &'static str,
    /// Of the package's name.
    pattern: &'static str,
}

const fn kernel(name: &'static str, architecture: Architecture, suite: &'static str, pattern: &'static str) -> Kernel {
    Kernel { name, architecture, suite, pattern }
}

pub const KERNELS: [Kernel; 7] = [
    kernel("5.10", Amd64, "bullseye", r"^linux-image-5\.10\..*-cloud-amd64$"),
    kernel("6.1", Amd64, "bookworm", r"^linux-image-6\.1\..*-cloud-amd64$"),
    kernel("6.12", Amd64, "trixie", r"^linux-image-6\.12\..*-cloud-amd64$"),
    kernel("6.18", Amd64, "trixie", r"^linux-image-6\.18\..*-cloud-amd64$"),
    kernel("7.2", Amd64, "trixie", r"^linux-image-7\.2\..*-cloud-amd64$"),
    kernel("6.1-arm64", Arm64, "bookworm", r"^linux-image-6\.1\..*-cloud-arm64$"),
    kernel("6.12-arm64", Arm64, "trixie", r"^linux-image-6\.12\..*-cloud-arm64$"),
];

/// Where a kernel was unpacked.
pub struct Files {
    /// Of the kernel: what belongs to its guest lies there.
    pub folder: PathBuf,
    /// The package's files.
    pub packages: PathBuf,
    /// The compressed image.
    pub image: PathBuf,
}

pub fn choose(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    let known = || KERNELS.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ");
    names
        .iter()
        .map(|name| {
            let found = KERNELS.iter().find(|kernel| kernel.name == name);
            found.with_context(|| format!("no kernel {name}: there are {}", known()))
        })
        .collect()
}

/// The kernel's files; fetched if they are not there.
pub fn fetch(kernel: &Kernel, refresh: bool) -> Result<Files> {
    let folder = tools::target().join("vm/kernels").join(kernel.name);
    let packages = folder.join("packages");
    if refresh || !packages.is_dir() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let apt = Apt::new(kernel.suite, kernel.architecture)?;
        let names = apt.newest_kernel(kernel.pattern)?;
        eprintln!("fetching {}", names.join(", "));
        apt.unpack(&names, &packages)?;
    }
    let image =
        apt::find(&packages, &|name| name.starts_with("vmlinuz")).context("the package holds no kernel image")?;
    Ok(Files { folder, packages, image })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kernel_is_answered_with_those_that_are_known() {
        let Err(error) = choose(&["2.6".to_owned()]) else { panic!("2.6 is not tested") };
        assert_eq!(error.to_string(), "no kernel 2.6: there are 5.10, 6.1, 6.12, 6.18, 7.2, 6.1-arm64, 6.12-arm64");
        assert_eq!(choose(&[]).map(|all| all.len()).unwrap_or(0), KERNELS.len());
    }
}
