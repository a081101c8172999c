//! A command line that cannot be read: one line that says what is wrong and where to look.

use std::process::ExitCode;

use clap::Error;

use super::Exit;
use crate::outputs::text::clean;

/// Prints help where it was asked for, one line where something is wrong.
pub(super) fn tell(error: &Error) -> ExitCode {
    let text = error.render().to_string();
    match text.strip_prefix("error: ") {
        Some(wrong) => {
            anstream::eprintln!("weir: {}", clean(&line(wrong)));
            Exit::Failed.into()
        }
        // Help and version, and `weir` alone.
        None => {
            let _ = error.print();
            if error.use_stderr() { Exit::Failed.into() } else { Exit::Fine.into() }
        }
    }
}

/// Clap's paragraphs on one line: what is wrong, its tips, how the command is called.
fn line(text: &str) -> String {
    let mut said = String::new();
    for paragraph in text.split("\n\n").map(str::trim).filter(|p| !p.is_empty()) {
        let mut lines = paragraph.lines().map(str::trim);
        let first = lines.next().unwrap_or_default();
        let rest = lines.collect::<Vec<_>>().join(", ");
        let first = match first {
            "For more information, try '--help'." => "--help says more",
            usage => usage.strip_prefix("Usage: ").unwrap_or(usage),
        };
        if !said.is_empty() {
            said.push_str("; ");
        }
        said.push_str(first);
        if !rest.is_empty() {
            said.push(' ');
            said.push_str(&rest);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::line;
    use crate::cli::Cli;

    fn said(args: &[&str]) -> String {
        let error = Cli::try_parse_from(args).expect_err("wrong").render().to_string();
        line(error.strip_prefix("error: ").expect("an error"))
    }

    #[test]
    fn one_line_each() {
        assert_eq!(
            said(&["weir", "run", "--manifest", "x"]),
            "unexpected argument '--manifest' found; tip: a similar argument exists: '--manifests'; \
             weir run --manifests <PATH>...; --help says more"
        );
        assert_eq!(
            said(&["weir", "run", "--ports", "abc"]),
            "invalid value 'abc' for '--ports <PORT,…>': invalid digit found in string; --help says more"
        );
        assert!(
            said(&["weir", "explain", "a"])
                .starts_with("the following required arguments were not provided: <TO>, <PORT>; weir explain")
        );
        assert!(!said(&["weir", "statsu"]).contains('\n'));
    }
}
