//! The parts of a layer that need nothing but the layer: attention and the dense MLP, on the residual stream.

use super::ABSORB_UP_TO;
use crate::checkpoint::weights::{GatedMlp, Layer, Query};
use crate::config::ModelConfig;
use crate::device::{Device, MlaCall, MlaForm, Precision, Shape, Site};
use crate::error::Result;

/// The residual stream of a batch of tokens and what a layer makes of it on the way.
pub(super) struct Stream<D: Device> {
    /// The residual stream.
    pub hidden: D::Tensor,
    /// What the block at work is given.
    pub normed: D::Tensor,
    /// What a block adds to the residual stream.
    pub update: D::Tensor,
    q_latent: D::Tensor,
    q_normed: D::Tensor,
    q: D::Tensor,
    kv_a: D::Tensor,
    attended: D::Tensor,
    pub guard: D::Guard,
}

/// Which layer it is and where its keys and values stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct CachePlace {
    /// Layer of the model, for errors.
    pub layer: usize,
    /// Layer of the cache.
    pub cached: usize,
    /// Position of the first token.
    pub start: usize,
}

impl<D: Device> Stream<D> {
    /// For up to `tokens` tokens.
    pub(super) fn new(device: &D, config: &ModelConfig, tokens: usize) -> Result<Self> {
        let a = &config.attention;
        let working = |cols| device.tensor(tokens, cols, Precision::Working);
        Ok(Stream {
            hidden: device.tensor(tokens, config.hidden_size, Precision::Full)?,
            normed: working(config.hidden_size)?,
            update: working(config.hidden_size)?,
            q_latent: working(a.q_lora_rank.unwrap_or(1))?,
            q_normed: working(a.q_lora_rank.unwrap_or(1))?,
            q: working(a.num_heads * a.qk_head_dim())?,
            kv_a: working(a.cached_dim())?,
            attended: working(a.num_heads * a.v_head_dim)?,
            guard: device.guard()?,
        })
    }

    /// Adds attention to the stream and leaves in `normed` what the layer's MLP or experts are given.
    pub(super) fn attend(
        &mut self,
        device: &D,
        config: &ModelConfig,
        layer: &Layer<D::Matrix, D::Vector>,
        cache: &mut D::KvCache,
        place: CachePlace,
    ) -> Result<()> {
        let eps = config.rms_norm_eps;
        device.rms_norm(&self.hidden, &layer.input_norm, eps, &mut self.normed)?;
        self.attention(device, config, layer, cache, place)?;
        let norm = &layer.post_attention_norm;
        device.add_rms_norm(&self.update, &mut self.hidden, norm, eps, &mut self.normed)
    }

    /// `normed` → `update`: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    fn attention(
        &mut self,
        device: &D,
        config: &ModelConfig,
        layer: &Layer<D::Matrix, D::Vector>,
        cache: &mut D::KvCache,
        place: CachePlace,
    ) -> Result<()> {
        let weights = &layer.attention;
        let CachePlace { layer, cached, start } = place;
        let site = |module| Site { layer: Some(layer), module };
        match &weights.query {
            Query::Direct(w) => {
                device.linear(&self.normed, w, &mut self.q)?;
                device.watch(&self.q, site("self_attn.q_proj"), &mut self.guard)?;
            }
            Query::LowRank { a, norm, b } => {
                device.linear(&self.normed, a, &mut self.q_latent)?;
                device.watch(&self.q_latent, site("self_attn.q_a_proj"), &mut self.guard)?;
                device.rms_norm(&self.q_latent, norm, config.latent_norm_eps, &mut self.q_normed)?;
                device.linear(&self.q_normed, b, &mut self.q)?;
                device.watch(&self.q, site("self_attn.q_b_proj"), &mut self.guard)?;
            }
        }
        device.rope_query(&mut self.q, start, &config.attention, &config.rope)?;

        device.linear(&self.normed, &weights.kv_a, &mut self.kv_a)?;
        device.watch(&self.kv_a, site("self_attn.kv_a_proj_with_mqa"), &mut self.guard)?;
        let eps = config.latent_norm_eps;
        device.kv_append(&self.kv_a, &weights.kv_a_norm, eps, &config.rope, cached, start, cache)?;

        let form = if self.q.rows() <= ABSORB_UP_TO { MlaForm::Absorbed } else { MlaForm::Expanded };
        let call = MlaCall { layer: cached, start, attention: &config.attention, form };
        device.mla(&self.q, &weights.kv_b, cache, call, &mut self.attended)?;
        device.watch(&self.attended, site("self_attn.kv_b_proj"), &mut self.guard)?;
        device.linear(&self.attended, &weights.output, &mut self.update)?;
        device.watch(&self.update, site("self_attn.o_proj"), &mut self.guard)
    }

    /// Adds the dense MLP of `normed` to the stream.
    pub(super) fn dense(&mut self, device: &D, layer: usize, mlp: &GatedMlp<D::Matrix>) -> Result<()> {
        device.gated_mlp(&self.normed, mlp, &mut self.update)?;
        device.watch(&self.update, Site { layer: Some(layer), module: "mlp" }, &mut self.guard)?;
        device.add(&self.update, &mut self.hidden)
    }
}
