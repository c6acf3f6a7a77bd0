//! Loads an engine on the CPU and says what that cost: `cargo run --release --example load -- DIR`.
//!
//! A process of its own, so that the peak of its memory is that of the load alone.

use std::time::Instant;

use abruzzi::{DeviceChoice, Engine};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: load DIR")?;
    let begun = Instant::now();
    let engine = Engine::builder(&dir).device(DeviceChoice::Cpu).load()?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("bytes {}", engine.load_stats().bytes);
    println!("seconds {seconds}");
    println!("peak {}", peak_memory()?);
    Ok(())
}

/// The most memory this process has held, in bytes.
fn peak_memory() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
