//! For pull requests and wikis.

use std::fmt::Write as _;

use weir_engine::check::{PairReport, Verdict};
use weir_engine::policy::lint::Level;

use super::{Checked, Conclusion, words};
use crate::outputs::text::clean;

/// The page.
#[must_use]
pub fn render(checked: &Checked) -> String {
    let mut out = String::new();
    let counts = &checked.report.counts;
    let title = match checked.conclusion {
        Conclusion::Fine => "All required flows are admitted",
        Conclusion::Findings => "There are findings",
        Conclusion::CouldNotTell => "Not everything could be told",
    };
    let _ = writeln!(out, "## Weir: {title}\n");
    let _ = writeln!(
        out,
        "{}: **{} denied**, {} undecidable, {} admitted.\n",
        words::count(counts.pairs, "required flow", "required flows"),
        counts.denied,
        counts.undecidable,
        counts.admitted
    );
    for reason in &checked.weakened {
        let _ = writeln!(out, "> **Weakened:** {}\n", cell(reason));
    }
    let open: Vec<&PairReport> = checked.report.pairs.iter().filter(|p| p.verdict != Verdict::Admitted).collect();
    if !open.is_empty() {
        out.push_str(
            "| verdict | severity | flow | source | destination | port | why |\n|---|---|---|---|---|---|---|\n",
        );
        for pair in open {
            let reasons = pair.cases.first().map(words::reasons).unwrap_or_default();
            let reasons: Vec<String> = reasons.iter().map(|r| cell(r)).collect();
            let _ = writeln!(
                out,
                "| {} | {} | `{}` | {} | {} | {} | {} |",
                pair.verdict,
                pair.severity,
                pair.flow,
                cell(&words::end(&pair.source)),
                cell(&words::end(&pair.destination)),
                words::port(pair),
                reasons.join("<br>")
            );
        }
        out.push('\n');
    }
    let lints: Vec<_> = checked.report.lints.iter().filter(|f| f.lint.level <= Level::Warning).collect();
    if !lints.is_empty() {
        out.push_str("### Policies\n\n");
        for finding in lints {
            let lint = &finding.lint;
            let origin = words::origin(lint).map(|o| format!(" ({})", cell(&o))).unwrap_or_default();
            let blocks = words::blocks(finding).map(|b| format!(" _{}_", cell(&b))).unwrap_or_default();
            let _ = writeln!(
                out,
                "- **{}** `{}` {}{origin}: {}. Do: {}.{blocks}",
                lint.level,
                lint.id,
                cell(&words::place(lint)),
                cell(&lint.message),
                cell(&lint.hint)
            );
        }
        out.push('\n');
    }
    if !checked.inputs.problems.is_empty() {
        out.push_str("### Manifests\n\n");
        for problem in &checked.inputs.problems {
            let _ = writeln!(out, "- {}", cell(&problem.to_string()));
        }
    }
    out
}

/// Foreign text inside a table cell or a list item: nothing of it is markup.
fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in clean(text).chars() {
        if matches!(c, '\\' | '|' | '`' | '*' | '_' | '<' | '>' | '[' | ']' | '#' | '~' | '&' | '!') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
