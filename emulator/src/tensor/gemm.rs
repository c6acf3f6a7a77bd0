//! The micro-kernel behind mma and wgmma: small dense products in f32.
//!
//! Every element is `acc = fma(a[k], b[k], acc)` in ascending k whatever the vector width, so all instruction sets agree
//! bit for bit, and a test that passes on one machine passes on all. (Hardware sums in an order of its own; see
//! `fp8` for a model of its precision.) One body is compiled three times; the width is chosen at run time.

/// An instruction set that the kernels here are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// Whatever the build targets.
    Portable,
}

impl Isa {
    /// All of them, fastest first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// The fastest this machine has. The standard library caches the answer.
    #[inline(always)]
    pub fn best() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.available()).unwrap_or(Isa::Portable)
    }

    /// Whether this machine has it.
    #[inline(always)]
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
            }
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Isa::Portable => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        matches!(self, Isa::Portable)
    }
}

/// Defines `name(isa, …)`: `body` compiled for each instruction set, the portable one where `isa` is not available.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $wide:expr, $avx2:expr, $plain:expr) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::tensor::gemm::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512($($arg: $type),*) {
                    ($wide)($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2($($arg: $type),*) {
                    ($avx2)($($arg),*)
                }
                if isa == $crate::tensor::gemm::Isa::Avx512 && isa.available() {
                    // SAFETY: `available` has found every feature that the function is compiled with.
                    return unsafe { avx512($($arg),*) };
                }
                if isa == $crate::tensor::gemm::Isa::Avx2 && isa.available() {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = isa;
            ($plain)($($arg),*)
        }
    };
}
pub(super) use dispatch;

/// `acc[M][N] += a[M][K] · b[K][N]`, all row-major and dense. Slices shorter than the dimensions ask for leave `acc`
/// as it is.
pub fn multiply(a: &[f32], b: &[f32], acc: &mut [f32], m: usize, n: usize, k: usize) {
    multiply_with(Isa::best(), a, b, acc, m, n, k);
}

dispatch! {
    /// [`multiply`] with a given instruction set.
    pub fn multiply_with(a: &[f32], b: &[f32], acc: &mut [f32], m: usize, n: usize, k: usize)
        = body::<6, 64>, body::<4, 16>, body::<4, 8>
}

/// Blocks of `ROWS` × `COLUMNS` accumulators that live in registers over all of k.
#[inline(always)]
fn body<const ROWS: usize, const COLUMNS: usize>(
    a: &[f32],
    b: &[f32],
    acc: &mut [f32],
    m: usize,
    n: usize,
    k: usize,
) {
    if a.len() < m * k || b.len() < k * n || acc.len() < m * n || n == 0 || k == 0 {
        return;
    }
    let mut column = 0;
    while n - column >= COLUMNS {
        rows::<ROWS, COLUMNS>(a, b, acc, m, n, k, column);
        column += COLUMNS;
    }
    if COLUMNS > 32 && n - column >= 32 {
        rows::<8, 32>(a, b, acc, m, n, k, column);
        column += 32;
    }
    if COLUMNS > 16 && n - column >= 16 {
        rows::<8, 16>(a, b, acc, m, n, k, column);
        column += 16;
    }
    if COLUMNS > 8 && n - column >= 8 {
        rows::<8, 8>(a, b, acc, m, n, k, column);
        column += 8;
    }
    while column < n {
        rows::<1, 1>(a, b, acc, m, n, k, column);
        column += 1;
    }
}

#[inline(always)]
fn rows<const ROWS: usize, const COLUMNS: usize>(
    a: &[f32],
    b: &[f32],
    acc: &mut [f32],
    m: usize,
    n: usize,
    k: usize,
    column: usize,
) {
    let mut row = 0;
    while m - row >= ROWS {
        block::<ROWS, COLUMNS>(a, b, acc, n, k, row, column);
        row += ROWS;
    }
    if ROWS > 4 && m - row >= 4 {
        block::<4, COLUMNS>(a, b, acc, n, k, row, column);
        row += 4;
    }
    while row < m {
        block::<1, COLUMNS>(a, b, acc, n, k, row, column);
        row += 1;
    }
}

#[inline(always)]
fn block<const ROWS: usize, const COLUMNS: usize>(
    a: &[f32],
    b: &[f32],
    acc: &mut [f32],
    n: usize,
    k: usize,
    row: usize,
    column: usize,
) {
    let mut sums = [[0f32; COLUMNS]; ROWS];
    let a_rows: [&[f32]; ROWS] = std::array::from_fn(|r| &a[(row + r) * k..][..k]);
    for (r, sum) in sums.iter_mut().enumerate() {
        sum.copy_from_slice(&acc[(row + r) * n + column..][..COLUMNS]);
    }
    for i in 0..k {
        let b_row: &[f32] = &b[i * n + column..][..COLUMNS];
        for r in 0..ROWS {
            let factor = a_rows[r][i];
            for c in 0..COLUMNS {
                sums[r][c] = factor.mul_add(b_row[c], sums[r][c]);
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        acc[(row + r) * n + column..][..COLUMNS].copy_from_slice(sum);
    }
}
