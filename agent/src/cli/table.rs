//! Tables for people: aligned, at most 100 columns wide, the same in a pipe. One column takes what the others leave; what is
//! long and worth copying (policies, reasons) stands in a note below its row, wrapped between words only.

use anstyle::{AnsiColor, Style};
use textwrap::core::display_width;
use textwrap::{Options, WordSeparator, WordSplitter};
use weir_engine::verdict::State;

use crate::outputs::text::clean;

/// Columns of a line.
const WIDTH: usize = 100;
/// Columns of a cell that does not take what is left.
const MAX_FIXED: usize = 32;
/// Columns of the one that does, at least.
const MIN_FLEXIBLE: usize = 20;
const GAP: &str = "  ";
const NOTE_INDENT: &str = "    ";

/// Rows under headings.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    flexible: usize,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    cells: Vec<Cell>,
    note: Option<String>,
}

/// Text with a colour.
#[derive(Debug)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A state in its colour.
    pub fn state(state: State) -> Self {
        Self { text: state.to_string(), style: style(state) }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    /// Foreign text, made harmless.
    fn from(text: T) -> Self {
        Self { text: clean(text.as_ref()).into_owned(), style: Style::new() }
    }
}

impl Table {
    /// A table with headings; the column with the index `flexible` takes what the others leave.
    pub fn new(headings: &[&'static str], flexible: usize) -> Self {
        Self { headings: headings.to_vec(), flexible, rows: Vec::new() }
    }

    /// Names and values.
    pub fn plain() -> Self {
        Self { headings: Vec::new(), flexible: 1, rows: Vec::new() }
    }

    /// Adds a row, with a note below it.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>, note: Option<&str>) {
        let note = note.map(|n| clean(n).into_owned()).filter(|n| !n.is_empty());
        self.rows.push(Row { cells: cells.into_iter().collect(), note });
    }

    /// All lines.
    pub fn render(&self) -> String {
        let widths = self.widths();
        let mut out = String::new();
        if !self.headings.is_empty() {
            let headings: Vec<Cell> = self.headings.iter().map(|h| h.to_uppercase().into()).collect();
            lines(&headings, &widths, &mut out);
        }
        for row in &self.rows {
            lines(&row.cells, &widths, &mut out);
            if let Some(note) = &row.note {
                let options = options(WIDTH).initial_indent(NOTE_INDENT).subsequent_indent(NOTE_INDENT);
                for line in textwrap::wrap(note, options) {
                    out.push_str(line.trim_end());
                    out.push('\n');
                }
            }
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(|r| r.cells.len()).max().unwrap_or(0).max(self.headings.len());
        let natural = |index: usize| {
            let cells = self.rows.iter().filter_map(|r| r.cells.get(index)).map(|c| display_width(&c.text));
            let heading = self.headings.get(index).map(|h| display_width(h));
            cells.chain(heading).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..columns).map(|i| natural(i).min(MAX_FIXED)).collect();
        if self.flexible < columns {
            let others: usize = widths.iter().enumerate().filter(|(i, _)| *i != self.flexible).map(|(_, w)| w).sum();
            let left = WIDTH.saturating_sub(others + GAP.len() * (columns - 1));
            let wanted = natural(self.flexible);
            widths[self.flexible] = wanted.min(left.max(MIN_FLEXIBLE));
            // Where that is too much, the widest of the others gives way.
            while widths.iter().sum::<usize>() + GAP.len() * (columns - 1) > WIDTH {
                let others = widths.iter_mut().enumerate().filter(|(i, _)| *i != self.flexible);
                let Some((_, widest)) = others.max_by_key(|(_, w)| **w).filter(|(_, w)| **w > 1) else { break };
                *widest -= 1;
            }
        }
        widths
    }
}

fn options(width: usize) -> Options<'static> {
    // Names have dashes, and a name in two pieces can't be copied.
    Options::new(width).word_separator(WordSeparator::AsciiSpace).word_splitter(WordSplitter::NoHyphenation)
}

fn lines(cells: &[Cell], widths: &[usize], out: &mut String) {
    let wrapped: Vec<Vec<_>> =
        cells.iter().zip(widths).map(|(cell, width)| textwrap::wrap(&cell.text, options((*width).max(1)))).collect();
    for line in 0..wrapped.iter().map(Vec::len).max().unwrap_or(0) {
        let mut text = String::new();
        let mut owed = 0;
        for ((cell, parts), width) in cells.iter().zip(&wrapped).zip(widths) {
            let part = parts.get(line).map_or("", |p| p.trim_end());
            if !part.is_empty() {
                text.push_str(&" ".repeat(owed));
                owed = 0;
                let style = cell.style;
                text.push_str(&format!("{style}{part}{style:#}"));
            }
            owed += width.saturating_sub(display_width(part)) + GAP.len();
        }
        out.push_str(&text);
        out.push('\n');
    }
}

/// Text on lines that are not too long, broken between words only, with its newline.
pub fn wrap(text: &str) -> String {
    let lines = textwrap::wrap(text, options(WIDTH).subsequent_indent(NOTE_INDENT));
    lines.iter().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// A state's colour.
fn style(state: State) -> Style {
    let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
    match state {
        State::Denied => colour(AnsiColor::Red).bold(),
        State::Predicted | State::Unexplained | State::Failing => colour(AnsiColor::Red),
        State::AtRisk | State::Unenforced | State::Unknown => colour(AnsiColor::Yellow),
        State::Silent => Style::new().dimmed(),
        State::Verified => colour(AnsiColor::Green),
    }
}

/// A state's word in its colour.
pub fn state(state: State) -> String {
    let style = style(state);
    format!("{style}{state}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::{Cell, Table};

    #[test]
    fn one_column_gives_way_and_names_stay_whole() {
        let mut table = Table::new(&["state", "flow", "why"], 2);
        let long = "word ".repeat(30);
        let policies = format!("{}/default-deny, b/x", "n".repeat(80));
        table.row([Cell::from("denied"), "sidecar-xds".into(), long.as_str().into()], Some(&policies));
        table.row([Cell::from("é日本"), "x".into(), "y".into()], None);
        let text = table.render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "STATE   FLOW         WHY");
        assert!(lines[1].starts_with("denied  sidecar-xds  word word"), "{text}");
        assert!(lines[2].starts_with("                     word"), "{text}");
        assert!(lines.iter().any(|l| l.ends_with("/default-deny,") || l.ends_with("/default-deny, b/x")), "{text}");
        assert_eq!(lines.last(), Some(&"é日本   x            y"));
        assert!(text.lines().all(|l| l.chars().count() <= 100 && !l.ends_with(' ')), "{text}");
    }
}
