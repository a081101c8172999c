//! The Unix socket between the agent and the command line: one JSON request a line, one JSON answer a line.
//!
//! Who may open the file may read everything the agent knows; nothing can be changed through it.

use std::convert::Infallible;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as Client;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tracing::warn;

use super::answer::{self, Said};
use super::live::Live;
use super::recording;
use super::{View, Views};

/// Version of requests and answers.
pub const VERSION: u32 = 1;
/// Where the socket is unless told otherwise.
pub const DEFAULT_PATH: &str = "/run/weir/weir.sock";
/// Owner and group may connect.
const MODE: u32 = 0o660;
/// Bytes of one request.
const MAX_REQUEST: u64 = 64 << 10;
/// Bytes of one answer, as the reader accepts it.
const MAX_ANSWER: u64 = 1 << 30;
/// Clients at the same time.
const MAX_CLIENTS: usize = 64;
/// Clients that watch at the same time.
const MAX_WATCHERS: usize = 8;
/// A client that says or reads nothing for so long is let go.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// One line from the client.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Request {
    v: u32,
    get: String,
    #[serde(flatten)]
    about: About,
}

/// What a question is about.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct About {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    flows: Vec<String>,
}

/// A question that the agent answers from its live view.
#[derive(Clone, Debug)]
pub enum Question {
    /// What is made of a connection.
    Explain {
        /// Who connects.
        from: String,
        /// To whom.
        to: String,
        /// `PORT/PROTOCOL`.
        port: String,
    },
    /// Which connections the required flows of pods need.
    Plan {
        /// Whose; all of the agent's node without it.
        from: Option<String>,
        /// Only these flows; all without one.
        flows: Vec<String>,
    },
}

/// One line to the client.
#[derive(Serialize)]
struct Answer<'a> {
    v: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<&'a View>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<Said>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Reply {
    v: u32,
    snapshot: Option<View>,
    said: Option<Said>,
    pub(super) error: Option<String>,
}

/// Why the socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers on it.
    #[error("{} belongs to an agent that runs; stop that one, or choose another path with --socket", .0.display())]
    Taken(PathBuf),
    /// Something else is there.
    #[error("{} exists and is no socket; remove it, or choose another path with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot make the socket {}: {cause}; choose a writable path with --socket", .path.display())]
    Failed {
        /// The path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// A bound socket; the file goes away with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Binds the socket. The file of an agent that is gone is replaced.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let fail = |cause| BindError::Failed { path: path.to_owned(), cause };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(fail)?;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
            Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
            Ok(_) => match Client::connect(path) {
                Ok(_) => return Err(BindError::Taken(path.to_owned())),
                // Nobody listens any more: what an agent leaves behind that was killed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(fail(error)),
            },
        }
        // Bound under a name of its own and moved: nobody can connect before the mode is set.
        let fresh = folder.join(format!(".weir-{}.sock", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(fail)?;
        let moved =
            fs::set_permissions(&fresh, fs::Permissions::from_mode(MODE)).and_then(|()| fs::rename(&fresh, path));
        if let Err(error) = moved {
            let _ = fs::remove_file(&fresh);
            return Err(fail(error));
        }
        let inode = fs::symlink_metadata(path).map_err(fail)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Answers clients, for ever.
    pub async fn serve(&self, views: Views) -> Infallible {
        let room = Arc::new(Semaphore::new(MAX_CLIENTS));
        let watchers = Arc::new(Semaphore::new(MAX_WATCHERS));
        loop {
            let accepted = self.listener.accept().await;
            match accepted {
                Ok((stream, _)) => {
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    let (views, watchers) = (views.clone(), watchers.clone());
                    tokio::spawn(async move {
                        // A client that goes away is its own business.
                        let _ = answer(stream, views, watchers).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "the socket cannot accept a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Not the file of an agent that came after this one.
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn answer(stream: UnixStream, views: Views, watchers: Arc<Semaphore>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(MAX_REQUEST);
        let said = bounded.read_until(b'\n', &mut line);
        if tokio::time::timeout(IDLE, said).await.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        if asks_for("record", &line)
            && let Ok(_permit) = RECORDING.try_acquire()
            && let Ok(begun) = views.record().await
        {
            return recording::serve(read, write, begun).await;
        }
        if asks_for("watch", &line)
            && let Ok(_permit) = watchers.clone().try_acquire_owned()
            && let Ok(lines) = views.watch().await
        {
            return stream_lines(read, write, lines).await;
        }
        let mut text = respond(&line, complete, &views).await;
        text.push(b'\n');
        tokio::time::timeout(IDLE, write.write_all(&text)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if !complete {
            return Ok(());
        }
    }
}

fn asks_for(what: &str, line: &[u8]) -> bool {
    serde_json::from_slice::<Request>(line).is_ok_and(|r| r.v == VERSION && r.get == what)
}

/// Writes attempts until the client goes away. Nobody waits for a client that does not read, but the attempts that it misses.
async fn stream_lines(
    mut read: impl AsyncReadExt + Unpin,
    mut write: impl AsyncWriteExt + Unpin,
    mut lines: mpsc::Receiver<Live>,
) -> io::Result<()> {
    let mut nothing = [0; 64];
    loop {
        let live = tokio::select! {
            live = lines.recv() => live,
            // A client that watches has nothing more to say: this is how its leaving is noticed in silence.
            said = read.read(&mut nothing) => match said? {
                0 => None,
                _ => continue,
            },
        };
        let Some(live) = live else { return Ok(()) };
        let mut text = serde_json::to_vec(&live)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
}

async fn respond(line: &[u8], complete: bool, views: &Views) -> Vec<u8> {
    let refuse = |error: String| Answer { v: VERSION, snapshot: None, said: None, error: Some(error) };
    let encode = |answer: &Answer<'_>| serde_json::to_vec(answer).unwrap_or_default();
    let request: Request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(_) if !complete => return encode(&refuse(format!("a request is one line of at most {MAX_REQUEST} bytes"))),
        Err(error) => return encode(&refuse(format!("not a request: {error}; try {{\"v\":1,\"get\":\"snapshot\"}}"))),
    };
    if request.v != VERSION {
        return encode(&refuse(format!("this agent speaks version {VERSION}, the request has version {}", request.v)));
    }
    match request.get.as_str() {
        "snapshot" => match views.get().await {
            Ok(view) => encode(&Answer { v: VERSION, snapshot: Some(&view), said: None, error: None }),
            Err(error) => encode(&refuse(error.to_string())),
        },
        "explain" | "plan" => match ponder(&request, views).await {
            Ok(said) => encode(&Answer { v: VERSION, snapshot: None, said: Some(said), error: None }),
            Err(error) => encode(&refuse(error)),
        },
        "watch" => encode(&refuse(format!("{MAX_WATCHERS} clients watch already, or the agent stops; try again"))),
        "record" => encode(&refuse("others record already, or the agent stops; try again".to_owned())),
        other => {
            let known = "snapshot, watch, record, explain, plan";
            encode(&refuse(format!("there is no {other:?} to get; there are: {known}")))
        }
    }
}

/// Recordings at the same time: each queues what happens.
static RECORDING: Semaphore = Semaphore::const_new(2);

/// Questions that are worked on at the same time.
static PONDERING: Semaphore = Semaphore::const_new(1);

/// Works an answer out beside the engine's task.
async fn ponder(request: &Request, views: &Views) -> Result<Said, String> {
    let About { from, to, port, flows } = request.about.clone();
    let question = match (request.get.as_str(), from, to, port) {
        ("plan", from, ..) => Question::Plan { from, flows },
        (_, Some(from), Some(to), Some(port)) => Question::Explain { from, to, port },
        _ => return Err("a question of that kind has from, to and port".to_owned()),
    };
    let _permit = PONDERING.acquire().await.map_err(|e| e.to_string())?;
    let (known, view) = (views.known().await, views.get().await);
    let (known, view) = (known.map_err(|e| e.to_string())?, view.map_err(|e| e.to_string())?);
    let answered = tokio::task::spawn_blocking(move || answer::answer(&known, &view, &question)).await;
    answered.map_err(|e| e.to_string())?.map_err(|e| format!("{e:#}"))
}

/// Why the agent can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no agent answers on {}: {cause}; start one with `weir run`, or name its socket with --socket", .path.display())]
    Unreachable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It says no.
    #[error("the agent on {} answers: {message}", .path.display())]
    Refused {
        /// The path.
        path: PathBuf,
        /// What it says.
        message: String,
    },
    /// It says something else.
    #[error("what answers on {} speaks another language ({message}); are the agent and this command of one version?", .path.display())]
    Strange {
        /// The path.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },
}

/// Asks the agent behind a socket for its view.
///
/// # Errors
/// [`AskError`].
pub fn ask(path: &Path) -> Result<View, AskError> {
    let request = Request { v: VERSION, get: "snapshot".to_owned(), about: About::default() };
    exchange(path, &request, |reply| reply.snapshot)
}

/// Asks the agent behind a socket a question.
///
/// # Errors
/// [`AskError`].
pub fn question(path: &Path, question: &Question) -> Result<Said, AskError> {
    let (get, about) = match question.clone() {
        Question::Explain { from, to, port } => {
            ("explain", About { from: Some(from), to: Some(to), port: Some(port), flows: Vec::new() })
        }
        Question::Plan { from, flows } => ("plan", About { from, flows, ..About::default() }),
    };
    exchange(path, &Request { v: VERSION, get: get.to_owned(), about }, |reply| reply.said)
}

fn exchange<T>(path: &Path, request: &Request, part: impl FnOnce(Reply) -> Option<T>) -> Result<T, AskError> {
    let unreachable = |cause| AskError::Unreachable { path: path.to_owned(), cause };
    let strange = |message: String| AskError::Strange { path: path.to_owned(), message };
    let mut stream = Client::connect(path).map_err(unreachable)?;
    stream.set_read_timeout(Some(IDLE)).map_err(unreachable)?;
    stream.set_write_timeout(Some(IDLE)).map_err(unreachable)?;
    let mut text = serde_json::to_vec(request).map_err(|e| strange(e.to_string()))?;
    text.push(b'\n');
    stream.write_all(&text).map_err(unreachable)?;
    let mut line = String::new();
    BufReader::new(stream).take(MAX_ANSWER).read_line(&mut line).map_err(unreachable)?;
    let reply: Reply = serde_json::from_str(&line).map_err(|e| strange(e.to_string()))?;
    if let Some(message) = reply.error {
        return Err(AskError::Refused { path: path.to_owned(), message });
    }
    let version = reply.v;
    let answer = if version == VERSION { part(reply) } else { None };
    answer.ok_or_else(|| strange(format!("version {version}")))
}

/// Attempts from the agent behind a socket, as they come, until it stops.
///
/// # Errors
/// [`AskError`].
pub fn watch(path: &Path) -> Result<impl Iterator<Item = Result<Live, AskError>>, AskError> {
    let unreachable = |cause| AskError::Unreachable { path: path.to_owned(), cause };
    let mut stream = Client::connect(path).map_err(unreachable)?;
    stream.set_write_timeout(Some(IDLE)).map_err(unreachable)?;
    stream.write_all(b"{\"v\":1,\"get\":\"watch\"}\n").map_err(unreachable)?;
    let path = path.to_owned();
    let lines = BufReader::new(stream).lines().map(move |line| {
        let line = line.map_err(|cause| AskError::Unreachable { path: path.clone(), cause })?;
        if let Ok(live) = serde_json::from_str(&line) {
            return Ok(live);
        }
        // An answer in place of an attempt says why there is none.
        match serde_json::from_str::<Reply>(&line) {
            Ok(Reply { error: Some(message), .. }) => Err(AskError::Refused { path: path.clone(), message }),
            Ok(Reply { v, .. }) => Err(AskError::Strange { path: path.clone(), message: format!("version {v}") }),
            Err(error) => Err(AskError::Strange { path: path.clone(), message: error.to_string() }),
        }
    });
    Ok(lines)
}
