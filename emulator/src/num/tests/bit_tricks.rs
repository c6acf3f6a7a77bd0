use super::super::bits::*;
use super::super::integer::*;
use super::Random;

const WORDS: [u32; 8] = [0, u32::MAX, 1, 0x8000_0000, 0x7fff_ffff, 0x1234_5678, 0x80c3_f0a5, 0x0180_ff7f];

#[test]
fn lop3_evaluates_its_table() {
    for table in 0..=u8::MAX {
        for (a, b, c) in [(0xf0f0_f0f0, 0xcccc_cccc, 0xaaaa_aaaa), (WORDS[5], WORDS[6], WORDS[7])] {
            let mut want = 0u32;
            for bit in 0..32 {
                let index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1u32);
                want |= (u32::from(table) >> index & 1) << bit;
            }
            assert_eq!(lop3(a, b, c, table), want, "{table:02x}");
        }
        assert_eq!(lop3(0xf0, 0xcc, 0xaa, table) as u8, table);
    }
}

#[test]
fn prmt_selects_bytes() {
    let (a, b) = (0x8312_f401u32, 0x7fa0_05c6u32);
    let bytes: Vec<u32> =
        (0..8).map(|i| (((u64::from(b) << 32 | u64::from(a)) >> (8 * i)) & 0xff) as u32).collect();
    for selector in 0..=0xffffu32 {
        let mut want = 0;
        for i in 0..4 {
            let s = selector >> (4 * i) & 0xf;
            let byte = bytes[(s & 7) as usize];
            let byte = if s & 8 == 0 {
                byte
            } else if byte & 0x80 != 0 {
                0xff
            } else {
                0
            };
            want |= byte << (8 * i);
        }
        assert_eq!(prmt(a, b, selector, Permute::Default), want);
    }
    // The tables of the PTX ISA, d.b3 … d.b0 for selectors 0 to 3.
    let tables: [(Permute, [[usize; 4]; 4]); 6] = [
        (Permute::ForwardFour, [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        (Permute::BackwardFour, [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        (Permute::ReplicateByte, [[0; 4], [1; 4], [2; 4], [3; 4]]),
        (Permute::EdgeLeft, [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        (Permute::EdgeRight, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        (Permute::ReplicateHalf, [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, rows) in tables {
        for (selector, row) in rows.iter().enumerate() {
            let want = row.iter().fold(0, |word, i| word << 8 | bytes[*i]);
            for high in [0, 4, 0xfff0] {
                assert_eq!(prmt(a, b, selector as u32 | high, mode), want, "{mode:?} {selector}");
            }
        }
    }
}

#[test]
fn funnel_shifts_match_wide_arithmetic() {
    for a in WORDS {
        for b in WORDS {
            let both = u128::from(b) << 32 | u128::from(a);
            for n in (0..70).chain([255, 256, u32::MAX]) {
                let (clamped, wrapped) = (n.min(32), n % 32);
                assert_eq!(shf_left(a, b, n, true), (both << clamped >> 32) as u32);
                assert_eq!(shf_left(a, b, n, false), (both << wrapped >> 32) as u32);
                assert_eq!(shf_right(a, b, n, true), (both >> clamped) as u32);
                assert_eq!(shf_right(a, b, n, false), (both >> wrapped) as u32);
            }
        }
        for n in (0..70).chain([u32::MAX]) {
            let far = n.min(100);
            assert_eq!(shl32(a, n), (u128::from(a) << far) as u32 & if n > 31 { 0 } else { u32::MAX });
            assert_eq!(shr32(a, n), (u128::from(a) >> far) as u32);
            assert_eq!(sar32(a as i32, n), (i128::from(a as i32) >> far) as i32);
            let wide = u64::from(a) << 32 | 0x55;
            assert_eq!(shl64(wide, n), if n > 63 { 0 } else { wide << n });
            assert_eq!(shr64(wide, n), (u128::from(wide) >> far) as u64);
            assert_eq!(sar64(wide as i64, n), (i128::from(wide as i64) >> far) as i64);
            assert_eq!(shl16(a as u16, n), ((u128::from(a as u16) << far) & 0xffff) as u16);
            assert_eq!(shr16(a as u16, n), (u128::from(a as u16) >> far) as u16);
            assert_eq!(sar16(a as i16, n), (i128::from(a as i16) >> far) as i16);
        }
    }
}

/// The pseudo-code of `bfe` and `bfi` in the PTX ISA, bit by bit.
fn bfe_naive(a: u64, position: u32, length: u32, msb: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let sign = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(msb) & 1 };
    (0..=msb).fold(0, |d, i| {
        let bit = if i < length && position + i <= msb { a >> (position + i) & 1 } else { sign };
        d | bit << i
    })
}

fn bfi_naive(a: u64, b: u64, position: u32, length: u32, msb: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let mut f = b;
    for i in 0..length {
        if position + i <= msb {
            f = f & !(1 << (position + i)) | (a >> i & 1) << (position + i);
        }
    }
    f
}

#[test]
fn bit_fields_match_the_pseudo_code() {
    let edges = [0, 1, 2, 7, 15, 16, 30, 31, 32, 33, 40, 62, 63, 64, 65, 128, 254, 255, 256, 257, u32::MAX];
    for position in edges {
        for length in edges {
            for a in WORDS {
                let at = (position, length);
                let narrow = |signed| bfe_naive(a.into(), position, length, 31, signed) as u32;
                assert_eq!(bfe_u32(a, position, length), narrow(false), "{a:x} {at:?}");
                assert_eq!(bfe_s32(a, position, length), narrow(true), "{a:x} {at:?}");
                let wide = u64::from(a) << 32 | u64::from(!a).rotate_left(5) & 0xffff_ffff;
                assert_eq!(bfe_u64(wide, position, length), bfe_naive(wide, position, length, 63, false));
                assert_eq!(bfe_s64(wide, position, length), bfe_naive(wide, position, length, 63, true));
                for b in WORDS {
                    let want = bfi_naive(a.into(), b.into(), position, length, 31) as u32;
                    assert_eq!(bfi_b32(a, b, position, length), want, "{a:x} {b:x} {at:?}");
                }
                assert_eq!(
                    bfi_b64(wide, !wide, position, length),
                    bfi_naive(wide, !wide, position, length, 63)
                );
            }
        }
    }
}

/// The pseudo-code of `fns`.
fn fns_naive(mask: u32, base: u32, offset: i32) -> u32 {
    if offset == 0 {
        return if mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let (mut position, mut count) = (base as i32, offset.unsigned_abs() - 1);
    while (0..32).contains(&position) {
        if mask >> position & 1 == 1 {
            if count == 0 {
                return position as u32;
            }
            count -= 1;
        }
        position += offset.signum();
    }
    u32::MAX
}

#[test]
fn finding_bits() {
    for mask in WORDS {
        for base in 0..32 {
            for offset in -35..=35 {
                assert_eq!(
                    fns(mask, base, offset),
                    fns_naive(mask, base, offset),
                    "{mask:x} {base} {offset}"
                );
            }
        }
        let top = (0..32).rev().find(|i| mask >> i & 1 == 1);
        assert_eq!(bfind_u32(mask, false), top.unwrap_or(u32::MAX));
        assert_eq!(bfind_u32(mask, true), top.map_or(u32::MAX, |i| 31 - i));
        let other = if mask >> 31 == 1 { !mask } else { mask };
        assert_eq!(bfind_s32(mask as i32, false), bfind_u32(other, false));
        let wide = u64::from(mask) << 20;
        assert_eq!(bfind_u64(wide, false), top.map_or(u32::MAX, |i| i + 20));
        assert_eq!(bfind_s64(!wide as i64, true), top.map_or(u32::MAX, |i| 43 - i));
        assert_eq!(brev32(brev32(mask)), mask);
        assert_eq!(brev64(wide) >> 12, u64::from(brev32(mask)));
        assert_eq!(popc32(mask), (0..32).map(|i| mask >> i & 1).sum::<u32>());
        assert_eq!(popc64(wide), popc32(mask));
        assert_eq!(clz32(mask), top.map_or(32, |i| 31 - i));
        assert_eq!(clz64(wide), top.map_or(64, |i| 43 - i));
    }
    assert_eq!(fns(1, 99, 1), u32::MAX);
}

/// The pseudo-code of `bmsk` and `szext`.
#[test]
fn masks_and_extensions() {
    for position in [0, 1, 16, 31, 32, 33, 64, u32::MAX] {
        for length in [0, 1, 5, 16, 31, 32, 33, u32::MAX] {
            for clamp in [false, true] {
                let (p, n) =
                    if clamp { (position.min(32), length.min(32)) } else { (position % 32, length % 32) };
                let want = (p..32.min(p + n)).fold(0u32, |mask, i| mask | 1 << i);
                assert_eq!(bmsk(position, length, clamp), want, "{position} {length} {clamp}");
            }
        }
    }
    for a in WORDS {
        for bits in [0, 1, 7, 8, 31, 32, 33, 40] {
            for clamp in [false, true] {
                let n = if clamp { bits.min(32) } else { bits % 32 };
                assert_eq!(szext_u32(a, bits, clamp), bfe_naive(a.into(), 0, n, 31, false) as u32);
                assert_eq!(szext_s32(a, bits, clamp), bfe_naive(a.into(), 0, n, 31, true) as u32);
            }
        }
    }
}

#[test]
fn products_match_wide_arithmetic() {
    let mut random = Random(11);
    for i in 0..200_000 {
        let r =
            if i < 64 { (u64::from(WORDS[i % 8]) << 32) | u64::from(WORDS[i / 8]) } else { random.next() };
        let s = random.next();
        let (a, b, c) = (r as u32, (r >> 32) as u32, s as u32);
        let (x, y, z) = (a as i32, b as i32, c as i32);
        let wide = |x: i32, y: i32| i128::from(x) * i128::from(y);
        assert_eq!(i128::from(mul_hi_s32(x, y)), wide(x, y) >> 32);
        assert_eq!(u128::from(mul_hi_u32(a, b)), (u128::from(a) * u128::from(b)) >> 32);
        assert_eq!(mul_hi_u64(r, s), ((u128::from(r) * u128::from(s)) >> 64) as u64);
        assert_eq!(
            mul_hi_s64(r as i64, s as i64),
            ((i128::from(r as i64) * i128::from(s as i64)) >> 64) as i64
        );
        assert_eq!(mul_hi_u16(a as u16, b as u16), (((a & 0xffff) * (b & 0xffff)) >> 16) as u16);
        assert_eq!(mul_hi_s16(a as i16, b as i16), (wide(x << 16 >> 16, y << 16 >> 16) >> 16) as i16);
        assert_eq!(mul_wide_s16(a as i16, b as i16), (x << 16 >> 16).wrapping_mul(y << 16 >> 16));
        assert_eq!(mul_wide_u16(a as u16, b as u16), (a & 0xffff) * (b & 0xffff));
        let (a24, b24) = (u64::from(a & 0xff_ffff), u64::from(b & 0xff_ffff));
        assert_eq!(mul24_lo_u32(a, b), (a24 * b24) as u32);
        assert_eq!(mul24_hi_u32(a, b), ((a24 * b24) >> 16) as u32);
        let signed24 = wide(x << 8 >> 8, y << 8 >> 8);
        assert_eq!(mul24_lo_s32(x, y), signed24 as i32);
        assert_eq!(mul24_hi_s32(x, y), (signed24 >> 16) as i32);
        assert_eq!(
            mad_hi_sat_s32(x, y, z),
            ((wide(x, y) >> 32) + i128::from(z)).clamp(-(1 << 31), (1 << 31) - 1) as i32
        );
        assert_eq!(mad_hi_s32(x, y, z), ((wide(x, y) >> 32) + i128::from(z)) as i32);
        assert_eq!(mad_hi_u32(a, b, c), (((u64::from(a) * u64::from(b)) >> 32) + u64::from(c)) as u32);
        assert_eq!(mad_wide_s32(x, y, s as i64), (wide(x, y) as i64).wrapping_add(s as i64));
        assert_eq!(mad_wide_u32(a, b, s), (u64::from(a) * u64::from(b)).wrapping_add(s));
        assert_eq!(mad_hi_u64(r, s, 3), mul_hi_u64(r, s).wrapping_add(3));
        assert_eq!(mad_hi_s64(r as i64, s as i64, -3), mul_hi_s64(r as i64, s as i64).wrapping_sub(3));
        assert_eq!(sad_u32(a, b, c), c.wrapping_add((i64::from(a) - i64::from(b)).unsigned_abs() as u32));
        assert_eq!(sad_s32(x, y, z), z.wrapping_add((i64::from(x) - i64::from(y)).unsigned_abs() as i32));
        assert_eq!(
            sad_s16(a as i16, b as i16, 1),
            1i16.wrapping_add((i32::from(a as i16) - i32::from(b as i16)).unsigned_abs() as i16)
        );
        let dp = |signed_a: bool, signed_b: bool| {
            (0..4).fold(i128::from(z), |sum, i| {
                let byte = |v: u32, signed: bool| {
                    let v = (v >> (8 * i)) as u8;
                    if signed { i128::from(v as i8) } else { i128::from(v) }
                };
                sum + byte(a, signed_a) * byte(b, signed_b)
            }) as u32
        };
        for (p, q) in [(false, false), (false, true), (true, false), (true, true)] {
            assert_eq!(dp4a(a, b, c, p, q), dp(p, q));
        }
        assert_eq!(
            dp2a(a, b, c, true, false, false),
            c.wrapping_add((a & 0xffff) * (b >> 16 & 0xff)).wrapping_add((a >> 16) * (b >> 24))
        );
        let low = (x << 16 >> 16) * i32::from(b as i8) + (x >> 16) * i32::from((b >> 8) as i8);
        assert_eq!(dp2a(a, b, c, false, true, true), z.wrapping_add(low) as u32);
        // A 128-bit sum and difference from 32-bit and 64-bit pieces.
        let (low, carry) = add_carry64(r, s, false);
        let (high, _) = add_carry64(s, r, carry);
        let (p, q) = (u128::from(s) << 64 | u128::from(r), u128::from(r) << 64 | u128::from(s));
        assert_eq!(u128::from(high) << 64 | u128::from(low), p.wrapping_add(q));
        let (low, borrow) = sub_borrow64(r, s, false);
        let (high, _) = sub_borrow64(s, r, borrow);
        assert_eq!(u128::from(high) << 64 | u128::from(low), p.wrapping_sub(q));
        let (low, carry) = add_carry32(a, c, false);
        let (high, _) = add_carry32(b, z as u32, carry);
        assert_eq!(u64::from(high) << 32 | u64::from(low), r.wrapping_add(u64::from(c) << 32 | u64::from(c)));
        let (low, borrow) = sub_borrow32(a, c, false);
        let (high, _) = sub_borrow32(b, c, borrow);
        assert_eq!(u64::from(high) << 32 | u64::from(low), r.wrapping_sub(u64::from(c) << 32 | u64::from(c)));
    }
}

#[test]
fn division_by_zero_and_overflow_are_what_hardware_gives() {
    assert_eq!((div_u32(7, 0), rem_u32(7, 0)), (u32::MAX, u32::MAX));
    assert_eq!((div_s32(7, 0), rem_s32(-7, 0)), (-1, -1));
    assert_eq!((div_s32(i32::MIN, -1), rem_s32(i32::MIN, -1)), (i32::MIN, 0));
    assert_eq!((div_s64(i64::MIN, -1), rem_s64(i64::MIN, -1)), (i64::MIN, 0));
    assert_eq!((div_u64(1, 0), rem_u64(1, 0)), (u64::MAX, u64::MAX));
    assert_eq!((div_s32(-7, 2), rem_s32(-7, 2)), (-3, -1));
    assert_eq!((div_u16(9, 4), rem_u16(9, 4), div_s16(i16::MIN, -1), rem_s16(-9, 4)), (2, 1, i16::MIN, -1));
}
