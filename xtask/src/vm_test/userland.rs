//! The programs of Debian that the tests call, for the guest's architecture, with the libraries that they load.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{apt::Apt, architecture::Architecture};
use crate::tools;

/// The release that they are of, the same for all guests.
const SUITE: &str = "bookworm";
const PACKAGES: [&str; 3] = ["iproute2", "nftables", "iptables"];
const PROGRAMS: [&str; 7] = ["ip", "nft", "tc", "iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"];
/// What the iptables programs load at run time.
const EXTENSIONS: [&str; 2] = ["libxt_standard.so", "libxt_NFQUEUE.so"];

/// Debian's programs, unpacked.
pub struct Userland {
    root: PathBuf,
    architecture: Architecture,
}

impl Userland {
    /// Fetches them if they are not there.
    pub fn fetch(architecture: Architecture) -> Result<Self> {
        let root = tools::target().join("vm/userland").join(architecture.debian());
        if !root.is_dir() {
            eprintln!("fetching {} ({})", PACKAGES.join(", "), architecture.debian());
            Apt::new(SUITE, architecture)?.unpack_with_dependencies(&PACKAGES, &root)?;
        }
        Ok(Self { root, architecture })
    }

    /// Files by path: the programs in `bin`, libraries where the programs look for them.
    pub fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for name in PROGRAMS {
            let places = ["usr/sbin", "sbin", "usr/bin", "bin"].map(|folder| format!("{folder}/{name}"));
            let found = places.iter().find_map(|place| self.real(place));
            let found = found.with_context(|| format!("the packages hold no {name}"))?;
            self.add(&format!("bin/{name}"), &found, &mut files)?;
        }
        for name in EXTENSIONS {
            let place = format!("usr/lib/{}/xtables/{name}", self.architecture.gnu());
            let found = self.real(&place).with_context(|| place.clone())?;
            self.add(&place, &found, &mut files)?;
        }
        Ok(files)
    }

    /// Adds a program or library, and what it needs.
    fn add(&self, place: &str, from: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
        if files.contains_key(place) {
            return Ok(());
        }
        files.insert(place.to_owned(), fs::read(from).with_context(|| from.display().to_string())?);
        let said = tools::output("readelf", &["--wide", "--dynamic", "--program-headers", &from.display().to_string()]);
        let said = said.context("readelf (package binutils) cannot read a program")?;
        for needed in needed(&said) {
            let gnu = self.architecture.gnu();
            let places = match needed.strip_prefix('/') {
                Some(path) => vec![path.to_owned()],
                None => vec![format!("lib/{gnu}/{needed}"), format!("usr/lib/{gnu}/{needed}")],
            };
            let found = places.iter().find_map(|place| Some((place, self.real(place)?)));
            let (place, found) =
                found.with_context(|| format!("the packages hold no {needed}, which {place} needs"))?;
            self.add(place, &found, files)?;
        }
        Ok(())
    }

    /// The file at a path of the guest, through symbolic links, which are meant from the guest's root.
    fn real(&self, place: &str) -> Option<PathBuf> {
        let mut path = self.root.join(place);
        for _ in 0..8 {
            let Ok(link) = fs::read_link(&path) else { break };
            path = match link.strip_prefix("/") {
                Ok(absolute) => self.root.join(absolute),
                Err(_) => path.parent()?.join(link),
            };
        }
        path.is_file().then_some(path)
    }
}

/// The interpreter's path and the libraries' names, as readelf tells them.
fn needed(said: &str) -> Vec<&str> {
    let interpreter = said.lines().filter_map(|line| line.trim().strip_prefix("[Requesting program interpreter: "));
    let libraries =
        said.lines().filter_map(|line| line.split_once("(NEEDED)")?.1.split_once('[').map(|(_, name)| name));
    interpreter.chain(libraries).map(|name| name.trim_end_matches(']')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_needs_is_read_from_it() {
        let said = "  INTERP         0x000238 0x0000000000000238\n\
                    \x20     [Requesting program interpreter: /lib/ld-linux-aarch64.so.1]\n\
                    \x20 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n\
                    \x20 0x000000000000000e (SONAME)             Library soname: [libx.so.1]\n";
        assert_eq!(needed(said), ["/lib/ld-linux-aarch64.so.1", "libc.so.6"]);
    }
}
