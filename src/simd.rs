//! One source, several instruction sets.
//!
//! A kernel is a value with a [`Kernel::run`] that is inlined into a function compiled for AVX-512, for AVX2 or for the
//! baseline; the processor decides at run time. The body is plain Rust that the compiler vectorises.

/// The instruction sets kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What the compilation target guarantees.
    Baseline,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW and VL, with FMA.
    Avx512,
}

/// A piece of arithmetic to be compiled for every [`Isa`].
pub trait Kernel {
    /// What it returns.
    type Output;
    /// The body; mark it `#[inline(always)]`, and everything hot it calls, or it keeps the baseline's instructions.
    /// `FMA` says whether a fused multiply-add is one instruction.
    fn run<const FMA: bool>(self) -> Self::Output;
}

impl Isa {
    /// The best set this processor has.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            return match (avx2, avx512) {
                (true, true) => Isa::Avx512,
                (true, false) => Isa::Avx2,
                _ => Isa::Baseline,
            };
        }
        #[allow(unreachable_code, reason = "other architectures")]
        Isa::Baseline
    }

    /// The name `doctor` prints.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Baseline => "baseline",
            Isa::Avx2 => "AVX2+FMA",
            Isa::Avx512 => "AVX-512",
        }
    }

    /// Runs a kernel compiled for this set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        match self {
            // SAFETY: an `Isa` other than the baseline comes from `detect` alone, which saw these features.
            Isa::Avx512 => return unsafe { run_avx512(kernel) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { run_avx2(kernel) },
            Isa::Baseline => {}
        }
        kernel.run::<false>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

/// a·b + c, fused where that is one instruction.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Independent partial sums of a dot product: enough to fill a vector register and hide an addition's latency.
const LANES: usize = 32;

/// Σ a·b over the shorter length.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut sums = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] = mul_add::<FMA>(x[lane], y[lane], sums[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sum_lanes(sums) + rest
}

/// Adds partial sums, a power of two of them, as a tree, which a vector unit does in log₂ steps.
#[inline(always)]
pub(crate) fn sum_lanes<const N: usize>(mut sums: [f32; N]) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// y += a·x.
#[inline(always)]
pub(crate) fn axpy<const FMA: bool>(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = mul_add::<FMA>(a, x, *y);
    }
}
