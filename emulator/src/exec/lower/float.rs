//! Floating-point arithmetic: f32, f64, f16, bf16 and their pairs.

use super::super::isa::{binary, binary_with, ternary, ternary_with, unary, unary_with};
use super::super::op::{Exec, NONE};
use super::{Draft, Lower, Opcode, Operand, Scalar};
use crate::num::halves::{self, Half, pair1, pair2, pair3};
use crate::num::{Rounding, approx, float};

/// Modes that travel in `Op::aux`.
mod mode {
    use super::Rounding;

    pub const FTZ: u32 = 4;
    pub const SAT: u32 = 8;
    pub const NAN: u32 = 16;

    pub fn pack(rounding: Rounding, ftz: bool, sat: bool) -> u32 {
        let r = match rounding {
            Rounding::Nearest => 0,
            Rounding::Zero => 1,
            Rounding::Down => 2,
            Rounding::Up => 3,
        };
        r | if ftz { FTZ } else { 0 } | if sat { SAT } else { 0 }
    }

    #[inline(always)]
    pub fn rounding(aux: u32) -> Rounding {
        match aux & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Zero,
            2 => Rounding::Down,
            _ => Rounding::Up,
        }
    }
}

#[inline(always)]
fn finish(x: f32, aux: u32) -> f32 {
    let x = float::flush_if(x, aux & mode::FTZ != 0);
    if aux & mode::SAT != 0 { float::saturate(x) } else { x }
}

#[inline(always)]
fn finish_half(kind: Half, m: u32, x: u16) -> u16 {
    if m & mode::SAT != 0 { halves::saturate(kind, x) } else { x }
}

#[inline(always)]
fn input(x: f32, aux: u32) -> f32 {
    float::flush_if(x, aux & mode::FTZ != 0)
}

impl Lower<'_> {
    pub(super) fn float(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        let types = op.types();
        let Some(&ty) = types.last() else { return Ok(false) };
        if matches!(op.name(), "cvt" | "setp" | "ld" | "st" | "atom" | "red" | "mma" | "wgmma") {
            return Ok(false);
        }
        if op.name() == "testp" {
            return self.testp(op, operands);
        }
        let found = match ty {
            Scalar::F32 => single(op),
            Scalar::F64 => double(op),
            Scalar::F16 => half::<false>(op, Half::F16),
            Scalar::Bf16 => half::<false>(op, Half::Bf16),
            Scalar::F16x2 => half::<true>(op, Half::F16),
            Scalar::Bf16x2 => half::<true>(op, Half::Bf16),
            _ => None,
        };
        let Some((run, flops)) = found else { return Ok(false) };
        let aux = mode::pack(op.rounding(), op.has("ftz"), op.has("sat"))
            | if op.has("NaN") { mode::NAN } else { 0 };
        let draft = self.operands(Draft::new(run).flops(flops).aux(aux), ty, operands)?;
        self.push(draft);
        Ok(true)
    }

    /// `testp.op.f32 p, a`: a comparison of `a` with itself, so to speak.
    fn testp(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        use super::super::isa::compare;
        let run: Exec = match (op.part(0), op.ty()?) {
            ("finite", Scalar::F32) => compare(|a: f32, _| a.is_finite()),
            ("infinite", Scalar::F32) => compare(|a: f32, _| a.is_infinite()),
            ("number", Scalar::F32) => compare(|a: f32, _| !a.is_nan()),
            ("notanumber", Scalar::F32) => compare(|a: f32, _| a.is_nan()),
            ("normal", Scalar::F32) => compare(|a: f32, _| a.is_normal()),
            ("subnormal", Scalar::F32) => compare(|a: f32, _| float::is_subnormal(a)),
            ("finite", Scalar::F64) => compare(|a: f64, _| a.is_finite()),
            ("infinite", Scalar::F64) => compare(|a: f64, _| a.is_infinite()),
            ("number", Scalar::F64) => compare(|a: f64, _| !a.is_nan()),
            ("notanumber", Scalar::F64) => compare(|a: f64, _| a.is_nan()),
            _ => return Ok(false),
        };
        let (d, a) = (self.predicate(&operands[0])?, self.source(&operands[1], op.ty()?)?);
        self.push(Draft::new(run).d_pred(d).a(a).b(a).pred(NONE));
        Ok(true)
    }
}

/// f32: the operation and its FLOPs a lane.
fn single(op: &Opcode<'_>) -> Option<(Exec, u8)> {
    // To nearest, subnormals kept, no saturation: the host's own arithmetic.
    let plain = op.rounding() == Rounding::Nearest && !op.has("ftz") && !op.has("sat");
    let approximate = op.has("approx");
    let ftz = op.has("ftz");
    let found: Exec = match op.name() {
        "add" if plain => binary(|a: f32, b: f32| float::canonical(a + b)),
        "sub" if plain => binary(|a: f32, b: f32| float::canonical(a - b)),
        "mul" if plain => binary(|a: f32, b: f32| float::canonical(a * b)),
        "fma" | "mad" if plain => ternary(|a: f32, b: f32, c: f32| float::canonical(a.mul_add(b, c))),
        "add" => binary_with(|m, a: f32, b: f32| {
            finish(float::add(input(a, m), input(b, m), mode::rounding(m)), m)
        }),
        "sub" => binary_with(|m, a: f32, b: f32| {
            finish(float::sub(input(a, m), input(b, m), mode::rounding(m)), m)
        }),
        "mul" => binary_with(|m, a: f32, b: f32| {
            finish(float::mul(input(a, m), input(b, m), mode::rounding(m)), m)
        }),
        "fma" | "mad" => ternary_with(|m, a: f32, b: f32, c: f32| {
            finish(float::fma(input(a, m), input(b, m), input(c, m), mode::rounding(m)), m)
        }),
        "div" if op.has("full") && ftz => binary(|a: f32, b: f32| approx::div_full(a, b, true)),
        "div" if op.has("full") => binary(|a: f32, b: f32| approx::div_full(a, b, false)),
        "div" if approximate && ftz => binary(|a: f32, b: f32| approx::div(a, b, true)),
        "div" if approximate => binary(|a: f32, b: f32| approx::div(a, b, false)),
        "div" => binary_with(|m, a: f32, b: f32| {
            finish(float::div(input(a, m), input(b, m), mode::rounding(m)), m)
        }),
        "rcp" if approximate && ftz => unary(|a: f32| approx::rcp(a, true)),
        "rcp" if approximate => unary(|a: f32| approx::rcp(a, false)),
        "rcp" => unary_with(|m, a: f32| finish(float::rcp(input(a, m), mode::rounding(m)), m)),
        "sqrt" if approximate && ftz => unary(|a: f32| approx::sqrt(a, true)),
        "sqrt" if approximate => unary(|a: f32| approx::sqrt(a, false)),
        "sqrt" => unary_with(|m, a: f32| finish(float::sqrt(input(a, m), mode::rounding(m)), m)),
        "rsqrt" if ftz => unary(|a: f32| approx::rsqrt(a, true)),
        "rsqrt" => unary(|a: f32| approx::rsqrt(a, false)),
        "ex2" if ftz => unary(|a: f32| approx::ex2(a, true)),
        "ex2" => unary(|a: f32| approx::ex2(a, false)),
        "lg2" if ftz => unary(|a: f32| approx::lg2(a, true)),
        "lg2" => unary(|a: f32| approx::lg2(a, false)),
        "sin" if ftz => unary(|a: f32| approx::sin(a, true)),
        "sin" => unary(|a: f32| approx::sin(a, false)),
        "cos" if ftz => unary(|a: f32| approx::cos(a, true)),
        "cos" => unary(|a: f32| approx::cos(a, false)),
        "tanh" => unary(|a: f32| approx::tanh(a)),
        "min" if op.has("xorsign") => binary_with(|m, a: f32, b: f32| {
            float::extreme_xorsign_abs(input(a, m), input(b, m), false, m & mode::NAN != 0)
        }),
        "max" if op.has("xorsign") => binary_with(|m, a: f32, b: f32| {
            float::extreme_xorsign_abs(input(a, m), input(b, m), true, m & mode::NAN != 0)
        }),
        "min" => binary_with(|m, a: f32, b: f32| float::min(input(a, m), input(b, m), m & mode::NAN != 0)),
        "max" => binary_with(|m, a: f32, b: f32| float::max(input(a, m), input(b, m), m & mode::NAN != 0)),
        "neg" => unary_with(|m, a: f32| -input(a, m)),
        "abs" => unary_with(|m, a: f32| input(a, m).abs()),
        "copysign" => binary(|a: f32, b: f32| float::copysign(a, b)),
        _ => return None,
    };
    let flops = match op.name() {
        "fma" | "mad" => 2,
        "neg" | "abs" | "copysign" => 0,
        _ => 1,
    };
    Some((found, flops))
}

fn double(op: &Opcode<'_>) -> Option<(Exec, u8)> {
    if op.rounding() != Rounding::Nearest {
        return None;
    }
    let found: Exec = match op.name() {
        "add" => binary(|a: f64, b: f64| a + b),
        "sub" => binary(|a: f64, b: f64| a - b),
        "mul" => binary(|a: f64, b: f64| a * b),
        "fma" | "mad" => ternary(|a: f64, b: f64, c: f64| a.mul_add(b, c)),
        "div" => binary(|a: f64, b: f64| a / b),
        "rcp" if op.has("approx") => unary(|a: f64| approx::rcp64(a)),
        "rcp" => unary(|a: f64| 1.0 / a),
        "sqrt" => unary(|a: f64| a.sqrt()),
        "rsqrt" if op.has("ftz") => unary(|a: f64| approx::rsqrt64(a)),
        // Only with `.ftz` is it the rough one of 20 bits; ptxas refines it otherwise.
        "rsqrt" => unary(|a: f64| 1.0 / a.sqrt()),
        "min" => binary(|a: f64, b: f64| float::min64(a, b)),
        "max" => binary(|a: f64, b: f64| float::max64(a, b)),
        "neg" => unary(|a: f64| -a),
        "abs" => unary(|a: f64| a.abs()),
        "copysign" => binary(|a: f64, b: f64| b.copysign(a)),
        _ => return None,
    };
    Some((found, if matches!(op.name(), "fma" | "mad") { 2 } else { 1 }))
}

/// f16 and bf16, single or in pairs.
fn half<const PAIR: bool>(op: &Opcode<'_>, kind: Half) -> Option<(Exec, u8)> {
    if op.rounding() != Rounding::Nearest {
        return None;
    }
    macro_rules! of {
        ($kind:expr) => {{
            macro_rules! one {
                (|$m:ident, $a:ident| $e:expr) => {
                    if PAIR {
                        unary_with(|$m, x: u32| pair1(x, |$a| $e))
                    } else {
                        unary_with(|$m, $a: u16| $e)
                    }
                };
            }
            macro_rules! two {
                (|$m:ident, $a:ident, $b:ident| $e:expr) => {
                    if PAIR {
                        binary_with(|$m, x: u32, y: u32| pair2(x, y, |$a, $b| $e))
                    } else {
                        binary_with(|$m, $a: u16, $b: u16| $e)
                    }
                };
            }
            let run: Exec = match op.name() {
                "add" => two!(|m, a, b| finish_half($kind, m, halves::add($kind, a, b))),
                "sub" => two!(|m, a, b| finish_half($kind, m, halves::sub($kind, a, b))),
                "mul" => two!(|m, a, b| finish_half($kind, m, halves::mul($kind, a, b))),
                "fma" if op.has("relu") => {
                    if PAIR {
                        ternary(|x: u32, y: u32, z: u32| {
                            pair3(x, y, z, |a, b, c| halves::relu($kind, halves::fma($kind, a, b, c)))
                        })
                    } else {
                        ternary(|a: u16, b: u16, c: u16| halves::relu($kind, halves::fma($kind, a, b, c)))
                    }
                }
                "fma" => {
                    if PAIR {
                        ternary_with(|m, x: u32, y: u32, z: u32| {
                            pair3(x, y, z, |a, b, c| finish_half($kind, m, halves::fma($kind, a, b, c)))
                        })
                    } else {
                        ternary_with(|m, a: u16, b: u16, c: u16| {
                            finish_half($kind, m, halves::fma($kind, a, b, c))
                        })
                    }
                }
                "min" => two!(|m, a, b| halves::min($kind, a, b, m & mode::NAN != 0)),
                "max" => two!(|m, a, b| halves::max($kind, a, b, m & mode::NAN != 0)),
                "neg" => one!(|_m, a| halves::neg(a)),
                "abs" => one!(|_m, a| halves::abs(a)),
                "ex2" => one!(|_m, a| halves::ex2($kind, a)),
                "tanh" => one!(|_m, a| halves::tanh($kind, a)),
                _ => return None,
            };
            run
        }};
    }
    let run = match kind {
        Half::F16 => of!(Half::F16),
        Half::Bf16 => of!(Half::Bf16),
    };
    let a_lane = if PAIR { 2 } else { 1 };
    Some((run, if op.name() == "fma" { 2 * a_lane } else { a_lane }))
}
