//! `atom` and `red`: lane after lane, on the host's atomics, so that blocks on other threads see whole updates.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::access::{Mode, resolve_each, space};
use super::op::{Ctx, Exec, NONE, Op};
use crate::num::halves::{Half, add, pair2};
use crate::ptx::ast::Scalar;

/// What becomes of a value: (old, b, c) → new.
trait Update<T> {
    fn apply(old: T, b: T, c: T) -> T;
}

trait Word: Copy + PartialEq {
    type Raw: Copy;
    /// Replaces the word at an aligned address; returns what was there.
    ///
    /// # Safety
    /// The address is valid for atomic access.
    unsafe fn update(at: *mut u8, f: impl Fn(Self) -> Self) -> Self;
    fn of(raw: Self::Raw) -> Self;
    fn raw(self) -> Self::Raw;
}

macro_rules! word {
    ($ty:ty, $raw:ty, $atomic:ty) => {
        impl Word for $ty {
            type Raw = $raw;
            unsafe fn update(at: *mut u8, f: impl Fn($ty) -> $ty) -> $ty {
                // SAFETY: the caller's contract; atomics have the layout of their integer.
                let word = unsafe { &*at.cast::<$atomic>() };
                let next = |old| Some(f(old));
                word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap_or_else(|old| old)
            }
            fn of(raw: $raw) -> $ty {
                raw as $ty
            }
            fn raw(self) -> $raw {
                <$raw>::from(self)
            }
        }
    };
}

word!(u16, u32, AtomicU16);
word!(u32, u32, AtomicU32);
word!(u64, u64, AtomicU64);

unsafe fn run<T: Word, U: Update<T>, const SPACE: u8>(ctx: &mut Ctx<'_>, op: &Op, active: u32)
where
    T::Raw: Default,
{
    let mut at = [std::ptr::null_mut(); 32];
    // SAFETY: Exec's contract; lowering widened the address.
    if !unsafe { resolve_each::<u64, SPACE>(ctx, op, active, size_of::<T>() as u32, Mode::Update, &mut at) } {
        return;
    }
    let mut out = [T::Raw::default(); 32];
    // SAFETY: Exec's contract.
    unsafe {
        let b = *ctx.cell::<T::Raw>(op.b);
        let c = if op.c == NONE { b } else { *ctx.cell::<T::Raw>(op.c) };
        for l in (0..32).filter(|l| active >> l & 1 == 1) {
            out[l] = T::update(at[l], |old| U::apply(old, T::of(b[l]), T::of(c[l]))).raw();
        }
        if op.d != NONE {
            ctx.write(op.d, active, &out);
        }
    }
    ctx.block.counters.atomics += u64::from(active.count_ones());
    ctx.block.progress += 1;
}

macro_rules! update {
    ($name:ident, $ty:ty, |$old:ident, $b:ident, $c:ident| $e:expr) => {{
        struct $name;
        impl Update<$ty> for $name {
            fn apply($old: $ty, $b: $ty, $c: $ty) -> $ty {
                $e
            }
        }
        (
            run::<$ty, $name, { space::GLOBAL }> as Exec,
            run::<$ty, $name, { space::SHARED }> as Exec,
            run::<$ty, $name, { space::GENERIC }> as Exec,
        )
    }};
}

/// The atomic of an operation, type and space.
pub(super) fn atomic(kind: &str, ty: Scalar, space: u8) -> Option<Exec> {
    let (global, shared, generic) = match (kind, ty) {
        ("add", Scalar::U32 | Scalar::S32) => update!(Add, u32, |old, b, _c| old.wrapping_add(b)),
        ("add", Scalar::U64 | Scalar::S64) => update!(Add, u64, |old, b, _c| old.wrapping_add(b)),
        ("add", Scalar::F32) => {
            update!(Add, u32, |old, b, _c| (f32::from_bits(old) + f32::from_bits(b)).to_bits())
        }
        ("add", Scalar::F64) => {
            update!(Add, u64, |old, b, _c| (f64::from_bits(old) + f64::from_bits(b)).to_bits())
        }
        ("add", Scalar::F16) => update!(Add, u16, |old, b, _c| add(Half::F16, old, b)),
        ("add", Scalar::Bf16) => update!(Add, u16, |old, b, _c| add(Half::Bf16, old, b)),
        ("add", Scalar::F16x2) => {
            update!(Add, u32, |old, b, _c| pair2(old, b, |x, y| add(Half::F16, x, y)))
        }
        ("add", Scalar::Bf16x2) => {
            update!(Add, u32, |old, b, _c| pair2(old, b, |x, y| add(Half::Bf16, x, y)))
        }
        ("min", Scalar::U32) => update!(Min, u32, |old, b, _c| old.min(b)),
        ("min", Scalar::S32) => update!(Min, u32, |old, b, _c| (old as i32).min(b as i32) as u32),
        ("min", Scalar::U64) => update!(Min, u64, |old, b, _c| old.min(b)),
        ("min", Scalar::S64) => update!(Min, u64, |old, b, _c| (old as i64).min(b as i64) as u64),
        ("max", Scalar::U32) => update!(Max, u32, |old, b, _c| old.max(b)),
        ("max", Scalar::S32) => update!(Max, u32, |old, b, _c| (old as i32).max(b as i32) as u32),
        ("max", Scalar::U64) => update!(Max, u64, |old, b, _c| old.max(b)),
        ("max", Scalar::S64) => update!(Max, u64, |old, b, _c| (old as i64).max(b as i64) as u64),
        ("inc", Scalar::U32) => update!(Inc, u32, |old, b, _c| if old >= b { 0 } else { old + 1 }),
        ("dec", Scalar::U32) => {
            update!(Dec, u32, |old, b, _c| if old == 0 || old > b { b } else { old - 1 })
        }
        ("and", Scalar::B32) => update!(And, u32, |old, b, _c| old & b),
        ("and", Scalar::B64) => update!(And, u64, |old, b, _c| old & b),
        ("or", Scalar::B32) => update!(Or, u32, |old, b, _c| old | b),
        ("or", Scalar::B64) => update!(Or, u64, |old, b, _c| old | b),
        ("xor", Scalar::B32) => update!(Xor, u32, |old, b, _c| old ^ b),
        ("xor", Scalar::B64) => update!(Xor, u64, |old, b, _c| old ^ b),
        ("exch", Scalar::B32 | Scalar::U32 | Scalar::S32 | Scalar::F32) => update!(Exch, u32, |_o, b, _c| b),
        ("exch", Scalar::B64 | Scalar::U64) => update!(Exch, u64, |_o, b, _c| b),
        ("cas", Scalar::B16) => update!(Cas, u16, |old, b, c| if old == b { c } else { old }),
        ("cas", Scalar::B32 | Scalar::U32 | Scalar::S32) => {
            update!(Cas, u32, |old, b, c| if old == b { c } else { old })
        }
        ("cas", Scalar::B64 | Scalar::U64) => update!(Cas, u64, |old, b, c| if old == b { c } else { old }),
        _ => return None,
    };
    match space {
        space::GLOBAL => Some(global),
        space::SHARED => Some(shared),
        space::GENERIC => Some(generic),
        _ => None,
    }
}
