//! Kernels of Debian, by pattern: exact packages come and go. apt works with a state of its own below `target/vm/apt`, so that
//! nothing of this machine's package lists changes, and packages are unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::tools;

/// A kernel that the probes are tested on.
pub struct Kernel {
    /// As the user names it.
    pub version: &'static str,
    /// Debian's release whose archives hold it, with its security and backports archives.
    suite: &'static str,
    /// Of the package's name.
    pattern: &'static str,
}

pub const KERNELS: [Kernel; 5] = [
    Kernel { version: "5.10", suite: "bullseye", pattern: r"^linux-image-5\.10\..*-cloud-amd64$" },
    Kernel { version: "6.1", suite: "bookworm", pattern: r"^linux-image-6\.1\..*-cloud-amd64$" },
    Kernel { version: "6.12", suite: "trixie", pattern: r"^linux-image-6\.12\..*-cloud-amd64$" },
    Kernel { version: "6.18", suite: "trixie", pattern: r"^linux-image-6\.18\..*-cloud-amd64$" },
    Kernel { version: "7.2", suite: "trixie", pattern: r"^linux-image-7\.2\..*-cloud-amd64$" },
];

/// Where a kernel was unpacked.
pub struct Files {
    pub folder: PathBuf,
    /// The compressed image.
    pub image: PathBuf,
}

/// Lists are fetched again when they are older.
const STALE: Duration = Duration::from_secs(12 * 3600);
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub fn choose(versions: &[String]) -> Result<Vec<&'static Kernel>> {
    if versions.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    let known = || KERNELS.iter().map(|kernel| kernel.version).collect::<Vec<_>>().join(", ");
    versions
        .iter()
        .map(|version| {
            let found = KERNELS.iter().find(|kernel| kernel.version == version);
            found.with_context(|| format!("no kernel {version}: there are {}", known()))
        })
        .collect()
}

/// Elsewhere than on Debian the packages cannot be fetched: says what would be needed.
pub fn require_debian() -> Result<()> {
    ensure!(
        tools::on_path("apt-get") && tools::on_path("dpkg-deb") && Path::new(KEYS).is_file(),
        "vm-test fetches Debian's kernels with apt: it needs apt-get, dpkg-deb and {KEYS} (package \
         debian-archive-keyring), as on Debian and Ubuntu; for modules of 6.12 and later also xz"
    );
    Ok(())
}

/// The kernel's files; fetched if they are not there.
pub fn fetch(kernel: &Kernel, refresh: bool) -> Result<Files> {
    let folder = tools::target().join("vm/kernels").join(kernel.version);
    let image = folder.join("image");
    if refresh || !image.is_file() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let apt = Apt::new(kernel.suite)?;
        let packages = apt.newest(kernel.pattern)?;
        eprintln!("fetching {}", packages.join(", "));
        apt.unpack(&packages, &folder)?;
        let found = find(&folder, &|name| name.starts_with("vmlinuz")).context("the package holds no kernel image")?;
        fs::copy(found, &image)?;
    }
    Ok(Files { folder, image })
}

/// The first file (by path) whose name fits.
fn find(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
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

/// apt with a state of its own.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Lists of one release with its security and backports archives.
    pub fn new(suite: &str) -> Result<Self> {
        let folder = tools::target().join("vm/apt").join(suite);
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
        let apt = Self { folder };
        let fresh = |path: &Path| {
            let age = |path: &Path| {
                SystemTime::now().duration_since(fs::metadata(path)?.modified()?).map_err(anyhow::Error::from)
            };
            find(path, &|name| name.ends_with("Packages") || name.contains("_Packages"))
                .is_some_and(|list| age(&list).is_ok_and(|age| age < STALE))
        };
        if !fresh(&apt.folder.join("lists")) {
            tools::run(apt.command("apt-get").args(["--quiet", "--quiet", "update"]))?;
        }
        Ok(apt)
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
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // apt would want to write as its own user, who cannot enter a private folder.
            "APT::Sandbox::User=root".to_owned(),
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
    fn newest(&self, pattern: &str) -> Result<Vec<String>> {
        let mut images = self.names(pattern)?;
        images.sort_by_key(|name| std::cmp::Reverse(numbers(name)));
        for image in images {
            let version = image.trim_start_matches("linux-image-");
            let shown = self.said("apt-cache", &["show", &image])?;
            let depends =
                shown.lines().filter_map(|line| line.strip_prefix("Depends: ")).flat_map(|line| line.split(", "));
            let mut parts: Vec<String> = depends
                .filter_map(|package| package.split(' ').next())
                .filter(|package| package.starts_with("linux-") && package.ends_with(version))
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

    fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let archives = self.folder.join("cache/archives");
        tools::run(self.command("apt-get").args(["--quiet", "download"]).args(packages).current_dir(&archives))?;
        for package in packages {
            let begin = format!("{package}_");
            let file = find(&archives, &|name| name.starts_with(&begin) && name.ends_with(".deb"));
            let file = file.with_context(|| format!("apt-get download left no {package}"))?;
            tools::run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(into))?;
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

/// Installs a package of the release's backports on this machine, with lists of their own.
pub fn install_from_backports(suite: &str, package: &str) -> Result<()> {
    let apt = Apt::new(suite)?;
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

/// The mirror that this machine uses, or Debian's own.
pub fn mirror() -> String {
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

    #[test]
    fn an_unknown_kernel_is_answered_with_those_that_are_known() {
        let Err(error) = choose(&["2.6".to_owned()]) else { panic!("2.6 is not tested") };
        assert_eq!(error.to_string(), "no kernel 2.6: there are 5.10, 6.1, 6.12, 6.18, 7.2");
        assert_eq!(choose(&[]).map(|all| all.len()).unwrap_or(0), KERNELS.len());
    }
}
