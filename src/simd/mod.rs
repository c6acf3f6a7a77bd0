//! One source, several instruction sets.
//!
//! A kernel is a value with a [`Kernel::run`] that is inlined into a function compiled for AVX-512, for AVX2 or for what the
//! compilation target guarantees; the processor decides at run time, or [`VARIABLE`] does. Most of a body is plain Rust that
//! the compiler vectorises; where the instructions matter (decoding weights), it calls the set's [`Simd`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod portable;

use crate::error::{Error, Result};

/// The environment variable that names the instruction set kernels are to use.
pub const VARIABLE: &str = "ABRUZZI_ISA";

/// The instruction sets kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What the compilation target guarantees: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, with FMA.
    Avx512,
    /// AVX-512 with VBMI and VNNI: Ice Lake, Zen 4 and later.
    Avx512Vbmi,
    /// The same, and tiles of bfloat16 products for several tokens: Sapphire Rapids and later, where the system permits them.
    Amx,
}

/// A piece of arithmetic to be compiled for every [`Isa`].
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The body; mark it `#[inline(always)]`, and everything hot it calls, or it keeps the target's instructions. That
    /// goes for closures too.
    fn run<S: Simd>(self) -> Self::Output;
}

impl Isa {
    /// All of them, the best first.
    pub const ALL: [Isa; 5] = [Isa::Amx, Isa::Avx512Vbmi, Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            return match self {
                Isa::Portable => true,
                Isa::Avx2 => avx2(),
                Isa::Avx512 => avx512(),
                Isa::Avx512Vbmi => {
                    avx512()
                        && is_x86_feature_detected!("avx512vbmi")
                        && is_x86_feature_detected!("avx512vnni")
                }
                Isa::Amx => amx::Amx::get().is_some(),
            };
        }
        #[allow(unreachable_code, reason = "other architectures")]
        {
            self == Isa::Portable
        }
    }

    /// The best set this processor has.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.available()).unwrap_or(Isa::Portable)
    }

    /// The set that [`VARIABLE`] names, else the best.
    ///
    /// # Errors
    /// [`Error::Argument`] if it names none, or one this processor does not have.
    pub fn chosen() -> Result<Isa> {
        let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else {
            return Ok(Isa::detect());
        };
        let named = Isa::ALL.into_iter().find(|isa| name.to_str() == Some(isa.name()));
        named.filter(|isa| isa.available()).ok_or_else(|| {
            let have = Isa::ALL.into_iter().filter(|isa| isa.available()).map(Isa::name).collect::<Vec<_>>();
            Error::argument(VARIABLE, format!("is {name:?}, this processor has {}", have.join(", ")))
        })
    }

    /// The name [`VARIABLE`] takes and `doctor` prints.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vbmi => "avx512-vbmi",
            Isa::Amx => "amx",
        }
    }

    /// Runs a kernel compiled for this set.
    ///
    /// # Panics
    /// If this processor does not have it.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // A look at a few bits that the standard library keeps; a kernel is a task's worth of work.
        assert!(self.available(), "{self:?} on a processor without it");
        match self {
            Isa::Portable => run_portable(kernel),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has what this set is made of, as was just asserted.
            Isa::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; where there is AMX there is this. Tiles are used by kernels of their own (`device/cpu/amx`).
            Isa::Avx512Vbmi | Isa::Amx => unsafe { run_avx512_vbmi(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Vbmi | Isa::Amx => run_portable(kernel),
        }
    }
}

/// Not inlined, as the others cannot be: what a kernel becomes does not depend on who calls it.
#[inline(never)]
fn run_portable<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<portable::Portable>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn run_avx512_vbmi<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx512::Avx512<true>>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx512::Avx512<false>>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx2::Avx2>()
}

/// What the kernels need of an instruction set. Only [`Isa::run`] chooses one, and only where the processor has it.
///
/// # Safety
/// Every function may be called only inside a [`Kernel::run`] for this set; pointers are readable (writable for `store`)
/// for what the function names, of any alignment.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 lanes of a register.
    const LANES: usize;
    /// Whether a fused multiply-add is one instruction.
    const FMA: bool;
    /// [`Simd::fp8`] gives values divided by this.
    const FP8_FACTOR: f32;
    /// A register of f32.
    type F: Copy;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of the lanes.
    unsafe fn sum(value: Self::F) -> f32;
    /// Has a cache line brought near. Any address will do.
    unsafe fn prefetch(at: *const u8);
    /// The same, not nearer than the second-level cache.
    unsafe fn prefetch_second(at: *const u8);

    /// Decodes 4·LANES e4m3 codes, divided by [`Simd::FP8_FACTOR`]; element i of the registers in order is column
    /// [`Simd::fp8_column`] of them. NaN codes give NaN.
    unsafe fn fp8(from: *const u8) -> [Self::F; 4];
    /// See [`Simd::fp8`]; i < 4·LANES.
    fn fp8_column(i: usize) -> usize {
        i
    }
    /// Decodes 2·LANES bfloat16; element i is column [`Simd::bf16_column`].
    unsafe fn bf16(from: *const u8) -> [Self::F; 2];
    /// See [`Simd::bf16`]; i < 2·LANES.
    fn bf16_column(i: usize) -> usize {
        i
    }
    /// Decodes LANES IEEE halves, in order.
    unsafe fn f16(from: *const u8) -> Self::F;
    /// Decodes LANES words of eight INT4 values: lane j of register k is nibble k of word j, less 8.
    unsafe fn int4(from: *const u8) -> [Self::F; 8];
    /// LANES / 4 bfloat16 scales, each for four lanes.
    unsafe fn int4_scales(from: *const u8) -> Self::F;

    /// sum + Σ a·b of four neighbouring bytes, `a` unsigned and `b` signed, in each of LANES 32-bit lanes. `a` is the low or
    /// high nibbles of `words`.
    unsafe fn dot_nibbles(words: *const u8, high: bool, b: *const i8, sum: Self::I) -> Self::I;
    /// A register of i32.
    type I: Copy;
    unsafe fn zero_i32() -> Self::I;
    unsafe fn load_i32(from: *const i32) -> Self::I;
    /// high·256 + low as f32.
    unsafe fn join(high: Self::I, low: Self::I) -> Self::F;

    /// Rows of [`Simd::dots`].
    const DOT_ROWS: usize;
    /// sums[r][t] += w[r]·x[t] lane by lane, over DOT_ROWS rows and the tokens there are.
    unsafe fn dots(call: DotsCall<Self::F>);

    /// Rows of [`Simd::tile`].
    const TILE_ROWS: usize;
    /// out[r, c] += Σ_k w[r, k]·x[k, c] over TILE_ROWS rows and 2·LANES columns, or LANES unless `wide`.
    unsafe fn tile(call: TileCall, wide: bool);
}

/// Arguments of [`Simd::dots`].
#[derive(Clone, Copy)]
pub(crate) struct DotsCall<F> {
    /// [DOT_ROWS, depth] with rows `w_stride` apart.
    pub w: *const f32,
    pub w_stride: usize,
    /// [tokens, depth] with tokens `x_stride` apart.
    pub x: *const f32,
    pub x_stride: usize,
    /// A multiple of LANES.
    pub depth: usize,
    pub tokens: usize,
    /// [DOT_ROWS, tokens] registers with rows `sums_stride` apart.
    pub sums: *mut F,
    pub sums_stride: usize,
}

/// [`Simd::dots`] with `R` rows and up to `T` tokens at a time, all sums in registers.
///
/// # Safety
/// As [`Simd`]; the pointers are good for what [`DotsCall`] says.
#[inline(always)]
unsafe fn dots<S: Simd, const R: usize, const T: usize>(call: DotsCall<S::F>) {
    // SAFETY: the caller vouches for the pointers and the instruction set.
    unsafe {
        let mut done = 0;
        while done < call.tokens {
            let x = call.x.add(done * call.x_stride);
            let rest = DotsCall { x, sums: call.sums.add(done), ..call };
            done += match call.tokens - done {
                left if left >= T => some_dots::<S, R, T>(rest),
                4.. => some_dots::<S, R, 4>(rest),
                2.. => some_dots::<S, R, 2>(rest),
                _ => some_dots::<S, R, 1>(rest),
            };
        }
    }
}

/// [`dots`] of exactly `T` tokens; returns `T`.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn some_dots<S: Simd, const R: usize, const T: usize>(call: DotsCall<S::F>) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); R]; T];
        for k in (0..call.depth).step_by(S::LANES) {
            let mut rows = [S::splat(0.0); R];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = S::load(call.w.add(r * call.w_stride + k));
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = S::load(call.x.add(t * call.x_stride + k));
                for (sum, &row) in sums.iter_mut().zip(&rows) {
                    *sum = S::mul_add(row, x, *sum);
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (r, &sum) in sums.iter().enumerate() {
                let to = call.sums.add(r * call.sums_stride + t);
                *to = S::add(*to, sum);
            }
        }
    }
    T
}

/// Arguments of [`Simd::tile`].
#[derive(Clone, Copy)]
pub(crate) struct TileCall {
    /// [TILE_ROWS, depth] with rows `w_stride` apart.
    pub w: *const f32,
    pub w_stride: usize,
    /// [depth, 2·LANES].
    pub x: *const f32,
    pub depth: usize,
    /// [TILE_ROWS, 2·LANES] with rows `out_stride` apart; only LANES columns unless wide.
    pub out: *mut f32,
    pub out_stride: usize,
    /// What will be needed next: a cache line of it is asked for with every [`STEPS_A_LINE`] steps of depth. Any address will do.
    pub ahead: *const u8,
}

/// See [`TileCall::ahead`].
pub(crate) const STEPS_A_LINE: usize = 8;

/// [`Simd::tile`] with `R` rows and `C` registers of columns, all sums in registers.
///
/// # Safety
/// As [`Simd`]; the pointers are good for what [`TileCall`] says.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const C: usize>(call: TileCall) {
    // SAFETY: the caller vouches for the pointers and the instruction set.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        let mut x = call.x;
        for steps in (0..call.depth).step_by(STEPS_A_LINE) {
            S::prefetch_second(call.ahead.wrapping_add(64 / STEPS_A_LINE * steps));
            for k in steps..call.depth.min(steps + STEPS_A_LINE) {
                let mut columns = [S::splat(0.0); C];
                for (c, column) in columns.iter_mut().enumerate() {
                    *column = S::load(x.add(c * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let w = S::splat(*call.w.add(r * call.w_stride + k));
                    for c in 0..C {
                        sums[c] = S::mul_add(w, columns[c], sums[c]);
                    }
                }
                x = x.add(2 * S::LANES);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                let out = call.out.add(r * call.out_stride + c * S::LANES);
                S::store(out, S::add(S::load(out), sum));
            }
        }
    }
}

/// e^x: within 2 units in the last place over f32's normal range, 0 below it, ∞ above, NaN of NaN. Cephes' polynomial after
/// reduction by ln 2.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    /// 1.5·2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// Its sum is ln 2; the first has few bits, so that a multiple of it is exact.
    const LN2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    let shifted = mul_add::<S>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<S>(n, -LN2[1], mul_add::<S>(n, -LN2[0], x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = mul_add::<S>(p, r, c);
    }
    let p = mul_add::<S>(p * r, r, r) + 1.0;
    // 2^n in two factors: n may be 128.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let (half, rest) = (n >> 1, n - (n >> 1));
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let value = p * power(half) * power(rest);
    let value = if x < -87.3 { 0.0 } else { value };
    if x > 88.8 { f32::INFINITY } else { value }
}

/// x·sigmoid(x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(x: f32) -> f32 {
    x / (1.0 + exp::<S>(-x))
}

/// x = e^(x − max) of all.
#[inline(always)]
pub(crate) fn exp_all<S: Simd>(x: &mut [f32], max: f32) {
    for x in x {
        *x = exp::<S>(*x - max);
    }
}

/// a·b + c, fused where that is one instruction.
#[inline(always)]
pub(crate) fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            exp_all::<S>(self.0, 0.0);
        }
    }

    #[test]
    fn exponentials() {
        let mut x: Vec<f32> = (-1_050..900).map(|i| i as f32 * 0.1 + 0.013).collect();
        x.extend([
            0.0,
            -0.0,
            88.72,
            88.9,
            -87.2,
            f32::NEG_INFINITY,
            f32::INFINITY,
            f32::MAX,
            f32::MIN,
            f32::NAN,
        ]);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut got = x.clone();
            isa.run(Exp(&mut got));
            for (x, got) in x.iter().zip(got) {
                let want = f64::from(*x).exp();
                let near = (f64::from(got) - want).abs() <= 2.4e-7 * want;
                let outside = *x < -87.3 && got == 0.0 || want > f64::from(f32::MAX) && got == f32::INFINITY;
                assert!(near || outside || x.is_nan() && got.is_nan(), "{isa:?}: e^{x} is {want}, got {got}");
            }
        }
    }
}
