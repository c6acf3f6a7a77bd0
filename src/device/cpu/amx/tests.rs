//! Against products in f64. Where the processor has no tiles all but the last have nothing to test.

use super::super::Isa;
use super::super::matmul::Compute;
use super::super::matmul::tests::{naive, weights};
use super::super::pool::Pool;
use super::*;
use crate::checkpoint::weights::GatedMlp;
use crate::quant::MatrixLayout;

const FORMATS: [Format; 3] = [Format::Fp8Block, Format::Bf16, Format::Int4Group32];

/// What sums in f32 may be off, of Σ |w·x|.
const UNIT: f64 = 1.0 / (1 << 20) as f64;

fn random(count: usize, seed: u128) -> Vec<f32> {
    use rand_core::Rng;
    let mut rng = rand_pcg::Pcg64Mcg::new(seed | 1);
    (0..count).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Σ |w·x| of every result.
fn magnitudes(w: MatrixView<'_>, x: &[f32]) -> Vec<f64> {
    let MatrixLayout { rows, cols, .. } = w.layout();
    let mut row = vec![0.0; cols];
    let mut sums = vec![0.0; x.len() / cols * rows];
    for r in 0..rows {
        w.decode(r, 0, &mut row);
        for (t, x) in x.chunks_exact(cols).enumerate() {
            sums[t * rows + r] = row.iter().zip(x).map(|(w, x)| f64::from((w * x).abs())).sum();
        }
    }
    sums
}

/// What tiles make of it, written over NaN.
fn products(w: MatrixView<'_>, x: &[f32], threads: usize) -> Option<Vec<f32>> {
    Amx::get()?;
    let layout = w.layout();
    let mut y = vec![f32::NAN; x.len() / layout.cols * layout.rows];
    Compute { pool: &Pool::new(threads).unwrap(), isa: Isa::Amx }.matmul(w, x, &mut y);
    Some(y)
}

#[test]
fn products_are_those_of_f32() {
    // Several slabs, a last one that ends amid a block and amid a tile; rows beyond a block of 512; tokens beyond 512.
    for (rows, cols, tokens) in [(5, 1, 10), (70, 1070, 37), (600, 130, 530), (1100, 64, 16), (130, 520, 97)]
    {
        for format in FORMATS {
            let layout = MatrixLayout { format, rows, cols };
            let (weight, scale) = weights(layout, (rows + cols + tokens) as u64);
            let w = MatrixView::new(layout, &weight, &scale);
            // Of very different sizes: a small one next to a large one keeps its own digits.
            let mut x = random(tokens * cols, 7);
            x.iter_mut().step_by(3).for_each(|x| *x *= 1e-6);
            let Some(got) = products(w, &x, 2) else { return };
            let (want, magnitudes) = (naive(w, &x), magnitudes(w, &x));
            for (i, ((got, want), magnitude)) in got.iter().zip(want).zip(magnitudes).enumerate() {
                let off = (f64::from(*got) - want).abs();
                assert!(off <= magnitude * UNIT, "{layout:?}, {tokens} tokens, at {i}: {got} for {want}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_or_on_other_tokens() {
    let layout = MatrixLayout { format: Format::Fp8Block, rows: 700, cols: 300 };
    let (weight, scale) = weights(layout, 3);
    let w = MatrixView::new(layout, &weight, &scale);
    let x = random(40 * layout.cols, 5);
    let Some(one) = products(w, &x, 1) else { return };
    assert_eq!(one, products(w, &x, 3).unwrap(), "of three threads");
    // Twenty of them meet other groups' company, and blocks of other sizes.
    assert_eq!(
        one[..20 * layout.rows],
        products(w, &x[..20 * layout.cols], 2).unwrap(),
        "of half the tokens"
    );
}

#[test]
fn what_is_not_finite_stays_with_its_token() {
    for format in FORMATS {
        let layout = MatrixLayout { format, rows: 33, cols: 200 };
        let (weight, scale) = weights(layout, 11);
        let w = MatrixView::new(layout, &weight, &scale);
        let mut x = random(20 * layout.cols, 9);
        let clean = x.clone();
        // A NaN whose payload is in the half that the first part leaves out, an infinity.
        x[3 * layout.cols + 150] = f32::from_bits(0x7f80_0001);
        x[17 * layout.cols + 199] = f32::INFINITY;
        x[18 * layout.cols] = -0.0;
        let (Some(got), Some(want)) = (products(w, &x, 2), products(w, &clean, 2)) else { return };
        for t in (0..20).filter(|t| *t != 18) {
            let of_token = t * layout.rows..(t + 1) * layout.rows;
            if t == 3 || t == 17 {
                assert!(got[of_token].iter().all(|v| !v.is_finite()), "{format:?}, token {t}");
            } else {
                assert_eq!(got[of_token.clone()], want[of_token], "{format:?}, token {t}");
            }
        }
        assert!(got[18 * layout.rows..19 * layout.rows].iter().all(|v| v.is_finite()), "{format:?}, −0");
    }
}

#[test]
fn parts_add_up_to_every_float() {
    let layout = MatrixLayout { format: Format::Bf16, rows: 32, cols: 32 };
    // The identity.
    let mut weight = vec![0u8; layout.weight_bytes()];
    for i in 0..32 {
        weight[(i * 32 + i) * 2..][..2].copy_from_slice(&half::bf16::ONE.to_le_bytes());
    }
    let w = MatrixView::new(layout, &weight, &[]);
    let x: Vec<f32> = random(16 * 32, 2).iter().map(|x| x * f32::MAX).collect();
    let Some(y) = products(w, &x, 1) else { return };
    for (x, y) in x.iter().zip(y) {
        assert!(*x == y, "{y} for {x}");
    }
}

#[test]
fn gates_of_formats_with_and_without_tiles() {
    let matrices = [Format::Fp8Block, Format::Int4Group32, Format::F32].map(|format| {
        let layout = MatrixLayout { format, rows: 96, cols: 160 };
        (layout, weights(layout, 21))
    });
    let down = MatrixLayout { format: Format::Bf16, rows: 160, cols: 96 };
    let of_down = weights(down, 22);
    let view = |(layout, (w, s)): &'_ (MatrixLayout, (Vec<u8>, Vec<u8>))| -> MatrixView<'static> {
        MatrixView::new(*layout, w.clone().leak(), s.clone().leak())
    };
    let x = random(24 * 160, 13);
    let pool = Pool::new(2).unwrap();
    for gate in &matrices {
        for up in &matrices {
            let mlp = GatedMlp { gate: view(gate), up: view(up), down: view(&(down, of_down.clone())) };
            let mut results = Vec::new();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let mut out = vec![f32::NAN; x.len()];
                Compute { pool: &pool, isa }.gated(&mlp, &x, None, &mut out);
                results.push(out);
            }
            let last = results.pop().expect("every processor has a set");
            for result in results {
                for (a, b) in result.iter().zip(&last) {
                    assert!(
                        (a - b).abs() <= 1e-3 * (1.0 + b.abs()),
                        "{:?} with {:?}: {a}, {b}",
                        gate.0,
                        up.0
                    );
                }
            }
        }
    }
}
