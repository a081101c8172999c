//! The policy engine from outside: tables that read like the specification, and properties on random clusters.

mod admin;
mod change;
mod naive;
mod properties;
mod random;
mod reasons;
mod tables;
mod world;
