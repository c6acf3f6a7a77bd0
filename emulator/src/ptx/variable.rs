//! Declarations of variables and parameters, and initialisers.

use super::ast::{Operand, Scalar, Space, Variable};
use super::lexer::Kind;
use super::literal::{literal, negated};
use super::parser::{Parser, Result};

/// Most dimensions of an array.
const DIMENSIONS: usize = 8;
/// Largest alignment accepted.
const ALIGN: u32 = 1 << 16;
/// Largest variable with an initialiser: its bytes are held in memory.
const INITIALISED: u64 = 256 << 20;

/// `.extern` and its kin, as far as they matter here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Linkage {
    pub external: bool,
    /// `.common`.
    pub tentative: bool,
}

fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "const" => Space::Const,
        "shared" => Space::Shared,
        "local" => Space::Local,
        "param" => Space::Param,
        _ => return None,
    })
}

/// What an initialiser has produced so far.
#[derive(Default)]
struct Initial {
    bytes: Vec<u8>,
    relocations: Vec<(usize, String, i64)>,
    /// A run of `0xFF(sym), 0xFF00(sym), …`, the bytes of one address: where it began, of what, how many came.
    masked: Option<(usize, String, i64, u32)>,
}

/// An initialiser's value.
enum Value {
    Literal(Operand),
    Address(String, i64),
    /// One byte of an address, by its number.
    AddressByte(u32, String, i64),
}

impl<'a> Parser<'a> {
    /// The declarations of one statement, through its semicolon.
    pub fn variables(&mut self, linkage: Linkage) -> Result<Vec<(&'a str, Variable)>> {
        let prototype = self.declarator_type(linkage)?;
        let mut variables = Vec::new();
        loop {
            let mut variable = prototype.clone();
            let name = self.declarator(&mut variable)?;
            variables.push((name, variable));
            if !self.eat(b',') {
                self.expect(b';')?;
                return Ok(variables);
            }
        }
    }

    /// A parameter, through its name and dimensions.
    pub fn parameter(&mut self) -> Result<(&'a str, Variable)> {
        if self.peek().text == ".reg" {
            return Err(self.fail("`.reg` parameters (the ABI of old toolkits) are not supported"));
        }
        if self.peek().text != ".param" {
            return Err(self.unexpected("`.param`"));
        }
        let mut variable = self.declarator_type(Linkage::default())?;
        let name = self.declarator(&mut variable)?;
        if variable.bytes == 0 || !variable.init.is_empty() {
            return Err(self.fail(format!("parameter `{name}` needs a size and no value")));
        }
        Ok((name, variable))
    }

    /// State space, alignment, attributes and type, in any order. `bytes` becomes those of one element.
    fn declarator_type(&mut self, linkage: Linkage) -> Result<Variable> {
        let line = self.peek().line;
        let mut place = None;
        let mut ty = None;
        let mut align = None;
        let mut lanes = 1;
        while let Some(directive) = self.peek().directive() {
            self.bump();
            match directive {
                "align" => align = Some(self.alignment()?),
                "ptr" => self.pointee()?,
                "attribute" => self.attribute()?,
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                _ => match (space(directive), Scalar::named(directive)) {
                    (Some(found), _) if place.is_none() => place = Some(found),
                    (_, Some(found)) if ty.is_none() => ty = Some(found),
                    _ => return Err(self.fail(format!("unknown directive `.{directive}` in a declaration"))),
                },
            }
        }
        let (Some(space), Some(ty)) = (place, ty) else {
            return Err(self.fail("a declaration needs a state space and a type"));
        };
        if ty == Scalar::Pred {
            return Err(self.fail("predicates live in registers only"));
        }
        let bytes = ty.bytes() * lanes;
        Ok(Variable {
            name: String::new(),
            space,
            ty,
            align: align.unwrap_or(bytes),
            bytes: u64::from(bytes),
            init: Vec::new(),
            relocations: Vec::new(),
            external: linkage.external,
            line,
        })
    }

    fn alignment(&mut self) -> Result<u32> {
        let align: u32 = self.integer("an alignment")?;
        if !align.is_power_of_two() || align > ALIGN {
            return Err(self.fail(format!("alignment {align} is no power of two up to {ALIGN}")));
        }
        Ok(align)
    }

    /// Behind `.ptr`: space and alignment of what a parameter points to, which say nothing of the parameter itself.
    fn pointee(&mut self) -> Result<()> {
        self.eat_directive(|d| space(d).is_some());
        if self.eat_directive(|d| d == "align").is_some() {
            self.alignment()?;
        }
        Ok(())
    }

    /// `.attribute(.managed)`: the stand-in's memory is managed as it is. `.unified` gives unique addresses, likewise.
    pub fn attribute(&mut self) -> Result<()> {
        self.expect(b'(')?;
        loop {
            match self.peek().directive() {
                Some("managed") => {
                    self.bump();
                }
                Some("unified") => {
                    self.bump();
                    self.expect(b'(')?;
                    self.integer::<u64>("a half of a UUID")?;
                    self.expect(b',')?;
                    self.integer::<u64>("a half of a UUID")?;
                    self.expect(b')')?;
                }
                _ => return Err(self.unexpected("`.managed` or `.unified`")),
            }
            if !self.eat(b',') {
                return self.expect(b')');
            }
        }
    }

    /// Name, dimensions and initialiser.
    fn declarator(&mut self, variable: &mut Variable) -> Result<&'a str> {
        let name = self.name("a variable's name")?;
        variable.name = name.to_owned();
        let mut dimensions: Vec<Option<u64>> = Vec::new();
        while self.eat(b'[') {
            let open = self.peek().is(b']');
            if dimensions.len() == DIMENSIONS || open && !dimensions.is_empty() {
                return Err(
                    self.fail(format!("more than {DIMENSIONS} dimensions, or an inner one without a length"))
                );
            }
            dimensions.push(if open { None } else { Some(self.integer("an array length")?) });
            self.expect(b']')?;
        }
        // Bytes of one element of each dimension, outermost first.
        let mut strides = Vec::with_capacity(dimensions.len() + 1);
        let mut bytes = variable.bytes;
        strides.push(bytes);
        for length in dimensions.iter().skip(1).rev() {
            bytes =
                bytes.checked_mul(length.unwrap_or(0)).ok_or_else(|| self.fail("the array is too large"))?;
            strides.push(bytes);
        }
        strides.reverse();
        let outer = dimensions.first().copied().unwrap_or(Some(1));
        let total = outer.map(|n| bytes.checked_mul(n).ok_or_else(|| self.fail("the array is too large")));
        let total = total.transpose()?;

        let initialised = self.eat(b'=');
        if initialised {
            if !matches!(variable.space, Space::Global | Space::Const) || variable.external {
                return Err(self.fail("only `.global` and `.const` variables take an initial value"));
            }
            if total.is_some_and(|bytes| bytes > INITIALISED) {
                return Err(self.fail(format!("an initialised variable of more than {INITIALISED} bytes")));
            }
            let mut initial = Initial::default();
            if dimensions.is_empty() {
                strides.clear();
            }
            // A vector's lanes are braced like one more dimension.
            let lane = u64::from(variable.ty.bytes());
            if variable.bytes > lane {
                strides.push(lane);
            }
            self.initialiser(variable.ty, &strides, 0, total.unwrap_or(INITIALISED), &mut initial)?;
            self.end_of_masked(&mut initial)?;
            let written = initial.bytes.len() as u64;
            // An open outer dimension ends with the row that holds the last value.
            variable.bytes = total.unwrap_or_else(|| written.next_multiple_of(bytes.max(1)));
            initial.bytes.resize(usize::try_from(variable.bytes).unwrap_or(written as usize), 0);
            variable.init = initial.bytes;
            variable.relocations = initial.relocations;
        } else {
            if total.is_none() && !variable.external {
                return Err(self.fail("an array without a length needs `.extern` or an initial value"));
            }
            variable.bytes = total.unwrap_or(0);
        }
        Ok(name)
    }

    /// `{…}` for each dimension left in `strides`, else one value. `at` and `end` are byte offsets.
    fn initialiser(
        &mut self,
        ty: Scalar,
        strides: &[u64],
        at: u64,
        end: u64,
        out: &mut Initial,
    ) -> Result<()> {
        let Some((&stride, inner)) = strides.split_first() else {
            if at.saturating_add(u64::from(ty.bytes())) > end {
                return Err(self.fail("more initial values than elements"));
            }
            let value = self.initial_value()?;
            return self.write(ty, usize::try_from(at).unwrap_or(usize::MAX), value, out);
        };
        self.expect(b'{')?;
        let mut at = at;
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            if at >= end {
                return Err(self.fail("more initial values than elements"));
            }
            self.initialiser(ty, inner, at, at.saturating_add(stride).min(end), out)?;
            at = at.saturating_add(stride);
            if !self.eat(b',') {
                return self.expect(b'}');
            }
        }
    }

    fn initial_value(&mut self) -> Result<Value> {
        let negative = self.eat(b'-');
        if self.peek().kind == Kind::Number {
            let value = literal(self.peek().text).map_err(|problem| self.fail(problem))?;
            self.bump();
            if negative {
                return Ok(Value::Literal(negated(value)));
            }
            let Operand::Int(mask) = value else {
                return Ok(Value::Literal(value));
            };
            if !self.eat(b'(') {
                return Ok(Value::Literal(value));
            }
            let byte = mask.trailing_zeros() / 8;
            if byte > 7 || mask != 0xff << (8 * byte) {
                return Err(self.fail(format!("mask {mask:#x} selects no single byte")));
            }
            let (name, addend) = self.address_constant()?;
            self.expect(b')')?;
            return Ok(Value::AddressByte(byte, name, addend));
        }
        if negative {
            return Err(self.unexpected("a literal after `-`"));
        }
        self.address_constant().map(|(name, addend)| Value::Address(name, addend))
    }

    /// `sym`, `generic(sym)`, either with `+ n`. The stand-in's addresses are generic ones.
    fn address_constant(&mut self) -> Result<(String, i64)> {
        let mut name = self.name("an initial value")?;
        let mut inner = 0;
        if name == "generic" && self.eat(b'(') {
            name = self.name("a variable's name")?;
            inner = self.offset()?;
            self.expect(b')')?;
        }
        if !self.globals.contains_key(name) {
            return Err(self.fail(format!("`{name}` is not declared")));
        }
        Ok((name.to_owned(), self.offset()?.wrapping_add(inner)))
    }

    fn write(&mut self, ty: Scalar, at: usize, value: Value, out: &mut Initial) -> Result<()> {
        let size = ty.bytes() as usize;
        let bits = match value {
            Value::AddressByte(byte, name, addend) => {
                if size != 1 {
                    return Err(self.fail("a byte of an address needs a one-byte element"));
                }
                match &mut out.masked {
                    Some((start, known, known_addend, count))
                        if *count == byte
                            && *start + byte as usize == at
                            && *known == name
                            && *known_addend == addend =>
                    {
                        *count += 1;
                    }
                    masked @ None if byte == 0 => *masked = Some((at, name, addend, 1)),
                    _ => return Err(self.fail("the bytes of an address must stand together and in order")),
                }
                if let Some((start, name, addend, 8)) = out.masked.take_if(|(.., count)| *count == 8) {
                    out.relocations.push((start, name, addend));
                }
                0
            }
            Value::Address(name, addend) => {
                self.end_of_masked(out)?;
                if size != 8 {
                    return Err(self.fail("an address needs an element of eight bytes"));
                }
                out.relocations.push((at, name, addend));
                0
            }
            Value::Literal(value) => {
                self.end_of_masked(out)?;
                match (value, ty) {
                    (Operand::F32(bits), Scalar::F32) => u64::from(bits),
                    (Operand::F32(bits), Scalar::F64) => f64::from(f32::from_bits(bits)).to_bits(),
                    (Operand::F64(bits), Scalar::F32) => u64::from((f64::from_bits(bits) as f32).to_bits()),
                    (Operand::F64(bits), Scalar::F64) => bits,
                    (Operand::Int(_), Scalar::F32 | Scalar::F64 | Scalar::F16 | Scalar::Bf16) => {
                        return Err(self.fail("an integer literal for a floating-point element"));
                    }
                    (Operand::Int(bits), _) => bits,
                    _ => return Err(self.fail("a floating-point literal for an element of another type")),
                }
            }
        };
        if out.bytes.len() < at {
            out.bytes.resize(at, 0);
        }
        let wide = u128::from(bits).to_le_bytes();
        out.bytes.extend_from_slice(&wide[..size.min(wide.len())]);
        Ok(())
    }

    /// Refuses an address of which some bytes are missing.
    fn end_of_masked(&mut self, out: &mut Initial) -> Result<()> {
        if out.masked.is_some() {
            return Err(self.fail("the eight bytes of an address must all be there"));
        }
        Ok(())
    }
}
