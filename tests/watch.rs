//! The cluster source against the fake API server: whatever goes wrong, what the source says ends as what the server has, says
//! in between how old it is and why, and asks no more often than it must.

#[path = "watch/faults.rs"]
mod faults;
#[path = "watch/follower.rs"]
mod follower;
#[path = "watch/lookups.rs"]
mod lookups;
