//! A TLS server in a namespace, with a certificate of its own making: who signed it nobody knows, for whom it is everybody sees.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection};

use crate::netns::Netns;
use crate::servers::listening;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct TlsServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TlsServer {
    /// Serves a port of a namespace with a certificate for these names.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(namespace: &Netns, port: u16, names: &[&str]) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder_with_provider(default_provider().into());
        let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key)?);
        let listener = namespace.run(|| listening(port, 16)).with_context(|| format!("cannot serve {port}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(greet(stream, &config)),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The handshake, and nothing else.
fn greet(mut stream: TcpStream, config: &Arc<ServerConfig>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut tls = ServerConnection::new(config.clone())?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    drop(stream.read(&mut [0; 64]));
    Ok(())
}
