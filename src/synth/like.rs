//! From a model to imitate to the configuration of the imitation.

use std::path::Path;

use serde_json::{Value, json};

use super::Synth;
use crate::checkpoint::tensors::MatrixTensors;
use crate::checkpoint::weights::expert_spec;
use crate::checkpoint::{MAX_TENSORS, open_regular};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::quant::Format;

/// Published configurations, by the names they go by.
pub(super) const BUILT_IN: [(&str, &str); 4] = [
    ("kimi-k2", include_str!("configs/kimi-k2.json")),
    ("kimi-k2-thinking", include_str!("configs/kimi-k2-thinking.json")),
    ("deepseek-v3", include_str!("configs/deepseek-v3.json")),
    ("moonlight", include_str!("configs/moonlight.json")),
];

/// More layers or experts than any known model has by far: a typing error.
const MAX_LAYERS: usize = 1024;
const MAX_EXPERTS: usize = 4096;

/// The `config.json` to write, and what it means.
pub(super) fn resolve(synth: &Synth) -> Result<(Value, ModelConfig)> {
    let named = BUILT_IN.iter().find(|(name, _)| *name == synth.like);
    let path = Path::new(&synth.like);
    let (mut value, own) = match named {
        Some((_, text)) => read(text.as_bytes(), path)?,
        None => {
            if !path.exists() {
                let names = BUILT_IN.map(|(name, _)| name).join(", ");
                let problem = format!("is {:?}, expected {names} or the path of a config.json", synth.like);
                return Err(Error::argument("like", problem));
            }
            // The configuration is checked (size, kind of file, every field) before its bytes are used again.
            let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
            ModelConfig::from_file(&file)?;
            let text = std::io::read_to_string(open_regular(&file)?).map_err(Error::io(&file, "read"))?;
            read(text.as_bytes(), &file)?
        }
    };
    let layers = synth.layers.unwrap_or(own.num_layers);
    let experts = synth.experts.unwrap_or(own.moe.num_experts);
    check(layers, experts, &own)?;

    // Multimodal checkpoints keep the text model's fields in an object of their own.
    let nested = value.get("text_config").is_some_and(Value::is_object);
    if nested && synth.format.is_some() {
        remove(&mut value, "quantization_config");
    }
    let text = if nested { &mut value["text_config"] } else { &mut value };
    text["num_hidden_layers"] = layers.into();
    text["n_routed_experts"] = experts.into();
    text["first_k_dense_replace"] = own.first_k_dense.min(layers - 1).into();
    // The loader skips these layers, so there is nothing to be measured on them.
    text["num_nextn_predict_layers"] = 0.into();
    match synth.format {
        None => {}
        Some(Format::Bf16) => remove(text, "quantization_config"),
        Some(Format::Fp8Block) => text["quantization_config"] = fp8(),
        Some(Format::Int4Group32) => text["quantization_config"] = int4(),
        Some(other) => {
            let problem = format!("is {}, expected fp8-block, int4-g32 or bf16", other.name());
            return Err(Error::argument("format", problem));
        }
    }
    let config = ModelConfig::from_json(value.to_string().as_bytes(), path)?;
    check_count(&config)?;
    Ok((value, config))
}

/// The loader takes so many tensors and no more; here it also bounds what the list of them costs.
fn check_count(config: &ModelConfig) -> Result<()> {
    let expert = expert_spec(config, config.num_layers - 1, 0);
    let parts = |tensors: MatrixTensors| {
        1 + usize::from(tensors.scale.is_some()) + usize::from(tensors.shape.is_some())
    };
    let of_one: usize = expert.each().into_iter().map(|m| parts(m.tensors())).sum();
    refuse_too_many(config.num_layers - config.first_k_dense, config.moe.num_experts, of_one)
}

fn refuse_too_many(layers: usize, experts: usize, tensors_of_one: usize) -> Result<()> {
    let tensors = layers * experts * tensors_of_one;
    if tensors > MAX_TENSORS {
        let problem =
            format!("with {experts} experts makes {tensors} tensors, at most {MAX_TENSORS} are loaded");
        return Err(Error::argument("layers", problem));
    }
    Ok(())
}

fn read(text: &[u8], file: &Path) -> Result<(Value, ModelConfig)> {
    let config = ModelConfig::from_json(text, file)?;
    let value = serde_json::from_slice(text).map_err(|e| Error::Config {
        file: file.to_owned(),
        field: "(the whole file)".into(),
        problem: format!("is not valid JSON: {e}"),
    })?;
    Ok((value, config))
}

/// What the configuration's own check would say of its fields, said of the arguments that set them.
fn check(layers: usize, experts: usize, own: &ModelConfig) -> Result<()> {
    if !(1..=MAX_LAYERS).contains(&layers) {
        return Err(Error::argument("layers", format!("is {layers}, expected 1 to {MAX_LAYERS}")));
    }
    let bad = |problem: String| Err(Error::argument("experts", format!("is {experts}, {problem}")));
    let moe = &own.moe;
    if !(moe.top_k..=MAX_EXPERTS).contains(&experts) {
        return bad(format!("expected {} (what a token chooses) to {MAX_EXPERTS}", moe.top_k));
    }
    if !experts.is_multiple_of(moe.n_group) {
        return bad(format!("expected a multiple of the model's {} groups", moe.n_group));
    }
    if experts / moe.n_group * moe.topk_group < moe.top_k {
        let least = moe.top_k.div_ceil(moe.topk_group) * moe.n_group;
        return bad(format!(
            "expected at least {least}: {} of {} groups must hold the {} experts of a token",
            moe.topk_group, moe.n_group, moe.top_k
        ));
    }
    // An expert has three tensors at least; what it has exactly is known once the whole configuration is.
    refuse_too_many(layers - own.first_k_dense.min(layers - 1), experts, 3)
}

fn remove(value: &mut Value, name: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(name);
    }
}

fn fp8() -> Value {
    json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
}

/// Experts only, as Kimi-K2-Thinking has it.
fn int4() -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
        ],
        "config_groups": {"group_0": {
            "input_activations": null,
            "output_activations": null,
            "targets": ["Linear"],
            "weights": {
                "actorder": null, "dynamic": false, "group_size": 32, "num_bits": 4,
                "strategy": "group", "symmetric": true, "type": "int",
            },
        }},
    })
}
