//! What the compilation target guarantees: arrays of four that the compiler keeps in SSE2's or NEON's registers.

use super::{DotsCall, Simd, TileCall, dots, sum_lanes, tile};
use crate::quant::{fp8, int4};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 4;

impl Simd for Portable {
    const LANES: usize = LANES;
    const FMA: bool = cfg!(target_arch = "aarch64");
    const DOT_ROWS: usize = 2;
    const FP8_FACTOR: f32 = 1.0;
    const TILE_ROWS: usize = 6;
    type F = [f32; LANES];
    type I = [i32; LANES];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; LANES] {
        // SAFETY: the caller says that a register's worth is readable there.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; LANES]) {
        // SAFETY: the caller says that a register's worth is writable there.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn add(mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }

    #[inline(always)]
    unsafe fn mul(mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
        a
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f32; LANES], b: [f32; LANES], mut c: [f32; LANES]) -> [f32; LANES] {
        for lane in 0..LANES {
            c[lane] = super::mul_add::<Portable>(a[lane], b[lane], c[lane]);
        }
        c
    }

    #[inline(always)]
    unsafe fn sum(value: [f32; LANES]) -> f32 {
        sum_lanes(value)
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn prefetch_second(_: *const u8) {}

    #[inline(always)]
    unsafe fn fp8(from: *const u8) -> [[f32; LANES]; 4] {
        // SAFETY: the caller says that 4·LANES codes are readable there.
        let codes = unsafe { from.cast::<[[u8; LANES]; 4]>().read_unaligned() };
        codes.map(|codes| codes.map(fp8::decode))
    }

    #[inline(always)]
    unsafe fn bf16(from: *const u8) -> [[f32; LANES]; 2] {
        // SAFETY: the caller says that 2·LANES values are readable there.
        let raw = unsafe { from.cast::<[[[u8; 2]; LANES]; 2]>().read_unaligned() };
        raw.map(|raw| raw.map(|raw| f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)))
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> [f32; LANES] {
        // SAFETY: the caller says that LANES values are readable there.
        let raw = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        raw.map(|raw| half::f16::from_le_bytes(raw).to_f32())
    }

    #[inline(always)]
    unsafe fn int4(from: *const u8) -> [[f32; LANES]; 8] {
        // SAFETY: the caller says that LANES words are readable there.
        let words = unsafe { from.cast::<[[u8; 4]; LANES]>().read_unaligned() }.map(u32::from_le_bytes);
        let mut values = [[0.0; LANES]; 8];
        for (k, values) in values.iter_mut().enumerate() {
            *values = words.map(|word| int4::nibble(word, k) as f32);
        }
        values
    }

    #[inline(always)]
    unsafe fn int4_scales(from: *const u8) -> [f32; LANES] {
        // SAFETY: the caller says that one scale is readable there.
        let raw = unsafe { from.cast::<[u8; 2]>().read_unaligned() };
        [f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16); LANES]
    }

    #[inline(always)]
    unsafe fn dot_nibbles(words: *const u8, high: bool, b: *const i8, mut sum: [i32; LANES]) -> [i32; LANES] {
        // SAFETY: the caller says that LANES words and 4·LANES bytes are readable there.
        let (words, b) = unsafe {
            (words.cast::<[[u8; 4]; LANES]>().read_unaligned(), b.cast::<[[i8; 4]; LANES]>().read_unaligned())
        };
        for lane in 0..LANES {
            for (word, b) in words[lane].iter().zip(b[lane]) {
                sum[lane] += i32::from(if high { word >> 4 } else { word & 15 }) * i32::from(b);
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn zero_i32() -> [i32; LANES] {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> [i32; LANES] {
        // SAFETY: the caller says that a register's worth is readable there.
        unsafe { from.cast::<[i32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn join(high: [i32; LANES], mut low: [i32; LANES]) -> [f32; LANES] {
        for (low, high) in low.iter_mut().zip(high) {
            *low += high << 8;
        }
        low.map(|sum| sum as f32)
    }

    #[inline(always)]
    unsafe fn dots(call: DotsCall<Self::F>) {
        // SAFETY: the caller's.
        unsafe { dots::<Portable, 2, 4>(call) }
    }

    #[inline(always)]
    unsafe fn tile(call: TileCall, wide: bool) {
        // SAFETY: the caller's.
        unsafe { if wide { tile::<Portable, 6, 2>(call) } else { tile::<Portable, 6, 1>(call) } }
    }
}
