//! What a model does with calibration text: which experts matter, and which layers.

use serde::{Deserialize, Serialize};

use super::select::Selection;
use crate::config::MoeConfig;
use crate::error::Result;
use crate::model::walk::{Walk, WalkLayer, Windows, add, combine, route};

/// Measurements of a whole model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Calibration {
    /// Tokens it was measured on.
    pub tokens: usize,
    /// Mean −ln p of a token over windows, in nats.
    pub nats: f64,
    /// By layer.
    pub layers: Vec<LayerUse>,
}

/// Measurements of a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LayerUse {
    /// Block influence: mean over tokens of 1 − cos(stream before, stream behind) (ShortGPT, arXiv 2403.03853, section 3).
    pub influence: f64,
    /// By expert; empty in a dense layer.
    pub experts: Vec<ExpertUse>,
}

/// Measurements of an expert.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExpertUse {
    /// Tokens that chose it.
    pub chosen: u64,
    /// Sum of its weights over them.
    pub mass: f64,
    /// Sum of the lengths of its weighted outputs.
    pub norm: f64,
    /// Sum of squared changes of the layer's output if it alone is dropped: each token that chose it takes the next best
    /// expert, and the weights are divided by their new sum.
    pub loss: f64,
}

/// Runs `windows` through a model, one layer at a time. `progress` is told of each finished layer.
///
/// # Errors
/// [`crate::Error::NonFinite`] naming layer and tensor, what reading reports, [`crate::Error::Cancelled`].
pub fn calibrate(walk: &Walk, windows: &[Vec<u32>], progress: &mut dyn FnMut(usize)) -> Result<Calibration> {
    let mut windows = walk.embed(windows)?;
    let mut layers = Vec::with_capacity(walk.config().num_layers);
    for at in 0..walk.config().num_layers {
        let before = windows.hidden().to_vec();
        let layer = walk.layer(at)?;
        let x = walk.attend(&layer, &mut windows)?;
        walk.dense(&layer, &x, &mut windows)?;
        let experts = match layer.router_bias() {
            Some(bias) => experts(walk, &layer, bias, &x, &mut windows)?,
            None => Vec::new(),
        };
        let influence = influence(&before, windows.hidden(), walk.config().hidden_size);
        layers.push(LayerUse { influence, experts });
        progress(at);
    }
    let of_windows = nats(walk, &windows)?;
    let nats = of_windows.iter().sum::<f64>() / of_windows.len() as f64;
    Ok(Calibration { tokens: windows.tokens(), nats, layers })
}

/// By window the mean −ln p of a token, in nats, if a model kept only what is selected: its other layers are passed by, its other
/// experts never chosen. For selections that merge nothing, this is what the model that is made by them would have.
///
/// # Errors
/// As [`calibrate`].
pub fn foretold(walk: &Walk, selection: &Selection, windows: &[Vec<u32>]) -> Result<Vec<f64>> {
    let mut stream = walk.embed(windows)?;
    for (new, &at) in selection.layers().iter().enumerate() {
        let layer = walk.layer(at)?;
        let x = walk.attend(&layer, &mut stream)?;
        walk.dense(&layer, &x, &mut stream)?;
        let Some(bias) = layer.router_bias() else { continue };
        let mut masked = vec![f32::NEG_INFINITY; bias.len()];
        for group in selection.experts(new) {
            masked[group.head()] = bias[group.head()];
        }
        walk.mix_by(&layer, &masked, &x, &mut stream, |_| Ok(()))?;
    }
    nats(walk, &stream)
}

/// By window the mean −ln p of a token, in nats; 0 for a window of one token.
fn nats(walk: &Walk, behind: &Windows) -> Result<Vec<f64>> {
    let mut sums = vec![(0.0, 0.0); behind.ranges().len()];
    for loss in walk.losses(behind)? {
        let (nats, tokens) = &mut sums[loss.window];
        *nats += loss.nats;
        *tokens += 1.0;
    }
    Ok(sums.into_iter().map(|(nats, tokens)| nats / f64::max(tokens, 1.0)).collect())
}

/// Measures a layer's experts and adds them to the stream.
fn experts(
    walk: &Walk,
    layer: &WalkLayer,
    bias: &[f32],
    x: &[f32],
    windows: &mut Windows,
) -> Result<Vec<ExpertUse>> {
    let (moe, width) = (walk.config().moe, walk.config().hidden_size);
    // One expert more than a token chooses: who takes the place of one that is dropped.
    let within = moe.num_experts / moe.n_group * moe.topk_group;
    let wide = MoeConfig { top_k: (moe.top_k + 1).min(within), ..moe };
    let mut found = vec![ExpertUse::default(); moe.num_experts];
    let step = walk.chunk() * width;
    for (i, (x, hidden)) in x.chunks(step).zip(windows.hidden_mut().chunks_mut(step)).enumerate() {
        let logits = walk.gate(layer, x)?;
        let routing = route(&logits, bias, &wide);
        let outputs = walk.experts(layer, x, &routing, i * walk.chunk())?;
        let of_tokens = outputs.chunks_exact(wide.top_k * width).zip(routing.ids().chunks_exact(wide.top_k));
        let of_tokens = of_tokens.zip(routing.weights().chunks_exact(wide.top_k));
        for (((outputs, ids), raw), hidden) in of_tokens.zip(hidden.chunks_exact_mut(width)) {
            let chosen = weights(raw, |rank| rank < moe.top_k, &moe);
            let mut y = vec![0.0; width];
            combine(outputs, &chosen, width, &mut y);
            for rank in 0..moe.top_k {
                let output = &outputs[rank * width..][..width];
                let use_of = &mut found[ids[rank] as usize];
                use_of.chosen += 1;
                use_of.mass += f64::from(chosen[rank]);
                use_of.norm += f64::from(chosen[rank]) * squares(output).sqrt();
                let without = weights(raw, |r| r != rank, &moe);
                let mut other = vec![0.0; width];
                combine(outputs, &without, width, &mut other);
                use_of.loss += y.iter().zip(&other).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            }
            add(&y, hidden);
        }
        add(&walk.shared(layer, x)?, hidden);
    }
    Ok(found)
}

/// Weights of a token's experts if only some ranks are chosen, from the weights of all (of which only the ratios count where
/// they are divided by their sum).
fn weights(raw: &[f32], chosen: impl Fn(usize) -> bool, moe: &MoeConfig) -> Vec<f32> {
    let kept = |(rank, &w): (usize, &f32)| if chosen(rank) { w } else { 0.0 };
    let mut weights: Vec<f32> = raw.iter().enumerate().map(kept).collect();
    if moe.norm_topk_prob {
        let sum = weights.iter().sum::<f32>() + 1e-20;
        weights.iter_mut().for_each(|w| *w *= moe.routed_scaling_factor / sum);
    }
    weights
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum()
}

fn influence(before: &[f32], behind: &[f32], width: usize) -> f64 {
    let tokens = before.chunks_exact(width).zip(behind.chunks_exact(width));
    let change = tokens.map(|(a, b)| {
        let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        1.0 - dot / (squares(a) * squares(b)).sqrt().max(f64::MIN_POSITIVE)
    });
    change.sum::<f64>() / (before.len() / width) as f64
}
