//! `cvt`, `cvta`, `isspacep`, `mapa`.

use super::super::access::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use super::super::isa::{binary, binary_with, compare, unary, unary_with};
use super::super::op::{Exec, NONE};
use super::{Draft, Lower, Opcode, Operand, Scalar};
use crate::num::small_float as small;
use crate::num::{Rounding, convert as c, float};

const SAT: u32 = 4;
const FTZ: u32 = 8;
const RELU: u32 = 16;
const FINITE: u32 = 32;

#[inline(always)]
fn rounding(aux: u32) -> Rounding {
    match aux & 3 {
        0 => Rounding::Nearest,
        1 => Rounding::Zero,
        2 => Rounding::Down,
        _ => Rounding::Up,
    }
}

fn is_float(ty: Scalar) -> bool {
    matches!(ty, Scalar::F16 | Scalar::Bf16 | Scalar::F32 | Scalar::F64)
}

fn is_signed(ty: Scalar) -> bool {
    matches!(ty, Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64)
}

impl Lower<'_> {
    pub(super) fn convert(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match (op.name(), operands) {
            ("cvt", _) => self.cvt(op, operands),
            ("cvta", [d, a]) => self.cvta(op, d, a),
            ("isspacep", [d, a]) => {
                let run: Exec = match op.part(0) {
                    "shared" | "shared::cta" | "shared::cluster" => compare(|a: u64, _| a >> 56 == 1),
                    "local" => compare(|a: u64, _| a >> 56 == 2),
                    "param" => compare(|a: u64, _| a >> 56 == 3),
                    _ => compare(|a: u64, _| a >> 56 == 0),
                };
                let (d, a) = (self.predicate(d)?, self.source(a, Scalar::U64)?);
                self.push(Draft::new(run).d_pred(d).a(a).b(a).pred(NONE));
                Ok(true)
            }
            // Without distributed shared memory every address is one of the own block.
            ("mapa", [d, a, rank]) => {
                let ty = op.ty()?;
                let (a, rank) = (self.source(a, ty)?, self.source(rank, Scalar::U32)?);
                let d = self.destination(d, ty)?;
                let run: Exec =
                    if ty.bytes() == 8 { super::sync::mapa::<u64> } else { super::sync::mapa::<u32> };
                self.push(Draft::new(run).d(d).a(a).b(rank));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn cvta(&mut self, op: &Opcode<'_>, d: &Operand, a: &Operand) -> Result<bool, String> {
        let to = op.has("to");
        let space =
            op.modifiers().iter().find(|m| !matches!(**m, "to" | "u64" | "u32")).copied().unwrap_or("");
        let window = match space {
            "shared" | "shared::cta" | "shared::cluster" => SHARED_WINDOW,
            "local" => LOCAL_WINDOW,
            "param" => PARAM_WINDOW,
            "global" | "const" => 0,
            other => return Err(format!("unknown state space `{other}`")),
        };
        let ty = op.ty()?;
        let window = self.constant(window, true);
        let (a, d) = (self.source(a, ty)?, self.destination(d, ty)?);
        let run = if ty.bytes() == 4 {
            unary(|a: u32| a)
        } else if to {
            binary(|a: u64, window: u64| a & !window)
        } else {
            binary(|a: u64, window: u64| a | window)
        };
        let draft = Draft::new(run).d(d).a(a);
        self.push(if ty.bytes() == 4 { draft } else { draft.b(window) });
        Ok(true)
    }

    fn cvt(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        if op.has("e4m3x2") || op.has("e5m2x2") || op.has("tf32") || operands.len() == 3 {
            return self.cvt_packed(op, operands);
        }
        let types = op.types();
        let [to, from] = types[..] else { return Err("expected two types".into()) };
        op.only(&["rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "relu", "satfinite"])?;
        let mut aux = match op.rounding() {
            Rounding::Nearest => 0,
            Rounding::Zero => 1,
            Rounding::Down => 2,
            Rounding::Up => 3,
        };
        for (name, bit) in [("sat", SAT), ("ftz", FTZ), ("relu", RELU), ("satfinite", FINITE)] {
            aux |= if op.has(name) { bit } else { 0 };
        }
        let to_integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|r| op.has(r));
        let run = match (is_float(to), is_float(from)) {
            (false, false) => integers(to, from, aux & SAT != 0),
            (false, true) => to_integer(to, from),
            (true, false) => from_integer(to, from),
            (true, true) => floats(to, from, to_integral),
        };
        let run = run.ok_or("this conversion is not known")?;
        // Source registers may be wider than the type; what is above is ignored. Destinations may be, too.
        let a = self.source(&operands[1], if from.bytes() == 8 { Scalar::U64 } else { Scalar::U32 })?;
        let wide_to = to.bytes() == 8;
        if !wide_to && self.is_wide(&operands[0]) {
            let narrow = self.fresh(false);
            self.push(Draft::new(run).d(narrow).a(a).aux(aux));
            let d = self.destination(&operands[0], Scalar::U64)?;
            let extend =
                if is_signed(to) { unary(|x: i32| i64::from(x)) } else { unary(|x: u32| u64::from(x)) };
            self.push(Draft::new(extend).d(d).a(narrow));
            return Ok(true);
        }
        let d = self.destination(&operands[0], to)?;
        self.push(Draft::new(run).d(d).a(a).aux(aux));
        Ok(true)
    }

    /// Conversions of pairs and of FP8: two sources, or one packed one.
    fn cvt_packed(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        let mut aux = match op.rounding() {
            Rounding::Nearest => 0,
            _ => 1,
        };
        for (name, bit) in [("relu", RELU), ("satfinite", FINITE)] {
            aux |= if op.has(name) { bit } else { 0 };
        }
        let named: Vec<&str> = op
            .modifiers()
            .iter()
            .filter(|m| !matches!(**m, "rn" | "rz" | "rna" | "relu" | "satfinite"))
            .copied()
            .collect();
        let run: Exec = match named[..] {
            ["f16x2", "f32"] if aux == 0 => binary(lanes::f16x2_nearest),
            ["f16x2", "f32"] => binary_with(lanes::f16x2),
            ["bf16x2", "f32"] if aux == 0 => binary(lanes::bf16x2_nearest),
            ["bf16x2", "f32"] => binary_with(lanes::bf16x2),
            ["e4m3x2", "f32"] => binary_with(lanes::e4m3x2),
            ["e5m2x2", "f32"] => binary_with(lanes::e5m2x2),
            ["e4m3x2", "f16x2"] => unary_with(lanes::e4m3x2_of_halves),
            ["e5m2x2", "f16x2"] => unary_with(lanes::e5m2x2_of_halves),
            ["f16x2", "e4m3x2"] => unary_with(lanes::halves_of_e4m3x2),
            ["f16x2", "e5m2x2"] => unary_with(lanes::halves_of_e5m2x2),
            ["tf32", "f32"] if op.has("rna") => unary(|a: f32| small::f32_to_tf32_away(a, false)),
            ["tf32", "f32"] => unary_with(|m, a: f32| small::f32_to_tf32(a, rounding(m), m & FINITE != 0)),
            _ => return Ok(false),
        };
        // Every operand has 32 bits or fewer here.
        let mut draft = Draft::new(run).aux(aux).d(self.destination(&operands[0], Scalar::U32)?);
        draft = draft.a(self.source(&operands[1], Scalar::F32)?);
        if let Some(second) = operands.get(2) {
            draft = draft.b(self.source(second, Scalar::F32)?);
        }
        self.push(draft);
        Ok(true)
    }
}

/// Conversions as functions rather than closures: these are inlined into the lane loops however long they are.
mod lanes {
    use super::{FINITE, RELU, Rounding, rounding, small};

    #[inline(always)]
    pub fn f16x2_nearest(a: f32, b: f32) -> u32 {
        small::f32x2_to_f16x2(a, b, Rounding::Nearest, false, false)
    }

    #[inline(always)]
    pub fn f16x2(m: u32, a: f32, b: f32) -> u32 {
        small::f32x2_to_f16x2(a, b, rounding(m), m & RELU != 0, m & FINITE != 0)
    }

    #[inline(always)]
    pub fn bf16x2_nearest(a: f32, b: f32) -> u32 {
        small::f32x2_to_bf16x2(a, b, Rounding::Nearest, false, false)
    }

    #[inline(always)]
    pub fn bf16x2(m: u32, a: f32, b: f32) -> u32 {
        small::f32x2_to_bf16x2(a, b, rounding(m), m & RELU != 0, m & FINITE != 0)
    }

    #[inline(always)]
    pub fn e4m3x2(m: u32, a: f32, b: f32) -> u16 {
        small::f32x2_to_e4m3x2(a, b, m & RELU != 0)
    }

    #[inline(always)]
    pub fn e5m2x2(m: u32, a: f32, b: f32) -> u16 {
        small::f32x2_to_e5m2x2(a, b, m & RELU != 0)
    }

    #[inline(always)]
    pub fn e4m3x2_of_halves(m: u32, a: u32) -> u16 {
        small::f16x2_to_e4m3x2(a, m & RELU != 0)
    }

    #[inline(always)]
    pub fn e5m2x2_of_halves(m: u32, a: u32) -> u16 {
        small::f16x2_to_e5m2x2(a, m & RELU != 0)
    }

    #[inline(always)]
    pub fn halves_of_e4m3x2(m: u32, a: u16) -> u32 {
        small::e4m3x2_to_f16x2(a, m & RELU != 0)
    }

    #[inline(always)]
    pub fn halves_of_e5m2x2(m: u32, a: u16) -> u32 {
        small::e5m2x2_to_f16x2(a, m & RELU != 0)
    }
}

fn integers(to: Scalar, from: Scalar, saturate: bool) -> Option<Exec> {
    macro_rules! of {
        ($from:ty) => {
            match to {
                Scalar::U8 if saturate => Some(unary(|x: $from| i128::from(x).clamp(0, 255) as u8)),
                Scalar::S8 if saturate => Some(unary(|x: $from| i128::from(x).clamp(-128, 127) as i8)),
                Scalar::U16 if saturate => Some(unary(|x: $from| i128::from(x).clamp(0, 65535) as u16)),
                Scalar::S16 if saturate => Some(unary(|x: $from| i128::from(x).clamp(-32768, 32767) as i16)),
                Scalar::U32 if saturate => {
                    Some(unary(|x: $from| i128::from(x).clamp(0, i128::from(u32::MAX)) as u32))
                }
                Scalar::S32 if saturate => Some(unary(|x: $from| {
                    i128::from(x).clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as i32
                })),
                Scalar::U8 | Scalar::B8 => Some(unary(|x: $from| x as u8)),
                Scalar::S8 => Some(unary(|x: $from| x as i8)),
                Scalar::U16 | Scalar::B16 => Some(unary(|x: $from| x as u16)),
                Scalar::S16 => Some(unary(|x: $from| x as i16)),
                Scalar::U32 | Scalar::B32 => Some(unary(|x: $from| x as u32)),
                Scalar::S32 => Some(unary(|x: $from| x as i32)),
                Scalar::U64 | Scalar::B64 => Some(unary(|x: $from| x as u64)),
                Scalar::S64 => Some(unary(|x: $from| x as i64)),
                _ => None,
            }
        };
    }
    match from {
        Scalar::U8 | Scalar::B8 => of!(u8),
        Scalar::S8 => of!(i8),
        Scalar::U16 | Scalar::B16 => of!(u16),
        Scalar::S16 => of!(i16),
        Scalar::U32 | Scalar::B32 => of!(u32),
        Scalar::S32 => of!(i32),
        Scalar::U64 | Scalar::B64 => of!(u64),
        Scalar::S64 => of!(i64),
        _ => None,
    }
}

fn to_integer(to: Scalar, from: Scalar) -> Option<Exec> {
    macro_rules! of {
        ($raw:ty, |$x:ident| $wide:expr, $double:expr) => {
            match to {
                Scalar::U8 => {
                    Some(unary_with(|m, $x: $raw| c::float_to_unsigned($wide, 8, rounding(m), $double) as u8))
                }
                Scalar::S8 => {
                    Some(unary_with(|m, $x: $raw| c::float_to_signed($wide, 8, rounding(m), $double) as i8))
                }
                Scalar::U16 => Some(unary_with(|m, $x: $raw| {
                    c::float_to_unsigned($wide, 16, rounding(m), $double) as u16
                })),
                Scalar::S16 => {
                    Some(unary_with(|m, $x: $raw| c::float_to_signed($wide, 16, rounding(m), $double) as i16))
                }
                Scalar::U32 => Some(unary_with(|m, $x: $raw| {
                    c::float_to_unsigned($wide, 32, rounding(m), $double) as u32
                })),
                Scalar::S32 => {
                    Some(unary_with(|m, $x: $raw| c::float_to_signed($wide, 32, rounding(m), $double) as i32))
                }
                Scalar::U64 => {
                    Some(unary_with(|m, $x: $raw| c::float_to_unsigned($wide, 64, rounding(m), $double)))
                }
                Scalar::S64 => {
                    Some(unary_with(|m, $x: $raw| c::float_to_signed($wide, 64, rounding(m), $double)))
                }
                _ => None,
            }
        };
    }
    match from {
        Scalar::F32 => of!(f32, |x| f64::from(x), false),
        Scalar::F64 => of!(f64, |x| x, true),
        Scalar::F16 => of!(u16, |x| f64::from(small::f16_to_f32(x)), false),
        Scalar::Bf16 => of!(u16, |x| f64::from(small::bf16_to_f32(x)), false),
        _ => None,
    }
}

fn from_integer(to: Scalar, from: Scalar) -> Option<Exec> {
    macro_rules! of {
        ($raw:ty, |$x:ident| $signed:expr) => {
            match to {
                Scalar::F32 => Some(unary_with(|m, $x: $raw| c::i64_to_f32($signed, rounding(m)))),
                Scalar::F64 => Some(unary_with(|m, $x: $raw| c::i64_to_f64($signed, rounding(m)))),
                Scalar::F16 => Some(unary_with(|m, $x: $raw| c::i64_to_f16($signed, rounding(m)))),
                Scalar::Bf16 => Some(unary_with(|m, $x: $raw| c::i64_to_bf16($signed, rounding(m)))),
                _ => None,
            }
        };
    }
    match (to, from) {
        // The two that kernels do in inner loops.
        (Scalar::F32, Scalar::S32) => Some(unary_with(|m, x: i32| c::i32_to_f32(x, rounding(m)))),
        (Scalar::F32, Scalar::U32) => Some(unary_with(|m, x: u32| c::u32_to_f32(x, rounding(m)))),
        (Scalar::F32, Scalar::U64) => Some(unary_with(|m, x: u64| c::u64_to_f32(x, rounding(m)))),
        (Scalar::F64, Scalar::U64) => Some(unary_with(|m, x: u64| c::u64_to_f64(x, rounding(m)))),
        (Scalar::F16, Scalar::U64) => Some(unary_with(|m, x: u64| c::u64_to_f16(x, rounding(m)))),
        (Scalar::Bf16, Scalar::U64) => Some(unary_with(|m, x: u64| c::u64_to_bf16(x, rounding(m)))),
        (_, Scalar::U8) => of!(u8, |x| i64::from(x)),
        (_, Scalar::S8) => of!(i8, |x| i64::from(x)),
        (_, Scalar::U16) => of!(u16, |x| i64::from(x)),
        (_, Scalar::S16) => of!(i16, |x| i64::from(x)),
        (_, Scalar::U32) => of!(u32, |x| i64::from(x)),
        (_, Scalar::S32) => of!(i32, |x| i64::from(x)),
        (_, Scalar::S64) => of!(i64, |x| x),
        _ => None,
    }
}

#[inline(always)]
fn finish(x: f32, m: u32) -> f32 {
    let x = float::flush_if(x, m & FTZ != 0);
    if m & SAT != 0 { float::saturate(x) } else { x }
}

fn floats(to: Scalar, from: Scalar, to_integral: bool) -> Option<Exec> {
    use Scalar::{Bf16, F16, F32, F64};
    Some(match (to, from) {
        (F32, F32) if to_integral => {
            unary_with(|m, x: f32| finish(c::round_f32(float::flush_if(x, m & FTZ != 0), rounding(m)), m))
        }
        (F32, F32) => unary_with(|m, x: f32| finish(x, m)),
        (F64, F64) if to_integral => unary_with(|m, x: f64| c::round_f64(x, rounding(m))),
        (F64, F64) => unary_with(|m, x: f64| if m & SAT != 0 { float::saturate64(x) } else { x }),
        (F64, F32) => unary_with(|m, x: f32| f64::from(float::flush_if(x, m & FTZ != 0))),
        (F32, F64) => unary_with(|m, x: f64| finish(c::f64_to_f32(x, rounding(m)), m)),
        (F32, F16) => unary_with(|m, x: u16| finish(small::f16_to_f32(x), m)),
        (F32, Bf16) => unary_with(|m, x: u16| finish(small::bf16_to_f32(x), m)),
        (F16, F32) => unary_with(|m, x: f32| {
            let h = small::f32_to_f16(finish(x, m), rounding(m), m & FINITE != 0);
            if m & RELU != 0 { small::relu_half(h, 0x7c00) } else { h }
        }),
        (Bf16, F32) => unary_with(|m, x: f32| {
            let h = small::f32_to_bf16(finish(x, m), rounding(m), m & FINITE != 0);
            if m & RELU != 0 { small::relu_half(h, 0x7f80) } else { h }
        }),
        (F16, F64) => unary_with(|m, x: f64| c::f64_to_f16(x, rounding(m))),
        (Bf16, F64) => unary_with(|m, x: f64| c::f64_to_bf16(x, rounding(m))),
        (F64, F16) => unary(|x: u16| f64::from(small::f16_to_f32(x))),
        (F64, Bf16) => unary(|x: u16| f64::from(small::bf16_to_f32(x))),
        (F16, F16) if to_integral => unary_with(|m, x: u16| {
            small::f32_to_f16(c::round_f32(small::f16_to_f32(x), rounding(m)), Rounding::Nearest, false)
        }),
        (Bf16, F16) => unary_with(|m, x: u16| small::f32_to_bf16(small::f16_to_f32(x), rounding(m), false)),
        (F16, Bf16) => unary_with(|m, x: u16| small::f32_to_f16(small::bf16_to_f32(x), rounding(m), false)),
        (F16, F16) | (Bf16, Bf16) => unary(|x: u16| x),
        _ => return None,
    })
}
