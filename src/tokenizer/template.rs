//! Chat templates: a list of messages becomes token ids.
//!
//! The template's own text may contain control tokens, a message must not. Both leave the renderer as one
//! string, so messages are marked before they enter it: behind every character that begins a control token's
//! name stands a private-use character that occurs in no message and in no template. A name can then not begin
//! inside a message, whatever the template does to it (cut, change case, join with other messages). Nor can a
//! name that the template begins be finished by a message: one that starts like the rest of a name is marked in
//! front too. After rendering, names are looked up in the marked string, and the marks are removed from the text
//! between them.
//!
//! A template comes with the download and is not trusted: its work and memory are bounded by fuel.

mod guard;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::machinery;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind};

use super::special::{MAX_CONFIG, read_config};
use super::{Tokenizer, fault, read_capped};
use crate::error::{Error, Result};

/// Kimi-K2's chat format, for its vocabularies that come without a template.
const KIMI: &str = include_str!("kimi.jinja");

/// Fuel of every render: instructions, and 64 bytes of data each. It bounds a template's memory at 6.4 MB…
const FUEL: u64 = 100_000;
/// …and what a message adds: work for each, and its bytes eight times over.
const FUEL_A_MESSAGE: u64 = 1_000;
const MESSAGE_BYTES_A_FUEL: u64 = 8;

/// Largest template. The published ones have up to 50 kB, and a template is compiled for every render.
const MAX_SOURCE: usize = 1 << 18;

/// Values that `tojson` writes at most.
const MAX_NODES: usize = 1_000_000;

/// The name under which the one template is registered; error messages of the renderer show it.
const NAME: &str = "chat";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said. Names of control tokens in it are text.
    pub content: String,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    file: PathBuf,
    source: String,
    syntax: SyntaxConfig,
    environment: Environment<'static>,
    /// `bos_token` and `eos_token` of `tokenizer_config.json`, which templates may print.
    names: BTreeMap<&'static str, String>,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (a
    /// text, or a list of which the one named `default` counts), else Kimi-K2's format if the vocabulary has its
    /// control tokens.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read, [`Error::Tokenizer`] where it does not compile or there is none.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let config = read_config(dir)?;
        let config_file = dir.join("tokenizer_config.json");
        let file = dir.join("chat_template.jinja");
        let mut template = if let Some(bytes) = read_capped(&file, MAX_CONFIG)? {
            let source = String::from_utf8(bytes).map_err(|e| fault(&file, format!("is not UTF-8: {e}")))?;
            ChatTemplate::from_source(&source, &file)?
        } else if let Some(source) =
            config.as_ref().and_then(|c| c.get("chat_template")).filter(|s| !s.is_null())
        {
            ChatTemplate::from_source(inline_source(source, &config_file)?, &config_file)?
        } else if tokenizer.special_id("<|im_middle|>").is_some() {
            ChatTemplate::from_source(KIMI, Path::new("kimi.jinja"))?
        } else {
            return Err(fault(dir, "has no chat template; add the model's chat_template.jinja"));
        };
        for key in ["bos_token", "eos_token"] {
            let value = config.as_ref().map_or(&serde_json::Value::Null, |c| &c[key]);
            if let Some(name) = value.as_str().or(value["content"].as_str()) {
                template.names.insert(key, name.to_owned());
            }
        }
        Ok(template)
    }

    /// Compiles a template. `file` is for messages only.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the line where it does not compile.
    pub fn from_source(source: &str, file: &Path) -> Result<ChatTemplate> {
        if source.len() > MAX_SOURCE {
            let problem =
                format!("the chat template has {} bytes, expected at most {MAX_SOURCE}", source.len());
            return Err(fault(file, problem));
        }
        let mut environment = Environment::new();
        environment.set_formatter(|out, state, value| {
            if let ValueKind::Seq | ValueKind::Map | ValueKind::Iterable = value.kind() {
                let why = "prints a list or a map; templates meant for chat write them with tojson";
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, why));
            }
            minijinja::escape_formatter(out, state, value)
        });
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        // transformers renders chat templates with these two set, and templates rely on it.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| template_fault(file, &e))?;
        guard::compile(NAME, source, syntax.clone()).map_err(|e| template_fault(file, &e))?;
        Ok(ChatTemplate {
            file: file.to_owned(),
            syntax,
            source: source.to_owned(),
            environment,
            names: BTreeMap::new(),
        })
    }

    /// Renders a conversation to token ids; with `add_generation_prompt` the assistant's turn is opened at the
    /// end.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the template fails, refuses the messages, or does more work than a conversation
    /// of this size needs.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let names = ControlNames::of(tokenizer);
        let mark = self.unused_character(messages)?;
        let marked: Vec<Value> = messages
            .iter()
            .map(|message| {
                Value::from(BTreeMap::from([
                    ("role", Value::from(names.marked_role(&message.role, mark))),
                    ("content", Value::from(names.marked(&message.content, mark))),
                ]))
            })
            .collect();

        let bytes: u64 = messages.iter().map(|m| (m.role.len() + m.content.len()) as u64).sum();
        let fuel = FUEL + FUEL_A_MESSAGE * messages.len() as u64 + bytes / MESSAGE_BYTES_A_FUEL;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        guard::register(&mut environment, messages.len(), bytes as usize);
        let mut context: BTreeMap<&str, Value> =
            self.names.iter().map(|(&key, name)| (key, Value::from(name.as_str()))).collect();
        context.insert("messages", Value::from(marked));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        let text =
            self.run(&environment, Value::from(context)).map_err(|e| template_fault(&self.file, &e))?;
        names.encode(tokenizer, &text, mark)
    }

    /// The instructions borrow the source, so they are made anew each time: tens of microseconds for real templates.
    fn run(&self, environment: &Environment<'_>, context: Value) -> Result<String, minijinja::Error> {
        let (main, blocks) = guard::compile(NAME, &self.source, self.syntax.clone())?;
        let mut text = String::new();
        let mut output = machinery::make_string_output(&mut text);
        machinery::eval(environment, &main, context, &blocks, &mut output, AutoEscape::None)?;
        Ok(text)
    }

    /// A private-use character that stands in no message and not in the template.
    fn unused_character(&self, messages: &[Message]) -> Result<char> {
        let texts =
            || messages.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]).chain([&*self.source]);
        // Plane 16: one pass over the texts, however many of its characters they use.
        let used: std::collections::HashSet<char> =
            texts().flat_map(str::chars).filter(|c| ('\u{100000}'..='\u{10FFFD}').contains(c)).collect();
        ('\u{100000}'..='\u{10FFFD}').find(|c| !used.contains(c)).ok_or_else(|| {
            fault(&self.file, "cannot be rendered: the messages use every private-use character of plane 16")
        })
    }
}

/// The names of a vocabulary's control tokens, prepared for looking them up.
struct ControlNames<'a> {
    names: Vec<&'a str>,
    starts: Vec<char>,
}

impl<'a> ControlNames<'a> {
    fn of(tokenizer: &'a Tokenizer) -> ControlNames<'a> {
        let mut names: Vec<&str> = tokenizer.controls.names().collect();
        // The longest first, so that a name that begins another does not hide it.
        names.sort_unstable_by_key(|name| (std::cmp::Reverse(name.len()), *name));
        let mut starts: Vec<char> = names.iter().filter_map(|name| name.chars().next()).collect();
        starts.sort_unstable();
        starts.dedup();
        ControlNames { names, starts }
    }

    /// A role as the template gets it: templates compare roles and build control tokens from them, and mean to, so a
    /// plain word stays as it is. No control token's name is a plain word.
    fn marked_role(&self, role: &str, mark: char) -> String {
        let word = role.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if word { role.to_owned() } else { self.marked(role, mark) }
    }

    /// A message's text with the marks that keep names from beginning or ending in it.
    fn marked(&self, text: &str, mark: char) -> String {
        let mut marked = String::with_capacity(text.len() + 8);
        // In front of the first visible character, so that a template that trims messages still does.
        let visible = text.trim_start();
        marked.push_str(&text[..text.len() - visible.len()]);
        if self.finishes_a_name(visible) {
            marked.push(mark);
        }
        for c in visible.chars() {
            marked.push(c);
            if self.starts.binary_search(&c).is_ok() {
                marked.push(mark);
            }
        }
        marked
    }

    /// The text starts like the end of a name, or is a part of one.
    fn finishes_a_name(&self, text: &str) -> bool {
        !text.is_empty()
            && self.names.iter().any(|name| {
                let tails = name.char_indices().skip(1).map(|(at, _)| &name[at..]);
                tails.into_iter().any(|tail| text.starts_with(tail) || tail.starts_with(text))
            })
    }

    /// Splits rendered text at names and encodes what is between them, without the marks.
    fn encode(&self, tokenizer: &Tokenizer, text: &str, mark: char) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let name = match self.starts.binary_search(&c) {
                Ok(_) => self.names.iter().find(|name| rest.starts_with(**name)),
                Err(_) => None,
            };
            if let Some(id) = name.and_then(|name| tokenizer.special_id(name)) {
                ids.extend(tokenizer.encode(&std::mem::take(&mut plain))?);
                ids.push(id);
                rest = &rest[name.map_or(0, |name| name.len())..];
            } else {
                if c != mark {
                    plain.push(c);
                }
                rest = &rest[c.len_utf8()..];
            }
        }
        ids.extend(tokenizer.encode(&plain)?);
        Ok(ids)
    }
}

/// The template text of `chat_template`: a string, or `[{"name", "template"}]`.
fn inline_source<'a>(field: &'a serde_json::Value, file: &Path) -> Result<&'a str> {
    let named_default = || {
        let list = field.as_array()?;
        list.iter().find(|entry| entry["name"] == "default")?.get("template")?.as_str()
    };
    field.as_str().or_else(named_default).ok_or_else(|| {
        fault(file, "`chat_template` is neither a text nor a list with a template named \"default\"")
    })
}

/// The renderer's error, with the line and without the template's text.
fn template_fault(file: &Path, error: &minijinja::Error) -> Error {
    let place = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let problem = match error.kind() {
        ErrorKind::OutOfFuel => {
            "the chat template does more work than these messages need (an endless loop?)".to_owned()
        }
        kind => match error.detail() {
            Some(detail) => format!("the chat template fails: {kind}: {detail}"),
            None => format!("the chat template fails: {kind}"),
        },
    };
    fault(file, format!("{place}{problem}"))
}

/// `raise_exception(text)`, with which templates refuse a conversation.
fn raise_exception(text: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
}

/// `tojson` as transformers has it: the renderer's own makes its output safe for HTML by escaping `<`, `>`, `&`
/// and `'`, which models were not trained on.
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, minijinja::Error> {
    guard::count(value, 1, &mut 0, MAX_NODES)?;
    let escaped = minijinja::filters::tojson(value, indent, options)?.to_string();
    let mut plain = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let (escape, character) = match rest.get(at..at + 6) {
            Some(r"\u003c") => (6, "<"),
            Some(r"\u003e") => (6, ">"),
            Some(r"\u0026") => (6, "&"),
            Some(r"\u0027") => (6, "'"),
            // Any other escape is kept, with the character behind the backslash: that may be a backslash too.
            _ => {
                let length = rest[at..].chars().take(2).map(char::len_utf8).sum();
                (length, &rest[at..at + length])
            }
        };
        plain.push_str(character);
        rest = &rest[at + escape..];
    }
    plain.push_str(rest);
    Ok(Value::from_safe_string(plain))
}
