//! One connection, opened and closed again.

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use serde::Serialize;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, TYPE};
use weir_engine::words::Protocol;

use super::plan::{Ask, Check};

/// A name that every cluster's DNS has.
const NAME: &str = "kubernetes.default.svc.cluster.local";
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 4096;

/// What became of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    /// It was established, or answered.
    Established,
    /// Somebody said no: nobody listens, or a policy rejects.
    Refused,
    /// Nobody answered in time.
    TimedOut,
    /// The network or its rules said no.
    Unreachable,
    /// It could not be tried.
    Failed,
}

impl Reached {
    /// The word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::TimedOut => "timed-out",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
        }
    }
}

/// What became of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// Of the connection.
    pub reached: Reached,
    /// Time until then, microseconds.
    pub micros: u64,
    /// Who answered said what was expected of it.
    pub right: bool,
    /// What was said, or what the system said.
    pub said: String,
}

/// Opens, asks and closes. Must be called inside the source's network namespace.
pub fn attempt(check: &Check, timeout: Duration) -> Answered {
    let begin = Instant::now();
    let answered = |reached, right, said: String| Answered {
        reached,
        micros: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        right,
        said,
    };
    if check.protocol == Protocol::Udp {
        return match dns(check, timeout) {
            Ok(said) => answered(Reached::Established, true, said),
            Err(error) => answered(reached(&error), false, reason(&error)),
        };
    }
    let mut stream = match connect(check, timeout) {
        Ok(stream) => stream,
        Err(error) => return answered(reached(&error), false, reason(&error)),
    };
    let open = answered(Reached::Established, true, "the handshake was answered".to_owned());
    let asked = match &check.ask {
        Ask::Connect | Ask::Dns => return open,
        Ask::Tls(names) => tls(&mut stream, names),
        Ask::Http(path) => http(&mut stream, check.to, path),
    };
    match asked {
        Ok((right, said)) => Answered { right, said, ..open },
        Err(error) => Answered { right: false, said: format!("connected, then {}", reason(&error)), ..open },
    }
}

fn connect(check: &Check, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&check.to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

fn reached(error: &io::Error) -> Reached {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Reached::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Reached::TimedOut,
        // A rule on the way out that drops gives EPERM to some system calls, one that rejects an ICMP error.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
            Reached::Unreachable
        }
        _ => Reached::Failed,
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

/// Asks for a name. Any answer proves the way.
fn dns(check: &Check, timeout: Duration) -> io::Result<String> {
    let invalid = |e: simple_dns::SimpleDnsError| io::Error::new(ErrorKind::InvalidData, e.to_string());
    let socket = UdpSocket::bind((check.address, 0))?;
    socket.set_read_timeout(Some(timeout))?;
    socket.connect(check.to)?;
    let id = fastrand::u16(..);
    let mut query = Packet::new_query(id);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(NAME).map_err(invalid)?;
    query.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    socket.send(&query.build_bytes_vec().map_err(invalid)?)?;
    let deadline = Instant::now() + timeout;
    let mut buffer = [0; MAX_ANSWER];
    while Instant::now() < deadline {
        let length = socket.recv(&mut buffer)?;
        if let Ok(answer) = Packet::parse(&buffer[..length])
            && answer.id() == id
            && answer.has_flags(PacketFlag::RESPONSE)
        {
            return Ok(format!("{NAME}: {:?}, {} answers", answer.rcode(), answer.answers.len()));
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// Gets a page's status; the page itself is not read.
fn http(stream: &mut TcpStream, to: SocketAddr, path: &str) -> io::Result<(bool, String)> {
    // In one piece: a server may take the first segment for the whole request.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: weir-probe\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    while !head.contains(&b'\n') && head.len() < MAX_ANSWER {
        match stream.read(&mut buffer)? {
            0 => break,
            length => head.extend_from_slice(&buffer[..length]),
        }
    }
    let text = String::from_utf8_lossy(&head);
    let line = text.lines().next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse::<u16>().ok());
    Ok(match status {
        Some(status @ 200..400) => (true, format!("GET {path}: {status}")),
        Some(status) => (false, format!("GET {path}: {status}")),
        None => (false, format!("GET {path}: no HTTP answer")),
    })
}

/// Which name the certificate is for. Who signed it is the mesh's business, and no part of it is trusted here.
fn tls(stream: &mut TcpStream, names: &[String]) -> io::Result<(bool, String)> {
    let other = |e: Error| io::Error::other(e.to_string());
    let shown = Arc::new(Shown { certificate: Mutex::default(), provider: ring::default_provider() });
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(other)?
        .dangerous()
        .with_custom_certificate_verifier(shown.clone())
        .with_no_client_auth();
    let name = names.first().map_or("istiod.istio-system.svc", String::as_str).to_owned();
    let server = ServerName::try_from(name).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(Arc::new(config), server).map_err(other)?;
    while tls.is_handshaking() {
        if let Err(error) = tls.complete_io(stream) {
            return Ok((false, format!("no TLS: {}", reason(&error))));
        }
    }
    let certificate = shown.certificate.lock().map_err(|_| ErrorKind::Other)?.take();
    let certificate = certificate.ok_or(ErrorKind::InvalidData)?;
    let parsed = ParsedCertificate::try_from(&certificate).map_err(other)?;
    let is_for = |name: &&String| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    Ok(match (names.iter().find(is_for), names) {
        (Some(name), _) => (true, format!("TLS: the certificate is for {name}")),
        (None, []) => (true, "TLS: answered; no Service says for which name".to_owned()),
        (None, names) => (false, format!("TLS: the certificate is not for {}", names.join(" nor "))),
    })
}

/// Keeps the certificate that was shown.
struct Shown {
    certificate: Mutex<Option<CertificateDer<'static>>>,
    provider: CryptoProvider,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Ok(mut kept) = self.certificate.lock() {
            *kept = Some(end_entity.clone().into_owned());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection};
    use weir_engine::policy::Admission;
    use weir_engine::requirement::Severity;

    use super::*;

    const NAME: &str = "istiod.istio-system.svc";

    fn ask(to: SocketAddr, ask: Ask) -> Answered {
        let check = Check {
            source: "a/b".to_owned(),
            address: to.ip(),
            flow: "sidecar-xds".to_owned(),
            severity: Severity::Critical,
            destination: "c/d".to_owned(),
            service: None,
            to,
            port: to.port(),
            protocol: Protocol::Tcp,
            ask,
            admission: Admission::Admitted,
            policies: Vec::new(),
        };
        attempt(&check, Duration::from_secs(20))
    }

    /// A server for one connection.
    fn serve(work: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let to = listener.local_addr().unwrap();
        thread::spawn(move || work(listener.accept().unwrap().0));
        to
    }

    /// A TLS server whose certificate is for these names, which nobody trusts.
    fn tls_server(names: &[&str]) -> SocketAddr {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        serve(move |mut stream| {
            let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
            let _ = tls.complete_io(&mut stream);
            // Until the client has gone.
            let _ = stream.read(&mut [0; 16]);
        })
    }

    fn http_server(answer: &'static str) -> SocketAddr {
        serve(move |mut stream| {
            let mut buffer = [0; 512];
            let length = stream.read(&mut buffer).unwrap();
            assert!(buffer[..length].starts_with(b"GET /healthz/ready HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        })
    }

    #[test]
    fn a_certificate_for_the_name_is_right_and_one_for_another_is_not() {
        let names = || Ask::Tls(vec!["istiod-1.istio-system.svc".to_owned(), NAME.to_owned()]);
        let right = ask(tls_server(&["localhost", NAME]), names());
        assert_eq!((right.reached.clone(), right.right), (Reached::Established, true), "{right:?}");
        assert!(right.said.contains(NAME), "{right:?}");
        let wrong = ask(tls_server(&["istiod.elsewhere.svc"]), names());
        assert_eq!((wrong.reached.clone(), wrong.right), (Reached::Established, false), "{wrong:?}");
        assert!(wrong.said.contains("is not for istiod-1.istio-system.svc nor istiod.istio-system.svc"), "{wrong:?}");
        let wild = ask(tls_server(&["*.istio-system.svc"]), names());
        assert!(wild.right, "a wildcard counts: {wild:?}");
    }

    #[test]
    fn who_speaks_no_tls_is_reached_and_is_not_right() {
        let said = ask(http_server_of_any("SSH-2.0-x\r\n"), Ask::Tls(vec![NAME.to_owned()]));
        assert_eq!((said.reached.clone(), said.right), (Reached::Established, false), "{said:?}");
        assert!(said.said.starts_with("no TLS"), "{said:?}");
    }

    fn http_server_of_any(answer: &'static str) -> SocketAddr {
        serve(move |mut stream| {
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = stream.read(&mut [0; 512]);
        })
    }

    #[test]
    fn a_status_of_success_is_right_and_one_of_failure_is_not() {
        let page = || Ask::Http("/healthz/ready".to_owned());
        let fine = ask(http_server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), page());
        assert_eq!((fine.right, &*fine.said), (true, "GET /healthz/ready: 200"));
        let bad = ask(http_server("HTTP/1.1 503 Service Unavailable\r\n\r\n"), page());
        assert_eq!(
            (bad.reached.clone(), bad.right, &*bad.said),
            (Reached::Established, false, "GET /healthz/ready: 503")
        );
        let none = ask(http_server("hello\n"), page());
        assert_eq!((none.right, &*none.said), (false, "GET /healthz/ready: no HTTP answer"));
    }
}
