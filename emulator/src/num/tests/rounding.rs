use super::super::float::*;
use super::super::{NAN_F32, Rounding};
use super::{EDGES, Random};

const MODES: [Rounding; 3] = [Rounding::Zero, Rounding::Down, Rounding::Up];

/// An exact dyadic number: sign, integer, power of two. Enough for f32 products and nearby sums.
#[derive(Clone, Copy, Debug)]
struct Exact {
    value: i128,
    exponent: i32,
}

fn exact(x: f32) -> Exact {
    let bits = x.to_bits();
    let field = (bits >> 23 & 0xff) as i32;
    let m = i128::from(bits & 0x7f_ffff) | if field > 0 { 1 << 23 } else { 0 };
    Exact { value: if bits >> 31 == 1 { -m } else { m }, exponent: field.max(1) - 150 }
}

/// Sum, unless it takes more than 126 bits.
fn plus(a: Exact, b: Exact) -> Option<Exact> {
    if a.value == 0 {
        return Some(b);
    }
    if b.value == 0 {
        return Some(a);
    }
    let exponent = a.exponent.min(b.exponent);
    let widen = |x: Exact| {
        let shift = (x.exponent - exponent) as u32;
        let room = x.value.unsigned_abs().leading_zeros();
        (shift + 3 < room).then(|| x.value << shift)
    };
    Some(Exact { value: widen(a)? + widen(b)?, exponent })
}

/// Compares an exact value with a finite f32.
fn compare(a: Exact, x: f32) -> Option<std::cmp::Ordering> {
    let x = exact(x);
    Some(plus(a, Exact { value: -x.value, exponent: x.exponent })?.value.cmp(&0))
}

/// Whether `r` is the exact value rounded: no value beyond it, and the next one inwards is beyond.
fn check(value: Exact, r: f32, mode: Rounding, what: std::fmt::Arguments) {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let negative = value.value < 0;
    let down = mode == Rounding::Down || (mode == Rounding::Zero && !negative);
    if r.is_infinite() {
        assert_eq!(r > 0.0, !down, "{what}: {r}");
        assert_ne!(compare(value, if r > 0.0 { f32::MAX } else { f32::MIN }), Some(Equal), "{what}");
        return;
    }
    let Some(order) = compare(value, r) else { return };
    let next = if down { r.next_up() } else { r.next_down() };
    if down {
        assert_ne!(order, Less, "{what}: {r:e} above the exact value");
        assert!(
            order == Equal || next.is_infinite() || compare(value, next).is_none_or(|o| o == Less),
            "{what}: {r:e}"
        );
    } else {
        assert_ne!(order, Greater, "{what}: {r:e} below the exact value");
        assert!(
            order == Equal || next.is_infinite() || compare(value, next).is_none_or(|o| o == Greater),
            "{what}: {r:e}"
        );
    }
}

#[test]
fn directed_sums_products_and_fmas_bracket_the_exact_value() {
    let mut random = Random(6);
    for i in 0..1_000_000usize {
        let near = |r: u64| f32::from_bits((r as u32 & 0x87ff_ffff) | 0x3800_0000);
        let pick = |r: u64| if r >> 60 == 0 { EDGES[(r >> 40) as usize % EDGES.len()] } else { near(r) };
        let raw = [random.next(), random.next(), random.next()];
        let [a, b, c] = if i % 2 == 0 { raw.map(pick) } else { raw.map(|r| f32::from_bits(r as u32)) };
        if !(a.is_finite() && b.is_finite() && c.is_finite()) {
            continue;
        }
        let product =
            Exact { value: exact(a).value * exact(b).value, exponent: exact(a).exponent + exact(b).exponent };
        for mode in MODES {
            if let Some(sum) = plus(exact(a), exact(b)).filter(|s| s.value != 0) {
                check(sum, add(a, b, mode), mode, format_args!("{a:e} + {b:e} {mode:?}"));
                check(sum, sub(a, -b, mode), mode, format_args!("{a:e} − {:e} {mode:?}", -b));
            }
            if product.value != 0 {
                check(product, mul(a, b, mode), mode, format_args!("{a:e} · {b:e} {mode:?}"));
            }
            if let Some(sum) = plus(product, exact(c)).filter(|s| s.value != 0) {
                check(sum, fma(a, b, c, mode), mode, format_args!("{a:e} · {b:e} + {c:e} {mode:?}"));
            }
        }
    }
}

#[test]
fn sums_of_far_apart_values_are_decided_by_the_small_one() {
    assert_eq!(add(1.0, 1e-40, Rounding::Up), 1.0 + f32::EPSILON);
    assert_eq!(add(1.0, -1e-40, Rounding::Zero), 1.0 - f32::EPSILON / 2.0);
    assert_eq!(add(1.0, -1e-40, Rounding::Up), 1.0);
    assert_eq!(add(f32::MAX, f32::MAX, Rounding::Zero), f32::MAX);
    assert_eq!(fma(1e-30, 1e-30, -1.0, Rounding::Zero), -1.0 + f32::EPSILON / 2.0);
    assert_eq!(fma(f32::MAX, f32::MAX, f32::MIN, Rounding::Down), f32::MAX);
}

#[test]
fn zeros_have_the_sign_ieee_gives_them() {
    for (mode, negative) in [(Rounding::Nearest, false), (Rounding::Down, true), (Rounding::Up, false)] {
        assert_eq!(add(1.5, -1.5, mode).to_bits() >> 31 == 1, negative, "{mode:?}");
        assert_eq!(sub(1.5, 1.5, mode).to_bits() >> 31 == 1, negative, "{mode:?}");
        assert_eq!(fma(2.0, 3.0, -6.0, mode).to_bits() >> 31 == 1, negative, "{mode:?}");
        assert_eq!(add(0.0, 0.0, mode).to_bits(), 0);
        assert_eq!(add(-0.0, -0.0, mode).to_bits(), 1 << 31);
    }
}

#[test]
fn directed_division_and_root_bracket_by_multiplying_back() {
    let mut random = Random(7);
    for _ in 0..500_000 {
        let (a, b) = (random.f32(), random.f32());
        if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
            continue;
        }
        let (low, high) = (div(a, b, Rounding::Down), div(a, b, Rounding::Up));
        let nearest = a / b;
        assert!(low <= nearest && nearest <= high, "{a:e}/{b:e}");
        let zero = div(a, b, Rounding::Zero);
        assert_eq!(zero.to_bits(), if (a < 0.0) != (b < 0.0) { high } else { low }.to_bits());
        // 24 × 24 bits are exact in f64, so equality shows when low is exact.
        let is_exact = nearest.is_finite() && f64::from(nearest) * f64::from(b) == f64::from(a);
        assert!(if is_exact { low == high } else { low.next_up() == high }, "{a:e}/{b:e} {low:e} {high:e}");
        let root = a.abs();
        let (low, high) = (sqrt(root, Rounding::Down), sqrt(root, Rounding::Up));
        assert!(f64::from(low) * f64::from(low) <= f64::from(root));
        assert!(f64::from(high) * f64::from(high) >= f64::from(root));
        assert!(low == high || low.next_up() == high);
    }
    assert_eq!(div(1.0, 0.0, Rounding::Zero), f32::INFINITY);
    assert_eq!(rcp(3.0, Rounding::Nearest), 1.0 / 3.0);
    assert_eq!(sqrt(-1.0, Rounding::Up).to_bits(), NAN_F32);
}

#[test]
fn nan_is_canonical_and_flushing_keeps_signs() {
    for mode in [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up] {
        assert_eq!(add(f32::NAN, 1.0, mode).to_bits(), NAN_F32);
        assert_eq!(add(f32::INFINITY, f32::NEG_INFINITY, mode).to_bits(), NAN_F32);
        assert_eq!(mul(0.0, f32::INFINITY, mode).to_bits(), NAN_F32);
        assert_eq!(fma(0.0, f32::INFINITY, 1.0, mode).to_bits(), NAN_F32);
        assert_eq!(add(f32::INFINITY, 1.0, mode), f32::INFINITY);
        assert_eq!(fma(f32::NEG_INFINITY, 1.0, 1.0, mode), f32::NEG_INFINITY);
    }
    assert_eq!(flush(-1.0e-45).to_bits(), 1 << 31);
    assert_eq!(flush(f32::MIN_POSITIVE), f32::MIN_POSITIVE);
    assert_eq!(saturate(f32::NAN).to_bits(), 0);
    assert_eq!(saturate(-0.0).to_bits(), 0);
    assert_eq!(saturate(7.0), 1.0);
    assert_eq!(saturate64(0.25), 0.25);
    assert!(is_subnormal(1e-40) && !is_subnormal(0.0) && !is_subnormal(1.0));
}

#[test]
fn extremes_follow_ptx() {
    for a in EDGES {
        for b in EDGES {
            for propagate in [false, true] {
                let (low, high) = (min(a, b, propagate), max(a, b, propagate));
                if a.is_nan() && b.is_nan() || propagate && (a.is_nan() || b.is_nan()) {
                    assert_eq!((low.to_bits(), high.to_bits()), (NAN_F32, NAN_F32));
                } else if a.is_nan() || b.is_nan() {
                    let number = if a.is_nan() { b } else { a };
                    assert_eq!((low.to_bits(), high.to_bits()), (number.to_bits(), number.to_bits()));
                } else {
                    let sorted = if a.total_cmp(&b).is_lt() { (a, b) } else { (b, a) };
                    assert_eq!((low.to_bits(), high.to_bits()), (sorted.0.to_bits(), sorted.1.to_bits()));
                }
            }
            let (wide_a, wide_b) = (f64::from(a), f64::from(b));
            if !a.is_nan() && !b.is_nan() {
                assert_eq!(min64(wide_a, wide_b).to_bits(), f64::from(min(a, b, false)).to_bits());
                assert_eq!(max64(wide_a, wide_b).to_bits(), f64::from(max(a, b, false)).to_bits());
            }
        }
    }
    assert_eq!(max64(f64::NAN, 2.0), 2.0);
    assert_eq!(min64(2.0, f64::NAN), 2.0);
    assert_eq!(extreme_xorsign_abs(-3.0, 2.0, true, false), -3.0);
    assert_eq!(extreme_xorsign_abs(-3.0, -2.0, false, false), 2.0);
    assert_eq!(copysign(-1.0, 5.0), -5.0);
}
