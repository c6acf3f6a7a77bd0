//! Columns of 32 lanes to rows of a lane each and back: what vector loads and stores do with their registers.
//!
//! Left to itself the compiler moves one element at a time. Elements of four bytes in pairs and fours, and of eight in
//! pairs, which is what kernels mostly use, go by SSE2, which every x86-64 processor has.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// `rows[lane][n] = columns[n][lane]`.
#[inline(always)]
pub(super) fn interleave<T: Copy, const N: usize>(columns: &[[T; 32]; N], rows: &mut [[T; N]; 32]) {
    #[cfg(target_arch = "x86_64")]
    {
        let (from, to) = (columns.as_ptr().cast(), rows.as_mut_ptr().cast());
        // SAFETY: both have 32 N elements of the size that is asked for.
        unsafe {
            match (size_of::<T>(), N) {
                (4, 2) => return pairs(from, to),
                (4, 4) => return fours(from, to),
                (8, 2) => return wide_pairs(from, to),
                _ => {}
            }
        }
    }
    for (n, column) in columns.iter().enumerate() {
        for l in 0..32 {
            rows[l][n] = column[l];
        }
    }
}

/// `columns[n][lane] = rows[lane][n]`.
#[inline(always)]
pub(super) fn part<T: Copy, const N: usize>(rows: &[[T; N]; 32], columns: &mut [[T; 32]; N]) {
    #[cfg(target_arch = "x86_64")]
    {
        let (from, to) = (rows.as_ptr().cast(), columns.as_mut_ptr().cast());
        // SAFETY: both have 32 N elements of the size that is asked for.
        unsafe {
            match (size_of::<T>(), N) {
                (4, 2) => return part_pairs(from, to),
                (4, 4) => return part_fours(from, to),
                (8, 2) => return part_wide_pairs(from, to),
                _ => {}
            }
        }
    }
    for (n, column) in columns.iter_mut().enumerate() {
        for l in 0..32 {
            column[l] = rows[l][n];
        }
    }
}

/// A 4 × 4 transposition, its own inverse.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(a: __m128i, b: __m128i, c: __m128i, d: __m128i) -> [__m128i; 4] {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let (ab, ab_high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
        let (cd, cd_high) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
        [
            _mm_unpacklo_epi64(ab, cd),
            _mm_unpackhi_epi64(ab, cd),
            _mm_unpacklo_epi64(ab_high, cd_high),
            _mm_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

/// # Safety
/// `from` and `to` are good for 128 elements of four bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn fours(from: *const __m128i, to: *mut __m128i) {
    for i in 0..8 {
        // SAFETY: the caller's; a vector has four elements, a column eight vectors.
        unsafe {
            let column = |n: usize| _mm_loadu_si128(from.add(n * 8 + i));
            for (l, row) in transposed(column(0), column(1), column(2), column(3)).into_iter().enumerate() {
                _mm_storeu_si128(to.add(i * 4 + l), row);
            }
        }
    }
}

/// # Safety
/// As [`fours`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn part_fours(from: *const __m128i, to: *mut __m128i) {
    for i in 0..8 {
        // SAFETY: the caller's.
        unsafe {
            let row = |l: usize| _mm_loadu_si128(from.add(i * 4 + l));
            for (n, column) in transposed(row(0), row(1), row(2), row(3)).into_iter().enumerate() {
                _mm_storeu_si128(to.add(n * 8 + i), column);
            }
        }
    }
}

/// # Safety
/// `from` and `to` are good for 64 elements of four bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn pairs(from: *const __m128i, to: *mut __m128i) {
    for i in 0..8 {
        // SAFETY: the caller's.
        unsafe {
            let (a, b) = (_mm_loadu_si128(from.add(i)), _mm_loadu_si128(from.add(8 + i)));
            _mm_storeu_si128(to.add(2 * i), _mm_unpacklo_epi32(a, b));
            _mm_storeu_si128(to.add(2 * i + 1), _mm_unpackhi_epi32(a, b));
        }
    }
}

/// # Safety
/// As [`pairs`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn part_pairs(from: *const __m128i, to: *mut __m128i) {
    for i in 0..8 {
        // SAFETY: the caller's.
        unsafe {
            // Within each, the first of both pairs before the second.
            let a = _mm_shuffle_epi32::<0b11_01_10_00>(_mm_loadu_si128(from.add(2 * i)));
            let b = _mm_shuffle_epi32::<0b11_01_10_00>(_mm_loadu_si128(from.add(2 * i + 1)));
            _mm_storeu_si128(to.add(i), _mm_unpacklo_epi64(a, b));
            _mm_storeu_si128(to.add(8 + i), _mm_unpackhi_epi64(a, b));
        }
    }
}

/// # Safety
/// `from` and `to` are good for 64 elements of eight bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn wide_pairs(from: *const __m128i, to: *mut __m128i) {
    for i in 0..16 {
        // SAFETY: the caller's.
        unsafe {
            let (a, b) = (_mm_loadu_si128(from.add(i)), _mm_loadu_si128(from.add(16 + i)));
            _mm_storeu_si128(to.add(2 * i), _mm_unpacklo_epi64(a, b));
            _mm_storeu_si128(to.add(2 * i + 1), _mm_unpackhi_epi64(a, b));
        }
    }
}

/// # Safety
/// As [`wide_pairs`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn part_wide_pairs(from: *const __m128i, to: *mut __m128i) {
    for i in 0..16 {
        // SAFETY: the caller's.
        unsafe {
            let (a, b) = (_mm_loadu_si128(from.add(2 * i)), _mm_loadu_si128(from.add(2 * i + 1)));
            _mm_storeu_si128(to.add(i), _mm_unpacklo_epi64(a, b));
            _mm_storeu_si128(to.add(16 + i), _mm_unpackhi_epi64(a, b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Copy + Default + PartialEq + std::fmt::Debug, const N: usize>(of: impl Fn(usize) -> T) {
        let columns: [[T; 32]; N] = std::array::from_fn(|n| std::array::from_fn(|l| of(n * 32 + l)));
        let mut rows = [[T::default(); N]; 32];
        interleave(&columns, &mut rows);
        for (l, row) in rows.iter().enumerate() {
            assert_eq!(*row, std::array::from_fn(|n| columns[n][l]), "lane {l} of {N}");
        }
        let mut back = [[T::default(); 32]; N];
        part(&rows, &mut back);
        assert_eq!(back, columns, "{N}");
    }

    #[test]
    fn lanes_and_registers_change_places_and_back() {
        round_trip::<u8, 1>(|i| i as u8);
        round_trip::<u8, 4>(|i| i as u8);
        round_trip::<u16, 2>(|i| i as u16);
        round_trip::<u32, 1>(|i| i as u32);
        round_trip::<u32, 2>(|i| i as u32);
        round_trip::<u32, 4>(|i| i as u32);
        round_trip::<u64, 1>(|i| i as u64);
        round_trip::<u64, 2>(|i| i as u64);
        round_trip::<u64, 4>(|i| i as u64);
    }
}
