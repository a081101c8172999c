//! Names of kernel addresses, from `/proc/kallsyms`.
//!
//! Kept small: text symbols only, names in one string, about five megabytes for a hundred thousand functions.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// No function is as long as this: farther away from the nearest symbol, the address belongs to something newer.
const FARTHEST: u64 = 256 * 1024;

/// Lines that tell whether addresses are withheld.
const PEEK: usize = 1_000;

/// Modules load rarely: the file (a fraction of a second of the kernel's time) is not read more often than this.
const REREAD: Duration = Duration::from_secs(10);

/// Kernel functions by address.
#[derive(Debug)]
pub struct Symbols {
    path: PathBuf,
    /// Start of the function, start of its name in `names`; ordered by address.
    starts: Vec<(u64, u32)>,
    names: String,
    read: Instant,
}

impl Symbols {
    /// Reads `path` (normally `/proc/kallsyms`). Unreadable or censored (all addresses zero) gives an empty table.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let (starts, names) = File::open(path).map(|file| parse(BufReader::new(file))).unwrap_or_default();
        Self { path: path.to_owned(), starts, names, read: Instant::now() }
    }

    /// Are addresses readable? Not so without CAP_SYSLOG or with `kernel.kptr_restrict=2`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The function that `address` lies in, without module name. Reads the file again if a module may have come since.
    pub fn name(&mut self, address: u64) -> Option<&str> {
        if self.find(address).is_none() && self.read.elapsed() >= REREAD {
            *self = Self::read(&self.path);
        }
        self.find(address)
    }

    fn find(&self, address: u64) -> Option<&str> {
        let next = self.starts.partition_point(|(start, _)| *start <= address);
        let (start, name) = *self.starts.get(next.checked_sub(1)?)?;
        (address - start < FARTHEST).then(|| &self.names[name as usize..]).and_then(|rest| rest.split('\n').next())
    }
}

/// Whether addresses are readable. Told by the first lines: all of them cost the kernel a tenth of a second.
#[must_use]
pub fn readable(path: &Path) -> bool {
    let lines = File::open(path).map(|file| BufReader::new(file).lines());
    let address = |line: String| u64::from_str_radix(fields(&line)?.0, 16).ok();
    // The first ones are offsets from 0 on some architectures.
    lines
        .into_iter()
        .flatten()
        .map_while(Result::ok)
        .take(PEEK)
        .filter_map(address)
        .any(|address| address > u64::MAX / 2)
}

/// Addresses of functions, 0 for each that is not there (its module is not loaded) or whose address is withheld.
#[must_use]
pub fn addresses<const N: usize>(path: &Path, names: [&str; N]) -> [u64; N] {
    let mut found = [0; N];
    let lines = File::open(path).map(|file| BufReader::new(file).lines());
    for line in lines.into_iter().flatten().map_while(Result::ok) {
        if let Some((address, _, name)) = fields(&line)
            && let Some(index) = names.iter().position(|wanted| *wanted == name)
        {
            found[index] = u64::from_str_radix(address, 16).unwrap_or(0);
        }
    }
    found
}

/// `ffffffffc0000446 t nft_do_chain\t[nf_tables]`: address, kind and name. Split by single characters, which is several times
/// as fast as by any white space, over a hundred thousand lines.
fn fields(line: &str) -> Option<(&str, &str, &str)> {
    let (address, rest) = line.split_once(' ')?;
    let (kind, name) = rest.split_once(' ')?;
    let name = name.strip_suffix('\n').unwrap_or(name);
    Some((address, kind, name.split_once('\t').map_or(name, |(name, _)| name)))
}

fn parse(mut lines: impl BufRead) -> (Vec<(u64, u32)>, String) {
    let (mut starts, mut names, mut line) = (Vec::new(), String::new(), String::new());
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        if let Some((address, kind, name)) = fields(&line)
            && matches!(kind, "t" | "T" | "w" | "W")
            && let Ok(address) = u64::from_str_radix(address, 16)
            && address != 0
            && let Ok(at) = u32::try_from(names.len())
        {
            starts.push((address, at));
            names.push_str(name);
            names.push('\n');
        }
        line.clear();
    }
    // Of several names for one address the first in the file wins, as in the kernel's own %pS.
    starts.sort_by_key(|(address, _)| *address);
    starts.dedup_by_key(|(address, _)| *address);
    starts.shrink_to_fit();
    names.shrink_to_fit();
    (starts, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Symbols {
        let (starts, names) = parse(text.as_bytes());
        Symbols { path: PathBuf::from("/dev/null"), starts, names, read: Instant::now() }
    }

    #[test]
    fn the_nearest_function_below_is_the_one() {
        let mut symbols = table(
            "ffffffff81000200 T ip_forward\nffffffff81000100 t nf_hook_slow\nffffffff81000180 d some_data\n\
             ffffffffc0000000 t nft_do_chain\t[nf_tables]\n",
        );
        for (address, name) in [
            (0xffff_ffff_8100_0100, Some("nf_hook_slow")),
            (0xffff_ffff_8100_01ff, Some("nf_hook_slow")),
            (0xffff_ffff_8100_0200, Some("ip_forward")),
            (0xffff_ffff_c000_0446, Some("nft_do_chain")),
            (0xffff_ffff_8100_00ff, None),
            (0xffff_ffff_9000_0000, None),
            (0, None),
        ] {
            assert_eq!(symbols.name(address), name, "{address:#x}");
        }
    }

    #[test]
    fn whether_addresses_are_readable_shows_early() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let says = |text: &str| {
            std::fs::write(&file, text).unwrap();
            readable(file.path())
        };
        assert!(says("0000000000000000 A fixed_percpu_data\nffffffff81000200 T ip_forward\n"));
        assert!(!says("0000000000000000 T ip_forward\n"));
        assert!(!says(""));
        assert!(!readable(Path::new("/nowhere/kallsyms")));
    }

    #[test]
    fn censored_addresses_are_no_table() {
        assert!(table("0000000000000000 T ip_forward\n0000000000000000 t nf_hook_slow\n").is_empty());
    }
}
