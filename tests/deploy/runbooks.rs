//! The runbooks: one per alert, one page each, and nothing in them that the program does not have.

use std::collections::BTreeSet;

use regex::Regex;

const SECTIONS: [&str; 5] = ["## What it means", "## Confirm", "## Likely causes", "## Fix", "## When it is wrong"];

#[test]
fn each_alert_has_one_and_each_has_an_alert() {
    let folder = super::root().join("docs/runbooks");
    let mut named: BTreeSet<String> =
        super::files(&folder).iter().map(|f| f.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    assert!(named.remove("README"), "docs/runbooks/README.md is the index");
    let alerts: BTreeSet<String> = super::rules::alerts().into_keys().collect();
    assert_eq!(named, alerts);
    let index = super::read(&folder.join("README.md"));
    for alert in &alerts {
        assert!(index.contains(&format!("({alert}.md)")), "the index does not link {alert}");
    }
}

#[test]
fn each_is_one_page_with_all_sections() {
    for alert in super::rules::alerts().into_keys() {
        let text = super::read(&super::root().join("docs/runbooks").join(format!("{alert}.md")));
        assert!(text.starts_with(&format!("# {alert}\n")), "{alert}: the title is the alert's name");
        let mut after = 0;
        for section in SECTIONS {
            let at = text.find(&format!("\n{section}\n")).unwrap_or_else(|| panic!("{alert}: no {section:?}"));
            assert!(at >= after, "{alert}: {section:?} is not in its place");
            after = at;
        }
        assert!(text.lines().count() <= 80, "{alert}: more than a page");
    }
}

/// `weir NAME` in the text is a command that the program has.
#[test]
fn their_commands_exist() {
    let Ok(program) = harness::agent::binary() else {
        eprintln!("skipped: no weir binary; `cargo build` makes one");
        return;
    };
    let mention = Regex::new(r"(?m)(?:`|^)(?:weir|weir-on [A-Za-z0-9-]+) ([a-z]+)").unwrap();
    let texts = super::files(&super::root().join("docs/runbooks")).iter().map(|f| super::read(f)).collect::<String>();
    let rules = super::read(&super::root().join(super::rules::RULES));
    let commands: BTreeSet<String> = mention.captures_iter(&(texts + &rules)).map(|m| m[1].to_owned()).collect();
    assert!(commands.contains("status") && commands.contains("explain"), "{commands:?}");
    for command in commands {
        let output = std::process::Command::new(&program).args([&command, "--help"]).output().unwrap();
        assert!(output.status.success(), "there is no `weir {command}`");
    }
}
