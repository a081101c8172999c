//! The harness held against its own fixtures, without the engine.

fn main() {}
