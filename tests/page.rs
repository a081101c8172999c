//! The status page in a real browser: what a person sees of a mesh that is denied, and of one that works.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{DriveOptions, Enforcement, Fixture, Rehearsal, agent, fixture};

const SCENARIO: &str = "scenarios/01-sidecar-injection";
const FLOW: &str = "sc-02-xds-ca";
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the browser may take; it is emulated or busy at times.
const BROWSER_SECONDS: &str = "60";
/// Names under which it is packaged.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Columns of a telephone, in CSS pixels; a headless window is no narrower than this.
const PHONE: u32 = 500;

#[test]
fn the_page_shows_what_is_denied_and_that_it_is_mended() -> Result<()> {
    let Some(browser) = BROWSERS.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok()) else {
        println!("SKIPPED: chromium is not installed, so the status page is not looked at in a browser");
        return Ok(());
    };
    ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
    let fixture = Fixture::load(&fixture::fixtures_dir().join(SCENARIO))?;
    let rehearsal = Rehearsal::begin(fixture, agent::binary()?, Enforcement::Drop)?;
    let url = format!("http://{}/", rehearsal.agent.address());

    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "denied", PATIENCE)?;
    let denied = look(browser, &url)?;
    ensure!(denied.summary("sidecar-xds") == Some("denied"), "{}", denied.dom);
    ensure!(denied.dom.contains("my-namespace/default-deny"), "no policy is named: {}", denied.dom);
    ensure!(
        denied.dom.contains("Proposed fix") && denied.dom.contains("kind: NetworkPolicy"),
        "no fix: {}",
        denied.dom
    );
    // #b00020, as the page has it for what is denied.
    ensure!(denied.near([0xb0, 0x00, 0x20]) > 50, "nothing is red");

    let open = rehearsal.fixture.states.last().context("a state that opens it")?.name.clone();
    rehearsal.enter(&open, Enforcement::Drop)?;
    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "verified", PATIENCE)?;
    let healthy = look(browser, &url)?;
    ensure!(healthy.summary("sidecar-xds") == Some("verified"), "{}", healthy.dom);
    // #1b6e1b
    ensure!(healthy.near([0x1b, 0x6e, 0x1b]) > 50, "nothing is green");
    Ok(())
}

/// What a browser makes of a page.
struct Seen {
    dom: String,
    colours: Vec<[u8; 3]>,
}

impl Seen {
    /// The state in the summary of a flow's pair.
    fn summary(&self, flow: &str) -> Option<&str> {
        let mut summaries = self.dom.split("<summary>").skip(1).filter_map(|rest| rest.split("</summary>").next());
        let of = summaries.find(|s| s.contains(&format!("</b> {flow} ")))?;
        of.split_once('>')?.1.split('<').next()
    }

    /// Pixels of about this colour.
    fn near(&self, colour: [u8; 3]) -> usize {
        let close = |pixel: &&[u8; 3]| pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 24);
        self.colours.iter().filter(close).count()
    }
}

fn look(browser: &str, url: &str) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
    let picture = folder.path().join("page.png");
    let run = |what: &[&str]| -> Result<Output> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", BROWSER_SECONDS, browser, "--headless", "--no-sandbox", "--disable-gpu"]);
        command.args(["--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", &profile]).args(what);
        let output = command.arg(url).output().with_context(|| format!("cannot run {browser}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{browser} {what:?}: {}: {said}", output.status);
        Ok(output)
    };
    let dom = String::from_utf8(run(&["--dump-dom"])?.stdout)?;
    ensure!(dom.contains("<h1>Weir</h1>"), "not the page: {dom}");
    let begin = Instant::now();
    let shot = format!("--screenshot={}", picture.display());
    run(&[&shot, &format!("--window-size={PHONE},2000")])?;
    ensure!(picture.is_file(), "no picture after {:?}", begin.elapsed());
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&picture)?));
    let mut reader = decoder.read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().context("a picture without a size")?];
    let info = reader.next_frame(&mut bytes)?;
    ensure!(info.width == PHONE && info.bit_depth == png::BitDepth::Eight, "{info:?}");
    let samples = info.color_type.samples();
    ensure!(samples >= 3, "{info:?}");
    let colours: Vec<[u8; 3]> = bytes[..info.buffer_size()].chunks_exact(samples).map(|p| [p[0], p[1], p[2]]).collect();
    let seen = Seen { dom, colours };
    // Text on a white page: neither blank nor one colour.
    let (white, dark) = (seen.near([255; 3]), seen.near([0; 3]));
    ensure!(white > seen.colours.len() / 4 && dark > 200, "a picture of nothing: {white} white, {dark} dark");
    Ok(seen)
}
