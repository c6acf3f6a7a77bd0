//! Function bodies: scopes, declarations, labels and instructions.
//!
//! nvcc opens a scope for every call and leaves those of inline assembly as written, so a name may recur: registers
//! become numbers, variables get unique names, and a branch means the label of the innermost scope that has one.

use std::collections::{HashMap, HashSet};

use super::ast::{Function, Guard, Instruction, LabelId, Operand, RegId, Scalar, Space};
use super::lexer::Kind;
use super::parser::{Parser, Result};
use super::variable::Linkage;

/// Most registers of one function: a limit for nonsense, not for nvcc.
const REGISTERS: usize = 1 << 20;
/// A label that is still to be resolved.
const UNRESOLVED: LabelId = LabelId::MAX;

/// A name in a scope.
#[derive(Debug, Clone)]
pub(super) enum Local {
    Register(RegId),
    /// A variable, parameter or call prototype, by its unique name.
    Symbol(String),
}

/// A mention of a label, which may come before the label does.
struct Mention<'a> {
    name: &'a str,
    place: Place,
    at: usize,
    line: u32,
}

enum Place {
    /// Operand of an instruction.
    Operand { instruction: usize, operand: usize },
    /// Entry of a `.branchtargets` list.
    Target { list: String, position: usize },
}

#[derive(Default)]
struct Scope<'a> {
    names: HashMap<&'a str, Local>,
    /// `%r<12>`: prefix, first number, how many.
    ranges: HashMap<&'a str, (RegId, u32)>,
    labels: HashMap<&'a str, LabelId>,
    /// `.branchtargets` lists by name: their unique names.
    lists: HashMap<&'a str, String>,
    mentions: Vec<Mention<'a>>,
}

/// A function while its body is being read.
pub(super) struct Body<'a> {
    function: Function,
    scopes: Vec<Scope<'a>>,
    source: Option<(u32, u32)>,
    /// Names of parameters, variables and lists, and how often one had to be made unique.
    taken: HashSet<String>,
    recurrences: HashMap<&'a str, u64>,
}

impl<'a> Body<'a> {
    pub fn new(function: Function, named: &[(&'a str, String)]) -> Body<'a> {
        let names = named.iter().map(|(name, unique)| (*name, Local::Symbol(unique.clone()))).collect();
        Body {
            function,
            scopes: vec![Scope { names, ..Scope::default() }],
            source: None,
            taken: named.iter().map(|(_, unique)| unique.clone()).collect(),
            recurrences: HashMap::new(),
        }
    }

    /// What a name means in the innermost scope that knows it.
    pub fn find(&self, name: &str) -> Option<Local> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &name[prefix.len()..];
        // `%r01` is not `%r1`.
        let number = digits.parse::<u32>().ok().filter(|_| digits.len() == 1 || !digits.starts_with('0'));
        for scope in self.scopes.iter().rev() {
            if let Some(local) = scope.names.get(name) {
                return Some(local.clone());
            }
            if let (Some(number), Some(&(first, count))) = (number, scope.ranges.get(prefix))
                && number < count
            {
                return Some(Local::Register(first + number));
            }
        }
        None
    }

    /// A predicate register by name.
    fn predicate(&self, name: &str) -> Option<RegId> {
        match self.find(name) {
            Some(Local::Register(reg)) if self.function.registers[reg as usize].1 == Scalar::Pred => {
                Some(reg)
            }
            _ => None,
        }
    }

    fn scope(&mut self) -> &mut Scope<'a> {
        // The function's own scope is there until the body has been read.
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }
}

impl<'a> Parser<'a> {
    /// The statements of a body, through its closing brace.
    pub fn body(&mut self, mut body: Body<'a>) -> Result<Function> {
        let header = self.start();
        loop {
            self.begin();
            let token = *self.peek();
            match token.kind {
                Kind::Punct(b'{') => {
                    self.bump();
                    body.scopes.push(Scope::default());
                }
                Kind::Punct(b'}') => {
                    self.bump();
                    if self.close(&mut body)? {
                        return Ok(body.function);
                    }
                }
                Kind::Punct(b';') => {
                    self.bump();
                }
                Kind::Punct(b'@') => {
                    self.bump();
                    let negated = self.eat(b'!');
                    let name = self.name("a predicate")?;
                    let Some(reg) = body.predicate(name) else {
                        return Err(self.fail(format!("`{name}` is no predicate register")));
                    };
                    self.instruction(&mut body, Some(Guard { reg, negated }))?;
                }
                Kind::Word if token.text.starts_with('.') => self.directive(&mut body)?,
                Kind::Word => self.labelled(&mut body)?,
                Kind::End => {
                    let problem = format!("the body of `{}` does not end", body.function.name);
                    return Err(self.fail_at(header.at, header.line, problem));
                }
                _ => return Err(self.unexpected("a statement")),
            }
        }
    }

    /// Ends the innermost scope; true when that was the function's.
    fn close(&mut self, body: &mut Body<'a>) -> Result<bool> {
        let Some(mut scope) = body.scopes.pop() else {
            return Ok(true);
        };
        for mention in std::mem::take(&mut scope.mentions) {
            let label = scope.labels.get(mention.name).copied();
            match (&mention.place, label, scope.lists.get(mention.name)) {
                (Place::Operand { instruction, operand }, Some(label), _) => {
                    body.function.body[*instruction].operands[*operand] = Operand::Label(label);
                }
                (Place::Operand { instruction, operand }, None, Some(list)) => {
                    body.function.body[*instruction].operands[*operand] = Operand::Symbol(list.clone(), 0);
                }
                (Place::Target { list, position }, Some(label), _) => {
                    if let Some(targets) = body.function.branch_targets.get_mut(list) {
                        targets[*position] = label;
                    }
                }
                _ if body.scopes.is_empty() => {
                    let problem = format!("label `{}` is not declared", mention.name);
                    return Err(self.fail_at(mention.at, mention.line, problem));
                }
                _ => body.scope().mentions.push(mention),
            }
        }
        Ok(body.scopes.is_empty())
    }

    fn directive(&mut self, body: &mut Body<'a>) -> Result<()> {
        match self.peek().directive() {
            Some("loc") => self.location(body),
            Some("reg") => self.registers(body),
            Some("shared" | "local" | "param") => {
                for (name, mut variable) in self.variables(Linkage::default())? {
                    if variable.space == Space::Param && variable.bytes == 0 {
                        return Err(self.fail(format!("parameter `{name}` needs a size")));
                    }
                    variable.name = self.unique(body, name);
                    let local = Local::Symbol(variable.name.clone());
                    body.function.variables.push(variable);
                    self.enter(body, name, local)?;
                }
                Ok(())
            }
            Some("pragma") => self.pragma(),
            Some("file") => self.file(),
            Some(directive) => Err(self.fail(format!("unknown directive `.{directive}` in a function"))),
            None => Err(self.unexpected("a directive")),
        }
    }

    /// `.loc 1 17 9, function_name $L__info_string0, inlined_at 1 30 5`: the first position is the innermost.
    fn location(&mut self, body: &mut Body<'a>) -> Result<()> {
        self.bump();
        let file = self.integer("a file number")?;
        let line = self.integer("a line")?;
        self.integer::<u32>("a column")?;
        while self.eat(b',') {
            match self.name("`function_name` or `inlined_at`")? {
                "function_name" => {
                    // `.debug_str` or a label within it, with an offset.
                    if self.peek().kind != Kind::Word {
                        return Err(self.unexpected("a label"));
                    }
                    self.bump();
                    self.offset()?;
                }
                "inlined_at" => {
                    self.integer::<u32>("a file number")?;
                    self.integer::<u32>("a line")?;
                    self.integer::<u32>("a column")?;
                }
                other => return Err(self.fail(format!("`{other}` in a `.loc`"))),
            }
        }
        // Line 0 is DWARF's way to say that no line is to blame.
        body.source = (line != 0).then_some((file, line));
        Ok(())
    }

    /// `.reg .b32 %r<12>, x;`
    fn registers(&mut self, body: &mut Body<'a>) -> Result<()> {
        self.bump();
        let Some(ty) = self.peek().directive().and_then(Scalar::named) else {
            return Err(self.unexpected("a register type"));
        };
        self.bump();
        loop {
            let name = self.name("a register's name")?;
            let first = body.function.registers.len();
            if self.eat(b'<') {
                let count: u32 = self.integer("a number of registers")?;
                self.expect(b'>')?;
                self.room(first, count)?;
                body.function.registers.extend((0..count).map(|n| (format!("{name}{n}"), ty)));
                // The room was checked: register numbers fit.
                if body.scope().ranges.insert(name, (first as RegId, count)).is_some() {
                    return Err(self.fail(format!("`{name}<…>` is declared twice in its scope")));
                }
            } else {
                self.room(first, 1)?;
                body.function.registers.push((name.to_owned(), ty));
                self.enter(body, name, Local::Register(first as RegId))?;
            }
            if !self.eat(b',') {
                return self.expect(b';');
            }
        }
    }

    fn room(&self, used: usize, count: u32) -> Result<()> {
        if used.saturating_add(count as usize) > REGISTERS {
            return Err(self.fail(format!("more than {REGISTERS} registers")));
        }
        Ok(())
    }

    fn enter(&mut self, body: &mut Body<'a>, name: &'a str, local: Local) -> Result<()> {
        if body.scope().names.insert(name, local).is_some() {
            return Err(self.fail(format!("`{name}` is declared twice in its scope")));
        }
        Ok(())
    }

    /// `name`, or `name$1` and so on if the function or module has that already. Every call of nvcc's has its own
    /// `param0`, so that the next number is remembered, not searched for.
    fn unique(&self, body: &mut Body<'a>, name: &'a str) -> String {
        let mut unique = name.to_owned();
        while self.globals.contains_key(unique.as_str()) || body.taken.contains(&unique) {
            let count = body.recurrences.entry(name).or_default();
            *count += 1;
            unique = format!("{name}${count}");
        }
        body.taken.insert(unique.clone());
        unique
    }

    /// A statement that begins with an identifier: a label, or an instruction.
    fn labelled(&mut self, body: &mut Body<'a>) -> Result<()> {
        let word = self.bump();
        if !self.eat(b':') {
            return self.opcode(body, None, word.text);
        }
        match self.peek().directive() {
            Some("branchtargets") => self.branch_targets(body, word.text),
            Some("callprototype" | "calltargets") => {
                // Only indirect calls use them, which lowering refuses.
                while !self.eat(b';') {
                    if matches!(self.peek().kind, Kind::End | Kind::Bad(_)) {
                        return Err(self.unexpected("`;`"));
                    }
                    self.bump();
                }
                self.enter(body, word.text, Local::Symbol(word.text.to_owned()))
            }
            _ => {
                let label = LabelId::try_from(body.function.labels.len()).unwrap_or(UNRESOLVED);
                body.function.labels.push(body.function.body.len());
                body.function.label_names.push(word.text.to_owned());
                if body.scope().labels.insert(word.text, label).is_some() {
                    return Err(self.fail(format!("label `{}` is declared twice in its scope", word.text)));
                }
                Ok(())
            }
        }
    }

    fn branch_targets(&mut self, body: &mut Body<'a>, name: &'a str) -> Result<()> {
        self.bump();
        let unique = self.unique(body, name);
        let mut count = 0;
        loop {
            let (at, line) = (self.start().at, self.start().line);
            let label = self.name("a label")?;
            let place = Place::Target { list: unique.clone(), position: count };
            body.scope().mentions.push(Mention { name: label, place, at, line });
            count += 1;
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')?;
        body.function.branch_targets.insert(unique.clone(), vec![UNRESOLVED; count]);
        if body.scope().lists.insert(name, unique).is_some() {
            return Err(self.fail(format!("`{name}` is declared twice in its scope")));
        }
        Ok(())
    }

    fn instruction(&mut self, body: &mut Body<'a>, guard: Option<Guard>) -> Result<()> {
        if self.peek().kind != Kind::Word {
            return Err(self.unexpected("an instruction"));
        }
        let word = self.bump();
        self.opcode(body, guard, word.text)
    }

    /// The rest of an instruction, behind the first word of its opcode.
    fn opcode(&mut self, body: &mut Body<'a>, guard: Option<Guard>, word: &'a str) -> Result<()> {
        if !word.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(self.fail(format!("`{word}` is no instruction")));
        }
        let mut opcode = word.to_owned();
        // White space before a modifier is legal.
        while let Some(modifier) = self.eat_directive(|_| true) {
            opcode.push('.');
            opcode.push_str(modifier);
        }
        let label = match opcode.split('.').next() {
            Some("bra") => Some(0),
            Some("brx") => Some(1),
            _ => None,
        };
        let mut operands = Vec::new();
        let mut more = !self.peek().is(b';');
        while more {
            if label == Some(operands.len()) {
                let (at, line) = (self.start().at, self.start().line);
                let name = self.name("a label")?;
                let place = Place::Operand { instruction: body.function.body.len(), operand: operands.len() };
                body.scope().mentions.push(Mention { name, place, at, line });
                operands.push(Operand::Label(UNRESOLVED));
            } else {
                operands.push(self.operand(body)?);
            }
            more = self.eat(b',');
        }
        self.expect(b';')?;
        if label.is_some_and(|position| position >= operands.len()) {
            return Err(self.fail(format!("`{opcode}` without a label")));
        }
        let (line, source) = (self.start().line, body.source);
        body.function.body.push(Instruction { guard, opcode, operands, line, source });
        Ok(())
    }
}
