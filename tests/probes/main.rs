//! Each probe on the running kernel: real packets between network namespaces. Needs root and the built probes.

mod dns;
mod fallback;
mod filter;
mod flood;
mod life;
mod skipped;
mod stack;
mod tcp;
mod udp;
mod world;
