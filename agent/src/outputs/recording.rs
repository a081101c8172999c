//! A recording of the running agent, over its socket: the lines of a recording's file. It begins with the objects as they are
//! known; what the kernel did before is not in it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use weir_engine::cluster::Cluster;
use weir_engine::engine::{Candidate, Input, Settings};
use weir_engine::time::Time;

use super::socket::{AskError, IDLE, Reply, VERSION};
use crate::cluster::change::to_value;
use crate::run::record::{Header, MAX_LINE};

/// Inputs written at a time at most.
const BATCH: usize = 256;

/// What is known when a recording begins, and what comes after.
#[derive(Debug)]
pub struct Begun {
    /// The engine's.
    pub settings: Settings,
    /// When it begins.
    pub at: Time,
    /// The objects.
    pub cluster: Cluster,
    /// Who was looked up, when, and whether somebody was found.
    pub answers: Vec<(Time, std::net::IpAddr, bool)>,
    /// By source.
    pub candidates: Vec<(String, Vec<Candidate>)>,
    /// All initial objects are in.
    pub synced: bool,
    /// Every input from then on.
    pub inputs: mpsc::Receiver<Arc<(Time, Input)>>,
    /// The reader did not keep up, and the inputs end for that.
    pub overrun: Arc<AtomicBool>,
}

impl Begun {
    /// The lines that stand for what is known.
    fn head(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = Vec::new();
        line(&mut text, &Header::new(self.settings.clone()))?;
        for (at, address, somebody) in &self.answers {
            line(&mut text, &(at, Input::Answered { address: *address, somebody: *somebody }))?;
        }
        for (object, origin) in self.cluster.objects() {
            line(&mut text, &(self.at, Input::Apply { object: to_value(&object)?, origin }))?;
        }
        for (source, candidates) in &self.candidates {
            let policies = candidates.iter().map(|c| serde_json::to_value(c.policy())).collect::<Result<_, _>>()?;
            line(&mut text, &(self.at, Input::Candidates { source: source.clone(), policies }))?;
        }
        if self.synced {
            line(&mut text, &(self.at, Input::Synced))?;
        }
        Ok(text)
    }
}

fn line(text: &mut Vec<u8>, value: &impl Serialize) -> serde_json::Result<()> {
    serde_json::to_writer(&mut *text, value)?;
    text.push(b'\n');
    Ok(())
}

/// Writes a recording until the client goes away or does not keep up, or the agent stops.
pub(super) async fn serve(
    mut read: impl AsyncReadExt + Unpin,
    mut write: impl AsyncWriteExt + Unpin,
    begun: Box<Begun>,
) -> io::Result<()> {
    let (text, mut begun) = tokio::task::spawn_blocking(move || (begun.head(), begun)).await?;
    let mut text = text?;
    let mut inputs = Vec::new();
    let mut nothing = [0; 64];
    loop {
        tokio::time::timeout(IDLE, write.write_all(&text)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        text.clear();
        let count = tokio::select! {
            count = begun.inputs.recv_many(&mut inputs, BATCH) => count,
            // A client that records has nothing more to say: this is how its leaving is noticed in silence.
            said = read.read(&mut nothing) => match said? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        if count == 0 {
            break;
        }
        for input in inputs.drain(..) {
            line(&mut text, &*input)?;
        }
    }
    if begun.overrun.load(Ordering::Acquire) {
        let error = "more happens than the reader takes; the recording ends before that. Write to a faster disk";
        line(&mut text, &serde_json::json!({"v": VERSION, "error": error}))?;
        write.write_all(&text).await?;
    }
    Ok(())
}

/// The client's end: a recording of the agent behind a socket.
#[derive(Debug)]
pub struct Recorded {
    path: std::path::PathBuf,
    read: BufReader<UnixStream>,
    line: Vec<u8>,
    /// The settings of the agent's engine.
    pub settings: Settings,
}

impl Recorded {
    /// Asks the agent for a recording.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(path: &Path) -> Result<Self, AskError> {
        let unreachable = |cause| AskError::Unreachable { path: path.to_owned(), cause };
        let ask = async {
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(b"{\"v\":1,\"get\":\"record\"}\n").await?;
            let mut read = BufReader::new(stream);
            let mut line = Vec::new();
            (&mut read).take(MAX_LINE).read_until(b'\n', &mut line).await?;
            Ok((read, line))
        };
        let asked = tokio::time::timeout(Duration::from_secs(60), ask).await;
        let (read, line) = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
        let header: Header = serde_json::from_slice(&line).map_err(|e| told(path, &line, &e))?;
        let settings = header.settings().map_err(|message| AskError::Strange { path: path.to_owned(), message })?;
        Ok(Self { path: path.to_owned(), read, line: Vec::new(), settings })
    }

    /// The next input; none where the agent has stopped. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`AskError::Refused`] where the agent ended the recording.
    pub async fn next(&mut self) -> Result<Option<(Time, Input)>, AskError> {
        let read = (&mut self.read).take(MAX_LINE).read_until(b'\n', &mut self.line).await;
        read.map_err(|cause| AskError::Unreachable { path: self.path.clone(), cause })?;
        let line = std::mem::take(&mut self.line);
        if !line.ends_with(b"\n") {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(|e| told(&self.path, &line, &e))
    }
}

/// An answer in place of a line says why there is none.
fn told(path: &Path, line: &[u8], error: &serde_json::Error) -> AskError {
    match serde_json::from_slice::<Reply>(line) {
        Ok(Reply { error: Some(message), .. }) => AskError::Refused { path: path.to_owned(), message },
        Ok(_) | Err(_) => AskError::Strange { path: path.to_owned(), message: error.to_string() },
    }
}
