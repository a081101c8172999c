//! The event loop with a scripted kernel in place of the probes: manifests, losses, readers, recordings.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapbox::cmd::cargo_bin;
use tokio::sync::oneshot;
use weir::outputs::{ProbeView, View, socket};
use weir::run::{self, Clock, Config, Observer, record};
use weir_engine::attempt::Outcome;
use weir_engine::cluster::Kind;
use weir_engine::engine::Settings;
use weir_engine::observation::{AttemptEnd, AttemptStart, Observation, Owner, PacketDrop, QueuedError, Stack, Tuple};
use weir_engine::words::Protocol;

/// Hands out its batches one after the other, then waits.
struct Script {
    batches: VecDeque<Vec<Observation>>,
    /// In the buffer from then on, without waking anybody.
    unread: Option<(Instant, Observation)>,
    lost: u64,
    fails: bool,
}

impl Script {
    fn quiet() -> Self {
        Self { batches: VecDeque::new(), unread: None, lost: 0, fails: false }
    }
}

impl Observer for Script {
    async fn next(&mut self, batch: &mut Vec<Observation>) -> anyhow::Result<()> {
        if self.fails {
            anyhow::bail!("the kernel went away");
        }
        match self.batches.pop_front() {
            Some(observations) => batch.extend(observations),
            None => pending().await,
        }
        Ok(())
    }

    fn drain(&mut self, batch: &mut Vec<Observation>) {
        batch.extend(self.unread.take_if(|(from, _)| *from <= Instant::now()).map(|(_, observation)| observation));
    }

    fn probes(&self) -> Vec<ProbeView> {
        vec![ProbeView { name: "script".to_owned(), hook: String::new(), active: true, reason: None }]
    }

    fn watch(&mut self, _ports: &BTreeSet<u16>) -> anyhow::Result<()> {
        Ok(())
    }

    fn suppressed_stacks(&self) -> u64 {
        0
    }

    fn lost(&mut self) -> Vec<(&'static str, u64)> {
        vec![("ring-buffer", self.lost)]
    }
}

fn connect(port: u16) -> Observation {
    let now = Clock::start().now();
    let tuple = Tuple {
        source: "10.0.0.1".parse().unwrap(),
        source_port: 40_000,
        destination: "10.0.0.2".parse().unwrap(),
        destination_port: port,
        protocol: Protocol::Tcp,
    };
    let owner = Owner { pid: 1, comm: "curl".to_owned(), cgroup: 1, pod: None };
    Observation::AttemptStart(AttemptStart { at: now, tuple, socket: 7, netns: 1, owner })
}

/// A running agent, without probes.
struct Agent {
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Agent {
    fn start(manifest: &str, script: Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("cluster.yaml"), manifest).unwrap();
        let config = Config {
            candidates: Vec::new(),
            events: false,
            source: run::Source::Manifests(vec![path("cluster.yaml")]),
            listen: "127.0.0.1:0".parse().unwrap(),
            socket: path("weir.sock"),
            settings: Settings::default(),
            record: Some(path("record.jsonl")),
            record_limit: record::DEFAULT_LIMIT,
            redact: false,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let agent = run::run_until(
                config,
                |_| Ok(script),
                || {
                    Ok(async move {
                        let _ = stopped.await;
                    })
                },
            );
            runtime.block_on(agent)
        });
        Self { folder, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The first view that fits, within ten seconds.
    fn view(&self, what: &str, fits: impl Fn(&View) -> bool) -> View {
        let started = Instant::now();
        loop {
            let view = socket::ask(&self.path("weir.sock"));
            match view {
                Ok(view) if fits(&view) => return view,
                other if started.elapsed() > Duration::from_secs(10) => panic!("{what}: {other:?}"),
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap()
    }
}

fn namespaces(view: &View) -> u64 {
    view.snapshot.objects.iter().filter(|o| o.kind == Kind::Namespace).map(|o| o.count).sum()
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n")
}

#[test]
fn edits_reach_the_engine_and_faults_are_shown() {
    let mut agent = Agent::start(&namespace("a"), Script::quiet());
    let view = agent.view("one namespace", |v| namespaces(v) == 1);
    assert!(view.snapshot.synced && view.agent.problems.is_empty() && view.agent.files == 1, "{:?}", view.agent);
    assert_eq!(view.not_ready(), None);

    fs::write(agent.path("cluster.yaml"), format!("{}{}", namespace("a"), namespace("b"))).unwrap();
    agent.view("two namespaces", |v| namespaces(v) == 2);

    fs::write(agent.path("cluster.yaml"), format!("{}kind: [\n", namespace("a"))).unwrap();
    let view = agent.view("a problem", |v| !v.agent.problems.is_empty());
    assert_eq!(namespaces(&view), 2, "what can't be read stays");
    assert!(agent.path("weir.sock").exists());
    agent.stop().unwrap();
    assert!(!agent.path("weir.sock").exists());
}

#[test]
fn losses_are_counted_once() {
    let batches = vec![vec![connect(443)], vec![connect(443)]];
    let script = Script { batches: batches.into(), lost: 5, ..Script::quiet() };
    let mut agent = Agent::start(&namespace("a"), script);
    let view = agent.view("losses", |v| !v.snapshot.lost.is_empty());
    assert_eq!((view.snapshot.lost[0].stage.as_str(), view.snapshot.lost[0].count), ("ring-buffer", 5));
    agent.stop().unwrap();
}

/// An agent that was not scheduled: the route's drop after its "administratively prohibited" waits in the buffer when the time
/// is over after which that would be laid to a rule's charge.
#[test]
fn what_waits_in_the_buffer_counts_before_the_clock_does() {
    let begun = connect(15012);
    let Observation::AttemptStart(AttemptStart { at, tuple, socket, netns, .. }) = begun.clone() else { panic!() };
    let later = |ms: u64| at.plus(Duration::from_millis(ms));
    let ended = Observation::AttemptEnd(AttemptEnd {
        at: later(1),
        tuple,
        socket,
        started: at,
        established: false,
        reset: false,
        cause_unknown: false,
        error: 0,
        soft_error: 0,
        queued: Some(QueuedError { origin: 2, kind: 3, code: 13 }),
        retransmits: 0,
        netns,
    });
    let dropped = Observation::Drop(PacketDrop {
        at: later(2),
        tuple,
        original: None,
        socket: None,
        reason: Some("NOT_SPECIFIED".to_owned()),
        location: Some("ip_error".to_owned()),
        stack: Stack::default(),
        count: 1,
        netns: 2,
        interface: 3,
        tcp_flags: 0x02,
        reply: false,
        untracked: false,
    });
    let script = Script {
        batches: vec![vec![begun, ended]].into(),
        unread: Some((Instant::now() + Duration::from_millis(500), dropped)),
        ..Script::quiet()
    };
    let mut agent = Agent::start(&namespace("a"), script);
    let view = agent.view("the end of the attempt", |v| !v.snapshot.attempts.is_empty());
    let outcomes: Vec<_> = view.snapshot.attempts.iter().map(|a| (a.outcome, a.count)).collect();
    assert_eq!(outcomes, [(Outcome::Unreachable, 1)]);
    agent.stop().unwrap();
}

#[test]
fn probes_that_fail_end_the_agent() {
    let mut agent = Agent::start(&namespace("a"), Script { fails: true, ..Script::quiet() });
    let ended = agent.thread.take().unwrap().join().unwrap();
    assert_eq!(ended.unwrap_err().to_string(), "the kernel went away");
    assert!(!agent.path("weir.sock").exists());
}

fn replay(file: &Path) -> Vec<u8> {
    let output = Command::new(cargo_bin!("weir")).arg("replay").arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_recording_replays_to_the_same_bytes() {
    let batches = vec![vec![connect(15012), connect(443)], vec![connect(53)]];
    let mut agent = Agent::start(&namespace("a"), Script { batches: batches.into(), ..Script::quiet() });
    agent.view("attempts", |v| namespaces(v) == 1 && v.snapshot.pending_attempts > 0);
    fs::write(agent.path("cluster.yaml"), namespace("b")).unwrap();
    agent.view("the edit", |v| v.snapshot.objects.iter().any(|o| o.kind == Kind::Namespace && o.count == 1));
    agent.stop().unwrap();

    let recording = agent.path("record.jsonl");
    let text = fs::read_to_string(&recording).unwrap();
    assert!(text.starts_with("{\"weir_recording\":1,\"settings\":{"), "{text}");
    assert!(text.contains("\"input\":\"apply\"") && text.contains("\"input\":\"synced\""), "{text}");
    assert_eq!(text.matches("\"observation\":\"attempt-start\"").count(), 3, "{text}");
    let first = replay(&recording);
    assert_eq!(first, replay(&recording));
    let last = first.split(|b| *b == b'\n').rfind(|l| !l.is_empty()).unwrap();
    let last: serde_json::Value = serde_json::from_slice(last).unwrap();
    assert_eq!(last["snapshot"]["synced"], true);

    // Cut off in the middle of a line, as by a kill: what is there counts.
    fs::write(&recording, &text[..text.len() - 10]).unwrap();
    replay(&recording);
}

#[test]
fn a_recording_stops_at_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.jsonl");
    let mut recorder = run::Recorder::create(&path, &Settings::default(), 2_000, false).unwrap();
    let input = weir_engine::engine::Input::Observe(connect(443));
    let now = Clock::start().now();
    let error = (0..100).find_map(|_| recorder.write(now, &input).err()).expect("full");
    assert!(error.to_string().contains("--record-limit"), "{error}");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.len() <= 2_000 && text.ends_with('\n'), "whole lines: {} bytes", text.len());
}

#[test]
fn views_are_shared_between_readers_that_come_together() {
    let mut agent = Agent::start(&namespace("a"), Script::quiet());
    agent.view("up", |_| true);
    let path = Arc::new(agent.path("weir.sock"));
    let readers: Vec<_> = (0..20)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || socket::ask(&path).unwrap().snapshot.at)
        })
        .collect();
    let times: std::collections::BTreeSet<_> = readers.into_iter().map(|r| r.join().unwrap()).collect();
    assert!(times.len() < 20, "twenty readers at once are not twenty snapshots");
    agent.stop().unwrap();
}
