//! Builds the book: `mdbook` below `target/tools`, the pages in `docs`, the result in `target/book`.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::tools;

/// `cargo xtask book`
#[derive(clap::Args)]
pub struct Book {}

impl Book {
    /// Exit codes: 0 built, 2 it could not be built.
    pub fn run(self) -> Result<ExitCode> {
        let Self {} = self;
        let root = tools::target().join("tools");
        let mdbook = root.join("bin/mdbook");
        if !mdbook.is_file() {
            eprintln!("building mdbook (once, some minutes)");
            let mut install = tools::cargo();
            install.args(["install", "mdbook", "--locked", "--quiet", "--no-default-features", "--features", "search"]);
            tools::run(install.args(["--no-track", "--root"]).arg(&root))?;
        }
        tools::run(std::process::Command::new(&mdbook).arg("build").arg(tools::root().join("docs")))?;
        let book = tools::target().join("book");
        if !book.join("index.html").is_file() {
            bail!("mdbook has written no {}", book.join("index.html").display());
        }
        println!("{}", book.join("index.html").display());
        Ok(ExitCode::SUCCESS)
    }
}
