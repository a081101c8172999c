//! The first file system of a guest: programs, modules, and what to run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Cursor},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use cpio::{NewcBuilder, newc::ModeFileType, write_cpio};

use super::{kernels::Files, programs::Programs, userland::Userland};

/// What the tests use of the kernel that Debian builds as modules. A kernel that has one built in or not at all goes without.
const MODULES: [&str; 50] = [
    "virtio_pci",
    "virtio_console",
    "veth",
    "bridge",
    "dummy",
    "tun",
    "netkit",
    "sch_ingress",
    "sch_netem",
    "cls_bpf",
    "cls_matchall",
    "cls_u32",
    "act_bpf",
    "act_gact",
    "nf_tables",
    "nft_ct",
    "nft_counter",
    "nft_limit",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_queue",
    "nfnetlink_queue",
    "nft_fib_inet",
    "nft_compat",
    "iptable_filter",
    "iptable_mangle",
    "iptable_raw",
    "ip6table_mangle",
    "xt_NFQUEUE",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_redir",
    "nft_log",
    "nft_numgen",
    "nft_hash",
    "nf_tables_inet",
    "nft_objref",
    "ip6table_filter",
    "ipt_REJECT",
    "ip6t_REJECT",
    "xt_tcpudp",
    "xt_conntrack",
    "xt_state",
    "inet_diag",
    "tcp_diag",
    "nf_conntrack_netlink",
];

/// Writes the file system beside the kernel.
pub fn build(kernel: &Files, programs: &Programs, userland: &Userland, commands: &[String]) -> Result<PathBuf> {
    let mut tree = Tree::default();
    let Programs { agent, init, matrix, tests } = programs;
    for (source, target) in [(agent, "bin/weir"), (init, "init"), (matrix, "bin/weir-matrix"), (tests, "bin/probes")] {
        tree.add(target, fs::read(source).with_context(|| source.display().to_string())?, 0o755);
    }
    for (path, bytes) in userland.files()? {
        tree.add(&path, bytes, 0o755);
    }
    let order = modules(&kernel.packages, &mut tree)?;
    tree.add("modules/order", order.into_bytes(), 0o644);
    tree.add("commands", (commands.join("\n") + "\n").into_bytes(), 0o644);
    let path = kernel.folder.join("initrd");
    tree.write(&path)?;
    Ok(path)
}

/// Files by path without the leading slash.
#[derive(Default)]
struct Tree(BTreeMap<String, (Vec<u8>, u32)>);

impl Tree {
    fn add(&mut self, path: &str, bytes: Vec<u8>, mode: u32) {
        self.0.insert(path.to_owned(), (bytes, mode));
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut folders = BTreeSet::new();
        for file in self.0.keys() {
            let parents =
                Path::new(file).ancestors().skip(1).filter_map(Path::to_str).filter(|parent| !parent.is_empty());
            folders.extend(parents.map(str::to_owned));
        }
        folders.extend(["dev", "proc", "sys", "run", "tmp"].map(str::to_owned));
        let folder = |name: &String| (entry(name, ModeFileType::Directory, 0o755), Cursor::new(Vec::new()));
        let mut entries: Vec<_> = folders.iter().map(folder).collect();
        // The kernel opens it before process 1 can mount anything.
        let console = NewcBuilder::new("dev/console").set_mode_file_type(ModeFileType::Char).mode(0o020_600);
        entries.push((console.rdev_major(5).rdev_minor(1), Cursor::new(Vec::new())));
        entries.extend(
            self.0
                .iter()
                .map(|(name, (bytes, mode))| (entry(name, ModeFileType::Regular, *mode), Cursor::new(bytes.clone()))),
        );
        let file = File::create(path).with_context(|| path.display().to_string())?;
        write_cpio(entries.into_iter(), BufWriter::new(file)).context("writing the guest's file system")?;
        Ok(())
    }
}

fn entry(name: &str, kind: ModeFileType, mode: u32) -> NewcBuilder {
    NewcBuilder::new(name).mode(mode).set_mode_file_type(kind)
}

/// Adds the modules and what they depend on; the names in the order in which they can be loaded.
fn modules(folder: &Path, tree: &mut Tree) -> Result<String> {
    let mut files = BTreeMap::new();
    collect(folder, &mut files);
    ensure!(!files.is_empty(), "no modules below {}", folder.display());
    let mut order = Vec::new();
    for name in MODULES {
        add(name, &files, tree, &mut order)?;
    }
    Ok(order.iter().map(|name| format!("{name}\n")).collect())
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            collect(&path, files);
        } else if let Some((name, ending)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko"))
            && matches!(ending, "" | ".xz")
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, tree: &mut Tree, order: &mut Vec<String>) -> Result<()> {
    let name = name.replace('-', "_");
    let Some(path) = files.get(&name) else { return Ok(()) };
    if order.contains(&name) {
        return Ok(());
    }
    // Decompressed here: the guest is slow, and process 1 hands over files as they are.
    let bytes = match path.extension().is_some_and(|ending| ending == "xz") {
        false => fs::read(path)?,
        true => {
            let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
            let output = output.context("cannot start xz (package xz-utils)")?;
            ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
            output.stdout
        }
    };
    for needed in depends(&bytes) {
        add(&needed, files, tree, order)?;
    }
    tree.add(&format!("modules/{name}.ko"), bytes, 0o644);
    order.push(name);
    Ok(())
}

/// `depends=a,b` and `softdep=pre: a b` of the module's `.modinfo`, whose entries end in a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for text in module.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok()) {
        if let Some(list) = text.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
        } else if let Some(list) = text.strip_prefix("softdep=pre: ") {
            names.extend(list.split(' ').filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_depends_on_is_read_from_it() {
        let module = b"\x7fELF\xff\0license=GPL\0depends=nf_conntrack,nf_tables\0softdep=pre: crc32c\0name=nft_ct\0";
        assert_eq!(depends(module), ["nf_conntrack", "nf_tables", "crc32c"]);
        assert_eq!(depends(b"depends=\0"), Vec::<String>::new());
    }
}
