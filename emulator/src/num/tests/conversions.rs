use super::super::convert::*;
use super::super::{NAN_F32, Rounding};
use super::{EDGES, Random};

const MODES: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];

#[test]
fn f64_rounds_to_a_neighbouring_f32() {
    let mut random = Random(8);
    for i in 0..1_000_000 {
        let narrow = random.f32();
        let x = match i % 3 {
            0 => f64::from_bits(f64::from(narrow).to_bits() ^ (random.next() & 0x3fff_ffff)),
            1 => f64::from_bits(random.next()),
            _ => f64::from(narrow),
        };
        if x.is_nan() {
            continue;
        }
        let [nearest, zero, down, up] = MODES.map(|mode| f64_to_f32(x, mode));
        assert_eq!(nearest.to_bits(), (x as f32).to_bits());
        assert!(f64::from(down) <= x && x <= f64::from(up), "{x:e}: {down:e} {up:e}");
        assert!(down == up || down.next_up() == up, "{x:e}: {down:e} {up:e}");
        assert_eq!(zero.to_bits(), if x.is_sign_negative() { up } else { down }.to_bits());
        assert_eq!(down.is_sign_negative() || up == 0.0, x.is_sign_negative() || up == 0.0);
    }
    assert_eq!(f64_to_f32(1e-300, Rounding::Up), f32::from_bits(1));
    assert_eq!(f64_to_f32(-1e-300, Rounding::Zero).to_bits(), 1 << 31);
    assert_eq!(f64_to_f32(1e300, Rounding::Down), f32::MAX);
    assert_eq!(f64_to_f32(f64::NAN, Rounding::Down).to_bits(), NAN_F32);
    assert_eq!(f64_to_f16(2_049.000_000_000_1, Rounding::Nearest), 0x6801);
    assert_eq!(f64_to_bf16(257.000_000_000_1, Rounding::Nearest), 0x4381);
}

/// The integer a rounding gives, by comparing with floor and the distance to it.
fn integral(x: f64, mode: Rounding) -> f64 {
    let floor = x.floor();
    let rest = x - floor;
    match mode {
        Rounding::Down => floor,
        Rounding::Up => floor + f64::from(u8::from(rest > 0.0)),
        Rounding::Zero => floor + f64::from(u8::from(rest > 0.0 && x < 0.0)),
        Rounding::Nearest => {
            let up = rest > 0.5 || (rest == 0.5 && floor % 2.0 != 0.0);
            floor + f64::from(u8::from(up))
        }
    }
}

#[test]
fn floats_round_and_clamp_to_integers() {
    let mut random = Random(9);
    let mut inputs: Vec<f64> = EDGES.iter().map(|x| f64::from(*x)).collect();
    for power in [7, 8, 15, 16, 31, 32, 52, 53, 63, 64, 70] {
        for delta in [-1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0] {
            inputs.extend([2f64.powi(power) + delta, -(2f64.powi(power)) - delta]);
        }
    }
    inputs.extend((0..100_000).map(|_| (random.next() as i64 >> (random.next() % 60)) as f64 / 4.0));
    for x in inputs {
        for mode in MODES {
            for bits in [8, 16, 32, 64] {
                let (signed, unsigned) =
                    (float_to_signed(x, bits, mode, false), float_to_unsigned(x, bits, mode, false));
                if x.is_nan() {
                    let wide = bits == 64;
                    assert_eq!(signed, if wide { i64::MIN } else { 0 });
                    assert_eq!(unsigned, if wide { 1 << 63 } else { 0 });
                    assert_eq!(float_to_signed(x, bits, mode, true), i64::MIN >> (64 - bits));
                    assert_eq!(float_to_unsigned(x, bits, mode, true), 1 << (bits - 1));
                    continue;
                }
                let value = if x.is_infinite() { x } else { integral(x, mode) };
                let limit = |x: f64, low: i128, high: i128| (x as i128).clamp(low, high);
                let half = 1i128 << (bits - 1);
                assert_eq!(i128::from(signed), limit(value, -half, half - 1), "{x} s{bits} {mode:?}");
                assert_eq!(i128::from(unsigned), limit(value, 0, 2 * half - 1), "{x} u{bits} {mode:?}");
            }
            let narrow = x as f32;
            assert_eq!(
                i64::from(f32_to_i32(narrow, mode)),
                float_to_signed(narrow.into(), 32, mode, false),
                "{narrow}"
            );
            assert_eq!(
                u64::from(f32_to_u32(narrow, mode)),
                float_to_unsigned(narrow.into(), 32, mode, false),
                "{narrow}"
            );
            if narrow.is_finite() {
                assert_eq!(f64::from(round_f32(narrow, mode)), integral(narrow.into(), mode));
                assert_eq!(round_f32(narrow, mode).is_sign_negative(), narrow.is_sign_negative());
            }
        }
    }
}

#[test]
fn integers_round_to_floats() {
    let mut random = Random(10);
    for i in 0..300_000u64 {
        let raw = random.next() >> (random.next() % 64);
        let x = if i % 4 == 0 { raw & !0xffff_ffff | 1 } else { raw };
        for mode in MODES {
            let negative = (x as i64) < 0;
            let check = |value: i128, float: f64, up: f64, down: f64, what: &str| {
                let float_value = float as i128;
                match mode {
                    Rounding::Nearest => {
                        let distance = (float_value - value).abs();
                        let other = if float_value > value { down } else { up };
                        assert!(distance <= (other as i128 - value).abs(), "{what} {value} {float}");
                    }
                    Rounding::Zero => assert!(float_value.abs() <= value.abs(), "{what} {value} {float}"),
                    Rounding::Down => assert!(float_value <= value, "{what} {value} {float}"),
                    Rounding::Up => assert!(float_value >= value, "{what} {value} {float}"),
                }
                let other = if float_value > value { down } else { up };
                let between = (float_value - value).signum() * (other as i128 - value).signum();
                assert!(float_value == value || between <= 0, "{what} {value} {float}");
            };
            let signed = i64_to_f32(x as i64, mode);
            let (up, down) = (signed.next_up(), signed.next_down());
            check(i128::from(x as i64), signed.into(), up.into(), down.into(), "f32.s64");
            let unsigned = u64_to_f32(x, mode);
            let (up, down) = (unsigned.next_up(), unsigned.next_down());
            check(i128::from(x), unsigned.into(), up.into(), down.into(), "f32.u64");
            let signed = i64_to_f64(x as i64, mode);
            check(i128::from(x as i64), signed, signed.next_up(), signed.next_down(), "f64.s64");
            let unsigned = u64_to_f64(x, mode);
            check(i128::from(x), unsigned, unsigned.next_up(), unsigned.next_down(), "f64.u64");
            assert_eq!(i32_to_f32(x as i32, mode), i64_to_f32(i64::from(x as i32), mode));
            assert_eq!(u32_to_f32(x as u32, mode), u64_to_f32(u64::from(x as u32), mode));
            if mode == Rounding::Nearest {
                assert_eq!(u64_to_f32(x, mode), x as f32);
                assert_eq!(i64_to_f32(x as i64, mode), x as i64 as f32);
                assert!(negative == (i64_to_f32(x as i64, mode) < 0.0));
            }
        }
        let small = (x as i32) >> 8;
        assert_eq!(i64_to_f16(small.into(), Rounding::Nearest), half::f16::from_f32(small as f32).to_bits());
        assert_eq!(
            i64_to_bf16(small.into(), Rounding::Nearest),
            half::bf16::from_f32(small as f32).to_bits()
        );
        assert_eq!(
            u64_to_f16(u64::from(x as u16), Rounding::Nearest),
            half::f16::from_f32(x as u16 as f32).to_bits()
        );
    }
    // A tie in bf16 that only the lowest of 64 bits decides.
    assert_eq!(u64_to_bf16(0x8080_0000_0000_0001, Rounding::Nearest), 0x5f01);
    assert_eq!(u64_to_bf16(0x8080_0000_0000_0000, Rounding::Nearest), 0x5f00);
    assert_eq!(u64_to_f16(65519, Rounding::Nearest), 0x7bff);
    assert_eq!(u64_to_f16(65520, Rounding::Nearest), 0x7c00);
}

#[test]
fn integers_clamp() {
    assert_eq!(clamp_signed(300, 8), 127);
    assert_eq!(clamp_signed(-300, 8), -128);
    assert_eq!(clamp_signed(i64::MIN, 64), i64::MIN);
    assert_eq!(clamp_signed_to_unsigned(-1, 32), 0);
    assert_eq!(clamp_signed_to_unsigned(300, 8), 255);
    assert_eq!(clamp_unsigned(u64::MAX, 16), 0xffff);
    assert_eq!(clamp_unsigned_to_signed(u64::MAX, 64), i64::MAX);
    assert_eq!(clamp_unsigned_to_signed(200, 8), 127);
}
