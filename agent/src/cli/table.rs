//! Tables for people: aligned, wrapped at 100 columns, the same in a pipe.

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use weir_engine::verdict::State;

use crate::outputs::text::clean;

/// Columns of a line.
const WIDTH: u16 = 100;

/// A table with these headings.
pub fn new(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(headings.iter().map(|h| Cell::new(h.to_uppercase()).add_attribute(Attribute::Reset)));
    table
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
