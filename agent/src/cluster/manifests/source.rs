//! Which files a path means, and their bytes.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Keep, Manifests, Problem, Severity, parse};

/// Bytes read of one file. The API server refuses objects beyond 3 MiB; a cluster dump is larger.
pub const MAX_FILE_BYTES: u64 = 128 << 20;
/// Folders inside folders.
const MAX_FOLDER_DEPTH: usize = 32;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// A path that was named on the command line and can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Opening, listing or reading it failed.
    #[error("cannot read manifests from {}: {cause}; name a file or folder that this user can read, or - for standard input", .path.display())]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// Tells one state of a file from the next without reading it: the inode changes when a file or a link to it is replaced, the
/// times when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A file to read.
#[derive(Clone, Debug)]
pub struct File {
    /// `None` is standard input.
    path: Option<PathBuf>,
    /// What problems and origins call it.
    pub name: Arc<str>,
    /// `None` for what can only be read once: standard input, pipes.
    pub stamp: Option<Stamp>,
    /// Named on the command line, not found in a folder.
    named: bool,
}

impl File {
    /// Reads and parses it.
    ///
    /// # Errors
    /// When it was named on the command line and can't be read. A file found in a folder gives a [`Problem`] instead.
    pub fn read(&self, keep: Keep) -> Result<Manifests, SourceError> {
        match self.bytes() {
            Ok(bytes) => Ok(parse(&self.name, &bytes, keep)),
            Err(cause) if self.named => {
                Err(SourceError::Unreadable { path: self.path.clone().unwrap_or_else(|| "-".into()), cause })
            }
            Err(error) => Ok(Manifests { files: 1, ..unreadable(&self.name, &error) }),
        }
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match &self.path {
            Some(path) => fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?,
            None => io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?,
        };
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let message = format!("larger than {} MiB; split it", MAX_FILE_BYTES >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(bytes)
    }
}

/// A file or folder below a named path that could not be read.
fn unreadable(name: &Arc<str>, error: &io::Error) -> Manifests {
    let mut out = Manifests::default();
    out.report(Problem {
        severity: Severity::Error,
        file: name.clone(),
        document: None,
        line: None,
        message: format!("cannot be read: {error}"),
        hint: None,
    });
    out
}

/// What a walk over one named path found.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files in name order.
    pub files: Vec<File>,
    /// Parts that could not be walked.
    pub problems: Vec<Problem>,
}

/// Lists the files that one named path means. A file reached twice, by links or by several paths, is listed once: `seen`.
///
/// # Errors
/// [`SourceError`] when the path itself can't be read.
pub fn list(root: &Path, seen: &mut HashSet<PathBuf>) -> Result<Listing, SourceError> {
    let fail = |cause| SourceError::Unreadable { path: root.to_owned(), cause };
    let mut listing = Listing::default();
    if root == Path::new("-") {
        listing.files.push(File { path: None, name: "-".into(), stamp: None, named: true });
        return Ok(listing);
    }
    let meta = fs::metadata(root).map_err(fail)?;
    if meta.is_dir() {
        seen.insert(fs::canonicalize(root).map_err(fail)?);
        walk(root, 0, seen, &mut listing).map_err(fail)?;
        if listing.files.is_empty() && listing.problems.is_empty() {
            listing.problems.push(Problem {
                severity: Severity::Warning,
                file: name_of(root),
                document: None,
                line: None,
                message: "no *.yaml, *.yml or *.json file in this folder".to_owned(),
                hint: None,
            });
        }
    } else if seen.insert(fs::canonicalize(root).map_err(fail)?) {
        let stamp = meta.is_file().then(|| Stamp::of(&meta));
        listing.files.push(File { path: Some(root.to_owned()), name: name_of(root), stamp, named: true });
    }
    Ok(listing)
}

/// All files of all paths, in order; problems of the walk come as files without objects.
pub(super) fn find(roots: &[PathBuf]) -> Result<(Vec<File>, Vec<Problem>), SourceError> {
    let mut seen = HashSet::new();
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for root in roots {
        let listing = list(root, &mut seen)?;
        files.extend(listing.files);
        problems.extend(listing.problems);
    }
    Ok((files, problems))
}

fn walk(folder: &Path, depth: usize, seen: &mut HashSet<PathBuf>, out: &mut Listing) -> io::Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>()?;
    entries.sort();
    for path in entries {
        // Hidden entries are editors' and version control's; in a mounted ConfigMap they are the versions behind its links.
        if path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if let Err(error) = entry(&path, depth, seen, out) {
            out.problems.extend(unreadable(&name_of(&path), &error).problems);
        }
    }
    Ok(())
}

fn entry(path: &Path, depth: usize, seen: &mut HashSet<PathBuf>, out: &mut Listing) -> io::Result<()> {
    let wanted = path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e));
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        // A dangling link that would not be read anyway, or a file that went away just now.
        Err(error) if !wanted || error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if meta.is_dir() {
        if depth == MAX_FOLDER_DEPTH {
            return Err(io::Error::other(format!("folders are nested deeper than {MAX_FOLDER_DEPTH} levels")));
        }
        // Links may lead in a circle.
        return if seen.insert(fs::canonicalize(path)?) { walk(path, depth + 1, seen, out) } else { Ok(()) };
    }
    // A pipe or device in a folder would block.
    if wanted && meta.is_file() && seen.insert(fs::canonicalize(path)?) {
        let stamp = Some(Stamp::of(&meta));
        out.files.push(File { path: Some(path.to_owned()), name: name_of(path), stamp, named: false });
    }
    Ok(())
}

fn name_of(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}
