//! What a model is: `config.json` read once, every architecture quirk decided here and nowhere else.
//!
//! The rest of the engine sees a [`ModelConfig`]: no optional fields that mean "the default of that family", no
//! model-type comparisons. Every number has been range-checked, so code below may allocate from it.

mod fields;
mod parse;
mod quantization;
pub(crate) mod rewrite;
mod rope;

use std::fmt;

/// The families of checkpoints this engine runs. They share one forward pass; what differs is in the other fields
/// of [`ModelConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `kimi_k2`: Kimi-K2-Instruct, K2-Thinking.
    KimiK2,
    /// `deepseek_v3`: DeepSeek-V3, R1, V3.1, Moonlight.
    DeepseekV3,
    /// `kimi_k25`: K2.5 and later, a Kimi-K2 text model inside a multimodal checkpoint.
    KimiK25,
}

/// A validated model configuration. Sizes are element counts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The family the file names.
    pub architecture: Architecture,
    /// What every text tensor's name starts with: empty, or `language_model.` in multimodal checkpoints.
    pub tensor_prefix: String,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer layers, without multi-token-prediction layers.
    pub num_layers: usize,
    /// How many layers at the start have a dense MLP instead of experts.
    pub first_k_dense: usize,
    /// Intermediate width of those dense MLPs.
    pub dense_intermediate_size: usize,
    /// Multi-head latent attention.
    pub attention: AttentionConfig,
    /// Experts and their router. Present even if every layer is dense.
    pub moe: MoeConfig,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Epsilon of the layer norms and of the final norm.
    pub rms_norm_eps: f32,
    /// Epsilon of `q_a_layernorm` and `kv_a_layernorm`. The authors' own modelling code builds these two with the
    /// norm's default of 1e-6 whatever `rms_norm_eps` says, and so does transformers.
    pub latent_norm_eps: f32,
    /// How weights are stored.
    pub quantization: Quantization,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Begin-of-sequence token, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation, as far as the configuration names them.
    pub eos_token_ids: Vec<u32>,
    /// Longest sequence the model was made for, in tokens.
    pub max_context: usize,
    /// Multi-token-prediction layers behind the last layer; their tensors are skipped.
    pub num_mtp_layers: usize,
}

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Query heads (key/value heads are as many; the cache is shared by all).
    pub num_heads: usize,
    /// Rank of the query down-projection; `None` where queries are projected directly (`q_proj`).
    pub q_lora_rank: Option<usize>,
    /// Rank of the key/value latent, the cached part.
    pub kv_lora_rank: usize,
    /// Width of a head's part without position.
    pub nope_head_dim: usize,
    /// Width of a head's rotary part; even.
    pub rope_head_dim: usize,
    /// Width of a head's value.
    pub v_head_dim: usize,
    /// What scores are multiplied with before the softmax: (nope + rope)^-½ times yarn's squared magnitude.
    pub softmax_scale: f32,
}

impl AttentionConfig {
    /// Width of a head's query and key: the part without position, then the rotary part.
    pub fn qk_head_dim(&self) -> usize {
        self.nope_head_dim + self.rope_head_dim
    }

    /// Elements cached per token and layer: the latent, then the rotated key part.
    pub fn cached_dim(&self) -> usize {
        self.kv_lora_rank + self.rope_head_dim
    }
}

/// Mixture of experts, DeepSeek-V3's `noaux_tc` routing with sigmoid scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeConfig {
    /// Routed experts a layer.
    pub num_experts: usize,
    /// Routed experts a token.
    pub top_k: usize,
    /// Intermediate width of one expert.
    pub intermediate_size: usize,
    /// Shared experts; they are stored as one MLP of this many times the intermediate width.
    pub num_shared: usize,
    /// Groups the experts are divided into.
    pub n_group: usize,
    /// Groups a token may choose from.
    pub topk_group: usize,
    /// Divide the chosen weights by their sum.
    pub norm_topk_prob: bool,
    /// Multiplied into the weights last.
    pub routed_scaling_factor: f32,
}

impl MoeConfig {
    /// Whether the router could choose a token's experts from so many, the rest as it is; if not, what was expected, as a
    /// predicate.
    pub(crate) fn can_choose_among(&self, experts: usize) -> Result<(), String> {
        let MoeConfig { n_group, topk_group, top_k, .. } = *self;
        if !experts.is_multiple_of(n_group) {
            return Err(format!("expected a multiple of the model's {n_group} groups"));
        }
        if experts / n_group * topk_group < top_k {
            let least = top_k.div_ceil(topk_group) * n_group;
            return Err(format!(
                "expected at least {least}: {topk_group} of {n_group} groups must hold the {top_k} experts of a token"
            ));
        }
        Ok(())
    }
}

/// Rotary position embedding: the inverse frequencies are all that is left of theta and yarn.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Radians a position, one per pair of rotary dimensions, [rope_head_dim / 2].
    pub inv_freq: Vec<f32>,
    /// What cosines and sines are multiplied with (1.0 for every known checkpoint: mscale = mscale_all_dim).
    pub amplitude: f32,
}

/// How a checkpoint stores its weights.
#[derive(Debug, Clone)]
pub enum Quantization {
    /// BF16, F16 or F32 throughout.
    None,
    /// FP8 e4m3 with one F32 scale per 128×128 block, every linear layer but the listed modules, the router and
    /// the head.
    Fp8Block {
        /// Modules left unquantised (`modules_to_not_convert`), without `.weight`.
        skip: Vec<String>,
    },
    /// compressed-tensors `pack-quantized`: INT4 in groups of 32 with a BF16 scale, every linear layer but those
    /// the patterns name.
    Int4Group32 {
        /// The `ignore` list: module names, or regular expressions after `re:`, anchored at the start.
        ignore: Vec<IgnoreRule>,
    },
}

/// One entry of compressed-tensors' `ignore` list.
#[derive(Debug, Clone)]
pub enum IgnoreRule {
    /// This module, by its name without the checkpoint's prefix.
    Exact(String),
    /// Every module whose name the expression matches from its start.
    Pattern(regex::Regex),
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Architecture::KimiK2 => "kimi_k2",
            Architecture::DeepseekV3 => "deepseek_v3",
            Architecture::KimiK25 => "kimi_k25",
        })
    }
}
