//! Operands.

use super::ast::{Address, Operand};
use super::body::{Body, Local};
use super::lexer::Kind;
use super::literal::{literal, negated};
use super::parser::{Global, Parser, Result};
use super::special::special;

/// Deepest nesting of brackets in an operand.
const DEPTH: u32 = 4;
/// `WARP_SZ`.
const WARP: u64 = 32;

impl<'a> Parser<'a> {
    /// One operand, with `a|b` for two destinations.
    pub fn operand(&mut self, body: &Body<'a>) -> Result<Operand> {
        let first = self.simple(body, DEPTH)?;
        if !self.eat(b'|') {
            return Ok(first);
        }
        let second = self.simple(body, DEPTH)?;
        Ok(Operand::Pair(Box::new((first, second))))
    }

    fn simple(&mut self, body: &Body<'a>, depth: u32) -> Result<Operand> {
        if depth == 0 {
            return Err(self.fail("brackets are nested too deep"));
        }
        let token = *self.peek();
        match token.kind {
            Kind::Word => {
                self.bump();
                self.named(body, token.text)
            }
            Kind::Number => self.number(),
            Kind::Punct(b'-') => {
                self.bump();
                if self.peek().kind != Kind::Number {
                    return Err(self.unexpected("a literal after `-`"));
                }
                self.number().map(negated)
            }
            Kind::Punct(b'!') => {
                self.bump();
                let name = self.name("a predicate")?;
                match body.find(name) {
                    Some(Local::Register(reg)) => Ok(Operand::NotReg(reg)),
                    _ => Err(self.fail(format!("`{name}` is no register"))),
                }
            }
            Kind::Punct(b'{') => self.sequence(body, depth, b'}').map(Operand::Vector),
            Kind::Punct(b'(') => self.sequence(body, depth, b')').map(Operand::List),
            Kind::Punct(b'[') => self.address(body, depth),
            _ => Err(self.unexpected("an operand")),
        }
    }

    fn number(&mut self) -> Result<Operand> {
        let value = literal(self.peek().text).map_err(|problem| self.fail(problem))?;
        self.bump();
        Ok(value)
    }

    fn named(&mut self, body: &Body<'a>, name: &'a str) -> Result<Operand> {
        if name == "_" {
            return Ok(Operand::Discard);
        }
        match body.find(name) {
            Some(Local::Register(reg)) => return Ok(Operand::Reg(reg)),
            Some(Local::Symbol(unique)) => return Ok(Operand::Symbol(unique, self.offset()?)),
            None => {}
        }
        match self.globals.get(name) {
            Some(Global::Variable(_)) => return Ok(Operand::Symbol(name.to_owned(), self.offset()?)),
            Some(Global::Function(_)) => return Ok(Operand::Function(name.to_owned())),
            None => {}
        }
        if name == "WARP_SZ" {
            return Ok(Operand::Int(WARP));
        }
        match special(name) {
            Some(special) => Ok(Operand::Special(special)),
            None => Err(self.fail(format!("`{name}` is not declared"))),
        }
    }

    /// What stands between a bracket and `end`; an empty list is one, an empty vector is not.
    fn sequence(&mut self, body: &Body<'a>, depth: u32, end: u8) -> Result<Vec<Operand>> {
        self.bump();
        let mut operands = Vec::new();
        if end == b')' && self.eat(end) {
            return Ok(operands);
        }
        loop {
            operands.push(self.simple(body, depth - 1)?);
            if !self.eat(b',') {
                self.expect(end)?;
                return Ok(operands);
            }
        }
    }

    fn address(&mut self, body: &Body<'a>, depth: u32) -> Result<Operand> {
        self.bump();
        let (base, offset) = match self.simple(body, depth - 1)? {
            Operand::Symbol(name, offset) => (Operand::Symbol(name, 0), offset),
            base @ (Operand::Reg(_) | Operand::Int(_)) => (base, self.offset()?),
            _ => return Err(self.fail("an address begins with a register, a variable or an integer")),
        };
        let mut extra = Vec::new();
        while self.eat(b',') {
            extra.push(self.simple(body, depth - 1)?);
        }
        self.expect(b']')?;
        Ok(Operand::Address(Box::new(Address { base, offset, extra })))
    }

    /// `+8`, `-8`, `+-8`, or several of them; 0 if there is none.
    pub fn offset(&mut self) -> Result<i64> {
        let mut offset = 0i64;
        loop {
            let mut negative = false;
            if !self.peek().is(b'+') && !self.peek().is(b'-') {
                return Ok(offset);
            }
            if !self.eat(b'+') {
                self.bump();
                negative = true;
            }
            negative ^= self.eat(b'-');
            let value = self.integer::<u64>("an offset")? as i64;
            offset = if negative { offset.wrapping_sub(value) } else { offset.wrapping_add(value) };
        }
    }
}
