//! Loads the probes and prints what they say, named as the engine gets it, until interrupted.

use weir::probes::{ProbeSettings, Probes};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = ProbeSettings::default();
    let mut probes = Probes::load(&settings)?;
    for status in probes.status() {
        eprintln!("{status:?}");
    }
    let decoder = probes.decoder();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            next = probes.next_batch(&mut batch) => next?,
            _ = tokio::signal::ctrl_c() => break,
        }
        for observation in batch.drain(..).filter_map(|event| decoder.decode(&event)) {
            println!("{}", serde_json::to_string(&observation)?);
        }
    }
    eprintln!("{:?}", probes.counters());
    Ok(())
}
