//! From a model to imitate to the configuration of the imitation.

use std::path::Path;

use serde_json::Value;

use super::Synth;
use crate::checkpoint::MAX_TENSORS;
use crate::checkpoint::tensors::routed_tensors;
use crate::config::ModelConfig;
use crate::config::rewrite::{self, Rewrite};
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
    let (mut json, own) = match named {
        Some((_, text)) => Rewrite::parse(text.as_bytes(), path)?,
        None => {
            if !path.exists() {
                let names = BUILT_IN.map(|(name, _)| name).join(", ");
                let problem = format!("is {:?}, expected {names} or the path of a config.json", synth.like);
                return Err(Error::argument("like", problem));
            }
            Rewrite::read(path)?
        }
    };
    let layers = synth.layers.unwrap_or(own.num_layers);
    let experts = synth.experts.unwrap_or(own.moe.num_experts);
    check(layers, experts, &own)?;

    json.set("num_hidden_layers", layers);
    json.set("n_routed_experts", experts);
    json.set("first_k_dense_replace", own.first_k_dense.min(layers - 1));
    // The loader skips these layers, so there is nothing to be measured on them.
    json.set("num_nextn_predict_layers", 0);
    match synth.format {
        None => {}
        Some(Format::Bf16) => json.set_quantization(None),
        Some(Format::Fp8Block) => json.set_quantization(Some(rewrite::fp8(&[]))),
        Some(Format::Int4Group32) => json.set_quantization(Some(rewrite::int4())),
        Some(other) => {
            let problem = format!("is {}, expected fp8-block, int4-g32 or bf16", other.name());
            return Err(Error::argument("format", problem));
        }
    }
    let config = json.meaning()?;
    // The loader takes so many tensors and no more; here it also bounds what the list of them costs.
    refuse_too_many(routed_tensors(&config), experts)?;
    Ok((json.into_json(), config))
}

fn refuse_too_many(tensors: usize, experts: usize) -> Result<()> {
    if tensors > MAX_TENSORS {
        let problem =
            format!("with {experts} experts makes {tensors} tensors, at most {MAX_TENSORS} are loaded");
        return Err(Error::argument("layers", problem));
    }
    Ok(())
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
    moe.can_choose_among(experts).or_else(bad)?;
    // An expert has three tensors at least; what it has exactly is known once the whole configuration is.
    refuse_too_many((layers - own.first_k_dense.min(layers - 1)) * experts * 3, experts)
}
