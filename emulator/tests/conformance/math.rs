//! libdevice's functions within the error CUDA documents for them; f16, bf16 and fp8 to the bit.

use cuda_emulator::exec::Launch;
use half::{bf16, f16};

use crate::args;
use crate::device::Random;
use crate::ops::{N, device, outputs};
use crate::report::{Report, assert_same, assert_ulps};

#[link(name = "m")]
unsafe extern "C" {
    safe fn erf(x: f64) -> f64;
}

/// Errors in ulp from the CUDA programming guide's appendix on mathematical functions.
const F32: [(&str, f64); 20] = [
    ("expf", 2.0),
    ("logf", 1.0),
    ("sinf", 2.0),
    ("cosf", 2.0),
    ("powf", 4.0),
    ("erff", 2.0),
    ("tanhf", 2.0),
    ("exp2f", 2.0),
    ("log2f", 1.0),
    ("log1pf", 1.0),
    ("expm1f", 1.0),
    ("rsqrtf", 2.0),
    ("cbrtf", 1.0),
    ("atan2f", 3.0),
    ("sinf of large", 2.0),
    ("fmodf", 0.0),
    ("__expf", 12.0),
    ("__logf", 3.0),
    ("__fdividef", 2.0),
    ("hypotf", 3.0),
];

/// As [`F32`], and one for the host's own error.
const F64: [(&str, f64); 12] = [
    ("exp", 2.0),
    ("log", 2.0),
    ("sin", 3.0),
    ("cos", 3.0),
    ("pow", 3.0),
    ("erf", 3.0),
    ("tanh", 2.0),
    ("rsqrt", 2.0),
    ("cbrt", 2.0),
    ("atan2", 3.0),
    ("fmod", 0.0),
    ("sin of large", 3.0),
];

#[test]
fn libdevice() {
    let mut device = device();
    let mut report = Report::new("libdevice");
    let mut random = Random(21);
    // Within ±8, and positive outside [0.5, 2], where __logf's error is absolute.
    let x = random.vec(N, |r| r.range(-8_000_000, 8_000_001) as f64 / 1e6);
    let y = random.vec(N, |r| {
        if r.next().is_multiple_of(2) {
            r.range(1, 500) as f64 / 1e3
        } else {
            r.range(2100, 50_000) as f64 / 1e3
        }
    });
    let (xs, ys): (Vec<f32>, Vec<f32>) =
        (x.iter().map(|&x| x as f32).collect(), y.iter().map(|&y| y as f32).collect());
    let mut expected = Vec::new();
    for (&single, &positive) in xs.iter().zip(&ys) {
        let (x, y) = (f64::from(single), f64::from(positive));
        expected.extend([
            x.exp(),
            y.ln(),
            x.sin(),
            x.cos(),
            y.powf(x),
            erf(x),
            x.tanh(),
            x.exp2(),
            y.log2(),
            y.ln_1p(),
            x.exp_m1(),
            1.0 / y.sqrt(),
            x.cbrt(),
            x.atan2(y),
            f64::from(single * 100_000.0).sin(),
            f64::from(single % positive),
            x.exp(),
            y.ln(),
            x / y,
            x.hypot(y),
        ]);
    }
    report.run("math32", N, &mut device, |d| {
        let got = outputs::<f32, f32>(d, "math32", &[&xs, &ys], F32.len());
        let got: Vec<f64> = got.into_iter().map(f64::from).collect();
        // Half an ulp for the rounding of the result itself is within what is documented.
        assert_ulps("math32", &got, &expected, 24, &F32);
    });
    let mut expected = Vec::new();
    for (&x, &y) in x.iter().zip(&y) {
        expected.extend([
            x.exp(),
            y.ln(),
            x.sin(),
            x.cos(),
            y.powf(x),
            erf(x),
            x.tanh(),
            1.0 / y.sqrt(),
            cbrt(x),
            x.atan2(y),
            x % y,
            (x * 1e6).sin(),
        ]);
    }
    report.run("math64", N, &mut device, |d| {
        let got = outputs::<f64, f64>(d, "math64", &[&x, &y], F64.len());
        assert_ulps("math64", &got, &expected, 53, &F64);
    });
    report.print();
}

/// The cube root, better than glibc's 4 ulp: a step of Newton's with the residual in twice the precision.
fn cbrt(x: f64) -> f64 {
    let r = x.cbrt();
    let square = r * r;
    let residual = square.mul_add(r, -x) + r.mul_add(r, -square) * r;
    r - residual / (3.0 * square)
}

/// A 16-bit float of the host's.
trait Small {
    fn decode(bits: u16) -> f32;
    /// The nearest, the even one of two. (`half`'s own from_f64 does not see the low 32 bits of its argument.)
    fn encode(value: f64) -> u16;
}

/// a + b with the last bit set if it is not exact, so that rounding it again rounds the exact sum.
fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let of_b = sum - a;
    let error = (a - (sum - of_b)) + (b - of_b);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        sum
    } else if error > 0.0 {
        sum.next_up()
    } else {
        sum.next_down()
    }
}

/// To so many binary digits, of which the last is no smaller than that of 2^`lowest`.
fn rounded(value: f64, digits: i32, lowest: i32) -> f32 {
    if !value.is_finite() {
        return value as f32;
    }
    let exponent = (value.abs().log2().floor().max(f64::from(lowest))) as i32;
    let ulp = 2f64.powi(exponent - digits + 1);
    ((value / ulp).round_ties_even() * ulp) as f32
}

struct Half;
impl Small for Half {
    fn decode(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }
    fn encode(value: f64) -> u16 {
        f16::from_f32(rounded(value, 11, -14)).to_bits()
    }
}

struct Brain;
impl Small for Brain {
    fn decode(bits: u16) -> f32 {
        bf16::from_bits(bits).to_f32()
    }
    fn encode(value: f64) -> u16 {
        bf16::from_f32(rounded(value, 8, -126)).to_bits()
    }
}

/// What `halves` and `bfloats` compute of one element: pairs, low half first.
fn pairs<S: Small>(x: u32, y: u32, z: u32) -> [u32; 12] {
    let parts = |v: u32| [v as u16, (v >> 16) as u16];
    let (x, y, z) = (parts(x), parts(y), parts(z));
    let join = |f: &dyn Fn(usize) -> u16| u32::from(f(0)) | u32::from(f(1)) << 16;
    let value = |h: u16| f64::from(S::decode(h));
    let larger = |i: usize| value(x[i]) > value(y[i]);
    [
        join(&|i| S::encode(sum_to_odd(value(x[i]), value(y[i])))),
        join(&|i| S::encode(sum_to_odd(value(x[i]), -value(y[i])))),
        join(&|i| S::encode(value(x[i]) * value(y[i]))),
        join(&|i| S::encode(sum_to_odd(value(x[i]) * value(y[i]), value(z[i])))),
        join(&|i| if larger(i) { x[i] } else { y[i] }),
        join(&|i| if larger(i) { y[i] } else { x[i] }),
        join(&|i| x[i] ^ 0x8000),
        join(&|i| x[i] & 0x7fff),
        join(&|i| if value(x[i]) < value(y[i]) { 0xffff } else { 0 }),
        join(&|i| if value(x[i]) == value(y[i]) { 0xffff } else { 0 }),
        (S::decode(x[0]) + S::decode(x[1])).to_bits(),
        u32::from(S::encode(f64::from(S::decode(x[0]) * 3.0)))
            | u32::from(S::encode(f64::from(S::decode(y[1]) * 3.0))) << 16,
    ]
}

#[test]
fn small_floats() {
    let mut device = device();
    let mut report = Report::new("f16, bf16, fp8");
    let mut random = Random(22);
    // Moderate numbers, often equal ones, anything finite; zero's two signs compare equal, so no zeros.
    fn draw<S: Small>(r: &mut Random) -> u32 {
        let mut one = || match r.next() % 3 {
            0 => S::encode(r.range(1, 4) as f64),
            1 => S::encode(r.range(1, 4000) as f64 / -64.0),
            _ => Some(r.next() as u16)
                .filter(|&h| S::decode(h).is_finite() && S::decode(h) != 0.0)
                .unwrap_or(0x3c01),
        };
        u32::from(one()) | u32::from(one()) << 16
    }
    let [a, b, c] = std::array::from_fn(|_| random.vec(N, draw::<Half>));
    let expected: Vec<u32> = (0..N).flat_map(|i| pairs::<Half>(a[i], b[i], c[i])).collect();
    report.run("halves", N, &mut device, |d| {
        assert_same("halves", &outputs::<u32, u32>(d, "halves", &[&a, &b, &c], 12), &expected);
    });
    let [a, b, c] = std::array::from_fn(|_| random.vec(N, draw::<Brain>));
    let expected: Vec<u32> = (0..N).flat_map(|i| pairs::<Brain>(a[i], b[i], c[i])).collect();
    report.run("bfloats", N, &mut device, |d| {
        assert_same("bfloats", &outputs::<u32, u32>(d, "bfloats", &[&a, &b, &c], 12), &expected);
    });

    let (e4m3, e5m2) = (Fp8 { mantissa: 3, bias: 7, max: 0x7e }, Fp8 { mantissa: 2, bias: 15, max: 0x7b });
    let decoded: Vec<f32> =
        (0..=255u8).map(|c| e4m3.decode(c)).chain((0..=255u8).map(|c| e5m2.decode(c))).collect();
    let mut input = random.vec(N, |r| r.range(-1 << 20, 1 << 20) as f32 * 2f32.powi(-(r.next() as i32 & 31)));
    // Ties, the largest numbers and what is beyond them.
    input.extend([
        0.0,
        -0.0,
        464.0,
        465.0,
        1e9,
        -1e9,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        61440.0,
        0.001_953_125,
    ]);
    input.extend((0..126u8).map(|c| (e4m3.decode(c) + e4m3.decode(c + 1)) / 2.0));
    input.extend((0..122u8).map(|c| (e5m2.decode(c) + e5m2.decode(c + 1)) / 2.0));
    let codes: Vec<u8> = input.iter().flat_map(|&x| [e4m3.encode(x), e5m2.encode(x)]).collect();
    report.run("fp8", input.len(), &mut device, |d| {
        let (out, source, code) = (d.allocate::<f32>(512), d.upload(&input), d.allocate::<u8>(codes.len()));
        let launch = Launch::linear(input.len().div_ceil(128) as u32, 128);
        d.run("fp8", &launch, args![out, source, code, input.len() as i32]);
        let bits =
            |v: &[f32]| v.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<u32>>();
        assert_same("fp8 to f32", &bits(&d.download(out, 512)), &bits(&decoded));
        assert_same("f32 to fp8", &d.download(code, codes.len()), &codes);
        d.free(&[out, source, code]);
    });
    report.print();
}

/// An 8-bit float, by its definition.
struct Fp8 {
    mantissa: u32,
    bias: i32,
    /// Code of the largest finite number.
    max: u8,
}

impl Fp8 {
    fn decode(&self, code: u8) -> f32 {
        let (low, sign) = (code & 0x7f, if code & 0x80 != 0 { -1.0 } else { 1.0 });
        if low > self.max {
            return if self.mantissa == 2 && low == 0x7c { sign * f32::INFINITY } else { f32::NAN };
        }
        let (exponent, fraction) =
            (i32::from(low >> self.mantissa), f32::from(low & ((1 << self.mantissa) - 1)));
        let fraction = fraction / (1 << self.mantissa) as f32;
        let value = if exponent == 0 {
            fraction * 2f32.powi(1 - self.bias)
        } else {
            (1.0 + fraction) * 2f32.powi(exponent - self.bias)
        };
        sign * value
    }

    /// The nearest finite number's code, the even one of two.
    fn encode(&self, x: f32) -> u8 {
        if x.is_nan() {
            return 0x7f;
        }
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let distance = |c: u8| (f64::from(self.decode(c)) - f64::from(x.abs().min(1e6))).abs();
        let nearest =
            (0..=self.max).min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
        sign | nearest.unwrap()
    }
}
