//! What was found: as a table on the terminal, as Markdown, as JSON, and held against the floor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::table::CAUSES;
use super::{Cause, Cell, Model, Place, Truth};
use crate::fixture::Protocol;

/// Everything that a run has found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Release of the kernel.
    pub kernel: String,
    /// The kernel gives drops reasons (from 5.17).
    #[serde(default = "yes")]
    pub reasons: bool,
    /// Seconds that the run took.
    pub seconds: u64,
    /// Events that the agents lost.
    pub lost: u64,
    /// Where and when: each round that lost any, with its stages.
    #[serde(default)]
    pub losses: Vec<Loss>,
    /// Every cell.
    pub cells: Vec<Cell>,
    /// Denials beside floods, and what overruns did.
    pub load: Vec<Load>,
    /// Causes that this machine cannot make: cause, place, reason.
    pub not_made: Vec<(String, Place, String)>,
}

/// What both agents lost during one round: an `unknown` of that round is explained by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// `IPv4 non-blocking`, …, or `under load`.
    pub round: String,
    /// Events by stage.
    pub stages: BTreeMap<String, u64>,
}

/// One check under load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// What was going on.
    pub what: String,
    /// How much of it.
    pub rate: String,
    /// What must be so.
    pub right: String,
    /// What was.
    pub found: String,
    /// Whether it was right.
    pub good: bool,
}

/// Cells that fare alike are one row.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    cause: usize,
    place: Place,
    protocol: Protocol,
    client: String,
    outcome: String,
    class: String,
    hook: String,
    drop: String,
    admits: String,
    does_not: String,
}

impl Report {
    /// An empty one for this kernel.
    pub fn new() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let reasons = std::fs::read("/sys/kernel/btf/vmlinux")
            .is_ok_and(|btf| btf.windows(REASON.len()).any(|bytes| bytes == REASON));
        let (cells, load, not_made, losses) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { kernel, reasons, seconds: 0, lost: 0, losses, cells, load, not_made }
    }

    /// Notes what was lost during a round, given what has been lost since the agents began; says whether that was anything.
    pub fn note_lost(&mut self, round: &str, since_start: BTreeMap<String, u64>) -> bool {
        let before = |stage: &str| self.losses.iter().filter_map(|loss| loss.stages.get(stage)).sum::<u64>();
        let new = since_start.into_iter().map(|(stage, count)| {
            let new = count.saturating_sub(before(&stage));
            (stage, new)
        });
        let stages: BTreeMap<String, u64> = new.filter(|(_, count)| *count > 0).collect();
        self.lost += stages.values().sum::<u64>();
        let has_lost = !stages.is_empty();
        if has_lost {
            self.losses.push(Loss { round: round.to_owned(), stages });
        }
        has_lost
    }

    /// The table, as it is true on this kernel.
    pub fn causes(&self) -> Vec<Cause> {
        CAUSES.iter().map(|cause| cause.on(self.reasons)).collect()
    }

    /// Cells below the floor: an accusation without a policy, or a policy's drop missed.
    pub fn below_floor(&self) -> Vec<&Cell> {
        let causes = self.causes();
        let below = |cell: &&Cell| {
            let cause = causes.iter().find(|cause| cause.id == cell.cause);
            cause.is_none_or(|cause| cause.below_floor(cell.model, &cell.said.state))
        };
        self.cells.iter().filter(below).collect()
    }

    /// Cells with anything wrong.
    pub fn wrong(&self) -> Vec<&Cell> {
        self.cells.iter().filter(|cell| !cell.faults.is_empty()).collect()
    }

    /// Checks under load that failed.
    pub fn load_failures(&self) -> Vec<&Load> {
        self.load.iter().filter(|load| !load.good).collect()
    }

    /// The closing lines: counts, then what is wrong.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let causes: BTreeMap<&str, &str> =
            self.not_made.iter().map(|(cause, _, why)| (cause.as_str(), why.as_str())).collect();
        for (cause, reason) in causes {
            let _ = writeln!(text, "SKIPPED: matrix, {cause}: {reason}");
        }
        let mut seen = BTreeSet::new();
        for cell in self.wrong() {
            let line = wrong_line(cell);
            if seen.insert(line.clone()) {
                let _ = writeln!(text, "{line}");
            }
        }
        for load in self.load_failures() {
            let _ = writeln!(text, "WRONG under load: {}: {}, right is {}", load.what, load.found, load.right);
        }
        for Loss { round, stages } in &self.losses {
            let stages: Vec<String> = stages.iter().map(|(stage, count)| format!("{count} in {stage}")).collect();
            let _ = writeln!(text, "lost during {round}: {}", stages.join(", "));
        }
        let below = self.below_floor();
        let _ = writeln!(
            text,
            "{} cells on {}: {} as they should be, {} not, {} below the floor; {} of {} checks under load good; {} events lost; {} s",
            self.cells.len(),
            self.kernel,
            self.cells.len() - self.wrong().len(),
            self.wrong().len(),
            below.len(),
            self.load.iter().filter(|load| load.good).count(),
            self.load.len(),
            self.lost,
            self.seconds,
        );
        text
    }

    /// This kernel's section of the document.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "## Linux {}\n", self.kernel);
        let words = |pick: &dyn Fn(&Cell) -> &str| {
            let all: BTreeSet<&str> = self.cells.iter().map(pick).filter(|word| *word != "–").collect();
            all.into_iter().collect::<Vec<_>>().join(" and ")
        };
        let families = format!("{}, {} connect()", words(&|cell| &cell.family), words(&|cell| &cell.connect));
        let _ = writeln!(
            text,
            "{} cells ({families}); {} as they should be, {} not; **{} below the floor**.\n",
            self.cells.len(),
            self.cells.len() - self.wrong().len(),
            self.wrong().len(),
            self.below_floor().len(),
        );
        for (title, wanted) in SECTIONS {
            self.section(&mut text, title, wanted);
        }
        if !self.load.is_empty() {
            text.push_str("### Under load\n\n| what | rate | must be | was | |\n|---|---|---|---|---|\n");
            for load in &self.load {
                let mark = if load.good { "✓" } else { "✗" };
                let _ = writeln!(text, "| {} | {} | {} | {} | {mark} |", load.what, load.rate, load.right, load.found);
            }
            text.push('\n');
        }
        if !self.not_made.is_empty() {
            text.push_str("### Not made on this kernel\n\n| cause | place | reason |\n|---|---|---|\n");
            for (cause, place, reason) in &self.not_made {
                let _ = writeln!(text, "| {cause} | {place} | {} |", reason);
            }
            text.push('\n');
        }
        let wrong: BTreeSet<String> = self.wrong().into_iter().map(wrong_line).collect();
        if !wrong.is_empty() {
            text.push_str("### Not as it should be\n\n");
            for line in wrong {
                let _ = writeln!(text, "* {line}");
            }
            text.push('\n');
        }
        text
    }

    fn section(&self, text: &mut String, title: &str, wanted: fn(Truth) -> bool) {
        let causes = self.causes();
        let rows = self.rows(&causes, wanted);
        if rows.is_empty() {
            return;
        }
        let _ = writeln!(text, "### {title}\n");
        text.push_str("| cause | where | transport | client was told | outcome | drop class | hook | dropped in | admitted | not admitted | |\n");
        text.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
        for (row, good) in &rows {
            let cause = &causes[row.cause];
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                cause.about,
                row.place,
                row.protocol,
                row.client,
                row.outcome,
                row.class,
                row.hook,
                row.drop,
                row.admits,
                row.does_not,
                if *good { "✓" } else { "✗" },
            );
        }
        text.push('\n');
        let reasons = causes.iter().filter_map(|cause| match cause.truth {
            Truth::Hidden(why) if wanted(cause.truth) => Some((cause.about, why)),
            _ => None,
        });
        for (about, why) in reasons {
            let _ = writeln!(text, "* {about}: {why}.");
        }
        text.push('\n');
    }

    /// Cells of both models and all families and kinds of connect() side by side; good if all of them are.
    fn rows(&self, causes: &[Cause], wanted: fn(Truth) -> bool) -> Vec<(Row, bool)> {
        let mut groups: BTreeMap<(usize, Place, Protocol), Vec<&Cell>> = BTreeMap::new();
        for cell in &self.cells {
            let index = causes.iter().position(|cause| cause.id == cell.cause && wanted(cause.truth));
            if let Some(index) = index {
                groups.entry((index, cell.place, cell.protocol)).or_default().push(cell);
            }
        }
        let rows = groups.into_iter().map(|((cause, place, protocol), cells)| {
            let words = |pick: &dyn Fn(&Cell) -> Option<String>| {
                let all: BTreeSet<String> =
                    cells.iter().filter_map(|cell| pick(cell)).filter(|w| !w.is_empty()).collect();
                if all.is_empty() { "–".to_owned() } else { all.into_iter().collect::<Vec<_>>().join(", ") }
            };
            let state = |model: Model| words(&|cell| (cell.model == model).then(|| cell.said.state.clone()));
            let dropped = |cell: &Cell| {
                let parts = [&cell.said.reason, &cell.said.location].map(String::as_str);
                parts
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .map(|part| format!("`{part}`"))
                    .collect::<Vec<_>>()
                    .join(" in ")
            };
            let row = Row {
                cause,
                place,
                protocol,
                client: words(&|cell| Some(cell.client.clone())),
                outcome: words(&|cell| Some(cell.said.outcome.clone())),
                class: words(&|cell| Some(cell.said.class.clone())),
                hook: words(&|cell| Some(cell.said.hook.clone())),
                drop: words(&|cell| Some(dropped(cell))),
                admits: state(Model::Admits),
                does_not: state(Model::DoesNotAdmit),
            };
            (row, cells.iter().all(|cell| cell.faults.is_empty()))
        });
        rows.collect()
    }
}

/// Of the enumeration of reasons, in every kernel's type information that has it; no-socket was among the first.
const REASON: &[u8] = b"SKB_DROP_REASON_NO_SOCKET\0";

/// Of reports that do not say.
fn yes() -> bool {
    true
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

fn wrong_line(cell: &Cell) -> String {
    let Cell { cause, place, family, protocol, connect, model, client, said, faults, .. } = cell;
    format!(
        "{cause} ({place}, {family}, {protocol}, {connect}, policies {model}, client {client}): {} [{} {} {} {} {}{}]",
        faults.join("; "),
        said.outcome,
        said.class,
        said.hook,
        said.reason,
        said.location,
        if said.reply { " reply" } else { "" },
    )
}

type Section = (&'static str, fn(Truth) -> bool);

const SECTIONS: [Section; 5] = [
    ("Policy drops that the kernel shows", |truth| truth == Truth::Policy),
    ("Policy drops that the kernel does not show", |truth| matches!(truth, Truth::Hidden(_))),
    ("Answers dropped", |truth| truth == Truth::Answer),
    ("No policy", |truth| truth == Truth::Fault),
    ("Connections that stand", |truth| truth == Truth::Works),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_what_was_lost_in_it() {
        let mut report = Report::new();
        let lost = |counts: &[(&str, u64)]| counts.iter().map(|(stage, count)| ((*stage).to_owned(), *count)).collect();
        report.note_lost("first", lost(&[("drop-rate-limit", 3)]));
        report.note_lost("second", lost(&[("drop-rate-limit", 3)]));
        report.note_lost("third", lost(&[("drop-rate-limit", 5), ("ring-buffer", 1)]));
        assert_eq!(report.lost, 6);
        let text = report.summary();
        assert!(text.contains("lost during first: 3 in drop-rate-limit\n"), "{text}");
        assert!(text.contains("lost during third: 2 in drop-rate-limit, 1 in ring-buffer\n"), "{text}");
        assert!(!text.contains("second"), "{text}");
    }
}
