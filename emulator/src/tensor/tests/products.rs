use std::hint::black_box;
use std::time::Instant;

use super::super::fp8;
use super::super::gemm::{Isa, multiply, multiply_with};
use super::super::panel::{Element, decode, decode_transposed, decode_transposed_with};
use crate::num::small_float::*;
use crate::num::tests::Random;
use crate::settings::Fp8Accumulation;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.next() as i32 as f32 / 2f32.powi(31)).collect()
}

#[test]
fn all_instruction_sets_sum_in_the_same_order() {
    for (m, n, k) in
        [(64, 256, 16), (16, 8, 16), (17, 91, 33), (1, 1, 1), (5, 48, 8), (64, 104, 32), (7, 24, 3)]
    {
        let (a, b, start) = (noise(m * k, 1), noise(k * n, 2), noise(m * n, 3));
        let mut want = start.clone();
        for i in 0..m {
            for j in 0..n {
                for l in 0..k {
                    want[i * n + j] = a[i * k + l].mul_add(b[l * n + j], want[i * n + j]);
                }
            }
        }
        for isa in Isa::ALL {
            let mut acc = start.clone();
            multiply_with(isa, &a, &b, &mut acc, m, n, k);
            assert_eq!(acc, want, "{isa:?} {m}×{n}×{k}");
        }
    }
}

#[test]
fn short_slices_change_nothing() {
    let mut acc = [1.0; 4];
    multiply(&[1.0; 3], &[1.0; 4], &mut acc, 2, 2, 2);
    fp8::multiply(Fp8Accumulation::Truncated, &[1.0; 3], &[1.0; 4], &mut acc, 2, 2, 2);
    assert_eq!(acc, [1.0; 4]);
}

#[test]
fn panels_decode_in_place_and_transposed() {
    let mut random = Random(4);
    for rows in [1usize, 8, 16, 24, 37, 256] {
        let bytes: Vec<[u8; 32]> = (0..rows).map(|_| std::array::from_fn(|_| random.next() as u8)).collect();
        for element in [
            Element::F16,
            Element::Bf16,
            Element::Tf32,
            Element::E4m3,
            Element::E5m2,
            Element::S8,
            Element::U8,
        ] {
            let k = element.per_step();
            let scalar = |piece: &[u8]| match element {
                Element::F16 => f16_to_f32(u16::from_le_bytes(piece.try_into().unwrap())),
                Element::Bf16 => bf16_to_f32(u16::from_le_bytes(piece.try_into().unwrap())),
                Element::Tf32 => tf32_to_f32(u32::from_le_bytes(piece.try_into().unwrap())),
                Element::E4m3 => e4m3_to_f32(piece[0]),
                Element::E5m2 => e5m2_to_f32(piece[0]),
                Element::S8 => f32::from(piece[0] as i8),
                Element::U8 => f32::from(piece[0]),
            };
            let stride = rows + 3;
            let mut want = vec![7.0f32; k * stride];
            let mut flat = vec![0f32; rows * k];
            decode(element, bytes.as_flattened(), &mut flat);
            for (r, row) in bytes.iter().enumerate() {
                for (i, piece) in row.chunks(element.size()).enumerate() {
                    want[i * stride + r] = scalar(piece);
                    assert_eq!(flat[r * k + i].to_bits(), scalar(piece).to_bits(), "{element:?}");
                }
            }
            for isa in Isa::ALL {
                let mut out = vec![7.0f32; k * stride];
                decode_transposed_with(isa, element, &bytes, &mut out, stride);
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&out), bits(&want), "{isa:?} {element:?} {rows}");
            }
        }
    }
}

/// Sums over 4096 products of values with FP8's precision, both ways, against f64.
#[test]
fn truncated_sums_lose_what_hopper_loses() {
    let (m, n, k) = (16, 24, 4096);
    let fp8 = |x: f32| e4m3_to_f32(f32_to_e4m3(x, true));
    // All positive, so that the relative error is that of the sum and not of its cancellation.
    let positive = |v: Vec<f32>| v.into_iter().map(|x| fp8(x.abs() * 8.0 + 0.01)).collect::<Vec<_>>();
    let (a, b) = (positive(noise(m * k, 5)), positive(noise(k * n, 6)));
    let mut errors = [0f64; 2];
    for (error, how) in errors.iter_mut().zip([Fp8Accumulation::Exact, Fp8Accumulation::Truncated]) {
        let mut acc = vec![0f32; m * n];
        fp8::multiply(how, &a, &b, &mut acc, m, n, k);
        for i in 0..m {
            for j in 0..n {
                let truth: f64 = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
                *error = error.max((f64::from(acc[i * n + j]) - truth).abs() / truth);
            }
        }
    }
    println!("fp8 relative error over K = 4096: exact {:.1e}, truncated {:.1e}", errors[0], errors[1]);
    assert!(errors[0] < 1e-5, "{errors:?}");
    assert!((1e-3..5e-2).contains(&errors[1]), "{errors:?}");
}

#[test]
fn truncation_is_that_of_the_model() {
    // 2^0 sets the scale: 2^-14 survives, half of it does not, on either side of zero.
    for (small, want) in
        [(2f32.powi(-14), 1.0 + 2f32.powi(-14)), (2f32.powi(-15), 1.0), (-2f32.powi(-15), 1.0)]
    {
        for isa in Isa::ALL {
            let mut acc = [1.0f32];
            fp8::truncated_with(isa, &[small], &[1.0], &mut acc, 1, 1, 1);
            assert_eq!(acc[0], want, "{isa:?} {small:e}");
        }
    }
    let mut acc = [0.0f32, f32::INFINITY, 1.0];
    fp8::multiply(Fp8Accumulation::Truncated, &[f32::NAN], &[1.0, 0.0, 1.0], &mut acc, 1, 3, 1);
    assert!(acc.iter().all(|x| x.is_nan()));
    // Integers below 2^14 are exact, in every instruction set alike.
    let (m, n, k) = (3, 35, 96);
    let small = |v: Vec<f32>| v.into_iter().map(|x| (x * 4.0).round()).collect::<Vec<_>>();
    let (a, b) = (small(noise(m * k, 8)), small(noise(k * n, 9)));
    let mut want = vec![0f32; m * n];
    multiply(&a, &b, &mut want, m, n, k);
    for isa in Isa::ALL {
        let mut acc = vec![0f32; m * n];
        fp8::truncated_with(isa, &a, &b, &mut acc, m, n, k);
        assert_eq!(acc, want, "{isa:?}");
    }
}

/// Prints speeds; asserts nothing about them, as the machine may be busy.
#[test]
fn speeds() {
    let time = |name: &str, flops: f64, mut f: Box<dyn FnMut()>| {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            (0..200).for_each(|_| f());
            best = best.min(start.elapsed().as_secs_f64() / 200.0);
        }
        println!("{name}: {:.2} µs, {:.1} GFLOP/s", best * 1e6, flops / best / 1e9);
    };
    for isa in [Isa::Avx512, Isa::Avx2].into_iter().filter(|isa| isa.available()) {
        for (m, n, k) in [(16, 256, 16), (64, 256, 16), (64, 128, 16), (64, 64, 16), (16, 8, 16)] {
            let (a, b, mut acc) = (noise(m * k, 1), noise(k * n, 2), vec![0f32; m * n]);
            let flops = (2 * m * n * k) as f64;
            let run = Box::new(move || {
                multiply_with(isa, black_box(&a), black_box(&b), black_box(&mut acc), m, n, k)
            });
            time(&format!("{isa:?} {m}×{n}×{k}"), flops, run);
        }
        for element in [Element::Bf16, Element::F16, Element::E4m3, Element::Tf32] {
            let rows = vec![[0x3cu8; 32]; 256];
            let mut out = vec![0f32; 256 * 32];
            let run = Box::new(move || {
                decode_transposed_with(isa, element, black_box(&rows), black_box(&mut out), 256)
            });
            time(&format!("{isa:?} transpose 256 rows of {element:?}"), 0.0, run);
        }
        let (m, n, k) = (64, 128, 32);
        let (a, b, mut acc) = (noise(m * k, 1), noise(k * n, 2), vec![0f32; m * n]);
        let run = Box::new(move || {
            fp8::truncated_with(isa, black_box(&a), black_box(&b), black_box(&mut acc), m, n, k)
        });
        time(&format!("{isa:?} truncated {m}×{n}×{k}"), (2 * m * n * k) as f64, run);
    }
    // A whole bf16 wgmma m64n256k16: both operands decoded, then multiplied.
    let (rows_a, rows_b) = (vec![[0x3cu8; 32]; 64], vec![[0x3bu8; 32]; 256]);
    let (mut a, mut b, mut acc) = (vec![0f32; 64 * 16], vec![0f32; 16 * 256], vec![0f32; 64 * 256]);
    let run = Box::new(move || {
        decode(Element::Bf16, black_box(rows_a.as_flattened()), &mut a);
        decode_transposed(Element::Bf16, black_box(&rows_b), &mut b, 256);
        multiply(&a, &b, black_box(&mut acc), 64, 256, 16);
    });
    time("wgmma m64n256k16 bf16, decoding included", 2.0 * 64.0 * 256.0 * 16.0, run);
}
