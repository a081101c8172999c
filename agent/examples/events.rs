//! Loads the probes and prints what they say, until interrupted.
use weir::probes::{ProbeSettings, Probes};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let start = std::time::Instant::now();
    let mut probes = Probes::load(&ProbeSettings::default())?;
    eprintln!("loaded in {:?}", start.elapsed());
    for status in probes.status() {
        eprintln!("{status:?}");
    }
    eprintln!("missing {:?}", probes.types().missing);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            next = probes.next_batch(&mut batch) => next?,
            _ = tokio::signal::ctrl_c() => break,
        }
        for event in batch.drain(..) {
            println!("{event:?}");
        }
    }
    eprintln!("{:?}", probes.counters());
    Ok(())
}
