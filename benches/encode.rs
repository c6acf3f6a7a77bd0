//! How fast one thread encodes: `cargo bench --bench encode [-- FILTER]`.
//!
//! Throughput is in bytes of f32 values, for normal values in a matrix that stays in the second-level cache. On one thread of
//! a Xeon with AVX-512: 26 GiB/s F32, 15 FP16 and BF16, 7 FP8, 0.3 INT4 (80 million values a second, all of it the search
//! for scales); with scales kept 5 FP8 and 2 INT4.

use abruzzi::quant::{Format, MatrixLayout};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand_core::Rng;

/// 512 KiB of values, as a producer might hand over.
const ROWS: usize = 128;
const COLS: usize = 1024;

fn encode(criterion: &mut Criterion) {
    let mut rng = rand_pcg::Pcg64Mcg::new(1);
    let mut uniform = || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
    let values: Vec<f32> = (0..ROWS * COLS).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect();

    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(size_of_val(values.as_slice()) as u64));
    for format in [Format::F32, Format::F16, Format::Bf16, Format::Fp8Block, Format::Int4Group32] {
        let layout = MatrixLayout { format, rows: ROWS, cols: COLS };
        let (mut weight, mut scale) = (vec![0; layout.weight_bytes()], vec![0; layout.scale_bytes()]);
        group.bench_function(format.name(), |bench| {
            bench.iter(|| layout.encode(0, &values, None, &mut weight, &mut scale));
        });
        if layout.scale_shape().is_none() {
            continue;
        }
        let mut decoded = vec![0.0; ROWS * COLS];
        let view = abruzzi::quant::MatrixView::new(layout, &weight, &scale);
        for (r, row) in decoded.chunks_mut(COLS).enumerate() {
            view.decode(r, 0, row);
        }
        let kept = scale.clone();
        group.bench_function(format!("{}, scales kept", format.name()), |bench| {
            bench.iter(|| layout.encode(0, &decoded, Some(&kept), &mut weight, &mut scale));
        });
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
