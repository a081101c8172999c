//! What leaves the agent: metrics, pages, the socket's answers, log lines. All of it reads [`View`]s; nothing here knows the
//! engine.

mod answer;
pub mod events;
pub mod http;
pub mod live;
pub mod log;
pub mod metrics;
mod page;
pub mod recording;
pub mod socket;
pub mod text;
mod view;

pub use recording::Begun;
pub use view::{AgentView, Known, PartView, ProbeView, Request, View, ViewError, Views};
