//! A terminal to draw on: tmux.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long a screen may take to show what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal of 100 columns and 40 lines.
#[derive(Debug)]
pub struct Terminal {
    name: String,
}

impl Terminal {
    /// Opens one with a shell in it; none where tmux is not installed, and then says that this is skipped.
    ///
    /// # Errors
    /// When tmux does not start.
    pub fn open() -> Result<Option<Self>> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("SKIPPED: tmux is not installed (`cargo xtask setup`), so nothing is looked at on a terminal");
            return Ok(None);
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let this = Self { name: format!("weir-test-{}-{number}", std::process::id()) };
        this.tmux(&["new-session", "-d", "-x", "100", "-y", "40", "sh"])?;
        Ok(Some(this))
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.name, "-f", "/dev/null"]).args(arguments).env("TERM", "xterm-256color");
        let output = command.env("LC_ALL", "C.UTF-8").output()?;
        ensure!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Presses keys, as tmux names them; anything else is typed.
    ///
    /// # Errors
    /// When tmux has ended.
    pub fn keys(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// What stands on the screen.
    ///
    /// # Errors
    /// When tmux has ended.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// What tmux knows of the terminal, by its format variables.
    ///
    /// # Errors
    /// When tmux has ended.
    pub fn format(&self, format: &str) -> Result<String> {
        Ok(self.tmux(&["display-message", "-p", format])?.trim().to_owned())
    }

    /// Waits until the screen fits; the screen.
    ///
    /// # Errors
    /// When it does not in time: what stands there instead.
    pub fn until(&self, what: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        let begin = Instant::now();
        loop {
            let screen = self.screen()?;
            if fits(&screen) {
                return Ok(screen);
            }
            ensure!(begin.elapsed() < PATIENCE, "{what}: not so:\n{screen}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.tmux(&["kill-server"]));
    }
}
