//! Module scope, and the cursor that the other parts of the parser share.
//!
//! A recursive-descent parser with one token of look-ahead. Everything borrows from the text until it enters the tree.

use std::collections::HashMap;

use super::ast::{Module, Variable};
use super::error::ParseError;
use super::lexer::{Kind, Lexer, Token};
use super::variable::Linkage;

/// Parses the PTX text of one module.
///
/// # Errors
///
/// On the first statement that is not PTX as nvcc emits it, or that names something not declared.
pub fn parse(text: &str) -> std::result::Result<Module, ParseError> {
    let mut parser = Parser::new(text);
    parser.module()?;
    Ok(parser.module)
}

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// What a name at module scope stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Global {
    /// Index in `Module::variables`.
    Variable(usize),
    /// Index in `Module::functions`.
    Function(usize),
}

pub(super) struct Parser<'a> {
    text: &'a str,
    lexer: Lexer<'a>,
    next: Token<'a>,
    /// First token of the statement being read, for errors.
    start: Token<'a>,
    pub module: Module,
    pub globals: HashMap<&'a str, Global>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Parser<'a> {
        let mut lexer = Lexer::new(text);
        let next = lexer.next();
        Parser { text, lexer, next, start: next, module: Module::default(), globals: HashMap::new() }
    }

    // The cursor.

    /// Marks the beginning of a statement.
    pub fn begin(&mut self) {
        self.start = self.next;
    }

    /// The first token of the statement.
    pub fn start(&self) -> Token<'a> {
        self.start
    }

    pub fn peek(&self) -> &Token<'a> {
        &self.next
    }

    pub fn bump(&mut self) -> Token<'a> {
        std::mem::replace(&mut self.next, self.lexer.next())
    }

    pub fn eat(&mut self, punct: u8) -> bool {
        let there = self.next.is(punct);
        if there {
            self.bump();
        }
        there
    }

    pub fn expect(&mut self, punct: u8) -> Result<()> {
        if self.eat(punct) { Ok(()) } else { Err(self.unexpected(&format!("`{}`", char::from(punct)))) }
    }

    /// A directive's name if it is one of those for which `wanted` holds.
    pub fn eat_directive(&mut self, wanted: impl Fn(&str) -> bool) -> Option<&'a str> {
        let directive = self.next.directive().filter(|d| wanted(d))?;
        self.bump();
        Some(directive)
    }

    /// An identifier.
    pub fn name(&mut self, what: &str) -> Result<&'a str> {
        if self.next.kind != Kind::Word || self.next.text.contains('.') {
            return Err(self.unexpected(what));
        }
        Ok(self.bump().text)
    }

    /// An unsigned integer literal that fits.
    pub fn integer<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T> {
        if self.next.kind != Kind::Number {
            return Err(self.unexpected(what));
        }
        let value = match super::literal::literal(self.next.text) {
            Ok(super::ast::Operand::Int(value)) => value,
            Ok(_) => return Err(self.unexpected(what)),
            Err(problem) => return Err(self.fail(problem)),
        };
        let value = T::try_from(value).map_err(|_| self.fail(format!("{what} {value} is out of range")))?;
        self.bump();
        Ok(value)
    }

    /// An error about the current statement.
    #[cold]
    pub fn fail(&self, problem: impl Into<String>) -> ParseError {
        ParseError::at(self.text, self.start.at, self.next.at, self.start.line, problem.into())
    }

    /// An error about an earlier statement.
    #[cold]
    pub fn fail_at(&self, at: usize, line: u32, problem: String) -> ParseError {
        ParseError::at(self.text, at, at, line, problem)
    }

    #[cold]
    pub fn unexpected(&self, wanted: &str) -> ParseError {
        self.fail(format!("expected {wanted}, found {}", self.next.shown()))
    }

    // Module scope.

    fn module(&mut self) -> Result<()> {
        loop {
            self.begin();
            let Some(directive) = self.next.directive() else {
                if self.next.kind == Kind::End {
                    break;
                }
                return Err(self.unexpected("a directive"));
            };
            if self.module.version == (0, 0) && directive != "version" {
                return Err(self.unexpected("`.version` first"));
            }
            match directive {
                "version" => self.version()?,
                "target" => self.target()?,
                "address_size" => {
                    self.bump();
                    if self.integer::<u32>("an address size")? != 64 {
                        return Err(self.fail("only 64-bit addresses are supported"));
                    }
                }
                "file" => self.file()?,
                "section" => self.section()?,
                "pragma" => self.pragma()?,
                _ => self.declaration()?,
            }
        }
        if self.module.target.is_empty() {
            return Err(self.fail("the module has no `.version` and `.target`"));
        }
        Ok(())
    }

    fn version(&mut self) -> Result<()> {
        self.bump();
        let version = self.next.text.split_once('.').and_then(|(major, minor)| {
            let major = major.parse().ok().filter(|&n| n > 0)?;
            Some((major, minor.parse().ok()?))
        });
        self.module.version = version.ok_or_else(|| self.unexpected("a version such as 9.0"))?;
        self.bump();
        Ok(())
    }

    /// `.target sm_90a, debug`: what follows the architecture changes nothing here.
    fn target(&mut self) -> Result<()> {
        self.bump();
        let target = self.name("an architecture such as sm_90a")?;
        if !target.starts_with("sm_") {
            return Err(self.fail(format!("`{target}` is no architecture such as sm_90a")));
        }
        self.module.target = target.to_owned();
        while self.eat(b',') {
            self.name("a target option")?;
        }
        Ok(())
    }

    /// `.file 1 "kernel.cu"`, with time stamp and size in some versions.
    pub fn file(&mut self) -> Result<()> {
        self.bump();
        let index = self.integer("a file number")?;
        if self.next.kind != Kind::Quoted {
            return Err(self.unexpected("a file name in quotes"));
        }
        let name = self.bump().text.to_owned();
        self.module.files.insert(index, name);
        while self.eat(b',') {
            self.integer::<u64>("a time stamp or size")?;
        }
        Ok(())
    }

    /// `.pragma "nounroll";`: advice to ptxas.
    pub fn pragma(&mut self) -> Result<()> {
        self.bump();
        loop {
            if self.next.kind != Kind::Quoted {
                return Err(self.unexpected("a pragma in quotes"));
            }
            self.bump();
            if !self.eat(b',') {
                return self.expect(b';');
            }
        }
    }

    /// `.section .debug_info { … }`: debug information, which the stand-in does not read (`.loc` is enough).
    fn section(&mut self) -> Result<()> {
        self.bump();
        if !self.next.directive().is_some_and(|name| name.starts_with("debug_")) {
            return Err(self.unexpected("a `.debug_` section"));
        }
        self.bump();
        self.expect(b'{')?;
        while !self.eat(b'}') {
            if matches!(self.next.kind, Kind::End | Kind::Bad(_)) || self.next.is(b'{') {
                return Err(self.unexpected("`}` at the end of the section"));
            }
            self.bump();
        }
        Ok(())
    }

    /// A variable or function with its linkage.
    fn declaration(&mut self) -> Result<()> {
        let mut linkage = Linkage::default();
        loop {
            let Some(directive) = self.next.directive() else {
                return Err(self.unexpected("a declaration after its linkage"));
            };
            match directive {
                "visible" | "weak" => {}
                "common" => linkage.tentative = true,
                "extern" => linkage.external = true,
                "entry" | "func" => return self.function(),
                "global" | "const" | "shared" => {
                    for (name, variable) in self.variables(linkage)? {
                        self.declare(name, variable, linkage)?;
                    }
                    return Ok(());
                }
                _ => return Err(self.fail(format!("unknown directive `.{directive}`"))),
            }
            self.bump();
        }
    }

    /// Enters a variable; a definition replaces an external or tentative declaration.
    fn declare(&mut self, name: &'a str, variable: Variable, linkage: Linkage) -> Result<()> {
        match self.globals.get(name) {
            None => {
                self.globals.insert(name, Global::Variable(self.module.variables.len()));
                self.module.variables.push(variable);
            }
            Some(&Global::Variable(index)) => {
                let known = &mut self.module.variables[index];
                if known.space != variable.space {
                    return Err(self.fail(format!("`{name}` was declared in another state space")));
                }
                if known.external {
                    *known = variable;
                } else if !linkage.external && !linkage.tentative {
                    return Err(self.fail(format!("`{name}` is declared twice")));
                }
            }
            Some(Global::Function(_)) => return Err(self.fail(format!("`{name}` is already a function"))),
        }
        Ok(())
    }
}
