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
                fn avx512($($arg: $type),*) {
                    ($wide)($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) {
                    ($avx2)($($arg),*)
                }
                if isa == $crate::tensor::gemm::Isa::Avx512 && isa.available() {
                    // SAFETY: `available` has found every feature that the function is compiled with.
                    return unsafe { avx512($($arg),*) };
                }
                if isa == $crate::tensor::gemm::Isa::Avx2 && isa.available() {
                    // SAFETY: `available` has found every feature that the function is compiled with.
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

/// Depth of a pass over k: what of A is packed at a time.
const DEPTH: usize = 32;

/// Blocks of `ROWS` × `COLUMNS` accumulators that live in registers over a pass.
#[inline(always)]
fn body<const ROWS: usize, const COLUMNS: usize>(
    a: &[f32],
    b: &[f32],
    acc: &mut [f32],
    m: usize,
    n: usize,
    k: usize,
) {
    if a.len() < m * k || b.len() < k * n || acc.len() < m * n || m == 0 || n == 0 || k == 0 {
        return;
    }
    for (pass, b) in b[..k * n].chunks(DEPTH * n).enumerate() {
        let a = &a[pass * DEPTH..];
        let mut row = 0;
        while m - row >= ROWS {
            rows::<ROWS, COLUMNS>(&a[row * k..], b, &mut acc[row * n..][..ROWS * n], n, k);
            row += ROWS;
        }
        if ROWS > 4 && m - row >= 4 {
            rows::<4, COLUMNS>(&a[row * k..], b, &mut acc[row * n..][..4 * n], n, k);
            row += 4;
        }
        while row < m {
            rows::<1, COLUMNS>(&a[row * k..], b, &mut acc[row * n..][..n], n, k);
            row += 1;
        }
    }
}

/// One pass of a block of rows over all columns.
#[inline(always)]
fn rows<const ROWS: usize, const COLUMNS: usize>(a: &[f32], b: &[f32], acc: &mut [f32], n: usize, k: usize) {
    // The rows of A side by side, so that a step of k reads neighbours.
    let mut packed = [[0f32; ROWS]; DEPTH];
    let depth = b.len() / n;
    for (r, row) in a.chunks(k).take(ROWS).enumerate() {
        for (pack, x) in packed.iter_mut().zip(row).take(depth) {
            pack[r] = *x;
        }
    }
    let packed = &packed[..depth.min(DEPTH)];
    let mut column = 0;
    while n - column >= COLUMNS {
        block::<ROWS, COLUMNS>(packed, b, acc, n, column);
        column += COLUMNS;
    }
    if COLUMNS > 32 && n - column >= 32 {
        block::<ROWS, 32>(packed, b, acc, n, column);
        column += 32;
    }
    if COLUMNS > 16 && n - column >= 16 {
        block::<ROWS, 16>(packed, b, acc, n, column);
        column += 16;
    }
    if COLUMNS > 8 && n - column >= 8 {
        block::<ROWS, 8>(packed, b, acc, n, column);
        column += 8;
    }
    while column < n {
        block::<ROWS, 1>(packed, b, acc, n, column);
        column += 1;
    }
}

/// Leaving a loop rather than panicking keeps the sums in registers: a panic would have to find them in memory.
#[inline(always)]
fn block<const ROWS: usize, const COLUMNS: usize>(
    packed: &[[f32; ROWS]],
    b: &[f32],
    acc: &mut [f32],
    n: usize,
    column: usize,
) {
    let mut sums = [[0f32; COLUMNS]; ROWS];
    for (sum, from) in sums.iter_mut().zip(acc.chunks_exact(n)) {
        let Some(from) = from.get(column..).and_then(|f| f.first_chunk()) else { return };
        *sum = *from;
    }
    for (factors, b_row) in packed.iter().zip(b.chunks_exact(n)) {
        let Some(b_row) = b_row.get(column..).and_then(|b| b.first_chunk::<COLUMNS>()) else { break };
        for r in 0..ROWS {
            for c in 0..COLUMNS {
                sums[r][c] = factors[r].mul_add(b_row[c], sums[r][c]);
            }
        }
    }
    for (sum, to) in sums.iter().zip(acc.chunks_exact_mut(n)) {
        let Some(to) = to.get_mut(column..).and_then(|t| t.first_chunk_mut()) else { return };
        *to = *sum;
    }
}
