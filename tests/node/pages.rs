//! What the commands say beside a live agent, held against golden files. What varies from run to run and from machine to machine
//! (times, durations, ports, processes, kernels) is taken out first; `SNAPSHOTS=overwrite` makes the files anew.

use regex::Regex;
use snapbox::{Data, assert_data_eq, file};

use super::*;

/// What varies, and what stands for it.
const VARIES: [(&str, &str); 12] = [
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "[when]"),
    (r"\b\d\d:\d\d:\d\d(\.\d+)?Z?", "[when]"),
    (r"\b\d+(\.\d+)? ?ms\b", "[duration]"),
    (r"\b(\d+h)?(\d+m)?\d+s\b|\b\d+m\b|\b\d+h\b", "[duration]"),
    (r"(:|port )(3276[89]|327[7-9]\d|32[89]\d\d|3[3-9]\d{3}|[4-6]\d{4})\b", "$1[port]"),
    (r" \d+ retransmits?", ""),
    (r"[\w:.-]+\[\d+\]", "[process]"),
    (r"\b\d+ bytes", "[bytes]"),
    (r"\b\d+ attempts?\b", "[attempts]"),
    // Stacks are taken of some drops, not of all.
    (r" kernel stack, from the drop outwards: \S+( < \S+)*", ""),
    (r"\bnetfilter FORWARD\b", "netfilter"),
    // Where a kernel drops by rules of netfilter, and whether it has a reason for it.
    (r"\bNETFILTER_DROP at nft_do_chain|nft_do_chain NETFILTER_DROP|nft_do_chain", "[where]"),
];

/// Lines end where what varies in them says: what goes on in the next is put back.
fn plain(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let more = line.trim_start();
        match (line.len() - more.len(), lines.last_mut()) {
            // A cell that goes on: within its row.
            (12.., Some(row)) => {
                let mut cells = cells(row);
                let last = cells.len() - 1;
                cells[2.min(last)] += more;
                *row = cells.join("  ");
            }
            (4.., Some(before)) if !more.is_empty() => *before += &format!(" {more}"),
            _ => lines.push(line.to_owned()),
        }
    }
    let mut all = String::new();
    for line in lines {
        let mut cells = cells(&line);
        // A name may have been broken where it has no space.
        if cells.len() > 4 {
            cells[2].retain(|c| c != ' ');
        }
        all += cells.join("  ").trim_end();
        all.push('\n');
    }
    for (what, instead) in VARIES {
        all = Regex::new(what).expect("an expression").replace_all(&all, instead).into_owned();
    }
    all
}

/// The columns of a line; what it is indented by stays with the first.
fn cells(line: &str) -> Vec<String> {
    let text = line.trim_start();
    let indent = &line[..line.len() - text.len()];
    let columns = text.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    let mut cells: Vec<String> = columns.map(str::to_owned).collect();
    match cells.first_mut() {
        Some(first) => first.insert_str(0, indent),
        None => cells.push(String::new()),
    }
    cells
}

/// Flows that are shown. Whatever else this machine's kernel sees of the same addresses meanwhile is tried out by other tests.
const FILTER: [&str; 4] = ["--flow", "sidecar-xds", "--flow", "sidecar-metrics"];
/// Meshes that are made anew until one is not disturbed by a mesh of the same addresses.
const TRIES: usize = 6;

/// Does it on a mesh of its own; again where another mesh of this machine had its hands in it.
fn undisturbed(test: impl Fn() -> Result<()>) -> Result<()> {
    for _ in 1..TRIES {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test)).is_ok_and(|ended| ended.is_ok()) {
            return Ok(());
        }
    }
    test()
}

fn holds(text: &str, golden: Data) {
    assert_data_eq!(plain(text), golden.raw());
}

#[test]
fn pages_beside_a_live_agent_are_as_they_were() -> Result<()> {
    undisturbed(pages)
}

fn pages() -> Result<()> {
    let rehearsal = begin()?;
    let socket = rehearsal.agent.socket();
    let socket = text(&socket)?;
    let mut watch = Running::start(&["watch", "--wide", "--denied", "--flow", "sidecar-xds", "--socket", socket])?;
    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "denied", PATIENCE)?;
    let own = addresses(&rehearsal.mesh.manifests());
    let begin = Instant::now();
    let line = loop {
        let line = watch.lines.recv_timeout(PATIENCE).context("no line")?;
        // The last word on one of this mesh's attempts.
        if !line.contains('+') && own.iter().any(|address| line.contains(&format!(" {address}:"))) {
            break line;
        }
        ensure!(begin.elapsed() < PATIENCE, "no attempt of this mesh");
        rehearsal.mesh.drive(std::slice::from_ref(rehearsal.flow(FLOW)?), &DriveOptions::default())?;
    };
    holds(&line, file!["../golden/live-watch.txt"]);
    kill(Pid::from_raw(i32::try_from(watch.child.id())?), Signal::SIGINT)?;
    watch.said("next: weir explain")?;
    watch.wait()?;
    let page = |arguments: &[&str]| -> Result<String> {
        let said = rehearsal.agent.command(arguments)?;
        Ok(format!("{}{}", String::from_utf8(said.stdout)?, String::from_utf8(said.stderr)?))
    };
    holds(&page(&[&["status"], &FILTER[..]].concat())?, file!["../golden/live-status.txt"]);
    holds(&page(&[&["status", "--all"], &FILTER[..]].concat())?, file!["../golden/live-status-all.txt"]);
    let explained = page(&["explain", "my-namespace/httpbin", "istio-system/istiod", "15012"])?;
    // How many of them there were depends on how fast the machine is.
    let explained = explained.split("newest attempts:").next().unwrap_or_default();
    holds(explained, file!["../golden/live-explain.txt"]);
    let probed = page(&["probe", "my-namespace/httpbin", "sidecar-xds", "sidecar-dns", "--timeout", "1s"])?;
    holds(&probed, file!["../golden/live-probe.txt"]);
    Ok(())
}

#[test]
fn doctor_says_the_same_of_each_part_on_every_machine() -> Result<()> {
    let rehearsal = begin()?;
    let said = rehearsal.agent.command(&["doctor"])?;
    // The second column is what is looked at; the rest is this machine's.
    let said = String::from_utf8(said.stdout)?;
    let looked = |line: &str| match line.starts_with("weir ") {
        true => line.to_owned(),
        false => line.chars().skip(8).take(18).collect::<String>().trim().to_owned(),
    };
    let parts = said.lines().filter(|line| !line.starts_with(' ')).map(looked);
    let parts: String = parts.map(|part| format!("{part}\n")).collect();
    holds(&parts, file!["../golden/live-doctor.txt"]);
    Ok(())
}

#[test]
fn a_recording_and_its_replay_end_as_they_did() -> Result<()> {
    undisturbed(recording)
}

fn recording() -> Result<()> {
    let rehearsal = begin()?;
    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "denied", PATIENCE)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("recording.jsonl");
    let said = rehearsal.agent.command(&["record", text(&file)?, "--for", "1s", "--redact"])?;
    let told = String::from_utf8(said.stderr)?.replace(text(folder.path())?, "");
    holds(&told, file!["../golden/live-record.txt"]);
    let said = Command::new(agent::binary()?).args(["replay", text(&file)?]).output()?;
    let told = String::from_utf8(said.stderr)?;
    ensure!(told.contains("next:"), "{told}");
    let last = String::from_utf8(said.stdout)?;
    let last: Value = serde_json::from_str(last.lines().last().context("no snapshot")?)?;
    let pairs = last["snapshot"]["pairs"].as_array().context("no pairs")?;
    let line = |pair: &Value| {
        let end = |end: &Value| {
            format!("{}/{}", end["namespace"].as_str().unwrap_or("-"), end["workload"].as_str().unwrap_or("-"))
        };
        format!("{} {} → {}\n", pair["flow"].as_str().unwrap_or("-"), end(&pair["source"]), end(&pair["destination"]))
    };
    holds(
        &pairs.iter().filter(|pair| FILTER.iter().any(|flow| pair["flow"] == **flow)).map(line).collect::<String>(),
        file!["../golden/live-replay.txt"],
    );
    Ok(())
}

#[test]
fn the_screen_is_as_it_was() -> Result<()> {
    undisturbed(screen)
}

fn screen() -> Result<()> {
    let rehearsal = begin()?;
    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "denied", PATIENCE)?;
    let (binary, socket) = (agent::binary()?, rehearsal.agent.socket());
    let Some(terminal) = Terminal::open()? else { return Ok(()) };
    terminal.keys(&[&format!("{} top --flow sidecar-xds --socket {}", text(&binary)?, text(&socket)?), "Enter"])?;
    let screen = terminal.until("the pair", |screen| screen.contains("q quit") && screen.contains("sidecar-xds"))?;
    // Details and attempts are of what was tried, and when.
    let screen: String =
        screen.lines().take_while(|line| !line.contains(" details")).map(|line| format!("{line}\n")).collect();
    holds(&screen.replace('─', ""), file!["../golden/live-top.txt"]);
    terminal.keys(&["q"])?;
    terminal.until("what to do next", |screen| screen.contains("next: weir explain"))?;
    Ok(())
}
