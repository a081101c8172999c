//! What the agent says when it is asked about its live view: the same code as offline, with what its kernel saw.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_engine::check::Verdict;

use super::socket::Question;
use super::{Known, View};
use crate::explain;
use crate::probe::plan;
use crate::report::Inputs;

/// An answer for people and for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// The exit code that it comes to.
    pub exit: u8,
    /// For people, with colours.
    pub text: String,
    /// For programs.
    pub json: Value,
}

/// Answers.
///
/// # Errors
/// What is wrong with the question.
pub fn answer(known: &Known, view: &View, question: &Question) -> anyhow::Result<Said> {
    let model = &known.model;
    match question {
        Question::Explain { from, to, port } => {
            let mut explanation = explain::explain(model, from, to, port.parse()?)?;
            explanation.observe(&view.snapshot);
            explanation.remember(&known.recent, known.wall_offset_ns);
            let inputs = Inputs { problems: view.agent.problems.clone(), ..Inputs::default() };
            let exit = match explanation.verdict {
                Verdict::Denied => 1,
                Verdict::Admitted if inputs.broken() == 0 && view.snapshot.synced => 0,
                Verdict::Admitted | Verdict::Undecidable => 2,
            };
            let text = explain::render(&explanation, &model.cluster, &inputs, "")?;
            let json = serde_json::to_value(&explanation).context("cannot write the answer")?;
            Ok(Said { exit, text, json })
        }
        Question::Plan { from, flows } => {
            let plan = plan::plan(model, from.as_deref(), flows)?;
            let json = serde_json::to_value(&plan).context("cannot write the answer")?;
            Ok(Said { exit: 0, text: String::new(), json })
        }
    }
}
