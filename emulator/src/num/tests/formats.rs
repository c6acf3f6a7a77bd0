use super::super::halves::{self, Half};
use super::super::small_float::*;
use super::super::{NAN_FP8, NAN_HALF, Rounding};
use super::{EDGES, Random};

const MODES: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];

#[test]
fn every_half_decodes_as_the_half_crate_says() {
    for code in 0..=u16::MAX {
        let (ours, theirs) = (f16_to_f32(code), half::f16::from_bits(code).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{code:04x}");
        let (ours, theirs) = (bf16_to_f32(code), half::bf16::from_bits(code).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{code:04x}");
    }
}

#[test]
fn every_upper_half_of_f32_rounds_as_the_half_crate_says() {
    let lows = [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff, 0x2000, 0x3000, 0xf000];
    for high in 0..=u16::MAX {
        for low in lows {
            let x = f32::from_bits(u32::from(high) << 16 | low);
            let f16 = if x.is_nan() { NAN_HALF } else { half::f16::from_f32(x).to_bits() };
            assert_eq!(f32_to_f16(x, Rounding::Nearest, false), f16, "{x:e}");
            let bf16 = if x.is_nan() { NAN_HALF } else { half::bf16::from_f32(x).to_bits() };
            assert_eq!(f32_to_bf16(x, Rounding::Nearest, false), bf16, "{x:e}");
        }
    }
}

type Neighbour = Option<(f64, u16)>;

/// The two neighbours of x among a format's finite values and infinities, by search.
fn neighbours(values: &[(f64, u16)], x: f64) -> (Neighbour, Neighbour) {
    let at = values.partition_point(|(v, _)| *v <= x);
    (at.checked_sub(1).map(|i| values[i]), values.get(at).copied())
}

#[test]
fn directed_roundings_of_halves_bracket_the_value() {
    for kind in [Half::F16, Half::Bf16] {
        let mut values: Vec<(f64, u16)> = (0..=u16::MAX)
            .filter(|c| !kind.is_nan(*c) && *c != 0x8000)
            .map(|c| (f64::from(kind.to_f32(c)), c))
            .collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut random = Random(1);
        let draws = (0..400_000).map(|_| random.f32());
        for x in EDGES.into_iter().chain(draws) {
            if x.is_nan() || x == 0.0 {
                continue;
            }
            let (below, above) = neighbours(&values, x.into());
            let below = below.unwrap().1;
            let down = below;
            let up = if f64::from(kind.to_f32(below)) == f64::from(x) { below } else { above.unwrap().1 };
            // A zero result keeps the sign of what was rounded.
            let signed = |c: u16| if c == 0 && x < 0.0 { 0x8000 } else { c };
            assert_eq!(kind.from_f32(x, Rounding::Down), signed(down), "{kind:?} rm {x:e}");
            assert_eq!(kind.from_f32(x, Rounding::Up), signed(up), "{kind:?} rp {x:e}");
            let zero = if x < 0.0 { up } else { down };
            assert_eq!(kind.from_f32(x, Rounding::Zero), signed(zero), "{kind:?} rz {x:e}");
        }
    }
}

#[test]
fn satfinite_leaves_no_infinity() {
    for mode in MODES {
        for x in [f32::INFINITY, 1e30, 65520.0] {
            assert_eq!(f32_to_f16(x, mode, true), 0x7bff);
            assert_eq!(f32_to_f16(-x, mode, true), 0xfbff);
        }
        assert_eq!(f32_to_bf16(f32::NEG_INFINITY, mode, true), 0xff7f);
        assert_eq!(f32_to_f16(f32::NAN, mode, true), NAN_HALF);
        assert_eq!(f32_to_f16(f32::INFINITY, mode, false), 0x7c00);
    }
    assert_eq!(f32_to_e4m3(f32::INFINITY, true), 0x7e);
    assert_eq!(f32_to_e4m3(-1e9, true), 0xfe);
    assert_eq!(f32_to_e4m3(f32::NAN, true), NAN_FP8);
    assert_eq!(f32_to_e4m3(-f32::NAN, true), NAN_FP8);
    assert_eq!(f32_to_e4m3(465.0, false), 0x7f);
    assert_eq!(f32_to_e5m2(f32::INFINITY, true), 0x7b);
    assert_eq!(f32_to_e5m2(f32::INFINITY, false), 0x7c);
    assert_eq!(f32_to_e5m2(-f32::NAN, true), NAN_FP8);
}

#[test]
fn every_fp8_code_decodes_as_the_float8_crate_says() {
    for code in 0..=u8::MAX {
        let theirs = float8::F8E4M3::from_bits(code).to_f32();
        let ours = e4m3_to_f32(code);
        assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{code:02x}");
        let half = f16_to_f32(e4m3_to_f16(code));
        assert!(half.to_bits() == theirs.to_bits() || (half.is_nan() && theirs.is_nan()), "{code:02x}");
        let theirs = float8::F8E5M2::from_bits(code).to_f32();
        let ours = e5m2_to_f32(code);
        assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{code:02x}");
        let half = f16_to_f32(e5m2_to_f16(code));
        assert!(half.to_bits() == theirs.to_bits() || (half.is_nan() && theirs.is_nan()), "{code:02x}");
    }
}

/// The nearest finite code by exhaustive search; ties to the even code, saturating.
fn search(x: f32, decode: impl Fn(u8) -> f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let mut best = (f64::INFINITY, 0u8);
    for code in 0..0x80 {
        let value = f64::from(decode(code));
        if !value.is_finite() {
            continue;
        }
        // Far above every code all distances would be the same f64.
        let distance = (f64::from(x).abs().min(1e6) - value).abs();
        if distance < best.0 || (distance == best.0 && code & 1 == 0) {
            best = (distance, code);
        }
    }
    sign | best.1
}

#[test]
fn fp8_rounding_is_the_nearest_code() {
    let mut inputs: Vec<f32> = EDGES.to_vec();
    for code in 0..0x7e {
        for decode in [e4m3_to_f32, e5m2_to_f32] {
            let middle = (decode(code) + decode(code + 1)) / 2.0;
            if middle.is_finite() {
                let bits = middle.to_bits();
                inputs.extend([bits, bits + 1, bits.saturating_sub(1)].map(f32::from_bits));
            }
        }
    }
    inputs.extend((0..=u16::MAX).map(f16_to_f32));
    let mut random = Random(2);
    inputs.extend((0..20_000).map(|_| f32::from_bits((random.next() as u32 & 0x87ff_ffff) | 0x3800_0000)));
    for x in inputs {
        for x in [x, -x] {
            let (e4m3, e5m2) = if x.is_nan() {
                (NAN_FP8, NAN_FP8)
            } else {
                (search(x, e4m3_to_f32), search(x, e5m2_to_f32))
            };
            assert_eq!(f32_to_e4m3(x, true), e4m3, "{x:e}");
            assert_eq!(f32_to_e5m2(x, true), e5m2, "{x:e}");
        }
    }
}

#[test]
fn every_f16_pair_converts_to_fp8_pairs_in_order() {
    for code in 0..=u16::MAX {
        let other = code.wrapping_mul(31).wrapping_add(7);
        let pair = u32::from(code) << 16 | u32::from(other);
        let fp8 = |h: u16| f32_to_e4m3(f16_to_f32(h), true);
        assert_eq!(f16x2_to_e4m3x2(pair, false), u16::from(fp8(code)) << 8 | u16::from(fp8(other)));
        let relu = |h: u16| if h & 0x8000 != 0 && h & 0x7fff <= 0x7c00 { 0 } else { h };
        let fp8 = |h: u16| f32_to_e5m2(f16_to_f32(relu(h)), true);
        assert_eq!(f16x2_to_e5m2x2(pair, true), u16::from(fp8(code)) << 8 | u16::from(fp8(other)));
        let wide = e4m3x2_to_f16x2(code, false);
        assert_eq!((wide >> 16) as u16, e4m3_to_f16((code >> 8) as u8));
        assert_eq!(wide as u16, e4m3_to_f16(code as u8));
        let wide = e5m2x2_to_f16x2(code, true);
        assert_eq!(wide as u16, halves::relu(Half::F16, e5m2_to_f16(code as u8)));
    }
}

#[test]
fn tf32_ties_go_away_and_low_bits_are_zero() {
    assert_eq!(f32_to_tf32_away(f32::from_bits(0x3f80_1000), false), 0x3f80_2000);
    assert_eq!(f32_to_tf32_away(f32::from_bits(0xbf80_0fff), false), 0xbf80_0000);
    assert_eq!(f32_to_tf32_away(f32::MAX, false), 0x7f80_0000);
    assert_eq!(f32_to_tf32_away(f32::MAX, true), 0x7f7f_e000);
    assert_eq!(f32_to_tf32(f32::from_bits(0x3f80_1000), Rounding::Nearest, false), 0x3f80_0000);
    assert_eq!(f32_to_tf32(f32::from_bits(0x3f80_3000), Rounding::Nearest, false), 0x3f80_4000);
    assert_eq!(f32_to_tf32(f32::MIN, Rounding::Zero, false), 0xff7f_e000);
    assert_eq!(f32_to_tf32(f32::NAN, Rounding::Zero, false), 0x7fff_ffff);
    let mut random = Random(3);
    for _ in 0..100_000 {
        let x = random.f32();
        assert!(x.is_nan() || f32_to_tf32_away(x, false) & 0x1fff == 0);
        assert!(x.is_nan() || f32_to_tf32(x, Rounding::Zero, false) == x.to_bits() & !0x1fff);
    }
}

/// Where the f64 sum is exact it is the oracle; the cases at the end are those where a second rounding would show.
#[test]
fn fused_halves_round_once() {
    let mut random = Random(4);
    for kind in [Half::F16, Half::Bf16] {
        let mut exact_cases = 0;
        for _ in 0..2_000_000 {
            let [a, b, c] = [random.next(), random.next(), random.next()].map(|r| r as u16);
            let (x, y, z) = (kind.to_f32(a), kind.to_f32(b), kind.to_f32(c));
            let product = f64::from(x) * f64::from(y);
            let sum = product + f64::from(z);
            let exact = sum.is_nan() || (sum - product == f64::from(z) && sum - f64::from(z) == product);
            if !exact {
                continue;
            }
            exact_cases += 1;
            assert_eq!(halves::fma(kind, a, b, c), nearest_half(kind, sum), "{kind:?} {x:e}·{y:e}+{z:e}");
        }
        assert!(exact_cases > 50_000, "{exact_cases}");
    }
    // 1 + 2^-11 is a tie; the product 2^-40 decides it, which a rounding to f32 in between loses.
    let tiny = f32_to_f16(2f32.powi(-20), Rounding::Nearest, false);
    let minus = tiny | 0x8000;
    let one = 0x3c01;
    assert_eq!(halves::fma(Half::F16, tiny, tiny, one), 0x3c01);
    let (c, ulp) = (0x6400u16, 0x3800u16); // 1024 and ½: their sum is a tie at 1024.
    assert_eq!(halves::fma(Half::F16, ulp, 0x3c00, c), 0x6400);
    assert_eq!(halves::fma(Half::F16, 0x3801, 0x3c00, c), 0x6401);
    assert_eq!(halves::fma(Half::F16, minus, tiny, 0x0400), 0x0400);
    // bf16: ½ ulp of 1 (2^-8) plus next to nothing.
    let bf = |x: f32| f32_to_bf16(x, Rounding::Nearest, false);
    assert_eq!(halves::fma(Half::Bf16, bf(1.0 + 1.0 / 128.0), bf(2f32.powi(-8)), bf(1.0)), 0x3f81);
    assert_eq!(halves::fma(Half::Bf16, bf(2f32.powi(-60)), bf(2f32.powi(-60)), bf(1.0)), 0x3f80);
}

/// The nearest half of an f64 by comparing with both neighbours of a truncation.
fn nearest_half(kind: Half, x: f64) -> u16 {
    if x.is_nan() {
        return NAN_HALF;
    }
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = x.abs();
    let (mut low, mut high) = (0u16, kind.infinity());
    while high - low > 1 {
        let middle = (low + high) / 2;
        if f64::from(kind.to_f32(middle)) <= magnitude { low = middle } else { high = middle }
    }
    let value = |c: u16| {
        if c == kind.infinity() {
            // What the next binade would begin with.
            2.0 * f64::from(kind.to_f32(c - (1 << (if kind == Half::F16 { 10 } else { 7 }))))
        } else {
            f64::from(kind.to_f32(c))
        }
    };
    let (below, above) = (magnitude - value(low), value(high) - magnitude);
    let up = above < below || (above == below && low & 1 == 1);
    sign | if up { high } else { low }
}

#[test]
fn sums_and_products_of_halves_round_once() {
    let mut random = Random(5);
    for kind in [Half::F16, Half::Bf16] {
        for _ in 0..1_000_000 {
            let [a, b] = [random.next(), random.next()].map(|r| r as u16);
            let (x, y) = (f64::from(kind.to_f32(a)), f64::from(kind.to_f32(b)));
            assert_eq!(halves::mul(kind, a, b), nearest_half(kind, x * y), "{kind:?} {x:e}·{y:e}");
            let sum = x + y;
            if sum.is_nan() || (sum - x == y && sum - y == x) {
                assert_eq!(halves::add(kind, a, b), nearest_half(kind, sum), "{kind:?} {x:e}+{y:e}");
                assert_eq!(halves::sub(kind, a, halves::neg(b)), halves::add(kind, a, b));
            }
        }
    }
}

#[test]
fn half_extremes_follow_ptx() {
    let k = Half::F16;
    assert_eq!(halves::min(k, 0x0000, 0x8000, false), 0x8000);
    assert_eq!(halves::max(k, 0x8000, 0x0000, false), 0x0000);
    assert_eq!(halves::max(k, 0x7e00, 0x3c00, false), 0x3c00);
    assert_eq!(halves::max(k, 0x3c00, 0x7e00, true), NAN_HALF);
    assert_eq!(halves::min(k, 0xfe00, 0x7e00, false), NAN_HALF);
    assert_eq!(halves::saturate(k, 0x4000), 0x3c00);
    assert_eq!(halves::saturate(k, 0xc000), 0);
    assert_eq!(halves::saturate(k, 0x7e00), 0);
    assert_eq!(halves::flush(k, 0x83ff), 0x8000);
    assert_eq!(halves::relu(Half::Bf16, 0x8000), 0);
    assert_eq!(halves::ex2(k, 0x4000), 0x4400);
    assert_eq!(halves::tanh(Half::Bf16, 0xff80), 0xbf80);
    assert_eq!(halves::pair2(0x0001_0002, 0x0003_0005, |a, b| a + b), 0x0004_0007);
}
