//! From the bytes of `config.json` to a [`ModelConfig`].

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fields::{Fields, show};
use super::{Architecture, AttentionConfig, ModelConfig, MoeConfig, Quantization, quantization, rope};
use crate::error::{Error, Result};
use crate::quant::int4::GROUP;

/// Real configurations are a few kilobytes.
const FILE_BYTES: u64 = 1 << 20;

/// Upper limits, each far above every known model, low enough that no product of them overflows.
const VOCAB: usize = 1 << 24;
const WIDTH: usize = 1 << 16;
const LAYERS: usize = 1024;
const EXPERTS: usize = 4096;
const HEADS: usize = 1024;
const HEAD_DIM: usize = 4096;
const CONTEXT: usize = 1 << 24;
/// Kimi-K2 has 2^40; anything beyond this is a typing error.
const PARAMETERS: u128 = 1 << 46;

impl ModelConfig {
    /// Reads and validates `config.json`; `path` is the file or the folder that holds it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Config`] naming the field otherwise.
    pub fn from_file(path: &Path) -> Result<ModelConfig> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        ModelConfig::from_json(&read(&file)?, &file)
    }

    /// As [`ModelConfig::from_file`], from the file's bytes; `file` is used in errors only.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn from_json(bytes: &[u8], file: &Path) -> Result<ModelConfig> {
        let whole = |problem: String| Error::Config {
            file: file.to_owned(),
            field: "(the whole file)".into(),
            problem,
        };
        if let Some(what) = crate::checkpoint::looks_like(bytes) {
            return Err(whole(format!("is {what}, expected JSON")));
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|e| whole(format!("is not valid JSON: {e}")))?;
        let root = Fields::root(file, &value)?;

        let architecture = match root.text("model_type")? {
            Some("kimi_k2") => Architecture::KimiK2,
            Some("deepseek_v3") => Architecture::DeepseekV3,
            Some("kimi_k25") => Architecture::KimiK25,
            other => {
                return Err(root.bad(
                    "model_type",
                    format!(
                        "is {}, and this engine runs kimi_k2, deepseek_v3 and kimi_k25",
                        other.map_or("missing".into(), |m| show(&Value::from(m)))
                    ),
                ));
            }
        };
        if architecture == Architecture::KimiK25 {
            root.required("text_config")?;
            let Some(text) = root.object("text_config", "text_config")? else {
                return Err(root.bad("text_config", "is missing"));
            };
            let holder = if text.get("quantization_config").is_some() { text } else { root };
            return assemble(architecture, "language_model.", text, holder);
        }
        assemble(architecture, "", root, root)
    }
}

/// The bytes of a configuration file, if it can be one by its kind and size.
pub(super) fn read(file: &Path) -> Result<Vec<u8>> {
    let opened = crate::checkpoint::open_regular(file)?;
    let mut bytes = Vec::new();
    opened.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(file, "read"))?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(Error::Config {
            file: PathBuf::from(file),
            field: "(the whole file)".into(),
            problem: format!("is longer than {FILE_BYTES} bytes, far more than a model configuration needs"),
        });
    }
    Ok(bytes)
}

fn assemble(
    architecture: Architecture,
    prefix: &str,
    text: Fields<'_>,
    quantization_holder: Fields<'_>,
) -> Result<ModelConfig> {
    refuse_other_architectures(text)?;
    let vocab_size = text.size("vocab_size", 1..=VOCAB)?;
    let num_layers = text.size("num_hidden_layers", 1..=LAYERS)?;
    let (attention, rope) = attention(text)?;
    let config = ModelConfig {
        architecture,
        tensor_prefix: prefix.to_owned(),
        vocab_size,
        hidden_size: text.size("hidden_size", 1..=WIDTH)?,
        num_layers,
        first_k_dense: text.size_or("first_k_dense_replace", 0, 0..=num_layers)?,
        dense_intermediate_size: text.size("intermediate_size", 1..=WIDTH * 4)?,
        attention,
        moe: moe(text)?,
        rope,
        rms_norm_eps: text.number_or("rms_norm_eps", 1e-6, 1e-30..=1.0)? as f32,
        latent_norm_eps: 1e-6,
        quantization: quantization::read(quantization_holder)?,
        tie_word_embeddings: text.bool_or("tie_word_embeddings", false)?,
        bos_token_id: token_ids(text, "bos_token_id", vocab_size)?.first().copied(),
        eos_token_ids: token_ids(text, "eos_token_id", vocab_size)?,
        max_context: text.size("max_position_embeddings", 1..=CONTEXT)?,
        num_mtp_layers: text.size_or("num_nextn_predict_layers", 0, 0..=LAYERS)?,
    };
    check_int4_widths(text, &config)?;
    let experts = config.num_layers as u128 * config.moe.num_experts as u128;
    let parameters = experts * 3 * config.hidden_size as u128 * config.moe.intermediate_size as u128
        + 2 * config.vocab_size as u128 * config.hidden_size as u128;
    if parameters > PARAMETERS {
        let problem = format!(
            "× n_routed_experts × the expert size makes {parameters} parameters, more than any model has"
        );
        return Err(text.bad("num_hidden_layers", problem));
    }
    Ok(config)
}

/// Fields that switch on something this forward pass does not compute.
fn refuse_other_architectures(text: Fields<'_>) -> Result<()> {
    text.must_be("hidden_act", &json!("silu"), "")?;
    text.must_be("attention_bias", &json!(false), "")?;
    text.must_be("moe_layer_freq", &json!(1), "")?;
    text.must_be("scoring_func", &json!("sigmoid"), " routing")?;
    text.must_be("topk_method", &json!("noaux_tc"), " routing")
}

fn attention(text: Fields<'_>) -> Result<(AttentionConfig, super::RopeConfig)> {
    let num_heads = text.size("num_attention_heads", 1..=HEADS)?;
    let kv_heads = text.size_or("num_key_value_heads", num_heads, 1..=HEADS)?;
    if kv_heads != num_heads {
        let problem =
            format!("is {kv_heads}, expected {num_heads} as num_attention_heads: MLA shares its cache");
        return Err(text.bad("num_key_value_heads", problem));
    }
    let nope_head_dim = text.size("qk_nope_head_dim", 1..=HEAD_DIM)?;
    let rope_head_dim = text.size("qk_rope_head_dim", 2..=HEAD_DIM)?;
    if rope_head_dim % 2 != 0 {
        let problem = format!("is {rope_head_dim}, expected an even number: rotary dimensions come in pairs");
        return Err(text.bad("qk_rope_head_dim", problem));
    }
    if let Some(head_dim) = text.get("qk_head_dim")
        && *head_dim != json!(nope_head_dim + rope_head_dim)
    {
        let problem = format!("is {}, expected qk_nope_head_dim + qk_rope_head_dim", show(head_dim));
        return Err(text.bad("qk_head_dim", problem));
    }
    let (rope, softmax_factor) = rope::read(text, rope_head_dim)?;
    let q_lora_rank =
        text.get("q_lora_rank").map(|v| text.as_size("q_lora_rank", v, 1..=WIDTH)).transpose()?;
    let config = AttentionConfig {
        num_heads,
        q_lora_rank,
        kv_lora_rank: text.size("kv_lora_rank", 1..=WIDTH)?,
        nope_head_dim,
        rope_head_dim,
        v_head_dim: text.size("v_head_dim", 1..=HEAD_DIM)?,
        softmax_scale: ((nope_head_dim + rope_head_dim) as f32).powf(-0.5) * softmax_factor,
    };
    Ok((config, rope))
}

fn moe(text: Fields<'_>) -> Result<MoeConfig> {
    let num_experts = text.size("n_routed_experts", 1..=EXPERTS)?;
    let top_k = text.size("num_experts_per_tok", 1..=num_experts)?;
    let n_group = text.size_or("n_group", 1, 1..=num_experts)?;
    let topk_group = text.size_or("topk_group", 1, 1..=n_group)?;
    if num_experts % n_group != 0 {
        let problem = format!("is {n_group}, which does not divide the {num_experts} experts evenly");
        return Err(text.bad("n_group", problem));
    }
    if num_experts / n_group * topk_group < top_k {
        let problem = format!(
            "is {topk_group}: {topk_group} groups of {} experts cannot fill num_experts_per_tok = {top_k}",
            num_experts / n_group
        );
        return Err(text.bad("topk_group", problem));
    }
    Ok(MoeConfig {
        num_experts,
        top_k,
        intermediate_size: text.size("moe_intermediate_size", 1..=WIDTH)?,
        num_shared: text.size_or("n_shared_experts", 0, 0..=64)?,
        n_group,
        topk_group,
        norm_topk_prob: text.bool_or("norm_topk_prob", true)?,
        routed_scaling_factor: text.number_or("routed_scaling_factor", 1.0, 1e-6..=1e6)? as f32,
    })
}

/// A token id or a list of them.
fn token_ids(text: Fields<'_>, name: &str, vocab_size: usize) -> Result<Vec<u32>> {
    let one = |v| text.as_size(name, v, 0..=vocab_size - 1).map(|id| id as u32);
    match text.get(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().take(256).map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// INT4 groups run along a row; a row that is no whole number of groups has no defined layout.
fn check_int4_widths(text: Fields<'_>, config: &ModelConfig) -> Result<()> {
    if !matches!(config.quantization, Quantization::Int4Group32 { .. }) {
        return Ok(());
    }
    for (name, width) in
        [("hidden_size", config.hidden_size), ("moe_intermediate_size", config.moe.intermediate_size)]
    {
        if width % GROUP != 0 {
            let problem = format!("is {width}, expected a multiple of {GROUP} for INT4 groups");
            return Err(text.bad(name, problem));
        }
    }
    Ok(())
}
