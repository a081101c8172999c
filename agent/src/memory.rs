//! What the allocator keeps for later goes back to the system: the kernel's types and a list of many objects are decoded once,
//! and what they took would stay resident for as long as the agent runs.

use std::time::Duration;

/// How long what was decoded may take to reach those who keep a part of it.
const DELAY: Duration = Duration::from_secs(2);

/// From this size on a block has pages of its own, which go back to the system when it is freed. Bytes.
#[cfg(target_env = "gnu")]
const OWN_PAGES: libc::c_int = 64 * 1024;

/// Blocks of some size go back when they are freed, and all threads share one heap. To be called before there are threads.
///
/// glibc raises the size from which blocks have their own pages up to 32 MB as such blocks are freed (mallopt(3)): what the
/// start takes would then stay in the heap for good.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two integers by value; whatever is refused changes nothing (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives freed memory back after a while, on a thread of its own: it costs some milliseconds. Needs a tokio runtime.
pub fn give_back_soon() {
    tokio::spawn(async {
        tokio::time::sleep(DELAY).await;
        drop(tokio::task::spawn_blocking(give_back));
    });
}

/// Gives freed memory back now.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers and may be called at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
