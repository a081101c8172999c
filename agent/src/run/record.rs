//! Recordings: every input of the engine with its time, one JSON line each, after a header line with the settings.
//!
//! The engine is deterministic, so a recording replayed gives the same verdicts. Object contents are in it: treat it as the
//! manifests themselves.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_engine::engine::{Input, Settings};
use weir_engine::time::Time;

/// Version of the format.
pub const VERSION: u32 = 1;
/// Stands for standard output in place of a file.
pub const STANDARD_OUTPUT: &str = "-";
/// Bytes of a recording unless told otherwise.
pub const DEFAULT_LIMIT: u64 = 256 << 20;
/// Bytes of one line.
pub(crate) const MAX_LINE: u64 = 64 << 20;

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    weir_recording: u32,
    settings: Settings,
}

impl Header {
    /// Of this version.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { weir_recording: VERSION, settings }
    }

    /// The settings, where the version is one that is read.
    ///
    /// # Errors
    /// Both versions, in words.
    pub(crate) fn settings(self) -> Result<Settings, String> {
        let Self { weir_recording, settings } = self;
        if weir_recording == VERSION {
            return Ok(settings);
        }
        Err(format!("version {weir_recording} of the format; this weir reads version {VERSION}"))
    }
}

/// Why there is no recording, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Could not be created, read or written.
    #[error("recording {}: {cause}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Full.
    #[error("recording {}: at its limit of {limit} bytes; raise it with --limit, or --record-limit of `weir run`", .path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// Not a recording, or not one that this version reads.
    #[error("{}:{line}: {message}; record again with `weir run --record FILE`", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
}

/// Writes a recording.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    out: BufWriter<File>,
    left: u64,
    limit: u64,
    redact: bool,
}

impl Recorder {
    /// Begins a recording; an older one of that name is replaced. Redacted, it holds no more than verdicts are made from.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn create(path: &Path, settings: &Settings, limit: u64, redact: bool) -> Result<Self, RecordError> {
        // Object contents are in it.
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = if path == Path::new(STANDARD_OUTPUT) {
            std::io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            options.open(path)
        };
        let file = file.map_err(|cause| RecordError::Io { path: path.to_owned(), cause })?;
        let mut this = Self { path: path.to_owned(), out: BufWriter::new(file), left: limit, limit, redact };
        this.line(&Header::new(settings.clone()))?;
        Ok(this)
    }

    /// Adds one input.
    ///
    /// # Errors
    /// [`RecordError::Full`] at the limit, after which nothing may be added: a recording has no holes.
    pub fn write(&mut self, now: Time, input: &Input) -> Result<(), RecordError> {
        if self.redact {
            return self.line(&(now, super::redact::input(input.clone())));
        }
        self.line(&(now, input))
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn flush(&mut self) -> Result<(), RecordError> {
        self.out.flush().map_err(|cause| RecordError::Io { path: self.path.clone(), cause })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), RecordError> {
        let fail = |cause| RecordError::Io { path: self.path.clone(), cause };
        let mut bytes = serde_json::to_vec(line).map_err(|e| fail(e.into()))?;
        bytes.push(b'\n');
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            self.flush()?;
            return Err(RecordError::Full { path: self.path.clone(), limit: self.limit });
        };
        self.left = left;
        self.out.write_all(&bytes).map_err(fail)
    }
}

/// Reads a recording, input by input.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    input: BufReader<File>,
    line: u64,
    /// Bytes of the file, and how many of them are read.
    size: u64,
    read: u64,
    /// The settings that were in force.
    pub settings: Settings,
}

impl Recording {
    /// Opens a recording and reads its header.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let io = |cause| RecordError::Io { path: path.to_owned(), cause };
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_or(0, |m| m.len());
        let mut input = BufReader::new(file);
        let invalid = |message: String| RecordError::Invalid { path: path.to_owned(), line: 1, message };
        let header = read_line(&mut input).map_err(io)?;
        let read = header.len() as u64;
        let header: Header =
            serde_json::from_str(&header).map_err(|_| invalid("not a recording of weir".to_owned()))?;
        let settings = header.settings().map_err(invalid)?;
        Ok(Self { path: path.to_owned(), input, line: 1, size, read, settings })
    }

    /// Bytes read, and bytes in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.read, self.size)
    }

    /// The next input; `None` at the end. A last line that was cut off (the agent was killed) is the end too.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn next_input(&mut self) -> Result<Option<(Time, Input)>, RecordError> {
        let line = read_line(&mut self.input).map_err(|cause| RecordError::Io { path: self.path.clone(), cause })?;
        self.line += 1;
        self.read += line.len() as u64;
        if line.is_empty() {
            return Ok(None);
        }
        match serde_json::from_str(&line) {
            Ok(input) => Ok(Some(input)),
            Err(_) if !line.ends_with('\n') => Ok(None),
            Err(error) => {
                Err(RecordError::Invalid { path: self.path.clone(), line: self.line, message: error.to_string() })
            }
        }
    }
}

fn read_line(input: &mut BufReader<File>) -> std::io::Result<String> {
    let mut line = String::new();
    input.take(MAX_LINE).read_line(&mut line)?;
    Ok(line)
}
