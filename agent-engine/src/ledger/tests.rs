//! Flips of a pair.
