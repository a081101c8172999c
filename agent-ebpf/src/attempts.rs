//! What is remembered of a TCP attempt from its start to its end, whichever probe sees it.

use weir_common::counter;

use crate::maps::{ATTEMPTS, Attempt, count};

/// An attempt of this socket began; if it cannot be remembered, that is counted.
///
/// # Errors
/// The map's errno.
#[inline(always)]
pub fn began(socket: u64, started: u64) -> Result<(), i32> {
    let remembered = ATTEMPTS.insert(socket, Attempt { started, retransmits: 0, reset: 0 }, 0);
    if remembered.is_err() {
        count(counter::LOST_ATTEMPTS);
    }
    remembered
}

/// Its SYN was sent again: when it began, and how often that was by now; zeroes if nothing is known of it.
#[inline(always)]
pub fn sent_again(socket: u64) -> (u64, u32) {
    let Some(attempt) = ATTEMPTS.get_ptr_mut(socket) else { return (0, 0) };
    // SAFETY: a live map value; the socket's lock keeps its events apart.
    unsafe {
        (*attempt).retransmits += 1;
        ((*attempt).started, (*attempt).retransmits)
    }
}

/// It ended: what was remembered, which is forgotten; zeroes if nothing is known of it.
#[inline(always)]
pub fn ended(socket: u64) -> Attempt {
    // SAFETY: copied at once; nobody else writes this socket's entry while its state changes.
    let attempt = unsafe { ATTEMPTS.get(socket) }.copied().unwrap_or(Attempt { started: 0, retransmits: 0, reset: 0 });
    let _ = ATTEMPTS.remove(socket);
    attempt
}

impl Attempt {
    /// As many SYNs sent again as an event can say.
    #[inline(always)]
    pub fn retransmits(&self) -> u16 {
        if self.retransmits > 0xffff { 0xffff } else { self.retransmits as u16 }
    }
}
