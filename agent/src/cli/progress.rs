//! Progress of what takes long: a bar on a terminal, below standard output; nothing in a pipe.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const STEPS: &str = "{bar:30} {pos} of {len} {msg}";
const BYTES: &str = "{bar:30} {bytes} of {total_bytes}, {eta} left";
const WORKING: &str = "{spinner} {msg} {elapsed}";
const SECONDS: &str = "{bar:30} {pos} of {len} s {msg}";

/// A bar of so many steps. It is gone when it is dropped, and never there where standard error is no terminal.
pub fn steps(total: u64) -> ProgressBar {
    styled(total, STEPS)
}

/// A bar over bytes.
pub fn bytes(total: u64) -> ProgressBar {
    styled(total, BYTES)
}

/// A bar over seconds.
pub fn seconds(total: u64) -> ProgressBar {
    styled(total, SECONDS)
}

/// A sign of life where nobody knows how much there is to do.
pub fn working(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(WORKING).unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style).with_message(what);
    let bar = bar.with_finish(indicatif::ProgressFinish::AndClear);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn styled(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_finish(indicatif::ProgressFinish::AndClear)
}

#[cfg(test)]
mod tests {
    use super::{BYTES, SECONDS, STEPS, WORKING};

    #[test]
    fn the_templates_are_ones() {
        for template in [STEPS, BYTES, SECONDS, WORKING] {
            assert!(indicatif::ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
