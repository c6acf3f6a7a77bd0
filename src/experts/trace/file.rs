//! A trace as a file.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::{RoutingTrace, check_prompt, check_row, check_shape};
use crate::error::{Error, Result};

/// The largest file that is read. Reading takes at most a few times the file's size in memory.
const MAX_FILE: u64 = 4 << 30;

/// The longest list of numbers that is read: layers and prompt chunks, not ids.
const MAX_LIST: usize = 1 << 20;

impl RoutingTrace {
    /// Reads the routing of a trace file; its `traceEvents` are passed over.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Trace`] naming the field if it is no trace.
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<RoutingTrace> {
        let path = path.as_ref();
        let wrong = |field: &str, problem: String| Error::Trace {
            file: path.to_owned(),
            field: field.to_owned(),
            problem,
        };
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let size = file.metadata().map_err(Error::io(path, "read"))?.len();
        if size > MAX_FILE {
            return Err(wrong(
                "routing",
                format!("is in a file of {size} bytes, expected at most {MAX_FILE}"),
            ));
        }
        let contents: Contents = serde_json::from_reader(BufReader::new(file)).map_err(|e| {
            if e.is_io() {
                return Error::io(path, "read")(e.into());
            }
            wrong("routing", format!("cannot be read: {e}"))
        })?;
        let fields = contents.routing.ok_or_else(|| wrong("routing", "is missing".to_owned()))?;
        fields.trace().map_err(|(field, problem)| wrong(&format!("routing.{field}"), problem))
    }

    /// Writes a trace file, with `events` as its Chrome trace. Nobody sees half a file: it is written beside `path`
    /// under another name and renamed.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>, events: &[Value]) -> Result<()> {
        let path = path.as_ref();
        replace_file(path, |file| {
            let contents = json!({"traceEvents": events, "routing": self.to_json_value()});
            serde_json::to_writer(&mut *file, &contents)?;
            file.write_all(b"\n")
        })
        .map_err(Error::io(path, "write"))
    }

    /// The `routing` object of a trace file.
    pub fn to_json_value(&self) -> Value {
        let bytes: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        json!({
            "layers": self.layers,
            "experts": self.experts,
            "top_k": self.top_k,
            "prompt_tokens": self.prompt_tokens,
            "ids": STANDARD.encode(bytes),
        })
    }
}

/// Writes a file under another name beside `path` and renames it when it is whole.
pub(crate) fn replace_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let whole = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(&part)?);
        write(&mut file)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&part, path)
    };
    whole().inspect_err(|_| {
        // The first error is the one to report.
        let _ = fs::remove_file(&part);
    })
}

#[derive(serde::Deserialize)]
struct Contents {
    routing: Option<Fields>,
}

/// As they stand in the file, so that what is wrong with one can be said by its name.
#[derive(serde::Deserialize)]
struct Fields {
    layers: Option<Field>,
    experts: Option<Field>,
    top_k: Option<Field>,
    prompt_tokens: Option<Field>,
    ids: Option<Field>,
}

impl Fields {
    fn trace(self) -> Result<RoutingTrace, (&'static str, String)> {
        let layers = numbers("layers", self.layers)?;
        let experts = number("experts", self.experts)?;
        let top_k = number("top_k", self.top_k)?;
        check_shape(&layers, experts, top_k)?;
        let ids = match self.ids {
            Some(Field::Text(text)) => ids(text).map_err(|p| ("ids", p))?,
            other => return Err(("ids", unlike(other.as_ref(), "base64 text"))),
        };
        let row = layers.len() * top_k;
        if ids.len() % row != 0 {
            let problem = format!("has {} ids, expected a multiple of {row} (layers × top-k)", ids.len());
            return Err(("ids", problem));
        }
        for (token, ids) in ids.chunks_exact(row).enumerate() {
            check_row(ids, experts, top_k).map_err(|p| ("ids", format!("of token {token} {p}")))?;
        }
        let prompt_tokens = numbers("prompt_tokens", self.prompt_tokens)?;
        check_prompt(&prompt_tokens, ids.len() / row).map_err(|p| ("prompt_tokens", p))?;
        Ok(RoutingTrace { layers, experts, top_k, prompt_tokens, ids })
    }
}

fn ids(text: String) -> Result<Vec<u16>, String> {
    let bytes = STANDARD.decode(text).map_err(|e| format!("is not base64: {e}"))?;
    if bytes.len() % 2 != 0 {
        return Err(format!("decodes to {} bytes, expected two an id", bytes.len()));
    }
    Ok(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
}

fn number(name: &'static str, field: Option<Field>) -> Result<usize, (&'static str, String)> {
    match field {
        Some(Field::Number(n)) => usize::try_from(n).map_err(|_| (name, format!("is {n}, far too large"))),
        other => Err((name, unlike(other.as_ref(), "a whole number"))),
    }
}

fn numbers(name: &'static str, field: Option<Field>) -> Result<Vec<u32>, (&'static str, String)> {
    let Some(Field::Numbers(list)) = field else {
        return Err((name, unlike(field.as_ref(), &format!("a list of at most {MAX_LIST} whole numbers"))));
    };
    let small = |n| u32::try_from(n).map_err(|_| (name, format!("has {n}, expected less than 2^32")));
    list.into_iter().map(small).collect()
}

fn unlike(field: Option<&Field>, expected: &str) -> String {
    match field {
        None => format!("is missing, expected {expected}"),
        Some(_) => format!("is of another kind, expected {expected}"),
    }
}

/// A value of one of the kinds that a trace has; of another kind, nothing is kept.
enum Field {
    Number(u64),
    Numbers(Vec<u64>),
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Field, D::Error> {
        from.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
        Ok(Field::Number(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Field, E> {
        Ok(Field::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
        let mut list = Some(Vec::new());
        while let Some(element) = seq.next_element::<Element>()? {
            match (element, &mut list) {
                (Element(Some(n)), Some(known)) if known.len() < MAX_LIST => known.push(n),
                _ => list = None,
            }
        }
        Ok(list.map_or(Field::Other, Field::Numbers))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

/// An element of a list: a whole number or something else, which is passed over.
struct Element(Option<u64>);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Element, D::Error> {
        // A list in a list recurses, as deep as serde_json lets it.
        Ok(Element(match Field::deserialize(from)? {
            Field::Number(n) => Some(n),
            _ => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RoutingTrace {
        let mut trace = RoutingTrace::new(vec![1, 3], 300, 2).unwrap();
        trace.push(&[0, 299, 256, 1]).unwrap();
        trace.push(&[7, 8, 9, 10]).unwrap();
        trace.set_prompt(vec![2]).unwrap();
        trace
    }

    fn read(text: &str) -> Result<RoutingTrace> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        fs::write(&path, text).unwrap();
        RoutingTrace::from_json_file(&path)
    }

    /// The sample with one field replaced (or taken away by null).
    fn with(field: &str, value: Value) -> String {
        let mut routing = sample().to_json_value();
        routing[field] = value;
        match read(&json!({"routing": routing}).to_string()) {
            Err(Error::Trace { field, problem, .. }) => format!("{field} {problem}"),
            other => panic!("{field}: {other:?}"),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        sample()
            .save(&path, &[json!({"name": "copy", "ph": "X", "args": {"routing": [1, {"a": null}]}})])
            .unwrap();
        assert_eq!(RoutingTrace::from_json_file(&path).unwrap(), sample());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file stays");
        let root: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(root["traceEvents"][0]["name"], "copy");
        assert_eq!(root["routing"]["prompt_tokens"], json!([2]));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such.json");
        assert!(matches!(sample().save(&missing, &[]), Err(Error::Io { action: "write", .. })));
        assert!(matches!(RoutingTrace::from_json_file(&missing), Err(Error::Io { action: "open", .. })));
    }

    #[test]
    fn each_field_is_checked_by_name() {
        let base64 = |bytes: &[u8]| json!(STANDARD.encode(bytes));
        for (field, value, says) in [
            ("layers", json!([3, 1]), "routing.layers has 3 before 1"),
            ("layers", json!([]), "routing.layers has 0 entries"),
            ("layers", json!([1, 1_u64 << 40]), "routing.layers has 1099511627776"),
            ("layers", json!([1, "2"]), "routing.layers is of another kind"),
            ("layers", json!([[1]]), "routing.layers is of another kind"),
            ("experts", json!(0), "routing.experts is 0"),
            ("experts", json!(-1), "routing.experts is of another kind"),
            ("experts", json!(10), "routing.ids of token 0 has expert 299"),
            ("top_k", json!(301), "routing.top_k is 301"),
            ("top_k", json!(2.5), "routing.top_k is of another kind"),
            ("top_k", json!({"a": [1]}), "routing.top_k is of another kind"),
            ("top_k", Value::Null, "routing.top_k is missing"),
            ("prompt_tokens", json!([3]), "routing.prompt_tokens add up to 3"),
            ("prompt_tokens", json!(true), "routing.prompt_tokens is of another kind"),
            ("ids", json!("#"), "routing.ids is not base64"),
            ("ids", json!(5), "routing.ids is of another kind"),
            ("ids", base64(&[0]), "routing.ids decodes to 1 bytes"),
            ("ids", base64(&[0, 0]), "routing.ids has 1 ids"),
            ("ids", base64(&[0; 8]), "routing.ids of token 0 has expert 0 twice"),
        ] {
            let said = with(field, value);
            assert!(said.starts_with(says), "{said:?}, expected {says:?}");
        }
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for text in
            ["", "[]", "{", "{}", r#"{"traceEvents": []}"#, r#"{"routing": 5}"#, r#"{"routing": null}"#]
        {
            assert!(matches!(read(text), Err(Error::Trace { .. })), "{text:?}");
        }
        let deep = format!(r#"{{"routing": {{"layers": {}"#, "[".repeat(100_000));
        assert!(matches!(read(&deep), Err(Error::Trace { .. })));
    }
}
