//! Reports on small clusters.
