//! Drops tell at which hook of netfilter they were, by the kernel's stack; stacks are bounded apart from the drops.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::Waiting;
use harness::matrix::traffic;
use harness::netns::Netns;
use weir_common::{DropStack, Event};
use weir_engine::observation::{DropClass, Hook, Observation, PacketDrop};

use super::world::{SERVERS, World, bytes, drops, inode, is_from_client, stacks};

/// Other tests' floods, which these probes see as well, may hold a stack back.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn each_hook_of_the_packet_filter_is_named() -> Result<()> {
    type Place = fn(&World) -> &Netns;
    let hooks: [(Hook, Place); 5] = [
        (Hook::Prerouting, |world| &world.node),
        (Hook::Forward, |world| &world.node),
        (Hook::Postrouting, |world| &world.node),
        (Hook::Output, |world| &world.client),
        (Hook::Input, |world| &world.server),
    ];
    let mut world = World::new()?;
    for (hook, place) in hooks {
        let name = hook.as_str().to_lowercase();
        place(&world).nft(&format!(
            "table inet t {{ chain c {{ type filter hook {name} priority 0\n tcp dport 15012 drop\n udp dport 15012 drop\n }}\n }}\n"
        ))?;
        let namespace = inode(place(&world))?;
        for server in SERVERS {
            let tcp = first_stack(&mut world, namespace, server, 6, |world| {
                world.attempt(server, 15012, Waiting::NonBlocking).map(drop)
            })?;
            let udp = first_stack(&mut world, namespace, server, 17, |world| {
                let send = || Ok(UdpSocket::bind("[::]:0")?.send_to(b"?", mapped(server)).map(drop));
                // The client's own filter says so to it.
                world.client.run(send)?.or_else(|error| if hook == Hook::Output { Ok(()) } else { Err(error.into()) })
            })?;
            for seen in [tcp, udp] {
                let seen = decoded(&world, seen);
                println!("{hook} {server}: {}", seen.stack.join(" "));
                assert_eq!(seen.class(), DropClass::Netfilter, "{seen:?}");
                assert_eq!(seen.location.as_deref(), seen.stack.first().map(|function| &**function), "{seen:?}");
                assert_eq!(Hook::of(&seen.stack), Some(hook), "{seen:?}");
            }
        }
        place(&world).nft("delete table inet t\n")?;
    }
    Ok(())
}

#[test]
fn what_is_not_dropped_by_the_packet_filter_has_a_stack_without_a_hook() -> Result<()> {
    let mut world = World::new()?;
    world.node.ip("route add blackhole 10.9.0.0/24\n")?;
    let namespace = inode(&world.node)?;
    let seen = first_stack(&mut world, namespace, "10.9.0.1", 6, |world| {
        world.attempt("10.9.0.1", 15012, Waiting::NonBlocking).map(drop)
    })?;
    let seen = decoded(&world, seen);
    println!("{}", seen.stack.join(" "));
    assert_eq!(seen.class(), DropClass::Route, "{seen:?}");
    assert!(!seen.stack.is_empty() && Hook::of(&seen.stack).is_none(), "{seen:?}");
    Ok(())
}

/// Each packet from another address: each is an event while the events' bucket lasts, far fewer have a stack.
#[test]
fn a_flood_gets_few_stacks_and_its_drops_are_told_all_the_same() -> Result<()> {
    let mut world = World::new()?;
    world.node.ip("route add 10.50.0.0/16 via 10.1.0.2\n")?;
    world.node.nft("table inet t { chain f { type filter hook forward priority 0\n udp dport 8443 drop\n }\n }\n")?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = world.probes.counters();
    let started = Instant::now();
    let events = world.observe(|world| {
        let sources = (std::net::Ipv4Addr::new(10, 50, 0, 0), 0x4000);
        let to = std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(10, 2, 0, 2), 8443);
        thread::scope(|scope| {
            let flood = scope.spawn(|| traffic::udp_flood(&world.client, sources, to, 20_000, &stop, &sent));
            while sent.load(Ordering::Relaxed) < 4_000 && !flood.is_finished() {
                thread::sleep(Duration::from_millis(10));
            }
            stop.store(true, Ordering::Relaxed);
            flood.join().expect("the flood's thread").map(drop)
        })
    })?;
    let elapsed = started.elapsed();
    let after = world.probes.counters();
    let (told, with_stack) = (drops(&events).len(), stacks(&events).len());
    let held_back = after.suppressed_stacks - before.suppressed_stacks;
    println!("{told} drops told, {with_stack} with their stack, {held_back} stacks held back in {elapsed:?}");
    // Fifty a second and CPU, and as many at once.
    let cpus = thread::available_parallelism()?.get() as u128;
    assert!((with_stack as u128) <= (elapsed.as_millis() / 20 + 50) * cpus, "{with_stack} in {elapsed:?}");
    assert!(held_back > 0 && told > with_stack, "{sent:?} {after:?}");
    assert_eq!(after.lost_events, before.lost_events);
    Ok(())
}

/// Until a drop in this namespace comes with its stack.
fn first_stack(
    world: &mut World,
    namespace: u32,
    server: &str,
    protocol: u8,
    mut act: impl FnMut(&World) -> Result<()>,
) -> Result<DropStack> {
    let begin = Instant::now();
    loop {
        let events = world.observe(&mut act)?;
        let ours = |stack: &DropStack| {
            let tuple = &stack.drop.tuple;
            let of_client = tuple.destination == bytes(server) || is_from_client(tuple, server, 15012);
            of_client && tuple.protocol == protocol && tuple.destination_port == 15012 && stack.drop.netns == namespace
        };
        if let Some(stack) = stacks(&events).into_iter().find(ours) {
            return Ok(stack);
        }
        ensure!(begin.elapsed() < PATIENCE, "no stack of a drop on the way to {server}: {events:?}");
    }
}

fn decoded(world: &World, stack: DropStack) -> PacketDrop {
    match world.decoder.decode(&Event::DropStack(stack)) {
        Some(Observation::Drop(drop)) => drop,
        other => panic!("{other:?}"),
    }
}

fn mapped(server: &str) -> (std::net::Ipv6Addr, u16) {
    (bytes(server).into(), 15012)
}
