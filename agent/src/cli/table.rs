//! Tables for people: aligned, wrapped at 100 columns, the same in a pipe.

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, ColumnConstraint, ContentArrangement, Table, presets};
use weir_engine::verdict::State;

use crate::outputs::text::clean;

/// Columns of a line.
const WIDTH: u16 = 100;
/// Columns of a cell that is never wrapped.
const MAX_WHOLE: u16 = 32;

/// A table with these headings.
pub fn new(headings: &[&str]) -> Table {
    let mut table = plain();
    table.set_header(headings.iter().map(|h| h.to_uppercase()));
    table
}

/// A table without headings.
pub fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table
}

/// Keeps these columns from being wrapped, as long as they are not absurdly wide.
pub fn keep_whole(table: &mut Table, columns: &[usize]) {
    let widths = table.column_max_content_widths();
    for &index in columns {
        if widths.get(index).is_some_and(|w| *w <= MAX_WHOLE)
            && let Some(column) = table.column_mut(index)
        {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

/// Lines of a table, without the white space that fills the last column.
pub fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end()));
        text.push('\n');
    }
    text
}

/// A state in its colour.
pub fn state(state: State) -> String {
    let style = match state {
        State::Denied => Style::new().bold().fg_color(Some(AnsiColor::Red.into())),
        State::Predicted | State::Unexplained | State::Failing => Style::new().fg_color(Some(AnsiColor::Red.into())),
        State::AtRisk | State::Unenforced | State::Unknown => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
        State::Silent => Style::new().dimmed(),
        State::Verified => Style::new().fg_color(Some(AnsiColor::Green.into())),
    };
    format!("{style}{state}{style:#}")
}

/// A cell of foreign text.
pub fn text(text: &str) -> Cell {
    Cell::new(clean(text))
}
