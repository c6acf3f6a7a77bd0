//! Headers of kernels and device functions.

use super::ast::{Function, Variable};
use super::body::Body;
use super::lexer::Kind;
use super::parser::{Global, Parser, Result};

impl<'a> Parser<'a> {
    /// From `.entry` or `.func` through the semicolon of a declaration or the brace of a body.
    pub fn function(&mut self) -> Result<()> {
        let line = self.start().line;
        let entry = self.bump().text == ".entry";
        if self.eat_directive(|d| d == "attribute").is_some() {
            self.attribute()?;
        }
        let mut named = Vec::new();
        let returns = if !entry && self.peek().is(b'(') { self.parameters(&mut named)? } else { Vec::new() };
        let name = self.name("a function's name")?;
        let params = if self.peek().is(b'(') { self.parameters(&mut named)? } else { Vec::new() };
        let mut function = Function {
            name: name.to_owned(),
            entry,
            defined: false,
            params,
            returns,
            max_threads: None,
            threads_required: false,
            min_blocks: None,
            cluster: None,
            registers: Vec::new(),
            variables: Vec::new(),
            body: Vec::new(),
            labels: Vec::new(),
            label_names: Vec::new(),
            branch_targets: Default::default(),
            line,
        };
        while self.peek().kind == Kind::Word {
            self.tuning(&mut function)?;
        }
        let index = self.declare_function(name, &function)?;
        if self.eat(b';') {
            if !self.module.functions[index].defined {
                self.module.functions[index] = function;
            }
            return Ok(());
        }
        self.expect(b'{')?;
        if self.module.functions[index].defined {
            return Err(self.fail(format!("`{name}` is defined twice")));
        }
        function.defined = true;
        let function = self.body(Body::new(function, &named))?;
        self.module.functions[index] = function;
        Ok(())
    }

    /// Gives the function its place, so that its own body may call it.
    fn declare_function(&mut self, name: &'a str, function: &Function) -> Result<usize> {
        match self.globals.get(name) {
            None => {
                let index = self.module.functions.len();
                self.globals.insert(name, Global::Function(index));
                let declared = Function { defined: false, ..function.clone() };
                self.module.functions.push(declared);
                Ok(index)
            }
            Some(&Global::Function(index)) => {
                let known = &self.module.functions[index];
                let same = |a: &[Variable], b: &[Variable]| {
                    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bytes == b.bytes)
                };
                if known.entry != function.entry
                    || !same(&known.params, &function.params)
                    || !same(&known.returns, &function.returns)
                {
                    return Err(self.fail(format!("`{name}` was declared with other parameters")));
                }
                Ok(index)
            }
            Some(Global::Variable(_)) => Err(self.fail(format!("`{name}` is already a variable"))),
        }
    }

    fn parameters(&mut self, named: &mut Vec<(&'a str, String)>) -> Result<Vec<Variable>> {
        self.expect(b'(')?;
        let mut variables = Vec::new();
        if self.eat(b')') {
            return Ok(variables);
        }
        loop {
            let (name, variable) = self.parameter()?;
            if name != "_" {
                named.push((name, variable.name.clone()));
            }
            variables.push(variable);
            if !self.eat(b',') {
                self.expect(b')')?;
                return Ok(variables);
            }
        }
    }

    /// One performance directive. Those about ptxas's register allocation mean nothing here, but must be known.
    fn tuning(&mut self, function: &mut Function) -> Result<()> {
        let Some(directive) = self.peek().directive() else {
            return Err(self.unexpected("`{`, `;` or a performance directive"));
        };
        if directive == "pragma" {
            return self.pragma();
        }
        self.bump();
        match directive {
            "maxntid" | "reqntid" => {
                let threads = self.dimensions()?;
                // The stricter one counts, in whichever order they come.
                if directive == "reqntid" || !function.threads_required {
                    function.max_threads = Some(threads);
                }
                function.threads_required |= directive == "reqntid";
            }
            "minnctapersm" => function.min_blocks = Some(self.integer("a number of blocks")?),
            "reqnctapercluster" => function.cluster = Some(self.dimensions()?),
            "maxnreg" | "maxnctapersm" | "maxclusterrank" | "abi_preserve" | "abi_preserve_control" => {
                self.integer::<u32>("a number")?;
            }
            "explicitcluster" | "blocksareclusters" | "noreturn" => {}
            "attribute" => self.attribute()?,
            _ => return Err(self.fail(format!("unknown directive `.{directive}` of a function"))),
        }
        Ok(())
    }

    /// One to three numbers.
    fn dimensions(&mut self) -> Result<[u32; 3]> {
        let mut dimensions = [self.integer("a dimension")?, 1, 1];
        for dimension in &mut dimensions[1..] {
            if !self.eat(b',') {
                break;
            }
            *dimension = self.integer("a dimension")?;
        }
        if dimensions.contains(&0) {
            return Err(self.fail("a dimension of 0"));
        }
        Ok(dimensions)
    }
}
