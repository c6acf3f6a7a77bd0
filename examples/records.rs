//! Reads every expert's record from the checkpoint's files, as a host store does that does not hold them, by one thread and with nothing in
//! the system's file cache, and says how fast: `cargo run --release --example records -- DIR [ROUNDS]`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Instant;

use abruzzi::Checkpoint;
use abruzzi::checkpoint::ReadBuffer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: records DIR [ROUNDS]")?;
    let rounds = args.next().map_or(Ok(5), |n| n.parse())?;
    let checkpoint = Checkpoint::open(&dir)?;
    let mut buffer = ReadBuffer::new()?;
    let mut rates = Vec::new();
    for round in 1..=rounds {
        forget(&dir)?;
        let (begun, mut bytes) = (Instant::now(), 0);
        for layer in 0..checkpoint.config().num_layers {
            let Some(layout) = checkpoint.record_layout(layer) else { continue };
            let mut record = vec![0; layout.size()];
            for expert in 0..checkpoint.config().moe.num_experts {
                checkpoint.read_expert_direct(layer, expert, &mut record, &mut buffer)?;
                bytes += record.len();
            }
        }
        rates.push(bytes as f64 / 1e9 / begun.elapsed().as_secs_f64());
        println!("round {round}: {:.2} GB/s of {:.2} GB", rates[round - 1], bytes as f64 / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    println!("median {:.2} GB/s", rates.get(rates.len() / 2).ok_or("no rounds")?);
    Ok(())
}

/// Has the system forget what it has of the files. What was not written yet stays.
fn forget(dir: &str) -> std::io::Result<()> {
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let file = File::open(path)?;
            file.sync_all()?;
            // SAFETY: advice about a file that is open.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }
    Ok(())
}
