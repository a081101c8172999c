//! Development tasks: what cargo cannot do. One file per subcommand; `Task` below is the whole table.

mod bench;
mod book;
mod build_ebpf;
mod conformance;
mod demo;
mod fuzz;
mod matrix;
mod setup;
mod test;
mod tidy;
mod tools;
mod vm_test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of Weir.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need (as root on Debian and Ubuntu; elsewhere print the commands).
    Setup(setup::Setup),
    /// Build the probes for the kernel and put them where the agent's build embeds them.
    BuildEbpf(build_ebpf::BuildEbpf),
    /// Show the main job: a mini-mesh under default-deny, the agent beside it, real connections.
    Demo(demo::Demo),
    /// Make each cause of a failed connection for real, print what the agent says of each, write docs/accuracy.md.
    Matrix(matrix::Matrix),
    /// Run every test that this machine can run (as root).
    Test(test::Test),
    /// Hold the policy engine against published cases and fixtures.
    Conformance(conformance::Conformance),
    /// Fuzz the manifest loader and the policy engine.
    Fuzz(fuzz::Fuzz),
    /// Measure: aims that are missed are printed.
    Bench(bench::Bench),
    /// Run the probe tests on other kernels, in guests under software emulation (Debian's kernels; as root).
    VmTest(vm_test::VmTest),
    /// Build the book from docs/ into target/book.
    Book(book::Book),
    /// Check the house rules that no other tool checks.
    Tidy(tidy::Tidy),
}

/// Exit codes: 0 done, 1 findings, 2 could not be done.
fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup(task) => task.run(),
        Task::BuildEbpf(task) => task.run(),
        Task::Demo(task) => task.run(),
        Task::Matrix(task) => task.run(),
        Task::Test(task) => task.run(),
        Task::Conformance(task) => task.run(),
        Task::Fuzz(task) => task.run(),
        Task::Bench(task) => task.run(),
        Task::VmTest(task) => task.run(),
        Task::Book(task) => task.run(),
        Task::Tidy(task) => task.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser as _;

    use super::{Arguments, tools};

    /// The documents' `cargo xtask` lines, in blocks and in sentences, are ones that this program takes.
    #[test]
    fn the_tasks_of_the_documents_are_tasks() {
        let mut folders = vec![tools::root().join("docs")];
        let mut pages: Vec<PathBuf> =
            ["README.md", "SECURITY.md", "deploy/README.md"].map(|name| tools::root().join(name)).into();
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { pages.push(path) }
            }
        }
        let mut known = 0;
        for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
            let text = std::fs::read_to_string(page).unwrap();
            for (_, line) in text.match_indices("cargo xtask ").map(|(at, _)| text[at..].split_at(0)) {
                let line = line.split(['`', '\n', '#', ',', ';', ')']).next().unwrap_or_default();
                let words = line.trim().trim_end_matches('.').split_whitespace().skip(2);
                let words = std::iter::once("cargo xtask").chain(words);
                if let Err(error) = Arguments::try_parse_from(words) {
                    panic!("{}: {line}\n{error}", page.display());
                }
                known += 1;
            }
        }
        assert!(known > 5, "{known} tasks in the documents");
    }
}
