//! Embeds the probes that `cargo xtask build-ebpf` has built, or an empty stub where there are none.
//!
//! So that tests need no BPF toolchain, a missing object is not an error here: the agent itself refuses to run with a stub.
//! `WEIR_EBPF=stub` forces the stub; any other value is the path of the object to embed.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=WEIR_EBPF");
    println!("cargo::rerun-if-changed=build.rs");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    // Mirrors `xtask/src/build_ebpf.rs`. A folder of its own, because cargo can watch a folder that may be empty, while a
    // missing file would make it rebuild each time.
    let folder = manifest.join("../target/bpf/object");
    let object = match env::var("WEIR_EBPF").ok().filter(|value| !value.is_empty()) {
        Some(value) if value == "stub" => None,
        Some(path) => Some(PathBuf::from(path)),
        None => {
            fs::create_dir_all(&folder)?;
            println!("cargo::rerun-if-changed={}", folder.display());
            Some(folder.join("weir-ebpf")).filter(|path| path.exists())
        }
    };
    let bytes = match &object {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?
        }
        None => Vec::new(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("weir-ebpf"), bytes)
}
