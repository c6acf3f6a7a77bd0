use std::hint::black_box;

use super::super::gemm::Isa;
use super::super::panel::{Element, decode};
use super::super::{fp8, fragment, warp_tile};
use crate::num::tests::Random;
use crate::settings::Fp8Accumulation;

const HOW: [Fp8Accumulation; 2] = [Fp8Accumulation::Exact, Fp8Accumulation::Truncated];

/// A row-major panel of B as warp tiles want it.
fn placed(b: &[f32], columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; b.len()];
    for (i, value) in b.iter().enumerate() {
        out[i / columns * columns + warp_tile::place(i % columns)] = *value;
    }
    out
}

#[test]
fn a_tile_is_the_product_of_its_panels() {
    let mut random = Random(1);
    let rows: [[u8; 32]; 16] = std::array::from_fn(|_| std::array::from_fn(|_| random.next() as u8 & 0xbf));
    for (element, depth) in
        [(Element::E4m3, 32), (Element::E5m2, 32), (Element::Bf16, 16), (Element::Tf32, 8)]
    {
        let mut a = vec![0f32; 16 * depth];
        decode(element, rows.as_flattened(), &mut a);
        let mut spread = Vec::new();
        warp_tile::spread(element, &rows, &mut spread);
        for columns in (8..=256).step_by(8) {
            let bytes: Vec<u8> = (0..depth * columns).map(|_| random.next() as u8 & 0xbf).collect();
            let mut b = vec![0f32; depth * columns];
            decode(Element::E4m3, &bytes, &mut b);
            let start: Vec<f32> =
                (0..16 * columns).map(|_| random.next() as i32 as f32 / 2f32.powi(28)).collect();
            let cells: Vec<u32> = (0..columns as u32 / 2).map(|j| j * 7 % (columns as u32 / 2 + 3)).collect();
            let distinct = cells.iter().collect::<std::collections::HashSet<_>>().len();
            let cells = if distinct == cells.len() { cells } else { (0..columns as u32 / 2).collect() };
            for (how, fresh) in HOW.into_iter().flat_map(|how| [(how, false), (how, true)]) {
                let mut want = if fresh { vec![0f32; 16 * columns] } else { start.clone() };
                fp8::multiply(how, &a, &b, &mut want, 16, columns, depth);
                for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                    let mut file = vec![[0f32; 32]; columns / 2 + 3];
                    let registers = |file: &mut Vec<[f32; 32]>| -> Vec<[f32; 32]> {
                        cells.iter().map(|c| file[*c as usize]).collect()
                    };
                    let mut elements = vec![[0f32; 32]; columns / 2];
                    fragment::scatter(&start, columns, &mut elements.iter_mut().collect::<Vec<_>>());
                    for (cell, register) in cells.iter().zip(&elements) {
                        file[*cell as usize] = *register;
                    }
                    let b = placed(&b, columns);
                    warp_tile::multiply_with(isa, how, &spread, &b, columns, fresh, &mut file, &cells);
                    let mut got = vec![0f32; 16 * columns];
                    let registers = registers(&mut file);
                    fragment::gather(&registers.iter().collect::<Vec<_>>(), columns, &mut got);
                    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&got), bits(&want), "{isa:?} {element:?} {columns} {how:?} {fresh}");
                }
            }
        }
    }
}

#[test]
fn numbers_without_exponent_spread_as_in_plain_sums() {
    for isa in Isa::ALL {
        let mut a = [warp_tile::Row([1.0; 64])];
        a[0].0[..4].fill(f32::NAN);
        let b = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let mut file = vec![[0f32; 32]; 4];
        file[0][5] = f32::INFINITY;
        warp_tile::multiply_with(isa, HOW[1], &a, &b, 8, false, &mut file, &[0, 1, 2, 3]);
        assert!(file[0][..4].iter().all(|x| x.is_nan()), "{isa:?}");
        assert_eq!(file[0][4..7], [0.0, f32::INFINITY, 1.0], "{isa:?}");
    }
}

#[test]
fn sizes_that_do_not_fit_change_nothing() {
    let a = [warp_tile::Row([1.0; 64]); 2];
    let mut file = vec![[1f32; 32]; 4];
    for (b, columns, cells) in [
        (&[1.0; 15][..], 8, &[0, 1, 2, 3][..]),
        (&[1.0; 16], 8, &[0, 1, 2]),
        (&[1.0; 16], 8, &[0, 1, 2, 4]),
        (&[1.0; 16], 4, &[0, 1]),
    ] {
        for isa in Isa::ALL {
            warp_tile::multiply_with(isa, HOW[0], &a, b, columns, false, &mut file, cells);
        }
    }
    assert_eq!(file, vec![[1f32; 32]; 4]);
}

/// Prints speeds; asserts nothing about them, as the machine may be busy.
#[test]
fn speeds() {
    for isa in [Isa::Avx512, Isa::Avx2].into_iter().filter(|isa| isa.available()) {
        for (how, depth) in [(HOW[0], 16), (HOW[0], 32), (HOW[1], 32)] {
            let a = vec![warp_tile::Row([1.0; 64]); depth];
            let b = vec![1f32; depth * 256];
            let (mut file, cells) = (vec![[0f32; 32]; 128], (0..128).collect::<Vec<u32>>());
            let mut best = f64::INFINITY;
            for _ in 0..5 {
                let start = std::time::Instant::now();
                for _ in 0..200 {
                    warp_tile::multiply_with(isa, how, black_box(&a), &b, 256, false, &mut file, &cells);
                }
                best = best.min(start.elapsed().as_secs_f64() / 200.0);
            }
            let flops = (2 * 16 * 256 * depth) as f64;
            println!(
                "{isa:?} {how:?} 16×256×{depth}: {:.2} µs, {:.1} GFLOP/s",
                best * 1e6,
                flops / best / 1e9
            );
        }
    }
}
