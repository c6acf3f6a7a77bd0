//! `quantization_config`: the two formats Kimi and DeepSeek ship, and clear words for every other.

use serde_json::{Value, json};

use super::fields::{Fields, show};
use super::{IgnoreRule, Quantization};
use crate::error::Result;

/// Largest compiled size of one `ignore` expression, and how many there may be: together a bound on memory, 64 MB, that
/// a configuration of 1 MB could otherwise exceed a thousandfold. Real ones have five, of a few kilobytes.
const REGEX_BYTES: usize = 1 << 18;
const REGEXES: usize = 256;

impl IgnoreRule {
    /// Whether the rule names `module` (without the checkpoint's prefix and without `.weight`).
    pub(crate) fn matches(&self, module: &str) -> bool {
        match self {
            IgnoreRule::Exact(name) => name == module,
            // Python's re.match: from the start, not necessarily to the end.
            IgnoreRule::Pattern(re) => re.find(module).is_some_and(|m| m.start() == 0),
        }
    }
}

pub(super) fn read(holder: Fields<'_>) -> Result<Quantization> {
    let Some(q) = holder.object("quantization_config", "quantization_config")? else {
        return Ok(Quantization::None);
    };
    match q.text("quant_method")? {
        Some("fp8") => fp8(q),
        Some("compressed-tensors") => int4(q),
        other => Err(q.bad(
            "quant_method",
            format!(
                "is {}, expected \"fp8\" (e4m3, 128×128 blocks) or \"compressed-tensors\" (INT4, groups of 32)",
                other.map_or("missing".into(), |m| show(&Value::from(m)))
            ),
        )),
    }
}

fn fp8(q: Fields<'_>) -> Result<Quantization> {
    q.must_be("fmt", &json!("e4m3"), "")?;
    q.required("weight_block_size")?;
    q.must_be("weight_block_size", &json!([128, 128]), "")?;
    q.must_be("activation_scheme", &json!("dynamic"), "")?;
    Ok(Quantization::Fp8Block { skip: q.strings("modules_to_not_convert")? })
}

fn int4(q: Fields<'_>) -> Result<Quantization> {
    q.must_be("format", &json!("pack-quantized"), "")?;
    let groups = q.required("config_groups")?.as_object().filter(|g| g.len() == 1);
    let Some(group) = groups.and_then(|g| g.values().next()) else {
        return Err(q.bad("config_groups", "does not hold exactly one group"));
    };
    let bad = |what: &str, found: &Value, only: &Value| {
        q.bad("config_groups", format!("has `{what}` = {}, and this engine runs only {only}", show(found)))
    };
    for (name, only) in [
        ("num_bits", json!(4)),
        ("group_size", json!(32)),
        ("symmetric", json!(true)),
        ("type", json!("int")),
        ("strategy", json!("group")),
        ("actorder", json!(null)),
    ] {
        let found = &group["weights"][name];
        if *found != only {
            return Err(bad(&format!("weights.{name}"), found, &only));
        }
    }
    if group["targets"] != json!(["Linear"]) {
        return Err(bad("targets", &group["targets"], &json!(["Linear"])));
    }
    if !group["input_activations"].is_null() {
        return Err(bad("input_activations", &group["input_activations"], &json!(null)));
    }
    let (mut ignore, mut patterns) = (Vec::new(), 0);
    for rule in q.strings("ignore")? {
        ignore.push(match rule.strip_prefix("re:") {
            None => IgnoreRule::Exact(rule),
            Some(_) if patterns == REGEXES => {
                return Err(q.bad("ignore", format!("holds more than {REGEXES} expressions")));
            }
            Some(pattern) => {
                patterns += 1;
                let compiled = regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES).build();
                let why =
                    |e| q.bad("ignore", format!("holds the expression {pattern:?}, which is refused: {e}"));
                IgnoreRule::Pattern(compiled.map_err(why)?)
            }
        });
    }
    Ok(Quantization::Int4Group32 { ignore })
}
