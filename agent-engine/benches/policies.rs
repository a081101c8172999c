//! What the policy engine costs, as a table: load, decisions, changes, memory, all pairs. `cargo bench -p weir-engine`.
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "a bench measures time")]

mod synthetic;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use synthetic::{Random, Size};
use weir_engine::cluster::{Cluster, Object, Origin};
use weir_engine::policy::{Admission, Endpoint, Flow, Policies, Profile, Side};
use weir_engine::words::Protocol;

/// The system's allocator, counting what is in use and how often it is asked.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above, that is, from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Random pairs per size.
const PAIRS: usize = 200_000;
/// Changes of each kind per size.
const CHANGES: usize = 500;

fn main() {
    let sizes = [
        Size { pods: 1_000, namespaces: 50, policies: 500 },
        Size { pods: 10_000, namespaces: 200, policies: 2_000 },
        Size { pods: 100_000, namespaces: 200, policies: 2_000 },
    ];
    println!("{}; each cell is p50 / p99 of single calls", machine());
    println!("{}", TITLES.row());
    // `cargo bench -p weir-engine --bench policies -- 10000` measures that size only.
    let only: Option<usize> = std::env::args().skip(1).find_map(|a| a.parse().ok());
    let mut aims = Aims::default();
    for size in sizes.into_iter().filter(|s| only.is_none_or(|pods| pods == s.pods)) {
        row(size, &mut aims);
    }
    if only.is_none() {
        all_pairs(sizes[1], &mut aims);
    }
    aims.print();
}

/// What is aimed at, and what was missed.
#[derive(Default)]
struct Aims {
    met: usize,
    missed: Vec<String>,
}

impl Aims {
    #[expect(clippy::cast_precision_loss, reason = "a ratio with two digits")]
    fn judge(&mut self, what: &str, is: u128, aim: u128, unit: &str) {
        if is <= aim {
            self.met += 1;
        } else {
            let times = is as f64 / aim as f64;
            self.missed.push(format!("{what}: {is} {unit}, {times:.2} times the aim of {aim} {unit}"));
        }
    }

    fn print(&self) {
        println!("aims met: {}, missed: {}", self.met, self.missed.len());
        self.missed.iter().for_each(|missed| println!("  {missed}"));
    }
}

/// A line of the table.
struct Row<T>([T; 10]);

const TITLES: Row<&str> = Row([
    "pods",
    "load",
    "decide",
    "with reasons",
    "admits",
    "pod change",
    "policy change",
    "namespace label",
    "B per pod",
    "denied",
]);

impl<T: AsRef<str>> Row<T> {
    fn row(&self) -> String {
        let widths = [7, 8, 19, 19, 19, 17, 17, 17, 9, 6];
        let cells = self.0.iter().zip(widths).map(|(cell, width)| format!("{:>width$}", cell.as_ref()));
        cells.collect::<Vec<_>>().join(" ")
    }
}

/// Cluster and policies, how long it took, and the bytes in use by them.
fn loaded(objects: Vec<Object>) -> (Cluster, Policies, Duration, usize) {
    let before = IN_USE.load(Ordering::Relaxed);
    // The copies are what the cluster keeps; the originals are the bench's.
    let copies = objects.clone();
    let start = Instant::now();
    let mut cluster = Cluster::default();
    for object in copies {
        cluster.apply(object, Origin::default());
    }
    let policies = Policies::of(&cluster, Profile::Spec);
    let load = start.elapsed();
    (cluster, policies, load, IN_USE.load(Ordering::Relaxed) - before)
}

fn row(size: Size, aims: &mut Aims) {
    let objects = synthetic::objects(size);
    let parsed: Vec<Object> = objects.into_iter().map(|o| Object::from_value(o).expect("valid")).collect();
    let others = parsed.iter().filter(|o| !matches!(o, Object::Pod(_))).cloned().collect();
    let without_pods = loaded(others).3;
    let (mut cluster, mut policies, load, bytes) = loaded(parsed);
    let per_pod = bytes.saturating_sub(without_pods) / size.pods;

    let flows = random_flows(&cluster, PAIRS);
    let denied = flows.iter().filter(|f| policies.admits(&cluster, f) != Admission::Admitted).count();
    let decide = sample(&flows, |f| drop(black_box(policies.decide(&cluster, f))));
    let read = sample(&flows, |f| {
        let decision = policies.decide(&cluster, f);
        let misses = |side: &Side| match side {
            Side::NotAdmitted { selecting } => selecting.iter().map(|s| s.misses.len()).sum(),
            _ => 0,
        };
        black_box(misses(&decision.egress) + misses(&decision.ingress));
    });
    let calls = CALLS.load(Ordering::Relaxed);
    let admits = sample(&flows, |f| {
        black_box(policies.admits(&cluster, f));
    });
    // One allocation is the list of samples.
    assert!(CALLS.load(Ordering::Relaxed) <= calls + 1, "admits must not allocate");

    let mut random = Random::new(11);
    let mut change = |kind: &str| {
        let chosen: Vec<Object> = (0..CHANGES)
            .map(|_| {
                let value = match kind {
                    "pod" => relabelled(
                        synthetic::pod(random.below(size.pods), size, &mut Random::new(3)),
                        "version",
                        random.below(1000),
                    ),
                    "policy" => synthetic::policy(random.below(size.policies), size, &mut random),
                    _ => namespace(random.below(size.namespaces), random.below(1000)),
                };
                Object::from_value(value).expect("valid")
            })
            .collect();
        let mut times = Vec::with_capacity(CHANGES);
        for object in chosen {
            let start = Instant::now();
            let change = cluster.apply(object, Origin::default());
            policies.update(&cluster, &change);
            times.push(start.elapsed());
        }
        percentiles(times)
    };
    let (pod, policy, label) = (change("pod"), change("policy"), change("namespace"));
    let cells = Row([
        size.pods.to_string(),
        short(load),
        pair(decide),
        pair(read),
        pair(admits),
        pair(pod),
        pair(policy),
        pair(label),
        per_pod.to_string(),
        format!("{}%", denied * 100 / PAIRS),
    ]);
    println!("{}", cells.row());
    aims.judge(&format!("decide p50 at {} pods", size.pods), decide.0.as_nanos(), 1_000, "ns");
    aims.judge(&format!("decide p99 at {} pods", size.pods), decide.1.as_nanos(), 5_000, "ns");
    aims.judge(&format!("memory per pod at {} pods", size.pods), per_pod as u128, 1_024, "bytes");
}

fn all_pairs(size: Size, aims: &mut Aims) {
    let cluster = synthetic::cluster(synthetic::objects(size));
    let policies = Policies::of(&cluster, Profile::Spec);
    let start = Instant::now();
    let reach = policies.reachability(&cluster, Protocol::Tcp, 8080);
    let took = start.elapsed();
    println!(
        "all pairs of {} pods, TCP 8080: {} ({} classes, {} of {} pairs admitted)",
        size.pods,
        short(took),
        reach.classes().len(),
        reach.admitted(),
        size.pods * (size.pods - 1),
    );
    aims.judge("all pairs", took.as_millis(), 10_000, "ms");
}

fn random_flows(cluster: &Cluster, count: usize) -> Vec<Flow> {
    let names: Vec<_> = cluster.pods().map(|p| p.name.clone()).collect();
    let mut random = Random::new(5);
    let mut end = || Endpoint::Pod { name: names[random.below(names.len())].clone(), address: None };
    (0..count)
        .map(|n| Flow {
            source: end(),
            destination: end(),
            protocol: Protocol::Tcp,
            port: [8080, 9000, 15090, 15012][n % 4],
            dialled: None,
        })
        .collect()
}

fn relabelled(mut pod: serde_json::Value, key: &str, value: usize) -> serde_json::Value {
    pod["metadata"]["labels"][key] = format!("v{value}").into();
    pod
}

fn namespace(n: usize, team: usize) -> serde_json::Value {
    let name = synthetic::namespace(n);
    serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {
        "kubernetes.io/metadata.name": name, "team": format!("t{team}"), "env": "prod"}}})
}

fn sample(flows: &[Flow], mut call: impl FnMut(&Flow)) -> (Duration, Duration) {
    let mut times = Vec::with_capacity(flows.len());
    for flow in flows {
        let start = Instant::now();
        call(flow);
        times.push(start.elapsed());
    }
    percentiles(times)
}

fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn short(time: Duration) -> String {
    match time.as_nanos() {
        n @ 0..10_000 => format!("{n} ns"),
        n @ 10_000..10_000_000 => format!("{} µs", n / 1_000),
        n => format!("{} ms", n / 1_000_000),
    }
}

fn pair((p50, p99): (Duration, Duration)) -> String {
    format!("{} / {}", short(p50), short(p99))
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores; times include about 25 ns of the clock", model.unwrap_or("unknown processor"))
}
