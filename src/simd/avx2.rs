//! AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::{DotsCall, Simd, TileCall, dots, tile};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

impl Simd for Avx2 {
    const LANES: usize = 8;
    const FMA: bool = true;
    const DOT_ROWS: usize = 2;
    const FP8_FACTOR: f32 = 256.0;
    const TILE_ROWS: usize = 6;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: the instruction set is there, as the trait's caller says; so below.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: as above, and a register's worth is readable there.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        // SAFETY: as above, and a register's worth is writable there.
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as in `splat`.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as in `splat`.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as in `splat`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(value: __m256) -> f32 {
        // SAFETY: as in `splat`.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of any address does nothing that can be seen.
        unsafe { _mm_prefetch(at.cast(), _MM_HINT_T0) }
    }

    #[inline(always)]
    unsafe fn prefetch_second(at: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch(at.cast(), _MM_HINT_T1) }
    }

    #[inline(always)]
    unsafe fn fp8(from: *const u8) -> [__m256; 4] {
        // SAFETY: the instruction set is there and 32 codes are readable, as the trait's caller says.
        unsafe {
            let [a, b] = halves(_mm_loadu_si128(from.cast()));
            let [c, d] = halves(_mm_loadu_si128(from.add(16).cast()));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    unsafe fn bf16(from: *const u8) -> [__m256; 2] {
        // SAFETY: the instruction set is there and 16 values are readable.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            let even = _mm256_slli_epi32(pairs, 16);
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
        }
    }

    fn bf16_column(i: usize) -> usize {
        i % 8 * 2 + i / 8
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> __m256 {
        // SAFETY: the instruction set is there and 8 values are readable.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn int4(from: *const u8) -> [__m256; 8] {
        // SAFETY: the instruction set is there and 8 words are readable.
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            let (mask, eight) = (_mm256_set1_epi32(15), _mm256_set1_epi32(8));
            let mut values = [_mm256_setzero_ps(); 8];
            for (k, value) in values.iter_mut().enumerate() {
                let shifted = _mm256_srlv_epi32(words, _mm256_set1_epi32(4 * k as i32));
                let nibbles = _mm256_and_si256(shifted, mask);
                *value = _mm256_cvtepi32_ps(_mm256_sub_epi32(nibbles, eight));
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn int4_scales(from: *const u8) -> __m256 {
        // SAFETY: the instruction set is there and two scales are readable.
        unsafe {
            let both = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            let shift = _mm256_setr_epi32(16, 16, 16, 16, 0, 0, 0, 0);
            let top = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_sllv_epi32(both, shift), top))
        }
    }

    #[inline(always)]
    unsafe fn dot_nibbles(words: *const u8, high: bool, b: *const i8, sum: __m256i) -> __m256i {
        // SAFETY: the instruction set is there, 8 words and 32 bytes are readable. Products of a nibble and a byte, two of
        // them added, fit 16 bits.
        unsafe {
            let words = _mm256_loadu_si256(words.cast());
            let shifted = if high { _mm256_srli_epi16(words, 4) } else { words };
            let nibbles = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
            let pairs = _mm256_maddubs_epi16(nibbles, _mm256_loadu_si256(b.cast()));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn zero_i32() -> __m256i {
        // SAFETY: as in `splat`.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> __m256i {
        // SAFETY: the instruction set is there and a register's worth is readable.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn join(high: __m256i, low: __m256i) -> __m256 {
        // SAFETY: as in `splat`.
        unsafe { _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low)) }
    }

    #[inline(always)]
    unsafe fn dots(call: DotsCall<__m256>) {
        // SAFETY: the caller's.
        unsafe { dots::<Avx2, 2, 4>(call) }
    }

    #[inline(always)]
    unsafe fn tile(call: TileCall, wide: bool) {
        // SAFETY: the caller's.
        unsafe { if wide { tile::<Avx2, 6, 2>(call) } else { tile::<Avx2, 6, 1>(call) } }
    }
}

/// 16 e4m3 codes as f32, divided by 256: exponent and mantissa fall into those of an IEEE half, whose bias is 8 larger.
///
/// # Safety
/// AVX2 and F16C are there.
#[inline(always)]
unsafe fn halves(codes: __m128i) -> [__m256; 2] {
    // SAFETY: the caller's.
    unsafe {
        let wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
        let magnitude = _mm256_set1_epi16(0x3f80);
        let nan = _mm256_cmpeq_epi16(_mm256_and_si256(wide, magnitude), magnitude);
        let value = _mm256_and_si256(wide, _mm256_set1_epi16(0xbf80_u16 as i16));
        let value = _mm256_or_si256(value, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
        [_mm256_cvtph_ps(_mm256_castsi256_si128(value)), _mm256_cvtph_ps(_mm256_extracti128_si256(value, 1))]
    }
}
