//! What `weir top` draws: flows by state, the pairs, the chosen one in full, the newest attempts, the keys.

use std::collections::{BTreeMap, VecDeque};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, List, ListItem, ListState, Paragraph, Row, Table, Wrap};
use weir_engine::snapshot::{PairView, names_line};
use weir_engine::verdict::State;

use super::super::filter::Filter;
use super::super::{status, watch};
use crate::outputs::live::Live;
use crate::outputs::text::clean;
use crate::outputs::{View, log};
use crate::report::words;

/// Attempts kept.
const MAX_ATTEMPTS: usize = 100;

/// What is drawn.
pub(super) struct Screen {
    filter: Filter,
    all: bool,
    view: Option<View>,
    failure: Option<String>,
    attempts: VecDeque<String>,
    chosen: usize,
}

impl Screen {
    pub fn new(filter: Filter, all: bool) -> Self {
        Self { filter, all, view: None, failure: None, attempts: VecDeque::new(), chosen: 0 }
    }

    /// What the agent knows now.
    pub fn update(&mut self, view: View) {
        self.view = Some(view);
        self.failure = None;
        self.choose(0);
    }

    /// The agent does not answer; what it said last stays.
    pub fn fail(&mut self, failure: &str) {
        self.failure = Some(clean(failure).into_owned());
    }

    /// One more line below.
    pub fn attempt(&mut self, live: &Live) {
        let line = match live {
            Live::Attempt(line) if !self.filter.ends([&line.source, &line.destination]) => return,
            Live::Attempt(line) => anstream::adapter::strip_str(&watch::text(line)).to_string(),
            Live::Skipped(count) => format!("{count} lines skipped"),
        };
        self.attempts.push_front(line.trim_end().to_owned());
        self.attempts.truncate(MAX_ATTEMPTS);
    }

    pub fn toggle_all(&mut self) {
        self.all = !self.all;
        self.choose(0);
    }

    /// Moves the choice.
    pub fn choose(&mut self, by: isize) {
        let last = self.pairs().len().saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(by).min(last);
    }

    fn pairs(&self) -> Vec<&PairView> {
        let pairs = self.view.iter().flat_map(|v| &v.snapshot.pairs);
        pairs.filter(|p| self.filter.pair(p) && (self.all || status::needs_attention(p.state))).collect()
    }

    pub fn draw(&self, frame: &mut Frame<'_>) {
        let [matrix, pairs, details, attempts, keys] = Layout::vertical([
            Constraint::Percentage(25),
            Constraint::Percentage(30),
            Constraint::Percentage(22),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.matrix(frame, matrix);
        self.list(frame, pairs);
        self.details(frame, details);
        let lines: Vec<Line<'_>> = self.attempts.iter().map(|l| Line::raw(l.as_str())).collect();
        frame.render_widget(Paragraph::new(lines).block(block("attempts, newest first")), attempts);
        let footer = match &self.failure {
            Some(failure) => Line::styled(failure.as_str(), Style::new().fg(Color::Red)),
            None => Line::raw("q quit   ↑ ↓ choose   a all pairs or what needs attention"),
        };
        frame.render_widget(footer, keys);
    }

    fn matrix(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut flows: BTreeMap<&str, BTreeMap<State, usize>> = BTreeMap::new();
        for pair in self.view.iter().flat_map(|v| &v.snapshot.pairs).filter(|p| self.filter.pair(p)) {
            *flows.entry(&*pair.flow).or_default().entry(pair.state).or_default() += 1;
        }
        let used: Vec<State> = State::ALL.into_iter().filter(|s| flows.values().any(|f| f.contains_key(s))).collect();
        // The worst first: what does not fit is what matters least.
        let mut rows: Vec<(&str, BTreeMap<State, usize>)> = flows.into_iter().collect();
        rows.sort_by_key(|(flow, states)| (states.keys().next().copied(), *flow));
        let widths = std::iter::once(Constraint::Length(28)).chain(used.iter().map(|_| Constraint::Length(11)));
        let head = std::iter::once(String::from("flow")).chain(used.iter().map(ToString::to_string));
        let rows = rows.iter().map(|(flow, states)| {
            let counts = used.iter().map(|s| states.get(s).map_or(String::new(), ToString::to_string));
            let worst = states.keys().next().copied().unwrap_or(State::Unknown);
            Row::new(std::iter::once(clean(flow).into_owned()).chain(counts)).style(style(worst))
        });
        let head = Row::new(head).style(Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Table::new(rows, widths).header(head).block(block("required flows")), area);
    }

    fn list(&self, frame: &mut Frame<'_>, area: Rect) {
        let pairs = self.pairs();
        let items = pairs.iter().map(|pair| {
            let ends = format!("{} → {}", log::end(&pair.source), log::end(&pair.destination));
            let text = format!("{:11} {:24} {} {}/{}", pair.state.as_str(), pair.flow, ends, pair.port, pair.protocol);
            ListItem::new(clean(&text).into_owned()).style(style(pair.state))
        });
        let title = if self.all { "pairs" } else { "pairs that need attention" };
        let list = List::new(items).block(block(title)).highlight_symbol("> ");
        let mut state = ListState::default().with_selected((!pairs.is_empty()).then_some(self.chosen));
        frame.render_stateful_widget(list, area, &mut state);
    }

    fn details(&self, frame: &mut Frame<'_>, area: Rect) {
        let pairs = self.pairs();
        let mut lines = Vec::new();
        if let Some(pair) = pairs.get(self.chosen) {
            lines.push(format!("{}: {}", pair.state, pair.why));
            if !pair.policies.is_empty() {
                lines.push(format!(
                    "policies that select it and do not admit it: {}",
                    names_line(&pair.policies, pair.policies_left_out)
                ));
            }
            if let Some(evidence) = &pair.evidence {
                lines.push(format!("last seen {}: {}", words::time(evidence.at_unix_ns), words::evidence(evidence)));
            }
            if let Some(edit) = &pair.since_edit {
                let at = words::time(edit.at_unix_ns);
                lines.push(format!("the decision last changed at {at} with {}", edit.object));
            }
            let (from, to) = (words::end(&pair.source), words::end(&pair.destination));
            lines.push(format!("next: weir explain {from} {to} {}/{}", pair.port, pair.protocol));
        } else {
            lines.push("nothing to show; a shows all pairs".to_owned());
        }
        let lines: Vec<Line<'_>> = lines.iter().map(|l| Line::raw(clean(l).into_owned())).collect();
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block("details")), area);
    }
}

fn block(title: &str) -> Block<'_> {
    Block::new().borders(Borders::TOP).title(format!(" {title} "))
}

fn style(state: State) -> Style {
    match state {
        State::Denied | State::Predicted | State::Unexplained | State::Failing => Style::new().fg(Color::Red),
        State::AtRisk | State::Unenforced | State::Unknown => Style::new().fg(Color::Yellow),
        State::Verified => Style::new().fg(Color::Green),
        State::Silent => Style::new().add_modifier(Modifier::DIM),
    }
}
