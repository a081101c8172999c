//! How the allocator treats what the agent gives back.
//!
//! The start-up reads tens of megabytes: the kernel's types and symbols, every object of the cluster. glibc keeps freed memory
//! for reuse, raises the size from which it asks the kernel for pages of their own up to 32 MB as large blocks are freed, and
//! keeps a heap for each thread: an agent would hold for good what it used once.

/// From this size on a block has pages of its own, which go back when it is freed.
const OWN_PAGES: i32 = 64 * 1024;

/// Makes freed memory go back to the kernel. To be called before there are threads.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // mallopt(3); set by hand, the threshold does not move any more.
        const M_MMAP_THRESHOLD: i32 = -3;
        const M_ARENA_MAX: i32 = -8;
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        // SAFETY: mallopt takes two integers by value and has no other preconditions; refusal changes nothing.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, OWN_PAGES);
            mallopt(M_ARENA_MAX, 1);
        }
    }
}

/// Gives back what has been freed among blocks that are in use. Takes some milliseconds: after the start, not in between.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: malloc_trim(3) may be called at any time from any thread.
        unsafe {
            malloc_trim(0);
        }
    }
}
