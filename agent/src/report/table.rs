//! For people: what needs attention first, in 100 columns, ending with what to do next.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anstyle::{AnsiColor, Color, Style};
use weir_engine::check::{Finding, InstanceView, Mutation, Need, PairReport, Verdict};
use weir_engine::policy::lint::Level;
use weir_engine::requirement::Severity;

use super::words::{self, count};
use super::{Checked, Conclusion};
use crate::cluster::manifests::Severity as Damage;
use crate::outputs::text::clean;

/// Columns of a line.
pub const WIDTH: usize = 100;
/// Groups of pairs shown in full; more are counted.
const MAX_GROUPS: usize = 25;
/// Pairs named within a group.
const MAX_PAIRS: usize = 6;

/// What to show beyond what needs attention, and what the commands to run next are called with.
#[derive(Clone, Debug, Default)]
pub struct Show {
    /// Admitted pairs, and lints that may be meant.
    pub all: bool,
    /// The arguments of this check that name manifests, as a shell would read them.
    pub arguments: String,
    /// Those that name traffic, which tells of pairs and not of verdicts.
    pub seen: String,
}

/// The page.
#[must_use]
pub fn render(checked: &Checked, show: &Show) -> String {
    let mut page = Page::default();
    pairs(&mut page, checked, Verdict::Denied, show);
    pairs(&mut page, checked, Verdict::Undecidable, show);
    if show.all {
        admitted(&mut page, checked);
    }
    lints(&mut page, checked, show);
    problems(&mut page, checked);
    simulated(&mut page, &checked.report.simulated);
    if let Some(mutation) = &checked.report.mutation {
        mutations(&mut page, mutation, show);
    }
    summary(&mut page, checked);
    next(&mut page, checked, show);
    page.text
}

/// What the report takes for granted: sidecars that nobody has injected yet.
fn simulated(page: &mut Page, workloads: &[String]) {
    if !workloads.is_empty() {
        let named = workloads.iter().take(MAX_PAIRS).map(|w| clean(w).into_owned()).collect::<Vec<_>>().join(", ");
        let more = workloads.len().saturating_sub(MAX_PAIRS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        page.line(0, &format!("sidecar injection simulated: {named}{more}"));
        page.gap();
    }
}

/// Lines of text, wrapped and indented.
#[derive(Default)]
pub(crate) struct Page {
    pub text: String,
}

impl Page {
    /// What is wrong.
    pub const RED: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Red)));
    /// What is doubtful.
    pub const YELLOW: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));
    /// What is well.
    pub const GREEN: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));

    /// One paragraph; lines after the first are indented two columns more.
    pub fn line(&mut self, indent: usize, text: &str) {
        self.styled(indent, "", Style::new(), text);
    }

    /// The same, with a coloured word in front.
    pub fn styled(&mut self, indent: usize, word: &str, style: Style, text: &str) {
        let (first, rest) = (" ".repeat(indent), " ".repeat(indent + 2));
        let whole = if word.is_empty() { clean(text).into_owned() } else { format!("{word} {}", clean(text)) };
        let options = textwrap::Options::new(WIDTH)
            .initial_indent(&first)
            .subsequent_indent(&rest)
            .word_splitter(textwrap::WordSplitter::NoHyphenation)
            .word_separator(textwrap::WordSeparator::AsciiSpace);
        for (index, line) in textwrap::wrap(&whole, options).iter().enumerate() {
            let line = line.trim_end();
            match line.strip_prefix(&format!("{first}{word}")) {
                Some(tail) if index == 0 && !word.is_empty() => {
                    let _ = writeln!(self.text, "{first}{style}{word}{style:#}{tail}");
                }
                _ => {
                    let _ = writeln!(self.text, "{line}");
                }
            }
        }
    }

    /// A command to copy: broken, where it is too long for a line, as a shell takes it.
    pub fn command(&mut self, command: &str, arguments: &str) {
        let (command, arguments) = (clean(command), clean(arguments));
        let mut line = " ".to_owned();
        for word in shell_words(&command).into_iter().chain(shell_words(&arguments)) {
            // Room for what says that the command goes on.
            if textwrap::core::display_width(&line) + 3 + textwrap::core::display_width(word) > WIDTH {
                let _ = writeln!(self.text, "{line} \\");
                line = format!("      {word}");
            } else {
                let _ = write!(line, " {word}");
            }
        }
        let _ = writeln!(self.text, "{line}");
    }

    pub fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }
}

/// The words of a command line as they stand in it, quotes included.
fn shell_words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut begin, mut quoted) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => {
                words.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    words.push(&text[begin..]);
    words.retain(|word| !word.is_empty());
    words
}

/// Pairs of one flow that fare alike for one reason are told together.
type Group<'a> = ((Severity, &'a str, Vec<String>), Vec<&'a PairReport>);

fn groups(checked: &Checked, verdict: Verdict) -> Vec<Group<'_>> {
    let mut found: BTreeMap<(Severity, &str, Vec<String>), Vec<&PairReport>> = BTreeMap::new();
    for pair in checked.report.pairs.iter().filter(|p| p.verdict == verdict) {
        let reasons = pair.cases.first().map(words::reasons).unwrap_or_default();
        found.entry((pair.severity, &pair.flow, reasons)).or_default().push(pair);
    }
    found.into_iter().collect()
}

fn pairs(page: &mut Page, checked: &Checked, verdict: Verdict, show: &Show) {
    let groups = groups(checked, verdict);
    let shown = if show.all { groups.len() } else { MAX_GROUPS };
    for ((severity, flow, reasons), pairs) in groups.iter().take(shown) {
        page.gap();
        let (word, style) = match verdict {
            Verdict::Denied => ("denied", Page::RED),
            Verdict::Undecidable => ("undecidable", Page::YELLOW),
            Verdict::Admitted => ("admitted", Page::GREEN),
        };
        let first = pairs[0];
        page.styled(0, word, style, &format!("{severity} {flow} ({}): {}", first.code, first.purpose));
        let named = if show.all { pairs.len() } else { MAX_PAIRS };
        for pair in pairs.iter().take(named) {
            let part = match pair.denied() {
                n if n > 0 && n < pair.instances => format!(" ({n} of {} instances)", pair.instances),
                _ => String::new(),
            };
            page.line(2, &format!("{}{part}", words::pair(pair)));
        }
        if pairs.len() > named {
            page.line(2, &format!("and {} more like these", pairs.len() - named));
        }
        reasons.iter().for_each(|reason| page.line(4, reason));
        if verdict == Verdict::Denied {
            page.line(4, &format!("seen as: {}", first.symptom));
        }
    }
    if groups.len() > shown {
        page.gap();
        page.line(0, &format!("and {} more {verdict} (--all shows them)", groups.len() - shown));
    }
}

fn admitted(page: &mut Page, checked: &Checked) {
    page.gap();
    for pair in checked.report.pairs.iter().filter(|p| p.verdict == Verdict::Admitted) {
        page.styled(0, "admitted", Page::GREEN, &format!("{} {} {}", pair.severity, pair.flow, words::pair(pair)));
    }
}

fn lints(page: &mut Page, checked: &Checked, show: &Show) {
    let (shown, hidden): (Vec<&Finding>, Vec<&Finding>) =
        checked.report.lints.iter().partition(|f| show.all || f.lint.level <= Level::Warning);
    for finding in shown {
        let lint = &finding.lint;
        page.gap();
        let style = match lint.level {
            Level::Error => Page::RED,
            Level::Warning => Page::YELLOW,
            Level::Note => Style::new(),
        };
        page.styled(0, lint.level.as_str(), style, &format!("{} {}", lint.id, words::place(lint)));
        page.line(4, &lint.message);
        page.line(4, &format!("do: {}", lint.hint));
        let details = [words::origin(lint), words::blocks(finding)];
        let details: Vec<String> = details.into_iter().flatten().collect();
        if !details.is_empty() {
            page.line(4, &details.join("; "));
        }
    }
    if !hidden.is_empty() {
        page.gap();
        page.line(
            0,
            &format!("{} on policies that may be meant (--all shows them)", count(hidden.len(), "note", "notes")),
        );
    }
}

fn problems(page: &mut Page, checked: &Checked) {
    page.gap();
    for problem in checked.inputs.problems.iter().take(MAX_GROUPS) {
        let (word, style) = match problem.severity {
            Damage::Error => ("not read", Page::RED),
            Damage::Warning => ("doubtful", Page::YELLOW),
        };
        page.styled(0, word, style, &problem.to_string());
    }
    let more = checked.inputs.problems.len().saturating_sub(MAX_GROUPS) + checked.inputs.problems_left_out;
    if more > 0 {
        page.line(0, &format!("and {more} more problems with the manifests"));
    }
}

fn mutations(page: &mut Page, mutation: &Mutation, show: &Show) {
    page.gap();
    page.line(0, "If each rule alone were deleted:");
    for rule in mutation.rules.iter().filter(|r| r.need == Need::Needed) {
        for (flows, does) in [(&rule.breaks, "closes:"), (&rule.doubts, "leaves in doubt:")] {
            if flows.is_empty() {
                continue;
            }
            page.line(2, &format!("{} {} rule {} {does}", rule.policy, rule.direction, rule.rule));
            let named = if show.all { flows.len() } else { MAX_PAIRS };
            for b in flows.iter().take(named) {
                let ends = (words::end(&b.source), words::end(&b.destination));
                page.line(4, &format!("{} {} → {} {} {}", b.flow, ends.0, ends.1, b.protocol, b.port));
            }
            if flows.len() > named {
                page.line(4, &format!("and {} more", flows.len() - named));
            }
        }
    }
    for (need, text) in [
        (Need::Shared, "closes nothing: other rules admit the same required flows"),
        (Need::Unused, "closes nothing: it admits no required flow"),
    ] {
        for rule in mutation.rules.iter().filter(|r| r.need == need) {
            page.line(2, &format!("{} {} rule {} {text}", rule.policy, rule.direction, rule.rule));
        }
    }
}

fn summary(page: &mut Page, checked: &Checked) {
    page.gap();
    let counts = &checked.report.counts;
    let policies = checked.report.objects.iter().filter(|o| o.kind.as_str().ends_with("NetworkPolicy"));
    let policies: u64 = policies.map(|o| o.count).sum();
    let text = format!(
        "{}: {} denied, {} undecidable, {} admitted; {}, {} read",
        count(counts.pairs, "required flow", "required flows"),
        counts.denied,
        counts.undecidable,
        counts.admitted,
        count(usize::try_from(policies).unwrap_or(usize::MAX), "policy", "policies"),
        count(checked.inputs.documents, "document", "documents"),
    );
    page.line(0, &text);
    for reason in &checked.weakened {
        page.styled(0, "Weakened:", Page::YELLOW, reason);
    }
}

fn next(page: &mut Page, checked: &Checked, show: &Show) {
    let worst = checked.report.pairs.first().filter(|p| p.verdict != Verdict::Admitted);
    let explain = worst.and_then(|p| {
        let instance = p.cases.first()?.instances.first()?;
        let source = argument(&p.source.kind, &instance.source);
        let destination = argument(&p.destination.kind, &instance.destination);
        Some(format!("weir explain {source} {destination} {}/{}", p.port, p.protocol))
    });
    match (checked.conclusion, explain) {
        (Conclusion::Fine, _) => page.styled(0, "Fine:", Page::GREEN, "every required flow is admitted."),
        (_, None) if checked.inputs.broken() > 0 => {
            page.line(0, "Next: repair the documents named above, then check again.")
        }
        (_, None) => page.line(0, "Next: see --help for how to name manifests and cluster."),
        (Conclusion::Findings, Some(explain)) => {
            page.line(0, "Next:");
            page.command(&explain, &show.arguments);
            page.command("weir fix", &format!("{}{}", show.arguments, show.seen));
        }
        (Conclusion::CouldNotTell, Some(explain)) => {
            page.line(0, "Next (or name your engine with --engine):");
            page.command(&explain, &show.arguments);
        }
    }
}

/// An end as `weir explain` takes it.
fn argument(kind: &str, instance: &str) -> String {
    match kind {
        "api-server" => "apiserver".to_owned(),
        "kubelet" => {
            instance.strip_prefix("node ").map_or_else(|| instance.to_owned(), |node| format!("kubelet@{node}"))
        }
        "external" => "external".to_owned(),
        _ => match instance.strip_prefix("node ") {
            Some(node) => format!("kubelet@{}", node.split(' ').next().unwrap_or(node)),
            None => instance.to_owned(),
        },
    }
}

/// `app/web-0 → mesh/istiod-0`.
#[must_use]
pub fn instance_text(instance: &InstanceView) -> String {
    format!("{} → {}", instance.source, instance.destination)
}
