//! Screens in a real terminal (tmux), and what they leave behind.

use super::*;

#[test]
fn screens_fit_a_terminal_and_leave_it_clean() -> Result<()> {
    let Some(terminal) = Terminal::open()? else { return Ok(()) };
    let rehearsal = begin()?;
    let binary = agent::binary()?;
    let socket = rehearsal.agent.socket();
    let (binary, socket) = (text(&binary)?, text(&socket)?);
    terminal.keys(&[&format!("{binary} top --socket {socket}"), "Enter"])?;
    let drive = || rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default());
    let screen = terminal.until("the matrix and the pair", |screen| {
        ["required flows", "sidecar-xds", "denied", "my-namespace/httpbin", "my-namespace/default-deny", "q quit"]
            .iter()
            .all(|part| screen.contains(part))
            || {
                drive().expect("the flow can be driven");
                false
            }
    })?;
    ensure!(screen.lines().all(|line| line.chars().count() <= 100), "{screen}");
    ensure!(terminal.format("#{alternate_on}")? == "1", "top draws on a screen of its own");
    // Attempts appear as they are made.
    let begin = Instant::now();
    while !terminal.screen()?.contains("httpbin → istio-system/istiod") && begin.elapsed() < PATIENCE {
        rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default())?;
    }
    terminal.keys(&["a"])?;
    terminal.until("all pairs", |screen| !screen.contains("pairs that need attention"))?;
    terminal.keys(&["q"])?;
    terminal.until("a prompt", |screen| !screen.contains("required flows"))?;
    ensure!(terminal.format("#{alternate_on} #{cursor_flag}")? == "0 1", "the terminal is not as it was");
    // Redraws in place: a second later there is still one table.
    terminal.keys(&[&format!("{binary} status --watch --socket {socket}"), "Enter"])?;
    terminal.until("the table", |screen| screen.contains("STATE") && screen.contains("sidecar-xds"))?;
    std::thread::sleep(Duration::from_millis(2500));
    let screen = terminal.screen()?;
    ensure!(screen.matches("STATE").count() == 1, "drawn more than once:\n{screen}");
    Ok(())
}

#[test]
fn a_panic_leaves_the_terminal_as_it_was() -> Result<()> {
    let Some(terminal) = Terminal::open()? else { return Ok(()) };
    let rehearsal = begin()?;
    let (binary, socket) = (agent::binary()?, rehearsal.agent.socket());
    let (binary, socket) = (text(&binary)?, text(&socket)?);
    terminal.keys(&[&format!("WEIR_TEST_PANIC=1 {binary} top --socket {socket}; stty -a; echo ended $?"), "Enter"])?;
    let screen = terminal.until("the message and a prompt", |screen| screen.contains("ended 0"))?;
    ensure!(terminal.format("#{alternate_on} #{cursor_flag}")? == "0 1", "the terminal is not as it was:\n{screen}");
    let words: BTreeSet<&str> = screen.split_whitespace().map(|w| w.trim_end_matches(';')).collect();
    ensure!(words.contains("echo") && words.contains("icanon"), "what is typed stays unseen:\n{screen}");
    if cfg!(debug_assertions) {
        ensure!(screen.contains("WEIR_TEST_PANIC is set"), "it did not panic:\n{screen}");
    }
    // Attempts in 100 columns.
    terminal.keys(&["clear", "Enter"])?;
    terminal.keys(&[&format!("{binary} watch --socket {socket} --flow sidecar-xds"), "Enter"])?;
    let drive = || rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default());
    let screen = terminal.until("an attempt", |screen| {
        screen.contains("policies") && screen.contains("dropped") || {
            drive().expect("the flow can be driven");
            false
        }
    })?;
    let lines = || screen.lines().filter(|line| line.contains("my-namespace/httpbin →"));
    ensure!(lines().count() > 0 && screen.lines().any(|line| line.starts_with("    ")), "not wrapped:\n{screen}");
    Ok(())
}
