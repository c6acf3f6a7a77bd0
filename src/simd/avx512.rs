//! AVX-512, with and without VBMI and VNNI.

use std::arch::x86_64::*;

use super::{DotsCall, Simd, TileCall, dots, tile};
use crate::quant::fp8;

/// See the module; `VBMI` says whether the byte permutations of VBMI and the byte products of VNNI are there.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VBMI: bool>;

/// Bytes of the bfloat16 of every e4m3 magnitude: e4m3 values are bfloat16 values, NaN is NaN. High bytes, then low.
static BF16_OF_E4M3: [[u8; 128]; 2] = {
    let mut bytes = [[0; 128]; 2];
    let mut code = 0;
    while code < 128 {
        let bits = fp8::bf16_bits(code as u8);
        bytes[0][code] = (bits >> 8) as u8;
        bytes[1][code] = bits as u8;
        code += 1;
    }
    bytes
};

impl<const VBMI: bool> Simd for Avx512<VBMI> {
    const LANES: usize = 16;
    const FMA: bool = true;
    const DOT_ROWS: usize = 3;
    const FP8_FACTOR: f32 = if VBMI { 1.0 } else { 256.0 };
    const TILE_ROWS: usize = 12;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: the instruction set is there, as the trait's caller says; so below.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: as above, and a register's worth is readable there.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        // SAFETY: as above, and a register's worth is writable there.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(value: __m512) -> f32 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_reduce_add_ps(value) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // Not the intrinsic: the compiler would gather prefetches, and two at once cost a third of the rate. It may move no
        // load across this.
        // SAFETY: a prefetch of any address does nothing that can be seen.
        unsafe { std::arch::asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn prefetch_second(at: *const u8) {
        // SAFETY: as above.
        unsafe { std::arch::asm!("prefetcht1 [{}]", in(reg) at, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn fp8(from: *const u8) -> [__m512; 4] {
        // SAFETY: the instruction set is there and 64 codes are readable, as the trait's caller says.
        unsafe { if VBMI { looked_up(_mm512_loadu_si512(from.cast())) } else { through_halves(from) } }
    }

    fn fp8_column(i: usize) -> usize {
        // `looked_up` interleaves bytes within each 128 bits, then takes even and odd pairs.
        let (register, lane) = (i / 16, i % 16);
        if VBMI { lane / 4 * 16 + register / 2 * 8 + lane % 4 * 2 + register % 2 } else { i }
    }

    #[inline(always)]
    unsafe fn bf16(from: *const u8) -> [__m512; 2] {
        // SAFETY: the instruction set is there and 32 values are readable.
        unsafe { pairs(_mm512_loadu_si512(from.cast())) }
    }

    fn bf16_column(i: usize) -> usize {
        i % 16 * 2 + i / 16
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> __m512 {
        // SAFETY: the instruction set is there and 16 values are readable.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn int4(from: *const u8) -> [__m512; 8] {
        // SAFETY: the instruction set is there and 16 words are readable.
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let values =
                _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
            // A permutation looks at the low four bits of its index, which saves masking them.
            [
                _mm512_permutexvar_ps(words, values),
                _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4), values),
                _mm512_permutexvar_ps(_mm512_srli_epi32(words, 8), values),
                _mm512_permutexvar_ps(_mm512_srli_epi32(words, 12), values),
                _mm512_permutexvar_ps(_mm512_srli_epi32(words, 16), values),
                _mm512_permutexvar_ps(_mm512_srli_epi32(words, 20), values),
                _mm512_permutexvar_ps(_mm512_srli_epi32(words, 24), values),
                _mm512_permutexvar_ps(_mm512_srli_epi32(words, 28), values),
            ]
        }
    }

    #[inline(always)]
    unsafe fn int4_scales(from: *const u8) -> __m512 {
        // SAFETY: the instruction set is there and four scales are readable.
        unsafe {
            let four = _mm_cvtepu16_epi32(_mm_loadl_epi64(from.cast()));
            let four = _mm512_castps128_ps512(_mm_castsi128_ps(_mm_slli_epi32(four, 16)));
            let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_permutexvar_ps(lanes, four)
        }
    }

    #[inline(always)]
    unsafe fn dot_nibbles(words: *const u8, high: bool, b: *const i8, sum: __m512i) -> __m512i {
        // SAFETY: the instruction set is there, 16 words and 64 bytes are readable. Products of a nibble and a byte, two of
        // them added, fit 16 bits.
        unsafe {
            let words = _mm512_loadu_si512(words.cast());
            let shifted = if high { _mm512_srli_epi16(words, 4) } else { words };
            let nibbles = _mm512_and_si512(shifted, _mm512_set1_epi8(15));
            let b = _mm512_loadu_si512(b.cast());
            if VBMI {
                _mm512_dpbusd_epi32(sum, nibbles, b)
            } else {
                let pairs = _mm512_maddubs_epi16(nibbles, b);
                _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
            }
        }
    }

    #[inline(always)]
    unsafe fn zero_i32() -> __m512i {
        // SAFETY: as in `splat`.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> __m512i {
        // SAFETY: the instruction set is there and a register's worth is readable.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn join(high: __m512i, low: __m512i) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low)) }
    }

    #[inline(always)]
    unsafe fn dots(call: DotsCall<__m512>) {
        // SAFETY: the caller's.
        unsafe { dots::<Self, 3, 8>(call) }
    }

    #[inline(always)]
    unsafe fn tile(call: TileCall, wide: bool) {
        // SAFETY: the caller's.
        unsafe { if wide { tile::<Self, 12, 2>(call) } else { tile::<Self, 12, 1>(call) } }
    }
}

/// Even and odd bfloat16 of each pair as f32.
///
/// # Safety
/// AVX-512 is there.
#[inline(always)]
unsafe fn pairs(pairs: __m512i) -> [__m512; 2] {
    // SAFETY: the caller's.
    unsafe {
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(odd)]
    }
}

/// 64 e4m3 codes. Interleaving the bytes found leaves the order that [`Simd::fp8_column`] tells.
///
/// # Safety
/// AVX-512 VBMI is there.
#[inline(always)]
unsafe fn looked_up(codes: __m512i) -> [__m512; 4] {
    // SAFETY: the caller's.
    unsafe {
        let [low, high] = bf16_bytes(codes);
        let [a, b] = pairs(_mm512_unpacklo_epi8(low, high));
        let [c, d] = pairs(_mm512_unpackhi_epi8(low, high));
        [a, b, c, d]
    }
}

/// Low and high bytes of the bfloat16 of 64 e4m3 codes, by two lookups a code in [`BF16_OF_E4M3`].
///
/// # Safety
/// AVX-512 VBMI is there.
#[inline(always)]
pub(crate) unsafe fn bf16_bytes(codes: __m512i) -> [__m512i; 2] {
    // SAFETY: the caller's; the tables have 128 bytes.
    unsafe {
        let [high, low] = &BF16_OF_E4M3;
        let table = |t: *const u8| (_mm512_loadu_si512(t.cast()), _mm512_loadu_si512(t.add(64).cast()));
        let ((h0, h1), (l0, l1)) = (table(high.as_ptr()), table(low.as_ptr()));
        // A lookup in 128 bytes looks at seven bits of the code; the eighth, the sign, is or-ed in.
        let low = _mm512_permutex2var_epi8(l0, codes, l1);
        let high = _mm512_permutex2var_epi8(h0, codes, h1);
        [low, _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), 0xf8)]
    }
}

/// 64 e4m3 codes, divided by 256: exponent and mantissa fall into those of an IEEE half, whose bias is 8 larger.
///
/// # Safety
/// AVX-512 is there and 64 codes are readable.
#[inline(always)]
unsafe fn through_halves(from: *const u8) -> [__m512; 4] {
    // SAFETY: the caller's.
    unsafe {
        let mut values = [_mm512_setzero_ps(); 4];
        for (i, values) in values.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.add(32 * i).cast()));
            let wide = _mm512_slli_epi16(wide, 7);
            let magnitude = _mm512_set1_epi16(0x3f80);
            let nan = _mm512_cmpeq_epi16_mask(_mm512_and_si512(wide, magnitude), magnitude);
            let value = _mm512_and_si512(wide, _mm512_set1_epi16(0xbf80_u16 as i16));
            let value = _mm512_mask_mov_epi16(value, nan, _mm512_set1_epi16(0x7e00));
            values[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(value));
            values[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(value, 1));
        }
        values
    }
}
