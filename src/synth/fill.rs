//! The values: normal with a standard deviation of 1/√inputs, so that a matrix keeps the size of what it multiplies.
//!
//! Speed matters more here than the far tail: a random byte or pair of bytes indexes a table of quantiles of the normal
//! distribution, already in the tensor's format. Every chunk of a tensor has a generator of its own, seeded by the
//! tensor's name, so the order of work changes nothing.

use std::collections::BTreeMap;

use half::bf16;
use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use crate::quant::{fp8, int4};

/// Bytes made at a time; a multiple of every element's size.
pub(super) const CHUNK: usize = 1 << 20;

/// FP8 codes hold 64 standard deviations' worth of units: the largest quantile, 2.9, stays well below 448.
const FP8_UNIT: f32 = 64.0;

/// INT4 values a standard deviation: the largest quantile of 16 is 1.86, which becomes 7.
const INT4_UNIT: f32 = 3.6;

/// Standard deviation of the router's biases, a small part of the scores' spread.
const BIAS: f32 = 0.01;

/// What a tensor is filled with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fill {
    /// BF16 ones.
    One,
    /// BF16, normal, for a matrix of that many columns.
    Normal { cols: usize },
    /// e4m3 codes, never a NaN.
    Fp8Codes,
    /// F32 scales for a matrix of that many columns.
    Fp8Scales { cols: usize },
    /// Eight 4-bit values a word.
    Int4Words,
    /// BF16 scales for a matrix of that many columns.
    Int4Scales { cols: usize },
    /// INT4's record of its size.
    Shape([i32; 2]),
    /// F32, normal, small.
    Bias,
}

/// Tables from random bits to elements.
pub(super) struct Tables {
    fp8: [u8; 256],
    int4: [u8; 256],
    /// By columns.
    bf16: BTreeMap<usize, Vec<[u8; 2]>>,
}

impl Tables {
    /// The tables that these need.
    pub(super) fn of(fills: &[Fill]) -> Tables {
        let bytes = quantiles(256);
        let nibbles: Vec<i32> = quantiles(16).iter().map(|z| (z * INT4_UNIT).round() as i32).collect();
        let fine = quantiles(1 << 16);
        let mut bf16 = BTreeMap::new();
        for &fill in fills {
            if let Fill::Normal { cols } = fill {
                let std = deviation(cols);
                bf16.entry(cols).or_insert_with(|| fine.iter().map(|z| half(z * std)).collect());
            }
        }
        Tables {
            fp8: std::array::from_fn(|i| fp8::encode(bytes[i] * FP8_UNIT)),
            // Both halves of a byte are values of their own; stored as q + 8.
            int4: std::array::from_fn(|i| (nibbles[i & 15] + 8) as u8 | ((nibbles[i >> 4] + 8) as u8) << 4),
            bf16,
        }
    }

    /// Fills a tensor's bytes from `chunk` × [`CHUNK`] on.
    pub(super) fn fill(&self, fill: Fill, name: &str, seed: u64, chunk: u64, into: &mut [u8]) {
        let mut rng = generator(name, seed, chunk);
        match fill {
            Fill::One => into.as_chunks_mut().0.fill(half(1.0)),
            Fill::Normal { cols } => {
                let Some(table) = self.bf16.get(&cols) else { return };
                for group in into.chunks_mut(8) {
                    let random = rng.next_u64().to_le_bytes();
                    for (value, index) in group.as_chunks_mut().0.iter_mut().zip(random.as_chunks().0) {
                        *value = table[usize::from(u16::from_le_bytes(*index))];
                    }
                }
            }
            Fill::Fp8Codes => translate(&self.fp8, &mut rng, into),
            Fill::Int4Words => translate(&self.int4, &mut rng, into),
            Fill::Fp8Scales { cols } => {
                let scale = deviation(cols) / FP8_UNIT;
                into.as_chunks_mut().0.fill_with(|| (scale * about_one(&mut rng)).to_le_bytes());
            }
            Fill::Int4Scales { cols } => {
                let scale = deviation(cols) / INT4_UNIT;
                into.as_chunks_mut().0.fill_with(|| half(scale * about_one(&mut rng)));
            }
            Fill::Shape(shape) => {
                for (value, n) in into.as_chunks_mut().0.iter_mut().zip(shape) {
                    *value = n.to_le_bytes();
                }
            }
            Fill::Bias => {
                // A sum of uniform numbers is normal enough for a few hundred values.
                let mut normal = || (0..12).map(|_| uniform(&mut rng)).sum::<f32>() - 6.0;
                into.as_chunks_mut().0.fill_with(|| (normal() * BIAS).to_le_bytes());
            }
        }
    }
}

fn translate(table: &[u8; 256], rng: &mut Pcg64Mcg, into: &mut [u8]) {
    for group in into.chunks_mut(8) {
        for (value, index) in group.iter_mut().zip(rng.next_u64().to_le_bytes()) {
            *value = table[usize::from(index)];
        }
    }
}

fn deviation(cols: usize) -> f32 {
    (cols.max(1) as f32).sqrt().recip()
}

fn half(value: f32) -> [u8; 2] {
    bf16::from_f32(value).to_le_bytes()
}

fn uniform(rng: &mut Pcg64Mcg) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// Scales differ between blocks, so that a kernel that takes a neighbour's is found out.
fn about_one(rng: &mut Pcg64Mcg) -> f32 {
    0.75 + 0.5 * uniform(rng)
}

/// A generator for one chunk: FNV-1a over what identifies it.
fn generator(name: &str, seed: u64, chunk: u64) -> Pcg64Mcg {
    let numbers = seed.to_le_bytes().into_iter().chain(chunk.to_le_bytes());
    let state = name
        .bytes()
        .chain([0])
        .chain(numbers)
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |state, byte| {
            (state ^ u128::from(byte)).wrapping_mul((1 << 88) + 0x13b)
        });
    Pcg64Mcg::new(state)
}

/// The normal distribution cut into `n` parts of equal probability: the middle of each.
fn quantiles(n: usize) -> Vec<f32> {
    // Walks the distribution in small steps; 5 deviations out there is nothing left that f32 would show.
    const STEP: f64 = 1e-5;
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let (mut x, mut below) = (-5.0, 0.0);
    (0..n)
        .map(|i| {
            let wanted = (i as f64 + 0.5) / n as f64;
            while below < wanted && x < 5.0 {
                below += density(x + STEP / 2.0) * STEP;
                x += STEP;
            }
            x as f32
        })
        .collect()
}

/// A chunk must not cut an element, whatever its type.
const _: () = assert!(CHUNK.is_multiple_of(8) && int4::PER_WORD == 8);

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f32, f32) {
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt())
    }

    fn tables(cols: usize) -> Tables {
        let bf16 = quantiles(1 << 16).iter().map(|z| half(z * deviation(cols))).collect();
        let mut tables = Tables::of(&[]);
        tables.bf16.insert(cols, bf16);
        tables
    }

    #[test]
    fn all_three_formats_have_the_same_spread() {
        let (cols, tables) = (4096, tables(4096));
        let mut bytes = vec![0u8; 1 << 16];
        let mut spread = |fill, decode: &dyn Fn(&[u8]) -> Vec<f32>| {
            tables.fill(fill, "x", 1, 0, &mut bytes);
            moments(&decode(&bytes))
        };
        let plain = spread(Fill::Normal { cols }, &|b| {
            b.as_chunks().0.iter().map(|&raw| bf16::from_le_bytes(raw).to_f32()).collect()
        });
        let fp8 = spread(Fill::Fp8Codes, &|b| {
            b.iter().map(|&c| fp8::decode(c) * deviation(cols) / FP8_UNIT).collect()
        });
        let int4 = spread(Fill::Int4Words, &|b| {
            let words = b.as_chunks().0.iter().map(|&raw| u32::from_le_bytes(raw));
            let values = words.flat_map(|w| (0..8).map(move |i| int4::nibble(w, i)));
            values.map(|q| q as f32 * deviation(cols) / INT4_UNIT).collect()
        });
        for (mean, std) in [plain, fp8, int4] {
            assert!(mean.abs() < 0.02 * deviation(cols), "mean {mean}");
            assert!((std / deviation(cols) - 1.0).abs() < 0.05, "deviation {std}");
        }
    }

    #[test]
    fn no_fp8_code_is_nan_and_the_range_is_used() {
        let tables = tables(1);
        assert!(tables.fp8.iter().all(|code| code & 0x7f != 0x7f));
        let largest = tables.fp8.iter().map(|&c| fp8::decode(c)).fold(0.0, f32::max);
        assert!((128.0..448.0).contains(&largest), "{largest}");
        assert!(tables.int4.iter().any(|b| b & 15 == 15) && tables.int4.iter().all(|b| b & 15 > 0));
    }

    #[test]
    fn chunks_names_and_seeds_differ_and_repeat() {
        let tables = tables(1);
        let make = |name, seed, chunk| {
            let mut bytes = [0u8; 64];
            tables.fill(Fill::Fp8Codes, name, seed, chunk, &mut bytes);
            bytes
        };
        assert_eq!(make("a", 1, 0), make("a", 1, 0));
        for other in [make("b", 1, 0), make("a", 2, 0), make("a", 1, 1)] {
            assert_ne!(make("a", 1, 0), other);
        }
    }
}
