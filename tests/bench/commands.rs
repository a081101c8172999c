//! How long the commands of a person in an incident take: the released binary on a cluster of a laptop's size, those that ask the
//! agent against its socket. `cargo xtask bench commands` runs this; commands above the aim are printed and make the exit code 1.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use harness::agent::{Agent, AgentOptions};
use harness::aims;
use harness::netns::{Netns, RunId};
use serde_json::{Value, json};

/// Aim for each command, median.
const AIM: Duration = Duration::from_millis(100);
const ROUNDS: usize = 21;
const NAMESPACES: u8 = 12;
const PODS: u8 = 8;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 2);
const PORT: u16 = 15012;

fn main() -> ExitCode {
    aims::exit(bench())
}

fn bench() -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent attaches probes: run it as root (`sudo -E cargo xtask bench commands`)");
    }
    let binary = std::env::var_os("WEIR_AGENT").map(PathBuf::from).context("WEIR_AGENT names no agent")?;
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("cluster.json");
    let objects = cluster();
    fs::write(&manifests, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    let options = AgentOptions { binary: binary.clone(), manifests: Some(manifests.clone()), arguments: Vec::new() };
    let agent = Agent::start(&options)?;
    let (socket, file) = (agent.socket(), manifests);
    let (socket, file) = (socket.to_str().context("a path")?, file.to_str().context("a path")?);
    let (from, to) = ("shop-1/cart-1", "istio-system/istiod");
    let commands: [&[&str]; 8] = [
        &["status", "--socket", socket],
        &["status", "--all", "--socket", socket],
        &["explain", from, to, "15012", "--socket", socket],
        &["explain", from, to, "15012", "-f", file],
        &["check", "-f", file],
        &["fix", "-f", file],
        &["flows"],
        &["doctor", "--socket", socket],
    ];
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let pods = objects.iter().filter(|o| o["kind"] == "Pod").count();
    println!(
        "{pods} pods, {} objects; {} rounds; load {}",
        objects.len(),
        ROUNDS,
        load.split(' ').next().unwrap_or("?")
    );
    println!("{:50} {:>9} {:>9}", "weir", "median", "slowest");
    let mut met = true;
    for arguments in commands {
        let name: Vec<&str> = arguments.iter().map(|a| if a.starts_with('/') { "…" } else { a }).collect();
        met &= tell(&name.join(" ").replace(" --socket …", ""), || {
            let begin = Instant::now();
            let said = Command::new(&binary).args(arguments).output()?;
            let took = begin.elapsed();
            ensure!(matches!(said.status.code(), Some(0..=2)) && !said.stdout.is_empty(), "{said:?}");
            Ok(took)
        })?;
    }
    met &= first_line(&binary, Path::new(socket))?;
    Ok(met)
}

/// Times something again and again, and prints it.
fn tell(name: &str, mut once: impl FnMut() -> Result<Duration>) -> Result<bool> {
    let mut all = (0..ROUNDS).map(|_| once()).collect::<Result<Vec<Duration>>>()?;
    all.sort_unstable();
    let (median, slowest) = (all[ROUNDS / 2], all[ROUNDS - 1]);
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    let missed = if median > AIM { "  MISSED" } else { "" };
    println!("{name:50} {:>9} {:>9}{missed}", ms(median), ms(slowest));
    Ok(median <= AIM)
}

/// From the start of `weir watch` to its first line, while connections are made all the time.
fn first_line(binary: &Path, socket: &Path) -> Result<bool> {
    let id = RunId::new()?;
    let names = ["client", "server"].map(|name| id.name(name));
    let [client, server]: [Netns; 2] = Netns::create(&names)?.try_into().ok().context("two namespaces")?;
    client.ip(&format!(
        "link set lo up\nlink add eth0 type veth peer name eth0 netns {}\naddr add 10.9.1.1/24 dev eth0\nlink set eth0 up\n",
        server.name()
    ))?;
    server.ip("link set lo up\naddr add 10.9.1.2/24 dev eth0\nlink set eth0 up\n")?;
    let listener = server.run(|| Ok(TcpListener::bind((SERVER, PORT))?))?;
    thread::spawn(move || listener.incoming().for_each(drop));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let driving = scope.spawn(|| {
            client.run(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(TcpStream::connect_timeout(&SocketAddr::from((SERVER, PORT)), Duration::from_secs(1)));
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            })
        });
        let met = tell("watch, to its first line", || {
            let begin = Instant::now();
            let mut child =
                Command::new(binary).arg("watch").arg("--socket").arg(socket).stdout(Stdio::piped()).spawn()?;
            let mut line = String::new();
            BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
            let took = begin.elapsed();
            child.kill()?;
            child.wait()?;
            ensure!(!line.is_empty(), "no line");
            Ok(took)
        });
        stop.store(true, Ordering::Relaxed);
        drop(driving.join());
        met
    })
}

/// A mesh of about a hundred pods under default-deny.
fn cluster() -> Vec<Value> {
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "laptop"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.49.2"}]},
        "spec": {"podCIDRs": ["10.244.0.0/16"]},
    })];
    namespace(&mut objects, "istio-system", None);
    namespace(&mut objects, "kube-system", None);
    pod(&mut objects, "istio-system", "istiod", "discovery", [0, 2]);
    service(&mut objects, "istio-system", "istiod", &[(15012, 15012), (443, 15017), (15014, 15014)], 1);
    for n in 0..2 {
        pod(&mut objects, "kube-system", &format!("coredns-{n}"), "coredns", [0, 10 + n]);
    }
    service(&mut objects, "kube-system", "kube-dns", &[(53, 53)], 2);
    for n in 0..NAMESPACES {
        let name = format!("shop-{n}");
        namespace(&mut objects, &name, Some("enabled"));
        for (policy, spec) in [
            ("default-deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
            (
                "dns",
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [
                    {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"},
                ]}]}),
            ),
        ] {
            let metadata = json!({"name": policy, "namespace": name});
            objects.push(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec,
            }));
        }
        for m in 0..PODS {
            let workload = if m == 0 { "cart".to_owned() } else { format!("cart-{m}") };
            pod(&mut objects, &name, &workload, "istio-proxy", [n + 1, m + 2]);
        }
        service(&mut objects, &name, "cart", &[(80, 8080)], n + 10);
    }
    objects
}

fn namespace(objects: &mut Vec<Value>, name: &str, injection: Option<&str>) {
    let mut labels = json!({"kubernetes.io/metadata.name": name});
    if let Some(injection) = injection {
        labels["istio-injection"] = injection.into();
    }
    objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
}

fn pod(objects: &mut Vec<Value>, namespace: &str, name: &str, container: &str, address: [u8; 2]) {
    let ip = Ipv4Addr::new(10, 244, address[0], address[1]).to_string();
    let app = if container == "coredns" { "kube-dns" } else { name };
    let labels = json!({"app": app, "k8s-app": app});
    objects.push(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": "laptop", "containers": [
            {"name": "app", "ports": [{"containerPort": 8080}]}, {"name": container},
        ]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    }));
}

fn service(objects: &mut Vec<Value>, namespace: &str, name: &str, ports: &[(u16, u16)], last: u8) {
    let selector = if name == "kube-dns" { json!({"k8s-app": name}) } else { json!({"app": name}) };
    let ports: Vec<Value> = ports
        .iter()
        .map(|(port, target)| json!({"name": format!("p{port}"), "port": port, "targetPort": target}))
        .collect();
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": selector, "ports": ports, "clusterIP": format!("10.96.0.{last}")},
    }));
}
