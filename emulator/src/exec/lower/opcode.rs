//! An opcode taken apart: `ld.global.nc.v4.u32` is a name, modifiers and types.

use crate::num::Rounding;
use crate::ptx::ast::Scalar;

/// An opcode and its modifiers.
pub(super) struct Opcode<'a> {
    pub text: &'a str,
    parts: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    pub fn new(text: &'a str) -> Opcode<'a> {
        Opcode { text, parts: text.split('.').collect() }
    }

    /// The part before the first dot.
    pub fn name(&self) -> &'a str {
        self.parts[0]
    }

    /// Whether a modifier is there.
    pub fn has(&self, modifier: &str) -> bool {
        self.parts[1..].contains(&modifier)
    }

    /// The modifier at a place behind the name.
    pub fn part(&self, at: usize) -> &'a str {
        self.parts.get(at + 1).copied().unwrap_or("")
    }

    /// All modifiers.
    pub fn modifiers(&self) -> &[&'a str] {
        &self.parts[1..]
    }

    /// The types among the modifiers, in order.
    pub fn types(&self) -> Vec<Scalar> {
        self.parts[1..].iter().filter_map(|p| Scalar::named(p)).collect()
    }

    /// The last type.
    pub fn ty(&self) -> Result<Scalar, String> {
        self.types().last().copied().ok_or_else(|| format!("`{}` names no type", self.text))
    }

    /// The rounding modifier of an arithmetic instruction; to nearest without.
    pub fn rounding(&self) -> Rounding {
        let found = self.parts[1..].iter().find_map(|p| match *p {
            "rn" | "rni" => Some(Rounding::Nearest),
            "rz" | "rzi" => Some(Rounding::Zero),
            "rm" | "rmi" => Some(Rounding::Down),
            "rp" | "rpi" => Some(Rounding::Up),
            _ => None,
        });
        found.unwrap_or(Rounding::Nearest)
    }

    /// Elements of a vector access.
    pub fn vector(&self) -> usize {
        if self.has("v8") {
            8
        } else if self.has("v4") {
            4
        } else if self.has("v2") {
            2
        } else {
            1
        }
    }

    /// Refuses every modifier that is not in `known` and is no type.
    pub fn only(&self, known: &[&str]) -> Result<(), String> {
        let unknown = self.parts[1..].iter().find(|p| !known.contains(p) && Scalar::named(p).is_none());
        match unknown {
            None => Ok(()),
            Some(part) => Err(format!("the modifier `.{part}` of `{}` is not supported", self.text)),
        }
    }
}
