use super::super::NAN_F32;
use super::super::approx::*;

/// The largest error over every `step`th f32 from `low` up to `high`, relative or absolute.
fn worst(
    low: f32,
    high: f32,
    step: u32,
    absolute: bool,
    f: impl Fn(f32) -> f32,
    exact: impl Fn(f64) -> f64,
) -> f64 {
    let mut worst = 0f64;
    for bits in (low.to_bits()..=high.to_bits()).step_by(step as usize) {
        let x = f32::from_bits(bits);
        let truth = exact(x.into());
        let error = (f64::from(f(x)) - truth).abs();
        worst = worst.max(if absolute { error } else { error / truth.abs() });
    }
    worst
}

fn show(name: &str, error: f64) {
    println!("{name}: 2^{:.2}", error.log2());
}

#[test]
fn exponentials_are_within_the_documented_error() {
    let positive = worst(1e-30, 127.9, 997, false, |x| ex2(x, false), f64::exp2);
    let negative = worst(1e-30, 125.9, 997, false, |x| ex2(-x, false), |x| (-x).exp2());
    show("ex2.approx", positive.max(negative));
    assert!(positive.max(negative) < 2f64.powi(-22));
    let subnormal = worst(126.0, 148.0, 7, true, |x| ex2(-x, false), |x| (-x).exp2());
    assert!(subnormal <= 2f64.powi(-150));
    let small = worst(1e-38, 0.9, 499, false, tanh, f64::tanh);
    let large = worst(0.9, 30.0, 499, false, tanh, f64::tanh);
    show("tanh.approx", small.max(large));
    assert!(small.max(large) < 2f64.powi(-11));
    assert_eq!(tanh(-1e-40), -1e-40);
}

#[test]
fn logarithms_are_within_the_documented_error() {
    let near = worst(0.5, 2.0, 97, true, |x| lg2(x, false), f64::log2);
    let below = worst(1e-45, 0.5, 997, false, |x| lg2(x, false), f64::log2);
    let above = worst(2.0, f32::MAX, 997, false, |x| lg2(x, false), f64::log2);
    show("lg2.approx (absolute in (0.5, 2))", near);
    show("lg2.approx (relative)", below.max(above));
    assert!(near < 2f64.powf(-22.6));
    assert!(below.max(above) < 2f64.powf(-22.6));
}

#[test]
fn reciprocals_and_roots_are_within_the_documented_error() {
    let r = worst(1e-37, 8e37, 997, false, |x| rcp(x, true), |x| 1.0 / x);
    show("rcp.approx", r);
    assert!(r < 2f64.powi(-23));
    let r = worst(1e-45, f32::MAX, 997, false, |x| rsqrt(x, false), |x| 1.0 / x.sqrt());
    show("rsqrt.approx", r);
    assert!(r < 2f64.powf(-22.9));
    let r = worst(1.2e-38, f32::MAX, 997, false, |x| sqrt(x, true), f64::sqrt);
    show("sqrt.approx", r);
    assert!(r < 2f64.powi(-23));
    for x in [1.0, 3.0, 1.7e-3, 4.2e10] {
        assert!((rcp64(x) * x - 1.0).abs() < 2f64.powi(-18));
        assert!((rsqrt64(x) * x.sqrt() - 1.0).abs() < 2f64.powi(-18));
        assert_eq!(rcp64(x).to_bits() as u32, 0);
    }
}

#[test]
fn sines_are_within_the_documented_error() {
    let turn = std::f32::consts::TAU;
    for sign in [1.0f32, -1.0] {
        let s = worst(1e-30, turn, 199, true, |x| sin(sign * x, false), |x| (f64::from(sign) * x).sin());
        let c = worst(1e-30, turn, 199, true, |x| cos(sign * x, false), |x| (f64::from(sign) * x).cos());
        show("sin.approx", s);
        show("cos.approx", c);
        assert!(s.max(c) < 2f64.powf(-20.9));
    }
    let far = worst(turn, 3e7, 499, true, |x| sin(x, false), f64::sin);
    show("sin.approx up to 3e7", far);
    assert!(far < 2f64.powf(-20.9));
    assert!(sin(3e38, false).abs() <= 1.0 && cos(-3e38, false).abs() <= 1.0);
}

#[test]
fn special_values_are_those_of_the_ptx_tables() {
    let (infinity, nan) = (f32::INFINITY, f32::NAN);
    let bits = |x: f32| x.to_bits();
    for (got, want) in [
        (ex2(-infinity, false), 0.0),
        (ex2(infinity, false), infinity),
        (ex2(-0.0, false), 1.0),
        (ex2(0.0, true), 1.0),
        (ex2(1e-40, true), 1.0),
        (ex2(-130.0, true), 0.0),
        (ex2(128.0, false), infinity),
        (ex2(10.0, false), 1024.0),
        (lg2(0.0, false), -infinity),
        (lg2(-0.0, false), -infinity),
        (lg2(1e-40, true), -infinity),
        (lg2(infinity, false), infinity),
        (lg2(1.0, false), 0.0),
        (lg2(8.0, false), 3.0),
        (rcp(0.0, false), infinity),
        (rcp(-0.0, false), -infinity),
        (rcp(-infinity, false), -0.0),
        (rcp(1e-40, true), infinity),
        (rcp(3e38, true), 0.0),
        (rsqrt(0.0, false), infinity),
        (rsqrt(-0.0, false), -infinity),
        (rsqrt(infinity, false), 0.0),
        (sqrt(-0.0, false), -0.0),
        (sqrt(infinity, false), infinity),
        (sin(-0.0, false), -0.0),
        (cos(0.0, false), 1.0),
        (tanh(infinity), 1.0),
        (tanh(-infinity), -1.0),
        (tanh(-0.0), -0.0),
        (div(6.0, 3.0, false), 2.0),
        (div(1.0, 3e38, false), 0.0),
        (div(1.0, infinity, false), 0.0),
        (div_full(3e38, 1.5e38, false), 2.0),
    ] {
        assert_eq!(bits(got), bits(want), "{got} {want}");
    }
    for got in [
        ex2(nan, false),
        lg2(-1.0, false),
        lg2(nan, true),
        rcp(-nan, false),
        rsqrt(-1.0, false),
        sqrt(-1.0, true),
        sin(infinity, false),
        cos(-infinity, false),
        tanh(nan),
        div(infinity, 3e38, false),
        div_full(0.0, 0.0, false),
    ] {
        assert_eq!(bits(got), NAN_F32);
    }
}
