//! Runs that the kernel skips are counted, for what they would have told is lost.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use super::world::{World, address};

/// Connection attempts per processor whose SYNs a timer sends again, several times in the first seconds.
const WAITING: usize = 200;
/// Between two of them, so that each has a timer interrupt of its own: about one in ten comes at the right moment.
const APART: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

/// A timer's interrupt that comes while the probe on `kfree_skb` runs, and sends a SYN again that is dropped as well, wants to
/// run the same program a second time on the same processor: the kernel refuses (kernel/trace/bpf_trace.c `__bpf_trace_run`).
#[test]
fn a_drop_in_the_middle_of_a_drop_is_counted_as_lost() -> Result<()> {
    let world = World::new()?;
    let drops = "table inet t { chain o { type filter hook output priority 0\n udp dport 8443 drop\n tcp dport 15012 drop\n }\n }\n";
    let skipped = || {
        world
            .probes
            .skipped_runs()
            .into_iter()
            .filter(|(stage, _)| *stage == "drop-recursion")
            .map(|(_, n)| n)
            .sum::<u64>()
    };
    if !counts()? {
        println!("SKIPPED: this kernel does not count the runs that it skips");
        return Ok(());
    }
    world.client.nft(drops)?;
    ensure!(skipped() == 0, "nothing was dropped yet: {}", skipped());
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = Instant::now();
    thread::scope(|scope| {
        let (stop, sent, client) = (&stop, &sent, &world.client);
        let floods: Vec<_> = (0..thread::available_parallelism()?.get())
            .map(|cpu| {
                scope.spawn(move || -> Result<()> {
                    // Threads that are begun here stay there too.
                    stay_on(cpu)?;
                    let waiting = client.run(waiting)?;
                    client.run(|| {
                        let socket = UdpSocket::bind("0.0.0.0:0")?;
                        while !stop.load(Ordering::Relaxed) {
                            // The rule's answer to the caller is an error.
                            let _ = socket.send_to(b"!", "10.2.0.2:8443");
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })?;
                    drop(waiting);
                    Ok(())
                })
            })
            .collect();
        while skipped() == 0 && begin.elapsed() < PATIENCE && !floods.iter().any(|it| it.is_finished()) {
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        floods.into_iter().try_for_each(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    println!("{} of {} drops were skipped after {:?}", skipped(), sent.load(Ordering::Relaxed), begin.elapsed());
    ensure!(skipped() > 0, "no run was skipped in {PATIENCE:?}");
    Ok(())
}

/// Does the kernel say how many runs of a program it skipped? (`fdinfo` of programs, 5.12 and later)
fn counts() -> Result<bool> {
    let infos = fs::read_dir("/proc/self/fdinfo")?.flatten();
    Ok(infos.filter_map(|info| fs::read_to_string(info.path()).ok()).any(|text| text.contains("recursion_misses:")))
}

/// Keeps the calling thread on one processor, and with it the timers of its sockets.
fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn waiting() -> Result<Vec<Socket>> {
    let to: SocketAddr = address("10.2.0.2", 15012)?;
    let socket = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Its SYNs are dropped, and sent again.
        let _ = socket.connect(&to.into());
        thread::sleep(APART);
        Ok(socket)
    };
    (0..WAITING).map(socket).collect()
}
