//! CPU kernels at Kimi-K2's sizes beside what the machine can do: `cargo bench --bench cpu`.
//!
//! Weights are cycled through a working set far beyond the caches, as a model's are. Bytes are those of weights and scales, each
//! counted once; a share is of the bandwidth that plain reads reach in the same process with the same threads, measured before
//! and after each kernel, or of the multiply-adds that registers allow in f32 and, with AMX, tiles in bfloat16. Writes a table to
//! stdout.

use std::hint::black_box;
use std::time::Instant;

use abruzzi::checkpoint::region::OwnRegion;
use abruzzi::checkpoint::weights::GatedMlp;
use abruzzi::device::cpu::{HostJob, Workers, ceiling};
use abruzzi::quant::{Format, MatrixLayout, MatrixView};

const HIDDEN: usize = 7168;
const EXPERT: usize = 2048;

/// Bytes of the working set.
const SET: usize = 3 << 30;

/// Rounds of which medians are taken.
const ROUNDS: usize = 7;

fn main() {
    let mut region = OwnRegion::new(SET, "the bench's working set").expect("memory for the working set");
    let quick = std::env::args().any(|a| a == "--test");
    // What the command line names, or everything.
    let named = |name: &str, among: &[&str]| {
        let mut asked = std::env::args().filter(|a| among.contains(&a.as_str())).peekable();
        asked.peek().is_none() || asked.any(|a| a == name)
    };
    let rounds = if quick { 1 } else { ROUNDS };
    let most = Workers::new(0).expect("threads").threads();

    println!("| threads | kernel | tokens | rate | limit | share | spread |");
    println!("|---|---|---|---|---|---|---|");
    for format in [Format::Fp8Block, Format::Int4Group32, Format::Bf16] {
        if !named(format.name(), &[Format::Fp8Block, Format::Int4Group32, Format::Bf16].map(Format::name)) {
            continue;
        }
        fill(region.bytes_mut(), format);
        let bytes = region.bytes();
        for threads in 1..=most.min(2) {
            let workers = Workers::new(threads).expect("threads");
            for tokens in [1, 4, 16] {
                if named(&tokens.to_string(), &["1", "4", "16", "512"]) {
                    decode(&workers, bytes, format, tokens, rounds);
                }
            }
            if named("512", &["1", "4", "16", "512"]) {
                prefill(&workers, bytes, format, rounds);
            }
        }
    }
}

/// Weights as models have them: random mantissas and signs, magnitudes that leave products normal numbers.
fn fill(bytes: &mut [u8], format: Format) {
    // Every 32-bit word: bfloat16 of 2^-7 to 2^-6, or finite e4m3 codes, or any nibbles.
    let (keep, set) = match format {
        Format::Bf16 => (0x807f_807f_u32, 0x3c00_3c00),
        Format::Fp8Block => (0xb7b7_b7b7, 0),
        _ => (u32::MAX, 0),
    };
    for (i, word) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *word = ((i as u32).wrapping_mul(0x9E37_79B9).rotate_left(11) & keep | set).to_le_bytes();
    }
    let scale = if format == Format::Int4Group32 { [0x23, 0x3c, 0x23, 0x3c] } else { 0.01f32.to_le_bytes() };
    for expert in bytes.chunks_exact_mut(parts(format).2) {
        for (at, layout) in parts(format).1 {
            let scales = &mut expert[at + layout.weight_bytes()..][..layout.scale_bytes()];
            scales.as_chunks_mut::<4>().0.fill(scale);
        }
    }
}

/// Bytes that an expert has, its matrices with their places, bytes that it takes.
fn parts(format: Format) -> (usize, [(usize, MatrixLayout); 3], usize) {
    let gate = MatrixLayout { format, rows: EXPERT, cols: HIDDEN };
    let down = MatrixLayout { format, rows: HIDDEN, cols: EXPERT };
    let bytes = |layout: &MatrixLayout| layout.weight_bytes() + layout.scale_bytes();
    let [wide, last] = [bytes(&gate).next_multiple_of(128), bytes(&down).next_multiple_of(128)];
    (2 * bytes(&gate) + bytes(&down), [(0, gate), (wide, gate), (2 * wide, down)], 2 * wide + last)
}

/// The experts that fit the working set, and the bytes of one.
fn experts(bytes: &[u8], format: Format) -> (Vec<GatedMlp<MatrixView<'_>>>, usize) {
    let (one, places, stride) = parts(format);
    let experts = bytes.chunks_exact(stride).map(|bytes| {
        let [gate, up, down] = places.map(|(at, layout)| {
            let (weight, rest) = bytes[at..].split_at(layout.weight_bytes());
            MatrixView::new(layout, weight, &rest[..layout.scale_bytes()])
        });
        GatedMlp { gate, up, down }
    });
    (experts.collect(), one)
}

/// Eight experts a call, as a layer has, through the whole working set.
fn decode(workers: &Workers, bytes: &[u8], format: Format, tokens: usize, rounds: usize) {
    let (experts, one) = experts(bytes, format);
    let x: Vec<f32> = (0..tokens * HIDDEN).map(|i| (i % 29) as f32 / 29.0 - 0.5).collect();
    let mut out = vec![0.0; 8 * tokens * HIDDEN];
    let mut seconds = Vec::new();
    let mut limits = Vec::new();
    for _ in 0..rounds {
        limits.push(bytes.len() as f64 / ceiling::read(workers, bytes));
        let begun = Instant::now();
        for layer in experts.chunks_exact(8) {
            let mut jobs: Vec<HostJob<'_>> = layer
                .iter()
                .zip(out.chunks_exact_mut(tokens * HIDDEN))
                .map(|(mlp, out)| HostJob { mlp: mlp.map(|v| *v), tokens: (0..tokens as u32).collect(), out })
                .collect();
            workers.host_experts(&x, &mut jobs).expect("experts");
        }
        black_box(&out);
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let read = (experts.len() / 8 * 8 * one) as f64;
    let rates: Vec<f64> = seconds.iter().map(|s| read / s).collect();
    row(
        workers,
        &format!("expert {}, {EXPERT} × {HIDDEN}", format.name()),
        tokens,
        &rates,
        &limits,
        ("GB/s", 1e9),
    );
}

/// One expert with a prompt's tokens.
fn prefill(workers: &Workers, bytes: &[u8], format: Format, rounds: usize) {
    const TOKENS: usize = 512;
    let (experts, _) = experts(bytes, format);
    let x: Vec<f32> = (0..TOKENS * HIDDEN).map(|i| (i % 29) as f32 / 29.0 - 0.5).collect();
    let mut out = vec![0.0; TOKENS * HIDDEN];
    let (mut rates, mut limits, mut of_tiles) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        limits.push(ceiling::multiply_adds(workers));
        of_tiles.extend(ceiling::tile_multiply_adds(workers));
        let mlp = experts[round % experts.len()].map(|v| *v);
        let begun = Instant::now();
        let job = HostJob { mlp, tokens: (0..TOKENS as u32).collect(), out: &mut out };
        workers.host_experts(&x, &mut [job]).expect("experts");
        rates.push((2 * 3 * TOKENS * HIDDEN * EXPERT) as f64 / begun.elapsed().as_secs_f64());
    }
    let kernel = format!("expert {}, {EXPERT} × {HIDDEN}", format.name());
    row(workers, &kernel, TOKENS, &rates, &limits, ("GFLOP/s", 1e9));
    if !of_tiles.is_empty() {
        row(workers, &format!("{kernel}, of bfloat16 tiles"), TOKENS, &rates, &of_tiles, ("GFLOP/s", 1e9));
    }
}

fn row(
    workers: &Workers,
    kernel: &str,
    tokens: usize,
    rates: &[f64],
    limits: &[f64],
    (unit, scale): (&str, f64),
) {
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let (rate, limit) = (median(rates), median(limits));
    let (least, most) =
        rates.iter().fold((f64::INFINITY, 0.0f64), |(least, most), &r| (least.min(r), most.max(r)));
    println!(
        "| {} | {kernel} | {tokens} | {:.1} {unit} | {:.1} {unit} | {:.0} % | {:.1}–{:.1} |",
        workers.threads(),
        rate / scale,
        limit / scale,
        100.0 * rate / limit,
        least / scale,
        most / scale,
    );
}
