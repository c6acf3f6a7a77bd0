//! Reading typed, range-checked fields out of JSON, with errors that name the field.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A JSON object inside the configuration file, with the dotted path that leads to it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    file: &'a Path,
    path: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The file's outermost object.
    pub(super) fn root(file: &'a Path, value: &'a Value) -> Result<Fields<'a>> {
        Fields::of(file, "", value)
    }

    fn of(file: &'a Path, path: &'a str, value: &'a Value) -> Result<Fields<'a>> {
        match value {
            Value::Object(map) => Ok(Fields { file, path, map }),
            other => Err(Error::Config {
                file: file.to_owned(),
                field: if path.is_empty() { "(the whole file)" } else { path }.to_owned(),
                problem: format!("is {}, expected an object", show(other)),
            }),
        }
    }

    /// A field's value; an absent field and an explicit null are the same.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// An object in this object. `path` is its full dotted name.
    pub(super) fn object(&self, name: &str, path: &'a str) -> Result<Option<Fields<'a>>> {
        self.get(name).map(|value| Fields::of(self.file, path, value)).transpose()
    }

    /// An error about a field of this object; `problem` is a predicate.
    pub(super) fn bad(&self, name: &str, problem: impl Into<String>) -> Error {
        let dot = if self.path.is_empty() { "" } else { "." };
        Error::Config {
            file: self.file.to_owned(),
            field: format!("{}{dot}{name}", self.path),
            problem: problem.into(),
        }
    }

    pub(super) fn required(&self, name: &str) -> Result<&'a Value> {
        self.get(name).ok_or_else(|| {
            let how = if self.map.contains_key(name) { "is null" } else { "is missing" };
            self.bad(name, format!("{how}, but the model cannot be built without it"))
        })
    }

    /// A whole number within `range`. A float is refused even if it is whole: no exporter writes sizes so.
    pub(super) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.as_size(name, self.required(name)?, range)
    }

    /// As [`Fields::size`], with a default for an absent field.
    pub(super) fn size_or(&self, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        self.get(name).map_or(Ok(default), |v| self.as_size(name, v, range))
    }

    pub(super) fn as_size(&self, name: &str, value: &Value, range: RangeInclusive<usize>) -> Result<usize> {
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if range.contains(&n) => Ok(n),
            _ => Err(self.bad(
                name,
                format!(
                    "is {}, expected a whole number from {} to {}",
                    show(value),
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// A finite number within `range`.
    pub(super) fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<f64> {
        let value = self.required(name)?;
        match value.as_f64() {
            Some(x) if range.contains(&x) => Ok(x),
            _ => Err(self.bad(
                name,
                format!(
                    "is {}, expected a number from {:e} to {:e}",
                    show(value),
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// As [`Fields::number`], with a default for an absent field.
    pub(super) fn number_or(&self, name: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        if self.get(name).is_some() { self.number(name, range) } else { Ok(default) }
    }

    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.bad(name, format!("is {}, expected true or false", show(other)))),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.bad(name, format!("is {}, expected a string", show(other)))),
        }
    }

    /// Refuses every value but `only`; an absent field counts as `only`.
    pub(super) fn must_be(&self, name: &str, only: &Value, why: &str) -> Result<()> {
        match self.get(name) {
            Some(value) if value != only => {
                Err(self.bad(name, format!("is {}, and this engine runs only {only}{why}", show(value))))
            }
            _ => Ok(()),
        }
    }

    /// A list of strings; absent is empty.
    pub(super) fn strings(&self, name: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let list = value.as_array().filter(|list| list.len() <= 65_536);
        list.and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect())
            .ok_or_else(|| self.bad(name, format!("is {}, expected a list of strings", show(value))))
    }
}

/// A value for an error message, cut to a line.
pub(super) fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
