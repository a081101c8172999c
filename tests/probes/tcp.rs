//! TCP without rules.

use anyhow::Result;
use harness::Waiting;
use weir_common::{Event, end_flags};

use super::world::{REFUSED, SERVERS, World, drops, ends, inode, is_from_client};

#[test]
fn an_established_connection_is_seen_from_both_ends() -> Result<()> {
    let mut world = World::new()?;
    for server in SERVERS {
        let events = world.observe(|world| world.attempt(server, 8080, Waiting::NonBlocking).map(drop))?;
        let [Event::Start(start), Event::End(end), Event::Accepted(accepted)] = events[..] else {
            panic!("{server}: {events:?}");
        };
        assert_eq!(start.tuple.source_port, 0, "the kernel has not chosen one yet");
        assert_eq!(start.netns, inode(&world.client)?);
        assert_eq!(start.owner.pid, std::process::id());
        assert_eq!((end.flags, end.error, end.retransmits), (end_flags::ESTABLISHED, 0, 0));
        assert_eq!((end.socket, end.started), (start.socket, start.header.timestamp));
        assert!(is_from_client(&end.tuple, server, 8080), "{end:?}");
        assert_eq!(accepted.tuple, end.tuple);
        assert_eq!(accepted.netns, inode(&world.server)?);
    }
    Ok(())
}

#[test]
fn a_closed_port_is_refused_by_reset_and_says_no_socket() -> Result<()> {
    let mut world = World::new()?;
    for server in SERVERS {
        for waiting in [Waiting::NonBlocking, Waiting::Blocking] {
            let events = world.observe(|world| world.attempt(server, 15012, waiting).map(drop))?;
            let [end] = ends(&events)[..] else { panic!("{server}: {events:?}") };
            assert_eq!((end.flags, end.error), (end_flags::RESET, REFUSED), "{end:?}");
            let [drop] = drops(&events)[..] else { panic!("{server}: {events:?}") };
            world.assert_reason(&drop, "NO_SOCKET");
            assert_eq!(drop.netns, inode(&world.server)?);
            assert_eq!(drop.tuple, end.tuple);
        }
    }
    Ok(())
}
