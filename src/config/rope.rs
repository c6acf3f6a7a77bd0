//! Rotary embedding and YaRN, reduced to inverse frequencies and two factors.
//!
//! YaRN (arXiv 2309.00071) as DeepSeek-V3's modelling code has it: frequencies whose wavelength fits the original
//! context often stay, those that do not are divided by the factor, with a linear ramp between; the softmax scale
//! takes the square of 0.1·mscale_all_dim·ln(factor) + 1.

use std::f64::consts::PI;

use serde_json::Value;

use super::RopeConfig;
use super::fields::{Fields, show};
use crate::error::Result;

/// The rotary embedding and what the softmax scale is multiplied with.
pub(super) fn read(text: Fields<'_>, dim: usize) -> Result<(RopeConfig, f32)> {
    // transformers 5 writes `rope_parameters` with theta inside; everything older writes `rope_scaling` beside it.
    let scaling = match text.object("rope_parameters", "rope_parameters")? {
        Some(new) => Some(new),
        None => text.object("rope_scaling", "rope_scaling")?,
    };
    let theta_in = scaling.filter(|s| s.get("rope_theta").is_some()).unwrap_or(text);
    let theta = theta_in.number("rope_theta", 1.0 + 1e-9..=1e12)?;
    let plain: Vec<f64> = (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect();

    let kind = match scaling {
        None => None,
        Some(s) => s.text("type")?.or(s.text("rope_type")?),
    };
    let (Some(yarn), Some(kind)) = (scaling, kind) else {
        let inv_freq = plain.iter().map(|&f| f as f32).collect();
        return Ok((RopeConfig { inv_freq, amplitude: 1.0 }, 1.0));
    };
    match kind {
        "default" => {
            let inv_freq = plain.iter().map(|&f| f as f32).collect();
            Ok((RopeConfig { inv_freq, amplitude: 1.0 }, 1.0))
        }
        "yarn" => stretch(yarn, &plain, dim, theta),
        other => {
            let shown = show(&Value::from(other));
            Err(yarn.bad("type", format!("is {shown}, expected \"yarn\", \"default\" or no scaling at all")))
        }
    }
}

fn stretch(yarn: Fields<'_>, plain: &[f64], dim: usize, theta: f64) -> Result<(RopeConfig, f32)> {
    let factor = yarn.number("factor", 1.0..=1e6)?;
    let beta_fast = yarn.number_or("beta_fast", 32.0, 1e-6..=1e6)?;
    let beta_slow = yarn.number_or("beta_slow", 1.0, 1e-6..=1e6)?;
    let mscale = yarn.number_or("mscale", 1.0, 0.0..=1e3)?;
    let mscale_all_dim = yarn.number_or("mscale_all_dim", 0.0, 0.0..=1e3)?;
    let original = yarn.size("original_max_position_embeddings", 1..=1 << 24)? as f64;

    // The pair index whose wavelength turns `rotations` times within the original context.
    let pair_of = |rotations: f64| dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let low = pair_of(beta_fast).floor().max(0.0);
    let high = pair_of(beta_slow).ceil().min(dim as f64 - 1.0);
    let width = if high == low { 0.001 } else { high - low };
    let inv_freq = plain
        .iter()
        .enumerate()
        .map(|(i, f)| {
            let interpolated = ((i as f64 - low) / width).clamp(0.0, 1.0);
            (f / factor * interpolated + f * (1.0 - interpolated)) as f32
        })
        .collect();

    let magnitude = |m: f64| if factor > 1.0 { 0.1 * m * factor.ln() + 1.0 } else { 1.0 };
    let amplitude = (magnitude(mscale) / magnitude(mscale_all_dim)) as f32;
    let softmax = if mscale_all_dim == 0.0 { 1.0 } else { magnitude(mscale_all_dim).powi(2) as f32 };
    Ok((RopeConfig { inv_freq, amplitude }, softmax))
}
