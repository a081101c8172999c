//! What the allocator keeps for later goes back to the system: a list of many objects is decoded once, and what it took would
//! stay resident for as long as the agent runs.

use std::time::Duration;

/// How long what was decoded may take to reach those who keep a part of it.
const DELAY: Duration = Duration::from_secs(2);

/// Gives freed memory back after a while, on a thread of its own: it costs some milliseconds. Needs a tokio runtime.
pub fn give_back_soon() {
    tokio::spawn(async {
        tokio::time::sleep(DELAY).await;
        drop(tokio::task::spawn_blocking(give_back));
    });
}

fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers and may be called at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
