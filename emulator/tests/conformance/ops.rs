//! Integer, floating-point and small-float instructions, each against the host's arithmetic.

use cuda_emulator::exec::Launch;

use crate::common;
use crate::device::{Device, Plain, Random};
use crate::report::{Report, assert_same};

/// Elements of a run.
pub const N: usize = 1000;

pub fn device() -> Device {
    Device::new(&common::ptx("ops.cu", &[]))
}

/// Runs a kernel (inputs…, output, n), `per` values an element.
pub fn outputs<T: Plain, U: Plain>(device: &Device, name: &str, inputs: &[&[T]], per: usize) -> Vec<U> {
    let n = inputs[0].len();
    let mut buffers: Vec<u64> = inputs.iter().map(|input| device.upload(input)).collect();
    let out = device.allocate::<U>(n * per);
    buffers.push(out);
    let bytes: Vec<[u8; 8]> = buffers.iter().map(|b| b.to_le_bytes()).collect();
    let count = (n as i32).to_le_bytes();
    let mut arguments: Vec<&[u8]> = bytes.iter().map(|b| &b[..]).collect();
    arguments.push(&count);
    device.run(name, &Launch::linear(n.div_ceil(96) as u32, 96), &arguments);
    let result = device.download(out, n * per);
    device.free(&buffers);
    result
}

macro_rules! integers {
    ($report:ident, $device:ident, $random:ident, $name:literal, $s:ty, $u:ty) => {{
        // Half of the numbers small, so that quotients are not all zero; the corners, too.
        let corners = [0, 1, -1, <$s>::MAX, <$s>::MIN, <$s>::MIN + 1, 7, -8];
        let mut draw = |r: &mut Random| match r.next() % 4 {
            0 => corners[(r.next() % 8) as usize],
            1 => r.range(-100, 100) as $s,
            _ => r.next() as $s,
        };
        let (a, b) = ($random.vec(N, &mut draw), $random.vec(N, &mut draw));
        let mut expected = Vec::new();
        for (&x, &y) in a.iter().zip(&b) {
            let (ux, uy) = (x as $u, y as $u);
            let shift = (uy % <$u>::BITS as $u) as u32;
            expected.extend([
                x.wrapping_add(y),
                x.wrapping_sub(y),
                x.wrapping_mul(y),
                x.checked_div(y).unwrap_or(0),
                x.checked_rem(y).unwrap_or(0),
                ux.checked_div(uy).unwrap_or(0) as $s,
                ux.checked_rem(uy).unwrap_or(0) as $s,
                x & y,
                x | y,
                x ^ y,
                !x,
                x << shift,
                x >> shift,
                (ux >> shift) as $s,
                x.min(y),
                ux.max(uy) as $s,
            ]);
        }
        $report.run($name, N, &mut $device, |d| {
            assert_same($name, &outputs::<$s, $s>(d, $name, &[&a, &b], 16), &expected);
        });
    }};
}

#[test]
fn integers() {
    let mut device = device();
    let mut report = Report::new("integer instructions");
    let mut random = Random(11);
    integers!(report, device, random, "integers8", i8, u8);
    integers!(report, device, random, "integers16", i16, u16);
    integers!(report, device, random, "integers32", i32, u32);
    integers!(report, device, random, "integers64", i64, u64);

    let draw = |r: &mut Random| {
        [0, 1, u32::MAX, 1 << 31, r.next() as u32, r.next() as u32 & 0xff][(r.next() % 6) as usize]
    };
    let (a, b) = (random.vec(N, draw), random.vec(N, draw));
    let expected: Vec<u32> = a.iter().zip(&b).flat_map(|(&x, &y)| bits32(x, y)).collect();
    report.run("bits32", N, &mut device, |d| {
        assert_same("bits32", &outputs::<u32, u32>(d, "bits32", &[&a, &b], 24), &expected);
    });

    let expected: Vec<u32> = a.iter().zip(&b).flat_map(|(&x, &y)| bits_ptx(x, y)).collect();
    report.run("bits_ptx", N, &mut device, |d| {
        assert_same("bits_ptx", &outputs::<u32, u32>(d, "bits_ptx", &[&a, &b], 10), &expected);
    });

    let draw = |r: &mut Random| [0, 1, u64::MAX, 1 << 63, r.next(), r.next() >> 40][(r.next() % 6) as usize];
    let (a, b) = (random.vec(N, draw), random.vec(N, draw));
    let mut expected = Vec::new();
    for (&x, &y) in a.iter().zip(&b) {
        let sum = (u128::from(x) << 64 | u128::from(y)).wrapping_add(u128::from(y) << 64 | u128::from(!x));
        let product = (u128::from(x) * u128::from(y)).wrapping_sub(sum);
        expected.extend([
            u64::from(x.count_ones()),
            x.reverse_bits(),
            u64::from(x.leading_zeros()),
            if x == 0 { 0 } else { u64::from(x.trailing_zeros()) + 1 },
            ((u128::from(x) * u128::from(y)) >> 64) as u64,
            ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64,
            sum as u64,
            (sum >> 64) as u64,
            product as u64,
            (product >> 64) as u64,
        ]);
    }
    report.run("bits64", N, &mut device, |d| {
        assert_same("bits64", &outputs::<u64, u64>(d, "bits64", &[&a, &b], 10), &expected);
    });
    report.print();
}

/// What `bits32` computes of one pair.
fn bits32(x: u32, y: u32) -> [u32; 24] {
    let (sx, sy) = (x as i32, y as i32);
    let permuted = |selector: u32| {
        let source = u64::from(y) << 32 | u64::from(x);
        (0..4).fold(0, |d, i| {
            let byte = (source >> ((selector >> (4 * i) & 7) * 8)) as u8;
            d | u32::from(byte) << (8 * i)
        })
    };
    let pair = u64::from(y) << 32 | u64::from(x);
    let left = |n: u32| (pair << n >> 32) as u32;
    let right = |n: u32| (pair >> n) as u32;
    let bytes = |f: fn(u8, u8) -> u8| {
        let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
        u32::from_le_bytes(std::array::from_fn(|i| f(x[i], y[i])))
    };
    let low24 = |v: u32| i64::from((v << 8) as i32 >> 8);
    let dot = |signed: bool| {
        let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
        let terms = (0..4).map(|i| {
            if signed {
                i32::from(x[i] as i8) * i32::from(y[i] as i8)
            } else {
                i32::from(x[i]) * i32::from(y[i])
            }
        });
        (terms.sum::<i32>() + 5) as u32
    };
    [
        x.count_ones(),
        x.reverse_bits(),
        x.leading_zeros(),
        if x == 0 { 0 } else { x.trailing_zeros() + 1 },
        permuted(0x5140),
        permuted(y),
        left(x & 31),
        right(y & 31),
        left((x & 63).min(32)),
        right((y & 63).min(32)),
        ((i64::from(sx) * i64::from(sy)) >> 32) as u32,
        ((u64::from(x) * u64::from(y)) >> 32) as u32,
        (low24(x) * low24(y)) as u32,
        (u64::from(x & 0xff_ffff) * u64::from(y & 0xff_ffff)) as u32,
        sx.abs_diff(sy).wrapping_add(7),
        x.abs_diff(y).wrapping_add(7),
        ((i64::from(sx) + i64::from(sy)) >> 1) as u32,
        ((u64::from(x) + u64::from(y) + 1) >> 1) as u32,
        bytes(u8::wrapping_add),
        bytes(u8::max),
        dot(true),
        dot(false),
        sx.wrapping_abs() as u32,
        (x & y) | (!x & (y >> 3)) ^ (x << 5),
    ]
}

/// What `bits_ptx` computes of one pair, as the PTX ISA has it.
fn bits_ptx(x: u32, y: u32) -> [u32; 10] {
    let ones = |n: u32| (1u64 << n.min(32)).wrapping_sub(1);
    let mask = |position: u32, length: u32| if position > 31 { 0 } else { (ones(length) << position) as u32 };
    let permuted = (0..4).fold(0u32, |d, i| {
        let selector = x >> (4 * i);
        let byte = ((u64::from(y) << 32 | u64::from(x)) >> ((selector & 7) * 8)) as u8;
        d | u32::from(if selector & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }) << (8 * i)
    });
    let signed = |v: u32, bits: u32| if bits == 0 { 0 } else { (v << (32 - bits)) as i32 >> (32 - bits) };
    // Where the field sticks out of the register, the register's sign fills it.
    let position = y & 0xff;
    let field = ((i64::from(x as i32) >> position.min(32)) as i32) << 25 >> 25;
    [
        mask(x, y),
        mask(x & 31, y & 31),
        x & ones(y) as u32,
        signed(x, y & 31) as u32,
        permuted,
        31u32.wrapping_sub(x.leading_zeros()),
        field as u32,
        y & !(0xfff << 9) | (x & 0xfff) << 9,
        if (x as i32) < y as i32 { u32::MAX } else { 0 },
        if x > y { 1f32.to_bits() } else { 0 },
    ]
}

macro_rules! exact {
    ($f:ty, $a:expr, $b:expr, $c:expr) => {{
        let mut out: Vec<$f> = Vec::new();
        for ((&x, &y), &z) in $a.iter().zip(&$b).zip(&$c) {
            out.extend([
                x + y,
                x - y,
                x * y,
                x / y,
                x.mul_add(y, z),
                x.abs().sqrt(),
                x.min(y),
                x.max(y),
                x.floor(),
                x.ceil(),
                x.trunc(),
                x.round_ties_even(),
                x.copysign(y),
                if x < y { x } else { z },
                x as i64 as $f,
                y.abs() as u32 as $f,
            ]);
        }
        out
    }};
}

#[test]
fn exact_floats() {
    let mut device = device();
    let mut report = Report::new("floating point that IEEE 754 fixes");
    let mut random = Random(12);
    // No NaN (its payload is not fixed) and no zero of the wrong sign: minimum and maximum of ±0 are free.
    let single = |r: &mut Random| {
        let x = f32::from_bits(r.next() as u32);
        if r.next().is_multiple_of(3) || !x.is_finite() { r.range(-4000, 4001) as f32 / 16.0 } else { x }
    };
    let (a, b, c) = (random.vec(N, single), random.vec(N, single), random.vec(N, single));
    let b: Vec<f32> = b.into_iter().map(|y| if y == 0.0 { 1.0 } else { y }).collect();
    let expected = exact!(f32, a, b, c);
    report.run("exact32", N, &mut device, |d| {
        let got = outputs::<f32, f32>(d, "exact32", &[&a, &b, &c], 16);
        assert_same("exact32", &bits_of(&got), &bits_of(&expected));
    });
    let double = |r: &mut Random| {
        let x = f64::from_bits(r.next());
        if r.next().is_multiple_of(3) || !x.is_finite() {
            r.range(-400_000, 400_001) as f64 / 64.0
        } else {
            x
        }
    };
    let (a, b, c) = (random.vec(N, double), random.vec(N, double), random.vec(N, double));
    let b: Vec<f64> = b.into_iter().map(|y| if y == 0.0 { 1.0 } else { y }).collect();
    let expected = exact!(f64, a, b, c);
    report.run("exact64", N, &mut device, |d| {
        let got = outputs::<f64, f64>(d, "exact64", &[&a, &b, &c], 16);
        let bits =
            |v: &[f64]| v.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<u64>>();
        assert_same("exact64", &bits(&got), &bits(&expected));
    });

    let draw = |r: &mut Random| r.range(-1_000_000_000, 1_000_000_000) as f32 / 777.0 + 0.1;
    let (a, b) = (random.vec(N, draw), random.vec(N, draw));
    let mut expected = Vec::new();
    for (&x, &y) in a.iter().zip(&b) {
        let (sum, product) = (f64::from(x) + f64::from(y), f64::from(x) * f64::from(y));
        expected.extend([
            toward(sum, Direction::Zero),
            toward(sum, Direction::Up),
            toward(product, Direction::Down),
            x / y,
            x.round_ties_even() as i32 as f32,
            x.ceil() as i32 as f32,
            toward(product, Direction::Zero),
            toward(f64::from(x.to_bits() as i32), Direction::Zero),
        ]);
    }
    report.run("roundings", N, &mut device, |d| {
        let got = outputs::<f32, f32>(d, "roundings", &[&a, &b], 8);
        assert_same("roundings", &bits_of(&got), &bits_of(&expected));
    });
    report.print();
}

/// Bits, every NaN the same.
fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect()
}

enum Direction {
    Zero,
    Up,
    Down,
}

/// The f32 next to an exact f64 in a direction.
fn toward(exact: f64, direction: Direction) -> f32 {
    let near = exact as f32;
    let (wide, up) = (f64::from(near), near.next_up());
    let down = near.next_down();
    match direction {
        _ if wide == exact => near,
        Direction::Up => {
            if wide > exact {
                near
            } else {
                up
            }
        }
        Direction::Down => {
            if wide < exact {
                near
            } else {
                down
            }
        }
        Direction::Zero if exact > 0.0 => {
            if wide < exact {
                near
            } else {
                down
            }
        }
        Direction::Zero => {
            if wide > exact {
                near
            } else {
                up
            }
        }
    }
}
