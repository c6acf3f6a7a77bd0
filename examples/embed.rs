//! Embedding the engine: load with progress, generate with a seed, stop from another thread.
//!
//! `cargo run --release --example embed -- models/demo "And it came to pass"`

use std::time::Duration;

use abruzzi::{CancelToken, Engine, Sampling, SessionOptions};

fn main() -> abruzzi::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "models/demo".to_owned());
    let prompt = args.next().unwrap_or_else(|| "And it came to pass".to_owned());

    let engine =
        Engine::builder(model).on_load(|p| eprint!("\r{} of {}", p.bytes_done, p.bytes_total)).load()?;
    eprintln!("\n{}", engine.placement());

    let cancel = CancelToken::default();
    let watchdog = cancel.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(10));
        watchdog.cancel();
    });

    let mut session = engine.session(SessionOptions::default().context(512).cancel(cancel))?;
    let mut sampling = Sampling::default();
    sampling.seed = Some(7);
    for token in session.generate(&prompt, &sampling)? {
        print!("{}", token?.text);
    }
    println!("\n{}", session.stats());
    Ok(())
}
