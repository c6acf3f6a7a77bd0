//! What the renderer's fuel does not see.
//!
//! minijinja charges for instructions and for the data they make, but joins lists lazily and shares what a list
//! holds. `s = s + s` in a loop is then a list of 2^33 items after 33 cheap steps, all of which the 34th copies
//! without paying; `s = [s, s]` makes a tree that takes 2^60 steps to compare or print. So the few instructions that
//! make containers are replaced in the compiled template by calls of the functions here, which look at what comes out
//! and refuse it, with the same error as spent fuel, where it unfolds to more values than any conversation has.
//!
//! A namespace is the one value that changes, so it alone can be put into itself, and printing it would then overflow
//! the stack. A template may use namespaces by their fields only, which is what they are for.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use minijinja::machinery::{CodeGenerator, Instruction, Instructions, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, context};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Values a container may unfold to, beside those of the messages: the largest lists of tools have a few thousand.
const NODES: usize = 16_384;

/// Bytes of text that count as one more value.
const BYTES_A_NODE: usize = 256;

/// Longest width or precision of `str.format`, digits; the renderer would allocate it before it asks for fuel.
const WIDTH_DIGITS: usize = 4;

/// Values of one message: itself, two keys and two texts.
const NODES_A_MESSAGE: usize = 5;

/// Nesting of containers. Compared, printed and dropped by recursion.
const DEPTH: usize = 64;

/// Values that one unit of fuel pays to look at.
const NODES_A_FUEL: u64 = 32;

/// Filters that make containers out of containers and that no chat template needs.
const REMOVED: [&str; 6] = ["batch", "chain", "groupby", "pprint", "slice", "zip"];

/// The renderer's function that makes a namespace.
const NAMESPACE: &str = "namespace";

/// The names the replacements are registered under. No template can spell them.
const ADD: &str = "+";
const CONCAT: &str = "~";
const MULTIPLY: &str = "*";
const LIST: &str = "[]";
const TUPLE: &str = "()";
const MAP: &str = "{}";
const KWARGS: &str = "**";

/// A compiled template: its instructions and those of its blocks.
pub(super) type Compiled<'a> = (Instructions<'a>, BTreeMap<&'a str, Instructions<'a>>);

/// Compiles a template with the guards in place.
pub(super) fn compile<'a>(
    name: &'a str,
    source: &'a str,
    syntax: SyntaxConfig,
) -> Result<Compiled<'a>, Error> {
    let tree = parse(source, name, syntax)?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&tree);
    let (mut main, mut blocks) = generator.finish();
    let namespaces: BTreeSet<&str> = blocks.values().chain([&main]).flat_map(assigned_namespaces).collect();
    for part in blocks.values().chain([&main]) {
        check_namespaces(part, &namespaces)?;
    }
    guard(&mut main);
    blocks.values_mut().for_each(guard);
    Ok((main, blocks))
}

/// The variables that `namespace(…)` is assigned to.
fn assigned_namespaces<'a>(instructions: &Instructions<'a>) -> Vec<&'a str> {
    (0..)
        .map_while(|at| Some((instructions.get(at)?, instructions.get(at + 1))))
        .filter_map(|pair| match pair {
            (Instruction::CallFunction(NAMESPACE, _), Some(Instruction::StoreLocal(name))) => Some(*name),
            _ => None,
        })
        .collect()
}

/// Refuses namespaces as values: a new one must go into a variable, and of that only fields are used.
fn check_namespaces(instructions: &Instructions<'_>, namespaces: &BTreeSet<&str>) -> Result<(), Error> {
    for at in 0.. {
        let Some(instruction) = instructions.get(at) else { break };
        let (next, after) = (instructions.get(at + 1), instructions.get(at + 2));
        let (name, allowed) = match instruction {
            Instruction::CallFunction(NAMESPACE, _) => {
                (NAMESPACE, matches!(next, Some(Instruction::StoreLocal(_))))
            }
            Instruction::Lookup(NAMESPACE) => (NAMESPACE, false),
            Instruction::Lookup(name) if namespaces.contains(name) => {
                let field = matches!(
                    (next, after),
                    (
                        Some(
                            Instruction::GetAttr(_) | Instruction::SetAttr(_) | Instruction::PerformTest(..)
                        ),
                        _
                    ) | (Some(Instruction::LoadConst(_)), Some(Instruction::GetItem))
                );
                (*name, field)
            }
            _ => continue,
        };
        if !allowed {
            let line = instructions.get_line(at).map(|line| format!("line {line}: ")).unwrap_or_default();
            let why = format!("{line}`{name}` is used otherwise than for the fields of a namespace");
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
    }
    Ok(())
}

/// Replaces instructions one by one, so that no jump has to move. A filter takes its arguments from the stack in the
/// same order and leaves one value, as these do.
fn guard(instructions: &mut Instructions<'_>) {
    /// Not remembered in one of the renderer's 50 slots for filters.
    const UNCACHED: u8 = !0;
    let narrow = |count: usize| u16::try_from(count).ok();
    for at in 0.. {
        let Some(instruction) = instructions.get_mut(at) else { break };
        let (name, arguments) = match instruction {
            Instruction::Add => (ADD, Some(2)),
            Instruction::StringConcat => (CONCAT, Some(2)),
            Instruction::Mul => (MULTIPLY, Some(2)),
            Instruction::BuildList(count) => (LIST, count.map(|n| narrow(n).unwrap_or(u16::MAX))),
            Instruction::BuildTuple(count) => (TUPLE, count.map(|n| narrow(n).unwrap_or(u16::MAX))),
            Instruction::BuildMap(pairs) => (MAP, Some(narrow(*pairs * 2).unwrap_or(u16::MAX))),
            Instruction::BuildKwargs(pairs) => (KWARGS, Some(narrow(*pairs * 2).unwrap_or(u16::MAX))),
            _ => continue,
        };
        *instruction = Instruction::ApplyFilter(name, arguments, UNCACHED);
    }
}

/// Registers what [`compile`] makes a template call, for a conversation of so many messages and bytes.
pub(super) fn register(environment: &mut Environment<'_>, messages: usize, bytes: usize) {
    for name in REMOVED {
        environment.remove_filter(name);
    }
    // Four times the conversation: a list of messages may hold some of them twice.
    let limit = NODES + 4 * (NODES_A_MESSAGE * messages + bytes / BYTES_A_NODE);
    environment.set_unknown_method_callback(move |state, value, method, arguments| {
        // Methods print what they are given before they ask for fuel.
        charge(state, arguments, 1, limit)?;
        let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
        if method == "format" && value.as_str().and_then(digits) > Some(WIDTH_DIGITS) {
            return Err(ErrorKind::OutOfFuel.into());
        }
        unknown_method_callback(state, value, method, arguments)
    });
    environment.add_filter("join", move |state: &State, items: Value, between: Option<Value>| {
        let items: Vec<Value> = items.try_iter()?.collect();
        let between = between.map(|text| text.to_string()).unwrap_or_default();
        charge(state, &items, 1, limit)?;
        state.consume_fuel((items.len() * between.len() / 64) as u64)?;
        Ok::<_, Error>(items.iter().map(Value::to_string).collect::<Vec<_>>().join(&between))
    });
    environment.add_filter(CONCAT, move |state: &State, a: Value, b: Value| {
        for value in [&a, &b] {
            if value.as_str().is_none() {
                charge(state, [value], 1, limit)?;
            }
        }
        native(state, "a ~ b", a, b)
    });
    environment.add_filter(ADD, move |state: &State, a: Value, b: Value| {
        if is_list(&a) && is_list(&b) {
            charge(state, [&a, &b], 1, limit)?;
        }
        native(state, "a + b", a, b)
    });
    environment.add_filter(MULTIPLY, move |state: &State, a: Value, b: Value| {
        for (list, times) in [(&a, &b), (&b, &a)] {
            if is_list(list) {
                charge(state, [list], times.as_usize().unwrap_or(0), limit)?;
            }
        }
        native(state, "a * b", a, b)
    });
    environment.add_filter(LIST, move |state: &State, items: Rest<Value>| {
        charge(state, items.iter(), 1, limit)?;
        Ok::<_, Error>(Value::from(items.0))
    });
    environment.add_filter(TUPLE, move |state: &State, items: Rest<Value>| {
        charge(state, items.iter(), 1, limit)?;
        Ok::<_, Error>(Value::from(minijinja::value::Tuple::from(items.0)))
    });
    environment.add_filter(MAP, move |state: &State, items: Rest<Value>| {
        charge(state, items.iter(), 1, limit)?;
        Ok::<_, Error>(Value::from(pairs(&items).collect::<IndexMap<Value, Value>>()))
    });
    environment.add_filter(KWARGS, move |state: &State, items: Rest<Value>| {
        charge(state, items.iter(), 1, limit)?;
        let named = pairs(&items).map(|(key, value)| (key.to_string(), value));
        Ok::<_, Error>(Value::from(named.collect::<Kwargs>()))
    });
}

fn pairs(items: &[Value]) -> impl Iterator<Item = (Value, Value)> + '_ {
    items.as_chunks::<2>().0.iter().map(|[key, value]| (key.clone(), value.clone()))
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// The operator as the renderer has it, for operands that were looked at.
fn native(state: &State, operation: &str, a: Value, b: Value) -> Result<Value, Error> {
    state.env().compile_expression(operation)?.eval(context! { a, b })
}

/// Counts what `values`, `times` over, unfold to; refuses more than `limit` and lets the template pay for the look.
fn charge<'a>(
    state: &State,
    values: impl IntoIterator<Item = &'a Value>,
    times: usize,
    limit: usize,
) -> Result<(), Error> {
    let mut nodes = 0;
    for value in values {
        count(value, 1, &mut nodes, limit)?;
    }
    if nodes.saturating_mul(times) > limit {
        return Err(ErrorKind::OutOfFuel.into());
    }
    state.consume_fuel(nodes as u64 / NODES_A_FUEL)
}

/// Adds the values that `value` unfolds to, up to `limit`.
pub(super) fn count(value: &Value, depth: usize, nodes: &mut usize, limit: usize) -> Result<(), Error> {
    *nodes += 1 + value.as_str().map_or(0, str::len) / BYTES_A_NODE;
    if depth > DEPTH || *nodes > limit {
        return Err(ErrorKind::OutOfFuel.into());
    }
    if let ValueKind::Seq | ValueKind::Map | ValueKind::Iterable = value.kind() {
        for item in value.try_iter()? {
            if value.kind() == ValueKind::Map {
                count(&value.get_item(&item)?, depth + 1, nodes, limit)?;
            }
            count(&item, depth + 1, nodes, limit)?;
        }
    }
    Ok(())
}
