//! A page drawn again and again: in place on a terminal, below one another elsewhere and only when it changed.

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

/// Where pages are drawn.
#[derive(Debug)]
pub struct Screen {
    in_place: bool,
    last: String,
}

impl Screen {
    /// Standard output.
    #[must_use]
    pub fn new() -> Self {
        Self { in_place: io::stdout().is_terminal(), last: String::new() }
    }

    /// Draws a page.
    ///
    /// # Errors
    /// What writing to standard output gives.
    pub fn draw(&mut self, page: &str) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        if self.in_place {
            let rows = tcgetwinsize(io::stdout()).map_or(24, |size| usize::from(size.ws_row));
            out.write_all(b"\x1b[H")?;
            for line in fit(page, rows.max(2)) {
                // Cleared line by line behind the text: nothing flickers.
                write!(out, "{line}\x1b[K\r\n")?;
            }
            out.write_all(b"\x1b[J")?;
        } else if self.last != page {
            if !self.last.is_empty() {
                out.write_all(b"\n")?;
            }
            out.write_all(page.as_bytes())?;
            page.clone_into(&mut self.last);
        }
        Ok(out.flush()?)
    }
}

/// As many lines as a terminal of `rows` rows shows, one row left for the cursor; what is cut off is counted.
fn fit(page: &str, rows: usize) -> Vec<String> {
    let lines: Vec<&str> = page.lines().collect();
    let room = rows - 1;
    if lines.len() <= room {
        return lines.into_iter().map(str::to_owned).collect();
    }
    let shown = room - 1;
    let mut fitting: Vec<String> = lines[..shown].iter().map(|l| (*l).to_owned()).collect();
    fitting.push(format!("… {} more lines; filters make the list shorter", lines.len() - shown));
    fitting
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(fit("a\nb\nc\n", 4), ["a", "b", "c"]);
        assert_eq!(fit("a\nb\nc\n", 3), ["a", "… 2 more lines; filters make the list shorter"]);
        assert_eq!(fit("a\nb\n", 2), ["… 2 more lines; filters make the list shorter"]);
    }
}
