//! HTTP and the socket, as their clients meet them.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use common::{busy, empty, serve};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use weir::outputs::socket::{self, AskError, BindError, Question, Socket};
use weir::outputs::{View, Views, http};

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Serves until the sender is dropped.
fn http_server(runtime: &Runtime, views: impl FnOnce() -> Views) -> (SocketAddr, oneshot::Sender<()>) {
    let _context = runtime.enter();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    runtime.spawn(http::serve(listener, views(), async move {
        let _ = stopped.await;
    }));
    (address, stop)
}

/// Status line, headers and body.
fn get(address: SocketAddr, path: &str, accept: &str) -> (String, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    (status.to_owned(), headers.to_lowercase(), body.to_owned())
}

#[test]
fn every_route_answers() {
    let runtime = runtime();
    let (address, _stop) = http_server(&runtime, || serve(busy()));
    let table = [
        ("/livez", "200 OK", "text/plain", "ok"),
        ("/readyz", "200 OK", "text/plain", "ok"),
        ("/metrics", "200 OK", "text/plain; version=0.0.4", "weir_attempts_total{"),
        ("/", "200 OK", "text/html", ">denied</b> sidecar-xds shop/cart → istio-system/istiod 15012/TCP</summary>"),
        ("/snapshot", "200 OK", "application/json", "\"pairs\":"),
        ("/nothing", "404 Not Found", "text/plain", "/metrics"),
    ];
    for (path, status, kind, part) in table {
        let (line, headers, body) = get(address, path, "*/*");
        assert!(line.ends_with(status), "{path}: {line}");
        assert!(headers.contains(&format!("content-type: {kind}")), "{path}: {headers}");
        assert!(body.contains(part), "{path}: {body}");
    }
    let (_, headers, body) = get(address, "/metrics", "application/openmetrics-text; version=1.0.0");
    assert!(headers.contains("content-type: application/openmetrics-text; version=1.0.0"), "{headers}");
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[test]
fn the_snapshot_can_be_read_back() {
    let runtime = runtime();
    let (address, _stop) = http_server(&runtime, || serve(busy()));
    let (_, _, body) = get(address, "/snapshot", "*/*");
    let view: View = serde_json::from_str(&body).unwrap();
    assert_eq!((view.snapshot, view.agent), (busy().snapshot, busy().agent));
}

#[test]
fn not_ready_says_why() {
    let mut loading = empty();
    loading.snapshot.synced = false;
    let mut blind = empty();
    blind.agent.probes.iter_mut().for_each(|p| {
        p.active = false;
        p.reason = Some("no such hook".to_owned());
    });
    for (view, reason) in [(loading, "not loaded yet"), (blind, "no probe is active: no such hook")] {
        let runtime = runtime();
        let (address, _stop) = http_server(&runtime, || serve(view));
        let (line, _, body) = get(address, "/readyz", "*/*");
        assert!(line.contains("503"), "{line}");
        assert!(body.contains(reason), "{body}");
        assert!(get(address, "/livez", "*/*").0.ends_with("200 OK"), "alive all the same");
    }
}

#[test]
fn an_engine_that_is_gone_is_not_alive() {
    let runtime = runtime();
    let (address, _stop) = http_server(&runtime, || Views::channel().0);
    for path in ["/livez", "/readyz", "/metrics", "/snapshot", "/"] {
        assert!(get(address, path, "*/*").0.contains("503"), "{path}");
    }
}

#[test]
fn names_in_the_page_are_no_markup() {
    let runtime = runtime();
    let mut view = busy();
    view.snapshot.pairs[0].policies = vec!["<script>alert(1)</script>".to_owned()];
    view.snapshot.pairs[0].source.workload = "<b>\u{202e}".into();
    let (address, _stop) = http_server(&runtime, || serve(view));
    let (_, headers, body) = get(address, "/", "*/*");
    assert!(
        !body.contains("<script>")
            && !body.contains("<b>\\u")
            && body.contains("&lt;b&gt;")
            && !body.contains('\u{202e}'),
        "{body}"
    );
    assert!(body.contains("&lt;script&gt;"), "{body}");
    assert!(headers.contains("content-security-policy: default-src 'none'"), "{headers}");
}

#[test]
fn the_page_proposes_a_fix_and_loads_nothing() {
    let runtime = runtime();
    let (address, _stop) = http_server(&runtime, || serve(busy()));
    let (status, _, body) = get(address, "/", "*/*");
    assert!(status.contains("200"), "{status}");
    for part in ["Proposed fix", "kind: NetworkPolicy", "namespace: shop", "# opens sidecar-xds", "<pre>", "viewport"] {
        assert!(body.contains(part), "{part} is missing: {body}");
    }
    for part in
        ["denied by candidates", "shop/next-deny (next.yaml), in place of shop/allow-all", "shop/web → shop/db 5432"]
    {
        assert!(body.contains(part), "{part} is missing: {body}");
    }
    // What is named in it is neither fetched nor run.
    for part in ["<script", "src=", "http://", "https://", "@import", "url("] {
        assert!(!body.contains(part), "{part}: {body}");
    }
    let (_, _, healthy) = get(http_server(&runtime, || serve(empty())).0, "/", "*/*");
    assert!(!healthy.contains("Proposed fix") && !healthy.contains("andidate"), "{healthy}");
}

#[test]
fn the_page_reads_in_a_browser() {
    if std::process::Command::new("chromium").arg("--version").output().is_err() {
        println!("SKIPPED: chromium is not installed");
        return;
    }
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let shoot = |name: &str, view: View| {
        let (address, _stop) = http_server(&runtime, || serve(view));
        let file = folder.path().join(name);
        let output = std::process::Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,844"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .arg(format!("--screenshot={}", file.display()))
            .arg(format!("http://{address}/"))
            .output()
            .unwrap();
        std::fs::read(&file).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    };
    let (denied, healthy) = (shoot("denied.png", busy()), shoot("healthy.png", empty()));
    for picture in [&denied, &healthy] {
        assert!(picture.starts_with(b"\x89PNG") && picture[16..24] == [0, 0, 1, 0x86, 0, 0, 3, 0x4c], "390 by 844");
    }
    assert!(denied != healthy && denied.len() > healthy.len(), "there is more to see where something is denied");
}

#[test]
fn an_agent_answers_questions_about_its_live_view() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    socket_server(&runtime, &path, busy());
    let explain = |from: &str, to: &str| {
        let (from, to, port) = (from.to_owned(), to.to_owned(), "15012/tcp".to_owned());
        socket::question(&path, &Question::Explain { from, to, port })
    };
    let said = explain("shop/cart", "istio-system/istiod").unwrap();
    assert_eq!(said.exit, 1);
    assert!(said.text.contains("shop/default-deny") && said.text.contains("required: sidecar-xds"), "{}", said.text);
    assert_eq!(said.json["targets"][0]["observed"][0]["state"], "denied");
    assert!(said.text.contains("sidecar-xds: denied, ") && !said.text.contains("15017"), "{}", said.text);
    let wrong = explain("shop/nobody", "istio-system/istiod").unwrap_err().to_string();
    assert!(wrong.contains("no pod, workload or Service nobody"), "{wrong}");
    let plan = |from: &str| socket::question(&path, &Question::Plan { from: Some(from.to_owned()), flows: Vec::new() });
    let checks = plan("shop/cart").unwrap().json["checks"].clone();
    let xds = checks.as_array().unwrap().iter().find(|c| c["flow"] == "sidecar-xds").unwrap().clone();
    assert_eq!(xds["to"], "10.2.0.7:15012");
    assert_eq!((&xds["address"], &xds["admission"]), (&"10.1.0.5".into(), &"not-admitted".into()));
    assert_eq!(xds["policies"], serde_json::json!(["shop/default-deny"]));
}

/// Serves a view on a socket until the runtime is dropped.
fn socket_server(runtime: &Runtime, path: &Path, view: View) {
    let _context = runtime.enter();
    let socket = Socket::bind(path).unwrap();
    let views = serve(view);
    runtime.spawn(async move {
        socket.serve(views).await;
    });
}

fn exchange(path: &Path, lines: &str) -> Vec<String> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(lines.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    BufReader::new(stream).lines().map(Result::unwrap).collect()
}

#[test]
fn the_socket_answers_line_by_line() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/weir.sock");
    socket_server(&runtime, &path, busy());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(socket::ask(&path).unwrap().snapshot, busy().snapshot);
    let answers = exchange(
        &path,
        "nonsense\n{\"v\":9,\"get\":\"snapshot\"}\n{\"v\":1,\"get\":\"secrets\"}\n{\"v\":1,\"get\":\"snapshot\"}\n",
    );
    assert_eq!(answers.len(), 4, "{answers:?}");
    assert!(answers[0].starts_with("{\"v\":1,\"error\":\"not a request"), "{}", answers[0]);
    assert!(answers[1].contains("speaks version 1"), "{}", answers[1]);
    assert!(answers[2].contains("there are: snapshot, watch, record, explain, plan"), "{}", answers[2]);
    assert!(answers[3].starts_with("{\"v\":1,\"snapshot\":{"), "{}", answers[3]);
    let flood = exchange(&path, &"x".repeat(64 << 10));
    assert!(flood[0].contains("at most 65536 bytes"), "{flood:?}");
}

#[test]
fn a_socket_in_use_is_kept_and_a_dead_one_replaced() {
    let runtime = runtime();
    let _context = runtime.enter();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "as an agent leaves it that was killed");
    let first = Socket::bind(&path).unwrap();
    assert!(matches!(Socket::bind(&path), Err(BindError::Taken(_))));
    drop(first);
    assert!(!path.exists(), "a clean stop leaves nothing");

    std::fs::write(&path, "").unwrap();
    let error = Socket::bind(&path).unwrap_err();
    assert!(matches!(error, BindError::NotASocket(_)), "{error}");
    assert!(path.exists(), "somebody's file");
    let error = Socket::bind(Path::new("/proc/weir.sock")).unwrap_err().to_string();
    assert!(error.contains("/proc/weir.sock") && error.contains("--socket"), "{error}");
}

#[test]
fn asking_nobody_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.sock");
    let error = socket::ask(&path).unwrap_err();
    assert!(matches!(error, AskError::Unreachable { .. }));
    assert!(error.to_string().contains("weir run"), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 hello\n").unwrap();
    });
    let error = socket::ask(&path).unwrap_err();
    assert!(matches!(error, AskError::Strange { .. }), "{error}");
    other.join().unwrap();
}
