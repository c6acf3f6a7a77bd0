//! `ld` and `st`, every width and space.

use super::access::{AddressCell, Mode, Pattern, resolve, space};
use super::interleave::{interleave, part};
use super::isa::{Body, pick};
use super::op::{Ctx, Exec, Op};
use crate::ptx::ast::Scalar;

/// A type as it lies in memory.
trait Element: Copy + Default {
    /// Into a register, extended by its sign or with zeros.
    fn widen(self) -> u64;
}

macro_rules! element {
    ($($ty:ty, |$x:ident| $e:expr;)*) => {$(
        impl Element for $ty {
            #[inline(always)]
            fn widen(self) -> u64 { let $x = self; $e }
        }
    )*};
}

element! {
    u8, |x| u64::from(x);
    u16, |x| u64::from(x);
    u32, |x| u64::from(x);
    u64, |x| x;
    i8, |x| x as i64 as u64;
    i16, |x| x as i64 as u64;
    i32, |x| x as i64 as u64;
}

/// A register lane that takes an extended element.
trait Register: Copy + Default {
    fn cut(value: u64) -> Self;
    fn full(self) -> u64;
}

impl Register for u32 {
    #[inline(always)]
    fn cut(value: u64) -> u32 {
        value as u32
    }
    #[inline(always)]
    fn full(self) -> u64 {
        u64::from(self)
    }
}

impl Register for u64 {
    #[inline(always)]
    fn cut(value: u64) -> u64 {
        value
    }
    #[inline(always)]
    fn full(self) -> u64 {
        self
    }
}

/// What lanes loaded, as registers.
#[inline(always)]
fn widen<T: Element, R: Register, const N: usize>(values: &[[T; N]; 32], out: &mut [[R; 32]; N]) {
    let mut columns = [[T::default(); 32]; N];
    part(values, &mut columns);
    for n in 0..N {
        for l in 0..32 {
            out[n][l] = R::cut(columns[n][l].widen());
        }
    }
}

/// list = N elements of type T at [a + imm].
struct Load<T, R, A, const N: usize, const SPACE: u8>(std::marker::PhantomData<(T, R, A)>);

impl<T: Element, R: Register, A: AddressCell, const N: usize, const SPACE: u8> Body
    for Load<T, R, A, N, SPACE>
{
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
        let mut from = [std::ptr::null_mut(); 32];
        let size = (size_of::<T>() * N) as u32;
        // SAFETY: Exec's contract.
        let pattern = unsafe { resolve::<A, SPACE>(ctx, op, active, size, Mode::Read, &mut from) };
        let mut out = [[R::default(); 32]; N];
        match pattern {
            None => return,
            Some(Pattern::Row) => {
                // SAFETY: `resolve` found 32 accesses side by side inside memory. Blocks on other threads may write
                // there meanwhile, as on a device; each element is what it was at some time.
                let values = unsafe { from[0].cast::<[[T; N]; 32]>().read_unaligned() };
                widen(&values, &mut out);
            }
            Some(Pattern::Same) => {
                // SAFETY: `resolve` found the element inside memory and aligned.
                let value = unsafe { from[0].cast::<[T; N]>().read_volatile() };
                for n in 0..N {
                    out[n] = [R::cut(value[n].widen()); 32];
                }
            }
            Some(Pattern::Scattered) => {
                let mut values = [[T::default(); N]; 32];
                // Without asking for each lane, where all are there.
                if active == u32::MAX {
                    for l in 0..32 {
                        // SAFETY: as above.
                        values[l] = unsafe { from[l].cast::<[T; N]>().read_volatile() };
                    }
                } else {
                    for l in (0..32).filter(|l| active >> l & 1 == 1) {
                        // SAFETY: as above, for each active lane.
                        values[l] = unsafe { from[l].cast::<[T; N]>().read_volatile() };
                    }
                }
                widen(&values, &mut out);
            }
        }
        for n in 0..N {
            // SAFETY: Exec's contract.
            unsafe { ctx.write(op.list[n], active, &out[n]) };
        }
    }
}

/// N elements of T's width at [a + imm] = list.
struct Store<T, R, A, const N: usize, const SPACE: u8>(std::marker::PhantomData<(T, R, A)>);

/// An element cut out of a register.
trait Cut: Copy + Default {
    fn of(value: u64) -> Self;
}

macro_rules! cut {
    ($($ty:ty)*) => {$(
        impl Cut for $ty {
            #[inline(always)]
            fn of(value: u64) -> $ty { value as $ty }
        }
    )*};
}

cut! { u8 u16 u32 u64 }

impl<T: Cut, R: Register, A: AddressCell, const N: usize, const SPACE: u8> Body for Store<T, R, A, N, SPACE> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
        let mut to = [std::ptr::null_mut(); 32];
        let size = (size_of::<T>() * N) as u32;
        // SAFETY: Exec's contract.
        let pattern = unsafe { resolve::<A, SPACE>(ctx, op, active, size, Mode::Write, &mut to) };
        let Some(pattern) = pattern else { return };
        let mut columns = [[T::default(); 32]; N];
        for n in 0..N {
            // SAFETY: Exec's contract.
            let cell = unsafe { ctx.cell::<R>(op.list[n]) };
            for l in 0..32 {
                columns[n][l] = T::of(cell[l].full());
            }
        }
        let mut values = [[T::default(); N]; 32];
        interleave(&columns, &mut values);
        match pattern {
            // SAFETY: `resolve` found 32 accesses side by side inside memory.
            Pattern::Row => unsafe { to[0].cast::<[[T; N]; 32]>().write_unaligned(values) },
            // Of lanes that write to one place, the last one wins.
            // SAFETY: `resolve` found the element inside memory and aligned.
            Pattern::Same => unsafe { to[0].cast::<[T; N]>().write_volatile(values[31]) },
            Pattern::Scattered if active == u32::MAX => {
                for l in 0..32 {
                    // SAFETY: as above.
                    unsafe { to[l].cast::<[T; N]>().write_volatile(values[l]) };
                }
            }
            Pattern::Scattered => {
                for l in (0..32).filter(|l| active >> l & 1 == 1) {
                    // SAFETY: as above, for each active lane.
                    unsafe { to[l].cast::<[T; N]>().write_volatile(values[l]) };
                }
            }
        }
        ctx.block.progress += 1;
    }
}

macro_rules! by_space {
    ($body:ident, $t:ty, $r:ty, $n:expr, $space:expr, $wide:expr) => {
        match ($space, $wide) {
            (space::GLOBAL, _) => Some(pick::<$body<$t, $r, u64, $n, { space::GLOBAL }>>()),
            (space::SHARED, false) => Some(pick::<$body<$t, $r, u32, $n, { space::SHARED }>>()),
            (space::SHARED, true) => Some(pick::<$body<$t, $r, u64, $n, { space::SHARED }>>()),
            (space::LOCAL, false) => Some(pick::<$body<$t, $r, u32, $n, { space::LOCAL }>>()),
            (space::LOCAL, true) => Some(pick::<$body<$t, $r, u64, $n, { space::LOCAL }>>()),
            (_, true) => Some(pick::<$body<$t, $r, u64, $n, { space::GENERIC }>>()),
            _ => None,
        }
    };
}

macro_rules! by_count {
    ($body:ident, $t:ty, $r:ty, $n:expr, $space:expr, $wide:expr) => {
        match $n {
            1 => by_space!($body, $t, $r, 1, $space, $wide),
            2 => by_space!($body, $t, $r, 2, $space, $wide),
            4 if size_of::<$t>() <= 4 => by_space!($body, $t, $r, 4, $space, $wide),
            _ => None,
        }
    };
}

/// A load of `count` elements from a space into 32- or 64-bit registers, by 32- or 64-bit addresses.
pub(super) fn load(space: u8, ty: Scalar, wide: bool, count: usize, wide_address: bool) -> Option<Exec> {
    match (ty, wide) {
        (Scalar::U8 | Scalar::B8, false) => by_count!(Load, u8, u32, count, space, wide_address),
        (Scalar::S8, false) => by_count!(Load, i8, u32, count, space, wide_address),
        (Scalar::U16 | Scalar::B16 | Scalar::F16 | Scalar::Bf16, false) => {
            by_count!(Load, u16, u32, count, space, wide_address)
        }
        (Scalar::S16, false) => by_count!(Load, i16, u32, count, space, wide_address),
        (_, false) if ty.bytes() == 4 => by_count!(Load, u32, u32, count, space, wide_address),
        (_, true) if ty.bytes() == 8 => by_count!(Load, u64, u64, count, space, wide_address),
        (Scalar::U8 | Scalar::B8, true) => by_space!(Load, u8, u64, 1, space, wide_address),
        (Scalar::S8, true) => by_space!(Load, i8, u64, 1, space, wide_address),
        (Scalar::U16 | Scalar::B16, true) => by_space!(Load, u16, u64, 1, space, wide_address),
        (Scalar::S16, true) => by_space!(Load, i16, u64, 1, space, wide_address),
        (Scalar::U32 | Scalar::B32, true) => by_space!(Load, u32, u64, 1, space, wide_address),
        (Scalar::S32, true) => by_space!(Load, i32, u64, 1, space, wide_address),
        _ => None,
    }
}

/// A store of `count` elements to a space.
pub(super) fn store(space: u8, ty: Scalar, count: usize, wide_address: bool) -> Option<Exec> {
    match ty.bytes() {
        1 => by_count!(Store, u8, u32, count, space, wide_address),
        2 => by_count!(Store, u16, u32, count, space, wide_address),
        4 => by_count!(Store, u32, u32, count, space, wide_address),
        8 => by_count!(Store, u64, u64, count, space, wide_address),
        _ => None,
    }
}

/// A load of kernel parameters, the same for all lanes, at offset `imm`.
pub(super) fn load_param(ty: Scalar, wide: bool) -> Exec {
    fn read<const BYTES: usize>(ctx: &Ctx<'_>, offset: usize) -> u64 {
        let mut raw = [0; 8];
        if let Some(bytes) = ctx.grid.params.get(offset..offset + BYTES) {
            raw[..BYTES].copy_from_slice(bytes);
        }
        u64::from_le_bytes(raw)
    }
    unsafe fn run<R: Register, const BYTES: usize, const SIGNED: bool>(
        ctx: &mut Ctx<'_>,
        op: &Op,
        active: u32,
    ) {
        for (i, &cell) in op.list.iter().enumerate() {
            let value = read::<BYTES>(ctx, op.imm as usize + i * BYTES);
            let unused = 64 - 8 * BYTES as u32;
            let value = if SIGNED { ((value << unused) as i64 >> unused) as u64 } else { value };
            // SAFETY: Exec's contract.
            unsafe { ctx.write(cell, active, &[R::cut(value); 32]) };
        }
    }
    let signed = matches!(ty, Scalar::S8 | Scalar::S16 | Scalar::S32);
    match (ty.bytes(), wide, signed) {
        (1, false, false) => run::<u32, 1, false>,
        (1, false, true) => run::<u32, 1, true>,
        (2, false, false) => run::<u32, 2, false>,
        (2, false, true) => run::<u32, 2, true>,
        (4, false, _) => run::<u32, 4, false>,
        (1, true, _) => run::<u64, 1, false>,
        (2, true, _) => run::<u64, 2, false>,
        (4, true, false) => run::<u64, 4, false>,
        (4, true, true) => run::<u64, 4, true>,
        _ => run::<u64, 8, false>,
    }
}
