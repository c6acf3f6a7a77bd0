//! Small formulas over a shape: `rows * cols * (4 + 2)`. Numbers, names, + − × ÷, parentheses, `ceil( )`.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

/// The value of `text`, given the names in it.
pub fn evaluate(text: &str, names: &BTreeMap<String, f64>) -> Result<f64> {
    let mut parser = Parser { rest: text, names };
    let value = parser.sum()?;
    parser.skip();
    ensure!(parser.rest.is_empty(), "{text:?}: unexpected {:?}", parser.rest);
    Ok(value)
}

struct Parser<'a> {
    rest: &'a str,
    names: &'a BTreeMap<String, f64>,
}

impl<'a> Parser<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, sign: char) -> bool {
        self.skip();
        let rest = self.rest.strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> Result<f64> {
        let mut value = self.product()?;
        loop {
            if self.eat('+') {
                value += self.product()?;
            } else if self.eat('-') {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<f64> {
        let mut value = self.atom()?;
        loop {
            if self.eat('*') {
                value *= self.atom()?;
            } else if self.eat('/') {
                value /= self.atom()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn atom(&mut self) -> Result<f64> {
        if self.eat('(') {
            let value = self.sum()?;
            ensure!(self.eat(')'), "a parenthesis is not closed");
            return Ok(value);
        }
        let word = self.word();
        if word.is_empty() {
            bail!("a number or name is missing before {:?}", self.rest);
        }
        if word == "ceil" {
            ensure!(self.eat('('), "ceil wants parentheses");
            let value = self.sum()?;
            ensure!(self.eat(')'), "a parenthesis is not closed");
            return Ok(value.ceil());
        }
        if let Some(value) = self.names.get(word) {
            return Ok(*value);
        }
        match word.replace('_', "").parse() {
            Ok(value) if word.starts_with(|c: char| c.is_ascii_digit()) => Ok(value),
            _ => bail!("{word:?} is neither a number nor part of the shape"),
        }
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_names_and_rounding() {
        let names = BTreeMap::from([("rows".to_owned(), 3.0), ("cols".to_owned(), 200.0)]);
        let value = |text| evaluate(text, &names);
        assert_eq!(value("rows * cols * (4 + 2) + cols*4").unwrap(), 4400.0);
        assert_eq!(value("10 - 2 - 3").unwrap(), 5.0);
        assert_eq!(value("ceil(cols / 128) * 1_024 / 2").unwrap(), 1024.0);
        assert_eq!(value("0.5*rows").unwrap(), 1.5);
        for wrong in ["", "rows *", "(rows", "depth", "rows cols", "2 ^ 3", "ceil rows", "inf"] {
            assert!(value(wrong).is_err(), "{wrong}");
        }
    }
}
