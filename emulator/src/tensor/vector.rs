//! Some lanes of f32 at a time: what the kernels of `warp_tile` are written in, once for every instruction set.
//!
//! Everything is forced inline: a kernel is compiled for its set when it is inlined into a function that has the set's
//! features.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// f32's exponent field.
const EXPONENT: u32 = 0x7f80_0000;
/// Least and largest exponent that a step of truncated sums aligns to: the scales must be normal numbers, and FP8
/// products are at least 2^-32.
const LEAST: u32 = 32 << 23;
const LARGEST: u32 = 254 << 23;
/// Exponents of the two scales: their product is 1, and the first leaves the bits that are kept before the point.
const UP: u32 = (254 + super::fp8::FRACTION_BITS) << 23;
const DOWN: u32 = super::fp8::FRACTION_BITS << 23;

/// A vector of f32.
///
/// # Safety
/// Every function wants a processor with the instruction set of the implementation; pointers must be good for what is
/// read or written, at any alignment.
pub(super) trait Vector: Copy {
    /// How many.
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Four values, repeated.
    unsafe fn quads(from: *const f32) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · other + sum`, rounded once.
    unsafe fn fma(self, other: Self, sum: Self) -> Self;
    /// `self` holds exponents (and nothing else); those of `other` where they are larger.
    unsafe fn larger_exponent(self, other: Self) -> Self;
    /// Powers of two: that which brings numbers with these exponents to whole ones of the bits kept, and back.
    unsafe fn scales(self) -> (Self, Self);
    /// `self` holds whole numbers in a form of the implementation's own; adds `other`, cut to a whole number.
    unsafe fn add_whole(self, other: Self) -> Self;
    /// Those whole numbers times `scale`.
    unsafe fn whole_times(self, scale: Self) -> Self;
    /// Whether exponents have one of infinity and NaN among them.
    unsafe fn any_special(self) -> bool;
    /// Where `self` has such an exponent `special`, elsewhere `normal`.
    unsafe fn pick_special(self, special: Self, normal: Self) -> Self;
}

/// For any processor.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 4]);

impl Plain {
    #[inline(always)]
    fn each(self, other: Plain, f: impl Fn(f32, f32) -> f32) -> Plain {
        Plain(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Plain {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Plain {
        Plain([0.0; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Plain {
        // SAFETY: the trait's contract.
        Plain(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn quads(from: *const f32) -> Plain {
        // SAFETY: the trait's contract.
        unsafe { Plain::load(from) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Plain) -> Plain {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn fma(self, other: Plain, sum: Plain) -> Plain {
        Plain(std::array::from_fn(|i| self.0[i].mul_add(other.0[i], sum.0[i])))
    }

    #[inline(always)]
    unsafe fn larger_exponent(self, other: Plain) -> Plain {
        self.each(other, |a, b| f32::from_bits(a.to_bits().max(b.to_bits() & EXPONENT)))
    }

    #[inline(always)]
    unsafe fn scales(self) -> (Plain, Plain) {
        let field = self.0.map(|x| x.to_bits().clamp(LEAST, LARGEST));
        (Plain(field.map(|x| f32::from_bits(UP - x))), Plain(field.map(|x| f32::from_bits(x - DOWN))))
    }

    #[inline(always)]
    unsafe fn add_whole(self, other: Plain) -> Plain {
        // Whole numbers below 2^22 add up exactly in f32.
        self.each(other, |a, b| a + b.trunc())
    }

    #[inline(always)]
    unsafe fn whole_times(self, scale: Plain) -> Plain {
        // −0 plus 0 is 0: a whole number has no sign then.
        self.each(scale, |a, b| (a + 0.0) * b)
    }

    #[inline(always)]
    unsafe fn any_special(self) -> bool {
        self.0.iter().any(|x| x.to_bits() == EXPONENT)
    }

    #[inline(always)]
    unsafe fn pick_special(self, special: Plain, normal: Plain) -> Plain {
        let pick = |i: usize| if self.0[i].to_bits() == EXPONENT { special.0[i] } else { normal.0[i] };
        Plain(std::array::from_fn(pick))
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn quads(from: *const f32) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            let four = _mm_loadu_ps(from);
            _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four), four)
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn fma(self, other: __m256, sum: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_fmadd_ps(self, other, sum) }
    }

    #[inline(always)]
    unsafe fn larger_exponent(self, other: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            let field = _mm256_and_si256(_mm256_castps_si256(other), _mm256_set1_epi32(EXPONENT as i32));
            _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(self), field))
        }
    }

    #[inline(always)]
    unsafe fn scales(self) -> (__m256, __m256) {
        // SAFETY: the trait's contract.
        unsafe {
            let least = _mm256_max_epu32(_mm256_castps_si256(self), _mm256_set1_epi32(LEAST as i32));
            let field = _mm256_min_epu32(least, _mm256_set1_epi32(LARGEST as i32));
            let up = _mm256_sub_epi32(_mm256_set1_epi32(UP as i32), field);
            let down = _mm256_sub_epi32(field, _mm256_set1_epi32(DOWN as i32));
            (_mm256_castsi256_ps(up), _mm256_castsi256_ps(down))
        }
    }

    #[inline(always)]
    unsafe fn add_whole(self, other: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            let sum = _mm256_add_epi32(_mm256_castps_si256(self), _mm256_cvttps_epi32(other));
            _mm256_castsi256_ps(sum)
        }
    }

    #[inline(always)]
    unsafe fn whole_times(self, scale: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_castps_si256(self)), scale) }
    }

    #[inline(always)]
    unsafe fn any_special(self) -> bool {
        // SAFETY: the trait's contract.
        unsafe {
            let special = _mm256_cmpeq_epi32(_mm256_castps_si256(self), _mm256_set1_epi32(EXPONENT as i32));
            _mm256_movemask_epi8(special) != 0
        }
    }

    #[inline(always)]
    unsafe fn pick_special(self, special: __m256, normal: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            let mask = _mm256_cmpeq_epi32(_mm256_castps_si256(self), _mm256_set1_epi32(EXPONENT as i32));
            _mm256_blendv_ps(normal, special, _mm256_castsi256_ps(mask))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn quads(from: *const f32) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn fma(self, other: __m512, sum: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_fmadd_ps(self, other, sum) }
    }

    #[inline(always)]
    unsafe fn larger_exponent(self, other: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe {
            let field = _mm512_and_si512(_mm512_castps_si512(other), _mm512_set1_epi32(EXPONENT as i32));
            _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(self), field))
        }
    }

    #[inline(always)]
    unsafe fn scales(self) -> (__m512, __m512) {
        // SAFETY: the trait's contract.
        unsafe {
            let least = _mm512_max_epu32(_mm512_castps_si512(self), _mm512_set1_epi32(LEAST as i32));
            let field = _mm512_min_epu32(least, _mm512_set1_epi32(LARGEST as i32));
            let up = _mm512_sub_epi32(_mm512_set1_epi32(UP as i32), field);
            let down = _mm512_sub_epi32(field, _mm512_set1_epi32(DOWN as i32));
            (_mm512_castsi512_ps(up), _mm512_castsi512_ps(down))
        }
    }

    #[inline(always)]
    unsafe fn add_whole(self, other: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe {
            let sum = _mm512_add_epi32(_mm512_castps_si512(self), _mm512_cvttps_epi32(other));
            _mm512_castsi512_ps(sum)
        }
    }

    #[inline(always)]
    unsafe fn whole_times(self, scale: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(self)), scale) }
    }

    #[inline(always)]
    unsafe fn any_special(self) -> bool {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cmpeq_epi32_mask(_mm512_castps_si512(self), _mm512_set1_epi32(EXPONENT as i32)) != 0 }
    }

    #[inline(always)]
    unsafe fn pick_special(self, special: __m512, normal: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe {
            let mask = _mm512_cmpeq_epi32_mask(_mm512_castps_si512(self), _mm512_set1_epi32(EXPONENT as i32));
            _mm512_mask_blend_ps(mask, normal, special)
        }
    }
}
