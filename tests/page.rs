//! The status page in a real browser: what a person sees of a mesh that is denied, and of one that works, on a telephone and
//! where scripts are off.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{DriveOptions, Enforcement, Fixture, Rehearsal, agent, fixture};

const SCENARIO: &str = "scenarios/01-sidecar-injection";
const FLOW: &str = "sc-02-xds-ca";
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the browser may take; it is emulated or busy at times.
const BROWSER_SECONDS: &str = "60";
/// Names under which it is packaged.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Columns of a telephone, in CSS pixels.
const PHONE: u32 = 390;

/// The page's colours for what is denied and for what works.
const DENIED: [u8; 3] = [0xb0, 0x00, 0x20];
const VERIFIED: [u8; 3] = [0x1b, 0x6e, 0x1b];

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

    // No browser runs a script on this page, whatever its settings are, and there is nothing that asks for one.
    let head = head(rehearsal.agent.address())?;
    let policy = head.lines().find_map(|l| l.strip_prefix("content-security-policy: ")).context("no policy")?;
    ensure!(policy.contains("default-src 'none'") && !policy.contains("script-src"), "{policy}");

    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "denied", PATIENCE)?;
    let denied = look(browser, &url)?;
    fits_a_phone(browser, &rehearsal.agent.get("/")?.1)?;
    ensure!(denied.summary("sidecar-xds") == Some("denied"), "{}", denied.dom);
    ensure!(denied.dom.contains("my-namespace/default-deny"), "no policy is named: {}", denied.dom);
    ensure!(
        denied.dom.contains("Proposed fix") && denied.dom.contains("kind: NetworkPolicy"),
        "no fix: {}",
        denied.dom
    );
    ensure!(denied.near(DENIED) > 50, "nothing is red");

    let open = rehearsal.fixture.states.last().context("a state that opens it")?.name.clone();
    rehearsal.enter(&open, Enforcement::Drop)?;
    rehearsal.drive_until(rehearsal.flow(FLOW)?, &DriveOptions::default(), "verified", PATIENCE)?;
    let healthy = look(browser, &url)?;
    fits_a_phone(browser, &rehearsal.agent.get("/")?.1)?;
    ensure!(healthy.summary("sidecar-xds") == Some("verified"), "{}", healthy.dom);
    ensure!(healthy.near(VERIFIED) > 50, "nothing is green");
    ensure!(!healthy.summaries().any(|s| s.contains("sidecar-xds") && s.contains("denied")), "{}", healthy.dom);
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
        let of = self.summaries().find(|s| s.contains(&format!("</b> {flow} ")))?;
        of.split_once('>')?.1.split('<').next()
    }

    fn summaries(&self) -> impl Iterator<Item = &str> {
        self.dom.split("<summary>").skip(1).filter_map(|rest| rest.split("</summary>").next())
    }

    /// Pixels of about this colour.
    fn near(&self, colour: [u8; 3]) -> usize {
        let close = |pixel: &&[u8; 3]| pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 24);
        self.colours.iter().filter(close).count()
    }
}

/// The headers of the page.
fn head(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\nAccept: text/html\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split("\r\n\r\n").next().unwrap_or_default().to_lowercase().replace("\r\n", "\n"))
}

/// Runs the browser until it has loaded a page.
fn browse(browser: &str, profile: &Path, what: &[&str], url: &str) -> Result<Output> {
    let profile = format!("--user-data-dir={}", profile.display());
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", BROWSER_SECONDS, browser, "--headless", "--no-sandbox", "--disable-gpu"]);
    command.args(["--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", &profile]).args(what);
    let output = command.arg(url).output().with_context(|| format!("cannot run {browser}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{browser} {what:?}: {}: {said}", output.status);
    Ok(output)
}

fn look(browser: &str, url: &str) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let profile = folder.path().join("profile");
    let dom = String::from_utf8(browse(browser, &profile, &["--dump-dom"], url)?.stdout)?;
    ensure!(dom.contains("<h1>Weir</h1>"), "not the page: {dom}");
    for word in ["<script", "<noscript", "src=", "href=\"http"] {
        ensure!(!dom.contains(word), "{word}: {dom}");
    }
    let picture = folder.path().join("page.png");
    let (shot, size) = (format!("--screenshot={}", picture.display()), format!("--window-size={PHONE},2000"));
    browse(browser, &profile, &[&shot, &size], url)?;
    let seen = Seen { dom, colours: pixels(&picture)? };
    // Text on a white page: neither blank nor one colour.
    let (white, dark) = (seen.near([255; 3]), seen.near([0; 3]));
    ensure!(white > seen.colours.len() / 4 && dark > 200, "a picture of nothing: {white} white, {dark} dark");
    Ok(seen)
}

fn pixels(picture: &Path) -> Result<Vec<[u8; 3]>> {
    ensure!(picture.is_file(), "no picture");
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(picture)?));
    let mut reader = decoder.read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().context("a picture without a size")?];
    let info = reader.next_frame(&mut bytes)?;
    ensure!(info.width == PHONE && info.bit_depth == png::BitDepth::Eight, "{info:?}");
    let samples = info.color_type.samples();
    ensure!(samples >= 3, "{info:?}");
    Ok(bytes[..info.buffer_size()].chunks_exact(samples).map(|p| [p[0], p[1], p[2]]).collect())
}

/// On a telephone nothing of the page is wider than the screen: what is stays in a box that scrolls by itself.
fn fits_a_phone(browser: &str, page: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("page.html"), page)?;
    let measure = format!(
        "<iframe id=page src=page.html width={PHONE} height=800 style='border:0'></iframe><script>\
         addEventListener('load', () => {{ const d = page.contentDocument.documentElement; \
         document.body.append(`widths ${{d.clientWidth}} ${{d.scrollWidth}} ${{d.innerText.length}} end`) }})</script>"
    );
    let frame = folder.path().join("frame.html");
    fs::write(&frame, measure)?;
    let what = ["--dump-dom", "--allow-file-access-from-files"];
    let url = format!("file://{}", frame.display());
    let output = browse(browser, &folder.path().join("profile"), &what, &url)?;
    let dom = String::from_utf8(output.stdout)?;
    let said = dom.rsplit_once("widths ").and_then(|(_, rest)| rest.split_once(" end")).with_context(|| dom.clone())?.0;
    let numbers: Vec<u32> = said.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(matches!(*numbers, [PHONE, PHONE, text] if text > 100), "width, width of what is in it, text: {said}");
    Ok(())
}
