//! One source for every lane operation, compiled for AVX2 and AVX-512 (or, off x86-64, for what the target has).
//!
//! A lane operation is a closure without captures; [`unary`], [`binary`] and [`ternary`] turn it into an [`Exec`] that
//! applies it to 32 lanes, in the instruction set this machine has. Inlining carries the closure into a function with
//! the set's features, where the compiler vectorises the loop.

#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use super::op::{Ctx, Exec, Op};

/// Whether lane loops use AVX-512 rather than AVX2.
#[cfg(target_arch = "x86_64")]
static AVX512: LazyLock<bool> = LazyLock::new(|| {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("fma")
});

/// Whether this processor can run the lane loops: on x86-64 it needs AVX2 and FMA.
pub(super) fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    let supported = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let supported = true;
    supported
}

/// A body that is to be compiled for every instruction set.
pub(super) trait Body {
    /// # Safety
    /// As [`Exec`].
    unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32);
}

/// The version of a body for this machine. [`supported`] was asked before anything was lowered.
pub(super) fn pick<B: Body>() -> Exec {
    #[cfg(not(target_arch = "x86_64"))]
    {
        B::run
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<B: Body>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
            // SAFETY: the caller keeps Exec's contract.
            unsafe { B::run(ctx, op, active) }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
        unsafe fn avx512<B: Body>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
            // SAFETY: the caller keeps Exec's contract.
            unsafe { B::run(ctx, op, active) }
        }
        if *AVX512 { avx512::<B> } else { avx2::<B> }
    }
}

/// A type that lanes compute with, and how it lies in a register.
pub(super) trait Lane: Copy + Default {
    /// `u32` or `u64`.
    type Raw: Copy + Default;
    fn from_raw(raw: Self::Raw) -> Self;
    fn into_raw(self) -> Self::Raw;
}

macro_rules! lane {
    ($($ty:ty, $raw:ty, |$r:ident| $from:expr, |$v:ident| $into:expr;)*) => {$(
        impl Lane for $ty {
            type Raw = $raw;
            #[inline(always)]
            fn from_raw($r: $raw) -> $ty { $from }
            #[inline(always)]
            fn into_raw(self) -> $raw { let $v = self; $into }
        }
    )*};
}

lane! {
    u8, u32, |r| r as u8, |v| u32::from(v);
    i8, u32, |r| r as i8, |v| v as u32;
    u16, u32, |r| r as u16, |v| u32::from(v);
    i16, u32, |r| r as i16, |v| u32::from(v as u16);
    u32, u32, |r| r, |v| v;
    i32, u32, |r| r as i32, |v| v as u32;
    f32, u32, |r| f32::from_bits(r), |v| v.to_bits();
    u64, u64, |r| r, |v| v;
    i64, u64, |r| r as i64, |v| v as u64;
    f64, u64, |r| f64::from_bits(r), |v| v.to_bits();
}

/// A closure without captures, named by its type alone.
#[inline(always)]
fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "lane operations capture nothing") };
    // SAFETY: a zero-sized type has one value, which has no bytes; a closure without captures is inhabited.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

macro_rules! arity {
    ($name:ident, $with:ident, $body:ident, $doc:literal, $($arg:ident: $ty:ident = $field:ident),+) => {
        #[doc = $doc]
        pub(super) fn $name<$($ty: Lane,)+ D: Lane, F: Fn($($ty),+) -> D + Copy>(_: F) -> Exec {
            $with(|_: u32, $($arg: $ty),+| conjure::<F>()($($arg),+))
        }

        #[doc = $doc]
        ///
        /// The closure also gets the operation's `aux`, the same for all lanes: modes that are too many for a closure
        /// each.
        pub(super) fn $with<$($ty: Lane,)+ D: Lane, F: Fn(u32, $($ty),+) -> D + Copy>(_: F) -> Exec {
            struct $body<$($ty,)+ D, F>(std::marker::PhantomData<($($ty,)+ D, F)>);
            impl<$($ty: Lane,)+ D: Lane, F: Fn(u32, $($ty),+) -> D + Copy> Body for $body<$($ty,)+ D, F> {
                #[inline(always)]
                unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
                    let f = conjure::<F>();
                    // SAFETY: Exec's contract: the operands are cells of these types.
                    unsafe {
                        $(let $arg = *ctx.cell::<$ty::Raw>(op.$field);)+
                        let mut out = [D::Raw::default(); 32];
                        for l in 0..32 {
                            out[l] = f(op.aux, $($ty::from_raw($arg[l])),+).into_raw();
                        }
                        ctx.write(op.d, active, &out);
                    }
                }
            }
            pick::<$body<$($ty,)+ D, F>>()
        }
    };
}

arity!(unary, unary_with, Unary, "d = f(a), lane by lane.", a: A = a);
arity!(binary, binary_with, Binary, "d = f(a, b), lane by lane.", a: A = a, b: B = b);
arity!(ternary, ternary_with, Ternary, "d = f(a, b, c), lane by lane.", a: A = a, b: B = b, c: C = c);

/// Predicate d = f(a, b), lane by lane; combined afterwards by the operation's own rule (`Op::aux`).
pub(super) fn compare<A: Lane, F: Fn(A, A) -> bool + Copy>(_: F) -> Exec {
    struct Compare<A, F>(std::marker::PhantomData<(A, F)>);
    impl<A: Lane, F: Fn(A, A) -> bool + Copy> Body for Compare<A, F> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
            let f = conjure::<F>();
            // SAFETY: Exec's contract: the operands are cells of this type.
            unsafe {
                let (a, b) = (*ctx.cell::<A::Raw>(op.a), *ctx.cell::<A::Raw>(op.b));
                let mut mask = 0u32;
                for l in 0..32 {
                    mask |= u32::from(f(A::from_raw(a[l]), A::from_raw(b[l]))) << l;
                }
                super::predicate::finish_setp(ctx, op, active, mask);
            }
        }
    }
    pick::<Compare<A, F>>()
}
