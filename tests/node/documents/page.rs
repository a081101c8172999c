//! Commands in a page of Markdown: those in fenced and indented blocks, and those that a sentence names.

use anyhow::{Result, ensure};

/// What commands of the documents begin with.
const PROGRAMS: [&str; 8] =
    ["weir ", "kubectl ", "weir-on ", "helm ", "cargo ", "nft list ", "iptables-save ", "curl "];

/// The commands of a page.
#[derive(Default)]
pub struct Commands {
    /// Shell functions that its commands use.
    pub functions: Vec<String>,
    /// In blocks that need something, and in sessions that are shown, in their order, without comments.
    pub blocks: Vec<String>,
    /// In blocks that need nothing: run as they are by the tests of the command line.
    pub plain: usize,
    /// Within sentences: a program and more than one word after it, or options.
    pub sentences: Vec<String>,
}

/// Reads a page. A command that stands where nobody runs it is an error.
pub fn read(page: &str) -> Result<Commands> {
    let mut found = Commands::default();
    let mut lines = page.lines().peekable();
    let mut before = "";
    while let Some(line) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else {
            let indented = line.starts_with("    ") && before.is_empty();
            ensure!(
                !indented || !is_command(line.trim()),
                "a command outside of a block that begins with ```sh: {line}"
            );
            found.sentences.extend(spans(line));
            before = line.trim();
            continue;
        };
        before = line;
        let body: Vec<&str> = lines.by_ref().take_while(|l| !l.trim_start().starts_with("```")).collect();
        let mut words = info.split_whitespace();
        if words.next() != Some("sh") {
            // A session: what was typed, and what it said.
            let typed = body.iter().filter_map(|line| line.trim().strip_prefix("$ "));
            found.blocks.extend(typed.map(|line| line.split("  #").next().unwrap_or_default().trim().to_owned()));
            ensure!(!body.first().is_some_and(|l| is_command(l.trim())), "a block of commands is no ```sh: {body:?}");
            continue;
        }
        let joined = body.join("\n").replace("\\\n", " ");
        let mut rest = joined.lines();
        while let Some(line) = rest.next() {
            if line.contains("() {") {
                let body: Vec<&str> = rest.by_ref().take_while(|l| l.trim() != "}").collect();
                found.functions.push(format!("{line}\n{}\n}}\n", body.join("\n")));
                continue;
            }
            let line = line.split("  #").next().unwrap_or_default().trim();
            match (line.is_empty(), info.contains(' ')) {
                (true, _) => {}
                (false, true) => found.blocks.push(line.to_owned()),
                (false, false) => found.plain += 1,
            }
        }
    }
    Ok(found)
}

fn is_command(line: &str) -> bool {
    PROGRAMS.iter().any(|program| line.strip_prefix(program).is_some_and(|rest| !rest.starts_with(' ')))
}

/// Commands between back quotes, as opposed to names: `weir check` is one.
fn spans(line: &str) -> impl Iterator<Item = String> {
    let spans = line.split('`').skip(1).step_by(2).filter(|span| is_command(span));
    spans.filter(|span| span.split_whitespace().count() > 2 || span.contains(" -")).map(str::to_owned)
}

#[test]
fn commands_are_found_wherever_they_stand() -> Result<()> {
    let page = "Do `weir flows ID`, not `weir flows`.\n\n1. So:\n\n   ```sh cluster\n   f() {\n   a\n   }\n   kubectl get \\\n      \
                pods    # all\n   ```\n\n```sh\nweir flows\n```\n\n```text\n$ weir status\nFine\n```\n";
    let found = read(page)?;
    assert_eq!(found.sentences, ["weir flows ID"]);
    assert_eq!(
        found.blocks.iter().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect::<Vec<_>>(),
        vec![vec!["kubectl", "get", "pods"], vec!["weir", "status"]]
    );
    assert_eq!((found.functions.len(), found.plain), (1, 1));
    for hidden in ["Text:\n\n    weir status\n", "```\nkubectl get pods\n```\n"] {
        assert!(read(hidden).is_err(), "{hidden}");
    }
    Ok(())
}
