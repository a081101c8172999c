//! A terminal to draw on: tmux.

use super::*;

/// A terminal of 100 columns and 40 lines.
pub struct Terminal {
    name: String,
}

impl Terminal {
    pub fn open() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let this = Self { name: format!("weir-test-{}-{number}", std::process::id()) };
        this.tmux(&["new-session", "-d", "-x", "100", "-y", "40", "sh"])?;
        Ok(this)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.name, "-f", "/dev/null"]).args(arguments).env("TERM", "xterm-256color");
        let output = command.env("LC_ALL", "C.UTF-8").output()?;
        ensure!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn keys(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    pub fn format(&self, format: &str) -> Result<String> {
        Ok(self.tmux(&["display-message", "-p", format])?.trim().to_owned())
    }

    pub fn until(&self, what: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        let begin = Instant::now();
        loop {
            let screen = self.screen()?;
            if fits(&screen) {
                return Ok(screen);
            }
            ensure!(begin.elapsed() < PATIENCE, "{what}: not so:\n{screen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.tmux(&["kill-server"]));
    }
}
