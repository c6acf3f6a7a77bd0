//! Bit manipulation: the PTX ISA's pseudo-code, rewritten without loops or branches.

/// The variants of `prmt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permute {
    /// Four selectors of a nibble each; its top bit replicates the byte's sign.
    Default,
    /// Four bytes forwards from the selected one.
    ForwardFour,
    /// Four bytes backwards from the selected one.
    BackwardFour,
    /// The selected byte four times.
    ReplicateByte,
    /// Each byte its own, none before the selected one of a.
    EdgeLeft,
    /// Each byte its own, none behind the selected one of a.
    EdgeRight,
    /// The selected half twice.
    ReplicateHalf,
}

/// `prmt.b32{.mode} d, a, b, c`.
#[inline(always)]
pub fn prmt(a: u32, b: u32, c: u32, mode: Permute) -> u32 {
    let s = c & 3;
    let nibbles = match mode {
        Permute::Default => c,
        Permute::ForwardFour => 0x3210 + 0x1111 * s,
        // Byte i is (s − i) mod 8.
        Permute::BackwardFour => (s | (s + 7) << 4 | (s + 6) << 8 | (s + 5) << 12) & 0x7777,
        Permute::ReplicateByte => 0x1111 * s,
        Permute::EdgeLeft => s | s.max(1) << 4 | s.max(2) << 8 | 3 << 12,
        Permute::EdgeRight => s.min(1) << 4 | s.min(2) << 8 | s << 12,
        Permute::ReplicateHalf => 0x1010 + 0x2222 * (c & 1),
    };
    let both = u64::from(b) << 32 | u64::from(a);
    let byte = |i: u32| {
        let selector = nibbles >> (4 * i);
        let value = (both >> (8 * (selector & 7))) as u32 & 0xff;
        let sign = (value >> 7) * 0xff;
        (if selector & 8 != 0 { sign } else { value }) << (8 * i)
    };
    byte(0) | byte(1) | byte(2) | byte(3)
}

/// `lop3.b32 d, a, b, c, table`: bit 4a + 2b + c of the table, bit by bit.
#[inline(always)]
pub fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    let entry = |i: u32| 0u32.wrapping_sub(u32::from(table) >> i & 1);
    let choose = |which: u32, one: u32, zero: u32| (which & one) | (!which & zero);
    let high = choose(b, choose(c, entry(7), entry(6)), choose(c, entry(5), entry(4)));
    let low = choose(b, choose(c, entry(3), entry(2)), choose(c, entry(1), entry(0)));
    choose(a, high, low)
}

/// `shf.l.clamp` (`clamp`) or `shf.l.wrap`: the upper word of `b:a << c`.
#[inline(always)]
pub fn shf_left(a: u32, b: u32, c: u32, clamp: bool) -> u32 {
    let n = if clamp { c.min(32) } else { c & 31 };
    (((u64::from(b) << 32 | u64::from(a)) << n) >> 32) as u32
}

/// `shf.r.clamp` (`clamp`) or `shf.r.wrap`: the lower word of `b:a >> c`.
#[inline(always)]
pub fn shf_right(a: u32, b: u32, c: u32, clamp: bool) -> u32 {
    let n = if clamp { c.min(32) } else { c & 31 };
    ((u64::from(b) << 32 | u64::from(a)) >> n) as u32
}

/// `shl.b16`: amounts beyond the width give 0.
#[inline(always)]
pub fn shl16(a: u16, n: u32) -> u16 {
    if n > 15 { 0 } else { a << n }
}

/// `shl.b32`.
#[inline(always)]
pub fn shl32(a: u32, n: u32) -> u32 {
    if n > 31 { 0 } else { a << n }
}

/// `shl.b64`.
#[inline(always)]
pub fn shl64(a: u64, n: u32) -> u64 {
    if n > 63 { 0 } else { a << n }
}

/// `shr.u16`.
#[inline(always)]
pub fn shr16(a: u16, n: u32) -> u16 {
    if n > 15 { 0 } else { a >> n }
}

/// `shr.u32`.
#[inline(always)]
pub fn shr32(a: u32, n: u32) -> u32 {
    if n > 31 { 0 } else { a >> n }
}

/// `shr.u64`.
#[inline(always)]
pub fn shr64(a: u64, n: u32) -> u64 {
    if n > 63 { 0 } else { a >> n }
}

/// `shr.s16`: amounts beyond the width give the sign.
#[inline(always)]
pub fn sar16(a: i16, n: u32) -> i16 {
    a >> n.min(15)
}

/// `shr.s32`.
#[inline(always)]
pub fn sar32(a: i32, n: u32) -> i32 {
    a >> n.min(31)
}

/// `shr.s64`.
#[inline(always)]
pub fn sar64(a: i64, n: u32) -> i64 {
    a >> n.min(63)
}

/// As many low bits as `n` says, up to all.
#[inline(always)]
fn low32(n: u32) -> u32 {
    if n > 31 { u32::MAX } else { (1 << n) - 1 }
}

#[inline(always)]
fn low64(n: u32) -> u64 {
    if n > 63 { u64::MAX } else { (1 << n) - 1 }
}

/// `bfe.u32 d, a, position, length`, of which the low bytes count.
#[inline(always)]
pub fn bfe_u32(a: u32, position: u32, length: u32) -> u32 {
    shr32(a, position & 0xff) & low32(length & 0xff)
}

/// `bfe.s32`: the field's top bit, or the register's where the field sticks out, fills the rest.
#[inline(always)]
pub fn bfe_s32(a: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 0xff, length & 0xff);
    let sign = (a >> (position + length).saturating_sub(1).min(31) & 1) & u32::from(length != 0);
    let mask = low32(length) & shr32(u32::MAX, position);
    (shr32(a, position) & mask) | (0u32.wrapping_sub(sign) & !mask)
}

/// `bfe.u64`.
#[inline(always)]
pub fn bfe_u64(a: u64, position: u32, length: u32) -> u64 {
    shr64(a, position & 0xff) & low64(length & 0xff)
}

/// `bfe.s64`.
#[inline(always)]
pub fn bfe_s64(a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let sign = (a >> (position + length).saturating_sub(1).min(63) & 1) & u64::from(length != 0);
    let mask = low64(length) & shr64(u64::MAX, position);
    (shr64(a, position) & mask) | (0u64.wrapping_sub(sign) & !mask)
}

/// `bfi.b32 d, a, b, position, length`: the low bits of `a` put into `b`.
#[inline(always)]
pub fn bfi_b32(a: u32, b: u32, position: u32, length: u32) -> u32 {
    let mask = shl32(low32(length & 0xff), position & 0xff);
    (shl32(a, position & 0xff) & mask) | (b & !mask)
}

/// `bfi.b64`.
#[inline(always)]
pub fn bfi_b64(a: u64, b: u64, position: u32, length: u32) -> u64 {
    let mask = shl64(low64(length & 0xff), position & 0xff);
    (shl64(a, position & 0xff) & mask) | (b & !mask)
}

/// `bfind.u32`: the position of the highest one, all ones if there is none; with `amount` (`.shiftamt`) the shift
/// that brings it to the top.
#[inline(always)]
pub fn bfind_u32(a: u32, amount: bool) -> u32 {
    let found = if amount { a.leading_zeros() } else { 31u32.wrapping_sub(a.leading_zeros()) };
    if a == 0 { u32::MAX } else { found }
}

/// `bfind.s32`: the highest bit that differs from the sign.
#[inline(always)]
pub fn bfind_s32(a: i32, amount: bool) -> u32 {
    bfind_u32((a ^ (a >> 31)) as u32, amount)
}

/// `bfind.u64`.
#[inline(always)]
pub fn bfind_u64(a: u64, amount: bool) -> u32 {
    let found = if amount { a.leading_zeros() } else { 63u32.wrapping_sub(a.leading_zeros()) };
    if a == 0 { u32::MAX } else { found }
}

/// `bfind.s64`.
#[inline(always)]
pub fn bfind_s64(a: i64, amount: bool) -> u32 {
    bfind_u64((a ^ (a >> 63)) as u64, amount)
}

/// `fns.b32 d, mask, base, offset`: the position of the `offset`th one at or above `base`, or below for negative
/// offsets; all ones if there is none. Offset 0 asks whether `base` itself is one.
#[inline(always)]
pub fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    if base > 31 {
        return u32::MAX;
    }
    if offset == 0 {
        return if mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let upwards = offset > 0;
    let mut rest = if upwards { mask >> base << base } else { mask << (31 - base) >> (31 - base) };
    for _ in 1..offset.unsigned_abs().min(33) {
        let next = if upwards { rest & (u32::MAX << 1 << rest.trailing_zeros().min(31)) } else { 0 };
        rest = if upwards { next } else { rest & !shr32(1 << 31, rest.leading_zeros()) };
    }
    let found = if upwards { rest.trailing_zeros() } else { 31u32.wrapping_sub(rest.leading_zeros()) };
    if rest == 0 { u32::MAX } else { found }
}

/// `bmsk.clamp.b32` (`clamp`) or `.wrap`: `length` ones from `position` on.
#[inline(always)]
pub fn bmsk(position: u32, length: u32, clamp: bool) -> u32 {
    let (p, n) = if clamp { (position.min(32), length.min(32)) } else { (position & 31, length & 31) };
    shl32(low32(n), p)
}

/// `szext.u32`: the low `bits` bits, zero-extended.
#[inline(always)]
pub fn szext_u32(a: u32, bits: u32, clamp: bool) -> u32 {
    a & low32(if clamp { bits.min(32) } else { bits & 31 })
}

/// `szext.s32`: the low `bits` bits, sign-extended.
#[inline(always)]
pub fn szext_s32(a: u32, bits: u32, clamp: bool) -> u32 {
    let n = if clamp { bits.min(32) } else { bits & 31 };
    let shift = 32 - n;
    if n == 0 { 0 } else { ((a << (shift & 31)) as i32 >> (shift & 31)) as u32 }
}

/// `brev.b32`.
#[inline(always)]
pub fn brev32(a: u32) -> u32 {
    a.reverse_bits()
}

/// `brev.b64`.
#[inline(always)]
pub fn brev64(a: u64) -> u64 {
    a.reverse_bits()
}

/// `popc.b32` and, of zero-extended values, narrower.
#[inline(always)]
pub fn popc32(a: u32) -> u32 {
    a.count_ones()
}

/// `popc.b64`.
#[inline(always)]
pub fn popc64(a: u64) -> u32 {
    a.count_ones()
}

/// `clz.b32`: 32 for 0.
#[inline(always)]
pub fn clz32(a: u32) -> u32 {
    a.leading_zeros()
}

/// `clz.b64`: 64 for 0.
#[inline(always)]
pub fn clz64(a: u64) -> u32 {
    a.leading_zeros()
}
