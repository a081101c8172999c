//! Commands in pods, over a WebSocket as kubectl opens it: `v5.channel.k8s.io`, one byte for the stream before each message.

use std::sync::Arc;

use futures::SinkExt as _;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName, UPGRADE};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::Inner;
use super::body::Answer;
use super::fault::Verb;
use super::request::decode;
use super::serve::build;

/// The protocol that is spoken.
const PROTOCOL: &str = "v5.channel.k8s.io";
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// Bytes of one message.
const CHUNK: usize = 16 << 10;

/// What is to be run, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// The command with its arguments.
    pub command: Vec<String>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The exit code.
    pub code: i32,
}

/// What runs commands.
pub(super) type Runner = Arc<dyn Fn(&Exec) -> Ran + Send + Sync>;

impl Exec {
    /// Reads a request; none where it is no command.
    pub(super) fn read(parts: &Parts) -> Option<Self> {
        let path: Vec<&str> = parts.uri.path().split('/').filter(|p| !p.is_empty()).collect();
        let ["api", "v1", "namespaces", namespace, "pods", pod, "exec"] = *path else { return None };
        let query = || parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        Some(Self {
            namespace: decode(namespace),
            pod: decode(pod),
            container: query().find(|(name, _)| *name == "container").map(|(_, c)| decode(c)).unwrap_or_default(),
            command: query().filter(|(name, _)| *name == "command").map(|(_, word)| decode(word)).collect(),
        })
    }

    /// Switches to the WebSocket, runs the command and tells how it ended.
    pub(super) fn open(self, inner: &Arc<Inner>, runner: Runner, mut request: Request<Incoming>) -> Response<Answer> {
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let accept = derive_accept_key(header("sec-websocket-key").as_bytes());
        let speaks = header("sec-websocket-protocol").split(',').any(|p| p.trim() == PROTOCOL);
        let counted = ("pods/exec".to_owned(), Verb::Get);
        let nothing = || Answer::text(inner, counted.clone(), Vec::new());
        if !speaks {
            return build(400, &[], nothing());
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            let Ok(ran) = tokio::task::spawn_blocking(move || runner(&self)).await else { return };
            // A client that goes away is its own business.
            drop(tell(socket, ran).await);
        });
        let headers = [
            (CONNECTION, "Upgrade".to_owned()),
            (UPGRADE, "websocket".to_owned()),
            (HeaderName::from_static("sec-websocket-accept"), accept),
            (HeaderName::from_static("sec-websocket-protocol"), PROTOCOL.to_owned()),
        ];
        build(101, &headers, nothing())
    }
}

async fn tell<S>(mut socket: WebSocketStream<S>, ran: Ran) -> anyhow::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let status = serde_json::to_vec(&status(ran.code))?;
    let streams = [(STDOUT, &ran.stdout, CHUNK), (STDERR, &ran.stderr, CHUNK), (ERROR, &status, usize::MAX)];
    for (stream, bytes, chunk) in streams {
        for part in bytes.chunks(chunk) {
            socket.send(Message::binary([&[stream][..], part].concat())).await?;
        }
    }
    // kubectl takes an end without a code for a broken connection.
    let end = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    socket.close(Some(end)).await?;
    Ok(())
}

/// How the API server tells an exit code.
fn status(code: i32) -> Value {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    if code != 0 {
        status["status"] = "Failure".into();
        status["reason"] = "NonZeroExitCode".into();
        status["message"] = format!("command terminated with non-zero exit code: exit status {code}").into();
        status["details"] = json!({"causes": [{"reason": "ExitCode", "message": code.to_string()}]});
    }
    status
}
