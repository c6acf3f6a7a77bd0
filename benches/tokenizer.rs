//! How fast one thread turns text into tokens and back: `cargo bench --bench tokenizer`.
//!
//! The demo model's held-out text, as one string, with its vocabulary of 4,096 tokens; bytes are those of the text. Writes a
//! table to stdout.

use std::path::Path;
use std::time::Instant;

use abruzzi::{ModelConfig, Tokenizer};

/// Rounds of which medians are taken.
const ROUNDS: usize = 9;

fn main() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let config = ModelConfig::from_file(&dir.join("config.json")).expect("the demo model");
    let tokenizer = Tokenizer::from_dir(&dir, config.vocab_size).expect("its vocabulary");
    let text = std::fs::read_to_string(dir.join("heldout.txt")).expect("its text");
    let rounds = if std::env::args().any(|a| a == "--test") { 1 } else { ROUNDS };

    let ids = tokenizer.encode(&text).expect("tokens");
    println!("| operation | text | tokens | rate | spread |");
    println!("|---|--:|--:|--:|---|");
    let row = |operation: &str, mut run: Box<dyn FnMut() + '_>| {
        let mut rates: Vec<f64> = (0..rounds)
            .map(|_| {
                let begun = Instant::now();
                run();
                text.len() as f64 / 1e6 / begun.elapsed().as_secs_f64()
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        println!(
            "| {operation} | {:.2} MB | {} | {:.1} MB/s | {:.1}–{:.1} |",
            text.len() as f64 / 1e6,
            ids.len(),
            rates[rounds / 2],
            rates[0],
            rates[rounds - 1],
        );
    };
    row("encode", Box::new(|| assert_eq!(tokenizer.encode(&text).expect("tokens").len(), ids.len())));
    row("decode", Box::new(|| assert_eq!(tokenizer.decode(&ids).len(), text.len())));
    row(
        "decode, token by token",
        Box::new(|| {
            let mut stream = tokenizer.stream();
            let said: usize = ids.iter().map(|&id| stream.push(&tokenizer, id).len()).sum();
            assert_eq!(said + stream.finish().len(), text.len());
        }),
    );
}
