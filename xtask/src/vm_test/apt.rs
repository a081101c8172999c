//! apt with a state of its own below `target/vm/apt`: nothing of this machine's package lists changes, packages of other
//! releases and architectures can be had, and they are unpacked, never installed.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::architecture::Architecture;
use crate::tools;

/// Lists are fetched again when they are older.
const STALE: Duration = Duration::from_secs(12 * 3600);
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Elsewhere than on Debian the packages cannot be fetched: says what would be needed.
pub fn require_debian() -> Result<()> {
    ensure!(
        tools::on_path("apt-get") && tools::on_path("dpkg-deb") && Path::new(KEYS).is_file(),
        "vm-test fetches Debian's kernels and programs with apt: it needs apt-get, dpkg-deb, xz, readelf (binutils) and {KEYS} \
         (package debian-archive-keyring), as on Debian and Ubuntu; QEMU (packages qemu-system-x86, qemu-system-arm); for guests \
         of another architecture a C cross compiler and Rust's standard library (`rustup target add`)"
    );
    Ok(())
}

/// The lists of one release for one architecture.
pub struct Apt {
    folder: PathBuf,
    architecture: Architecture,
    /// Two processes of apt would be in each other's way.
    _alone: MutexGuard<'static, ()>,
}

impl Apt {
    /// Lists of one release with its security and backports archives.
    pub fn new(suite: &str, architecture: Architecture) -> Result<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tools::target().join("vm/apt").join(format!("{suite}-{}", architecture.debian()));
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let mirror = mirror();
        let mut sources = format!("deb [signed-by={KEYS}] {mirror} {suite} main\n");
        sources += &format!("deb [signed-by={KEYS}] {mirror}-security {suite}-security main\n");
        // Backports of a release that is no longer supported leave the mirrors.
        if suite != "bullseye" {
            sources += &format!("deb [signed-by={KEYS}] {mirror} {suite}-backports main\n");
        }
        fs::write(folder.join("sources.list"), sources)?;
        fs::write(folder.join("status"), "")?;
        let apt = Self { folder, architecture, _alone };
        if !apt.is_fresh() {
            tools::run(apt.command("apt-get").args(["--quiet", "--quiet", "update"]))?;
        }
        Ok(apt)
    }

    fn is_fresh(&self) -> bool {
        let list = find(&self.folder.join("lists"), &|name| name.contains("_Packages"));
        let written = list.and_then(|list| fs::metadata(list).ok()?.modified().ok());
        written.is_some_and(|written| SystemTime::now().duration_since(written).is_ok_and(|age| age < STALE))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str| self.folder.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            format!("APT::Architecture={}", self.architecture.debian()),
            format!("APT::Architectures={}", self.architecture.debian()),
            // apt would want to write as its own user, who cannot enter a private folder.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    fn said(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(program).args(arguments).output().with_context(|| program.to_owned())?;
        ensure!(
            output.status.success(),
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let text = self.said("apt-cache", &["search", "--names-only", pattern])?;
        Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// The newest kernel that is complete. From 6.19 on an image is split into several packages, and the archive drops the
    /// modules of an old one before its image.
    pub fn newest_kernel(&self, pattern: &str) -> Result<Vec<String>> {
        let mut images = self.names(pattern)?;
        images.sort_by_key(|name| std::cmp::Reverse(numbers(name)));
        for image in images {
            let version = image.trim_start_matches("linux-image-");
            let shown = self.said("apt-cache", &["show", &image])?;
            let depends =
                shown.lines().filter_map(|line| line.strip_prefix("Depends: ")).flat_map(|line| line.split(", "));
            let mut parts: Vec<String> = depends
                .filter_map(|package| package.split(' ').next())
                // `linux-base-…` has nothing to boot or load in it.
                .filter(|package| ["linux-binary-", "linux-modules-"].iter().any(|part| package.starts_with(part)))
                .filter(|package| package.ends_with(version))
                .map(str::to_owned)
                .collect();
            parts.sort();
            parts.dedup();
            let known = |package: &String| {
                self.names(&format!("^{}$", package.replace('.', r"\.").replace('+', r"\+")))
                    .is_ok_and(|found| !found.is_empty())
            };
            if parts.iter().all(known) {
                parts.insert(0, image);
                return Ok(parts);
            }
        }
        bail!("the archive holds no complete package for {pattern}")
    }

    /// Unpacks these packages (`name` or `name=version`) and nothing that they depend on.
    pub fn unpack(&self, packages: &[impl AsRef<OsStr>], into: &Path) -> Result<()> {
        tools::run(self.command("apt-get").args(["--quiet", "download"]).args(packages).current_dir(self.archives()?))?;
        self.extract(into)
    }

    /// Unpacks these packages with all that they depend on.
    pub fn unpack_with_dependencies(&self, packages: &[&str], into: &Path) -> Result<()> {
        self.archives()?;
        let mut install = self.command("apt-get");
        install.args(["--quiet", "--quiet", "install", "--download-only", "--yes", "--no-install-recommends"]);
        tools::run(install.args(packages))?;
        self.extract(into)
    }

    /// Where packages are downloaded to, with nothing of an earlier time in it.
    fn archives(&self) -> Result<PathBuf> {
        let folder = self.folder.join("cache/archives");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("partial"))?;
        Ok(folder)
    }

    /// Unpacks what was downloaded. The folder is there with all of it or not at all.
    fn extract(&self, into: &Path) -> Result<()> {
        let archives = self.folder.join("cache/archives");
        let growing = into.with_extension("part");
        for folder in [into, &growing] {
            let _ = fs::remove_dir_all(folder);
        }
        fs::create_dir_all(&growing)?;
        while let Some(file) = find(&archives, &|name| name.ends_with(".deb")) {
            tools::run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&growing))?;
            fs::remove_file(file)?;
        }
        fs::rename(&growing, into).with_context(|| into.display().to_string())
    }
}

/// Installs a package of the release's backports on this machine, with lists of their own.
pub fn install_from_backports(suite: &str, package: &str) -> Result<()> {
    let apt = Apt::new(suite, Architecture::host()?)?;
    let mut command = Command::new("apt-get");
    // Everything is apt's own but the record of what is installed.
    for (option, path) in [
        ("Dir::Etc::sourcelist", apt.folder.join("sources.list")),
        ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
        ("Dir::State::Lists", apt.folder.join("lists")),
        ("Dir::Cache", apt.folder.join("cache")),
    ] {
        command.args(["-o", &format!("{option}={}", path.display())]);
    }
    command.args([
        "-o",
        "APT::Sandbox::User=root",
        "--quiet",
        "--quiet",
        "install",
        "--yes",
        "--no-install-recommends",
    ]);
    command.args(["--target-release", &format!("{suite}-backports"), package]).env("DEBIAN_FRONTEND", "noninteractive");
    tools::run(&mut command)
}

/// The first file (by path) whose name fits.
pub fn find(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.iter().find_map(|path| {
        let name = path.file_name()?.to_str()?;
        match path.is_dir() && !path.is_symlink() {
            true => find(path, fits),
            false => (path.is_file() && fits(name)).then(|| path.clone()),
        }
    })
}

/// The mirror that this machine uses, or Debian's own.
fn mirror() -> String {
    let sites =
        tools::output("apt-get", &["indextargets", "--format", "$(SITE)", "Created-By: Packages"]).unwrap_or_default();
    let debian = sites.lines().map(|site| site.trim_end_matches('/')).find(|site| site.ends_with("/debian"));
    debian.unwrap_or("http://deb.debian.org/debian").to_owned()
}

/// The numbers in a package's name: 6.12.9 comes before 6.12.10.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(numbers("linux-image-6.12.117-cloud-amd64") > numbers("linux-image-6.12.9-cloud-amd64"));
        assert!(numbers("linux-image-6.18.15+deb13-cloud-amd64") > numbers("linux-image-6.18.5+deb13-cloud-amd64"));
    }
}
