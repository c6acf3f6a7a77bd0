//! How the new model stores its weights, and the configuration that says so.

use serde_json::Value;

use super::select::Selection;
use crate::checkpoint::MAX_TENSORS;
use crate::checkpoint::tensors::routed_tensors;
use crate::checkpoint::weights::{MatrixSpec, Storage, Weights, expert_spec};
use crate::config::rewrite::{self, Rewrite};
use crate::config::{ModelConfig, Quantization};
use crate::error::{Error, Result};
use crate::quant::Format;

/// How the new model stores its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    format: Option<Format>,
    experts_only: bool,
}

impl Target {
    /// Every tensor as the source stores it.
    pub const AS_IS: Target = Target { format: None, experts_only: false };

    /// Converts to a format:
    ///
    /// | format | routed experts | other linear layers | norms | embedding, head, router |
    /// |---|---|---|---|---|
    /// | [`Format::Fp8Block`], as DeepSeek-V3 ships | FP8 | FP8 | as they are | as they are |
    /// | [`Format::Int4Group32`], as Kimi-K2-Thinking ships | INT4 | BF16 if they were quantised | as they are | as they are |
    /// | [`Format::Bf16`], [`Format::F16`] | that | that | that | that |
    ///
    /// The router's bias always stays as it is. With `experts_only` all but the routed experts stay as they are.
    ///
    /// # Errors
    /// [`Error::Argument`] `format` for any other.
    pub fn new(format: Format, experts_only: bool) -> Result<Target> {
        match format {
            Format::F32 => {
                let problem = "is f32, expected fp8-block, int4-g32, bf16 or fp16";
                Err(Error::argument("format", problem))
            }
            _ => Ok(Target { format: Some(format), experts_only }),
        }
    }

    /// The format, if it is not the source's.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Whether all but the routed experts stay as they are.
    pub fn experts_only(&self) -> bool {
        self.experts_only
    }

    /// How a matrix that the new configuration leaves plain is stored: as it was, or in what it is converted to.
    pub(super) fn plain_matrix(&self, source: Format, routed: bool) -> Format {
        match (self.plain_format(routed), source) {
            (Some(plain), _) => plain,
            (None, Format::Fp8Block | Format::Int4Group32) => Format::Bf16,
            (None, plain) => plain,
        }
    }

    /// What everything plain is converted to, if it is converted.
    pub(super) fn plain_format(&self, routed: bool) -> Option<Format> {
        let converted = routed || !self.experts_only;
        self.format.filter(|f| converted && matches!(f, Format::Bf16 | Format::F16))
    }

    /// Whether FP8 scales that are no longer needed are kept beside the weights: what becomes BF16 or FP16 can then become
    /// the same FP8 again.
    pub(super) fn keeps_scales(&self) -> bool {
        matches!(self.format, Some(Format::Bf16 | Format::F16))
    }

    /// The new model's `config.json`: the source's with what differs.
    ///
    /// # Errors
    /// [`Error::Argument`] where the source cannot be stored as this target says, or what results is no configuration.
    pub(super) fn config(
        &self,
        mut json: Rewrite,
        source: &ModelConfig,
        selection: &Selection,
    ) -> Result<(Value, ModelConfig)> {
        json.set("num_hidden_layers", selection.layers().len());
        json.set("n_routed_experts", selection.num_experts());
        json.set("first_k_dense_replace", selection.first_k_dense());
        // The tensors of these layers are not carried over.
        json.set("num_nextn_predict_layers", 0);
        match self.format {
            None => json.rename_unquantized(|module| renamed(module, selection)),
            Some(format) => self.set_format(&mut json, format, source, selection)?,
        }
        let unusable = |e: Error| match (self.format, e) {
            (Some(format), Error::Config { field, problem, .. }) => {
                Error::argument("format", format!("cannot be {}: `{field}` {problem}", format.name()))
            }
            (_, e) => e,
        };
        let mut config = json.meaning().map_err(unusable)?;
        check_tensors(&config)?;
        let plain = self.meant_plain(source, selection, &config);
        if self.format.is_none() && !same_plain(&config, &plain) {
            // An expression that names layers by number still means the old numbers: every module is named instead.
            json.list_unquantized(&plain);
            config = json.meaning().map_err(unusable)?;
        }
        if !same_plain(&config, &plain) {
            let problem =
                "cannot be kept: no list of modules describes what would be stored how; name another";
            return Err(Error::argument("format", problem));
        }
        Ok((json.into_json(), config))
    }

    fn set_format(
        &self,
        json: &mut Rewrite,
        format: Format,
        source: &ModelConfig,
        selection: &Selection,
    ) -> Result<()> {
        if self.experts_only && matches!(source.quantization, Quantization::Fp8Block { .. }) {
            return Err(Error::argument(
                "experts-only",
                "needs a source whose other layers are plain: a checkpoint has one scheme, \
                 and FP8 there does not stand beside another in the experts; leave it out",
            ));
        }
        let quantization = match format {
            Format::Fp8Block if self.experts_only => Some(rewrite::fp8(&trunk_modules(source, selection))),
            Format::Fp8Block => Some(rewrite::fp8(&[])),
            Format::Int4Group32 => Some(rewrite::int4()),
            Format::F32 | Format::F16 | Format::Bf16 => None,
        };
        json.set_quantization(quantization);
        match self.plain_format(false) {
            Some(Format::F16) => json.set_dtype("float16"),
            Some(_) => json.set_dtype("bfloat16"),
            None => {}
        }
        Ok(())
    }

    /// The linear layers of the new model that are to be plain, by module; of all other linear layers the opposite is
    /// meant.
    fn meant_plain(&self, source: &ModelConfig, selection: &Selection, new: &ModelConfig) -> Vec<String> {
        let (before, after) = (linear(source, selection), linear(new, &Selection::everything(new)));
        let plain = |(was, now): (&Linear, &Linear)| {
            let is_plain = match self.format {
                None => was.storage == Storage::Plain,
                Some(_) if self.experts_only && !now.routed => was.storage == Storage::Plain,
                Some(Format::Fp8Block) => false,
                Some(Format::Int4Group32) => !now.routed,
                Some(_) => true,
            };
            is_plain.then(|| now.module.clone())
        };
        before.iter().zip(&after).filter_map(plain).collect()
    }
}

/// The loader takes so many tensors and no more; an INT4 matrix is three.
fn check_tensors(config: &ModelConfig) -> Result<()> {
    let tensors = routed_tensors(config);
    if tensors > MAX_TENSORS {
        let problem =
            format!("makes {tensors} tensors of the routed experts; at most {MAX_TENSORS} are loaded");
        return Err(Error::argument("format", problem));
    }
    Ok(())
}

/// A matrix that quantisation may cover.
struct Linear {
    /// Without the checkpoint's prefix.
    module: String,
    storage: Storage,
    routed: bool,
}

/// The kept linear layers of a model, in an order that depends on the selection alone. Of the experts of a layer, which
/// are all stored alike, the head of each group.
fn linear(config: &ModelConfig, selection: &Selection) -> Vec<Linear> {
    let mut found = Vec::new();
    let mut note = |spec: &MatrixSpec, routed: bool| {
        let module = spec.module.strip_prefix(&config.tensor_prefix).unwrap_or(&spec.module);
        found.push(Linear { module: module.to_owned(), storage: spec.storage, routed });
    };
    let layers = Weights::describe(config).layers;
    for (new, &layer) in selection.layers().iter().enumerate() {
        // A router is never quantised and takes no part in any list.
        let matrices = layers[layer].matrices().into_iter().filter(|m| !m.module.ends_with(".mlp.gate"));
        matrices.for_each(|m| note(m, false));
        for group in selection.experts(new) {
            expert_spec(config, layer, group.head()).each().into_iter().for_each(|m| note(m, true));
        }
    }
    found
}

/// The new model's linear layers that are no routed experts.
fn trunk_modules(source: &ModelConfig, selection: &Selection) -> Vec<String> {
    let trunk = linear(source, selection).into_iter().filter(|l| !l.routed);
    trunk.filter_map(|l| renamed(&l.module, selection)).collect()
}

/// Whether the configuration leaves exactly these linear layers plain.
fn same_plain(config: &ModelConfig, plain: &[String]) -> bool {
    let all = linear(config, &Selection::everything(config));
    let found = all.iter().filter(|l| l.storage == Storage::Plain).map(|l| l.module.as_str());
    found.eq(plain.iter().map(String::as_str))
}

/// A module's name in the new model; `None` if it has no counterpart there. An expert is where it heads a group.
fn renamed(module: &str, selection: &Selection) -> Option<String> {
    let mut parts: Vec<String> = module.split('.').map(str::to_owned).collect();
    let number_after = |parts: &[String], what: &str| {
        let at = parts.iter().position(|p| p == what)? + 1;
        Some((at, parts.get(at)?.parse::<usize>().ok()?))
    };
    let Some((at, layer)) = number_after(&parts, "layers") else { return Some(module.to_owned()) };
    let layer = selection.new_layer(layer)?;
    parts[at] = layer.to_string();
    if let Some((at, expert)) = number_after(&parts, "experts") {
        let groups = selection.experts(layer);
        parts[at] = groups.binary_search_by_key(&expert, |group| group.head()).ok()?.to_string();
    }
    Some(parts.join("."))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::compress::{Group, Layers};

    const KIMI_K2: &str = include_str!("../../tests/fixtures/configs/kimi-k2-instruct.json");
    const KIMI_K25: &str = include_str!("../../tests/fixtures/configs/kimi-k25.json");
    const DEEPSEEK: &str = include_str!("../../tests/fixtures/configs/deepseek-v3.json");
    const MOONLIGHT: &str = include_str!("../../tests/fixtures/configs/moonlight.json");

    fn parse(text: &str) -> (Rewrite, ModelConfig) {
        Rewrite::parse(text.as_bytes(), Path::new("config.json")).unwrap()
    }

    /// Layers 0, 7 and the last with 16 experts a layer, of them expert 5.
    fn small(config: &ModelConfig) -> Selection {
        let layers = Layers::List(vec![0, 7, config.num_layers - 1]);
        let step = config.moe.num_experts / 16;
        let experts = (0..16).map(|i| if i == 0 { 5 } else { i * step });
        Selection::new(config, &layers, |_| Ok(experts.clone().map(Group::single).collect())).unwrap()
    }

    fn make(text: &str, target: Target) -> Result<(Value, ModelConfig)> {
        let (json, source) = parse(text);
        target.config(json, &source, &small(&source))
    }

    #[test]
    fn sizes_change_and_nothing_else_does() {
        for text in [KIMI_K2, DEEPSEEK, MOONLIGHT] {
            let (json, config) = make(text, Target::AS_IS).unwrap();
            assert_eq!((config.num_layers, config.first_k_dense, config.moe.num_experts), (3, 1, 16));
            let mut before: Value = serde_json::from_str(text).unwrap();
            for name in
                ["num_hidden_layers", "first_k_dense_replace", "n_routed_experts", "num_nextn_predict_layers"]
            {
                before[name] = json[name].clone();
            }
            assert_eq!(json, before);
        }
    }

    #[test]
    fn listed_modules_follow_their_layers_and_experts() {
        let mut json: Value = serde_json::from_str(KIMI_K2).unwrap();
        json["quantization_config"]["modules_to_not_convert"] = json!([
            "lm_head",
            "model.layers.6.self_attn.o_proj",
            "model.layers.7.self_attn.o_proj",
            "model.layers.60.mlp.shared_experts.up_proj",
        ]);
        let (json, config) = make(&json.to_string(), Target::AS_IS).unwrap();
        assert_eq!(
            json["quantization_config"]["modules_to_not_convert"],
            json!([
                "lm_head",
                "model.layers.1.self_attn.o_proj",
                "model.layers.2.mlp.shared_experts.up_proj"
            ])
        );
        let plain: Vec<String> = linear(&config, &Selection::everything(&config))
            .into_iter()
            .filter(|l| l.storage == Storage::Plain)
            .map(|l| l.module)
            .collect();
        assert_eq!(plain, ["model.layers.1.self_attn.o_proj", "model.layers.2.mlp.shared_experts.up_proj"]);
        let selection = small(&parse(KIMI_K2).1);
        let up = |e: usize, l: usize| format!("model.layers.{l}.mlp.experts.{e}.up_proj");
        assert_eq!(renamed(&up(5, 7), &selection), Some(up(0, 1)));
        assert_eq!(renamed(&up(48, 60), &selection), Some(up(2, 2)));
        assert_eq!(renamed(&up(6, 7), &selection), None);
    }

    #[test]
    fn an_expression_that_names_a_layer_becomes_a_list() {
        let mut json: Value = serde_json::from_str(KIMI_K25).unwrap();
        let ignore = &mut json["text_config"]["quantization_config"]["ignore"];
        *ignore = json!(["re:model\\.layers\\.(0|7)\\..*", "re:.*self_attn.*", "re:.*shared_experts.*"]);
        let (json, config) = make(&json.to_string(), Target::AS_IS).unwrap();
        let storage = |l: usize| expert_spec(&config, l, 3).gate.storage;
        assert_eq!([storage(1), storage(2)], [Storage::Plain, Storage::Int4Group32]);
        let list = &json["text_config"]["quantization_config"]["ignore"];
        assert!(list.as_array().unwrap().contains(&json!("model.layers.1.mlp.experts.15.down_proj")));
        // The usual expressions name no layer and stay.
        let (json, _) = make(KIMI_K25, Target::AS_IS).unwrap();
        let before: Value = serde_json::from_str(KIMI_K25).unwrap();
        let list = |json: &Value| json["text_config"]["quantization_config"].clone();
        assert_eq!(list(&json), list(&before));
    }

    #[test]
    fn every_format_from_every_family() {
        for text in [KIMI_K2, DEEPSEEK, MOONLIGHT, KIMI_K25] {
            for format in [Format::Fp8Block, Format::Int4Group32, Format::Bf16, Format::F16] {
                let (json, config) = make(text, Target::new(format, false).unwrap()).unwrap();
                let trunk = Weights::describe(&config).layers[2].attention.output.storage;
                let expert = expert_spec(&config, 2, 0).down.storage;
                let expected = match format {
                    Format::Fp8Block => [Storage::Fp8Block; 2],
                    Format::Int4Group32 => [Storage::Plain, Storage::Int4Group32],
                    _ => [Storage::Plain; 2],
                };
                assert_eq!([trunk, expert], expected, "{format:?}");
                let text_config = json.get("text_config").unwrap_or(&json);
                if format == Format::F16 {
                    assert_eq!(text_config["torch_dtype"], "float16");
                }
            }
        }
        assert!(matches!(Target::new(Format::F32, false), Err(Error::Argument { name: "format", .. })));
    }

    #[test]
    fn more_tensors_than_are_loaded_are_refused() {
        let mut json: Value = serde_json::from_str(KIMI_K2).unwrap();
        json["num_hidden_layers"] = 200.into();
        json["quantization_config"] = Value::Null;
        let (json, source) = parse(&json.to_string());
        let int4 = Target::new(Format::Int4Group32, false).unwrap();
        let said = int4.config(json, &source, &Selection::everything(&source)).unwrap_err().to_string();
        assert!(said.starts_with("`format` makes 687744 tensors of the routed experts"), "{said}");
    }

    #[test]
    fn experts_alone_change_where_one_scheme_can_say_so() {
        for format in [Format::Fp8Block, Format::Int4Group32, Format::Bf16] {
            let target = Target::new(format, true).unwrap();
            for text in [MOONLIGHT, KIMI_K25] {
                let (_, config) = make(text, target).unwrap();
                let layer = &Weights::describe(&config).layers[2];
                assert!(layer.matrices().iter().all(|m| m.storage == Storage::Plain), "{format:?}");
                let expert = expert_spec(&config, 2, 0).down.storage;
                assert_eq!(expert == Storage::Plain, format == Format::Bf16);
            }
            let refused = make(KIMI_K2, target).unwrap_err().to_string();
            assert!(refused.starts_with("`experts-only` needs a source whose"), "{refused}");
        }
    }

    #[test]
    fn what_plain_becomes() {
        let target = |format| Target::new(format, false).unwrap();
        for (target, source, expected) in [
            (Target::AS_IS, Format::F16, Format::F16),
            (target(Format::Int4Group32), Format::Fp8Block, Format::Bf16),
            (target(Format::Int4Group32), Format::F32, Format::F32),
            (target(Format::F16), Format::Bf16, Format::F16),
            (Target::new(Format::F16, true).unwrap(), Format::Bf16, Format::Bf16),
        ] {
            assert_eq!(target.plain_matrix(source, false), expected);
        }
    }
}
