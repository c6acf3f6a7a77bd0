//! What is mended in a model after experts were taken out of it.

use serde::Serialize;

use super::select::Selection;
use crate::error::{Error, Result};

/// Mending of one layer with experts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerHealing {
    /// \[experts\]: what each expert's output is multiplied with. Folded into its down projection: into the scales where
    /// it has them, into the weights otherwise.
    pub output_scale: Vec<f32>,
    /// \[experts\]: the router's `e_score_correction_bias`, stored as F32.
    pub router_bias: Vec<f32>,
}

/// Mending of a whole selection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Healing {
    layers: Vec<Option<LayerHealing>>,
}

impl Healing {
    /// One entry for each kept layer; `None` leaves a layer as it is.
    ///
    /// # Errors
    /// [`Error::Argument`] `healing` if a layer's lists are not of the selection's number of experts, an output scale is
    /// not positive and finite, or a bias is not finite.
    pub fn new(selection: &Selection, layers: Vec<Option<LayerHealing>>) -> Result<Healing> {
        let bad = |problem: String| Err(Error::argument("healing", problem));
        if layers.len() != selection.layers().len() {
            return bad(format!("has {} layers, expected {}", layers.len(), selection.layers().len()));
        }
        for (new, layer) in layers.iter().enumerate() {
            let Some(LayerHealing { output_scale, router_bias }) = layer else { continue };
            let experts = selection.experts(new).len();
            if [output_scale.len(), router_bias.len()] != [experts; 2] {
                return bad(format!(
                    "of layer {new} has {} scales and {} biases, expected {experts} each",
                    output_scale.len(),
                    router_bias.len()
                ));
            }
            if let Some(scale) = output_scale.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
                return bad(format!("of layer {new} has the scale {scale}, expected a positive number"));
            }
            if let Some(bias) = router_bias.iter().find(|b| !b.is_finite()) {
                return bad(format!("of layer {new} has the bias {bias}, expected a number"));
            }
        }
        Ok(Healing { layers })
    }

    /// The mending of a kept layer, by its new number.
    pub(super) fn layer(&self, new: usize) -> Option<&LayerHealing> {
        self.layers.get(new)?.as_ref()
    }

    /// Everything that decides bytes, for an identity.
    pub(super) fn write_to(&self, mut write: impl FnMut(&[u8])) {
        for (new, layer) in self.layers.iter().enumerate() {
            let Some(layer) = layer else { continue };
            write(&(new as u64).to_le_bytes());
            for value in layer.output_scale.iter().chain(&layer.router_bias) {
                write(&value.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    #[test]
    fn wrong_lengths_and_values_are_refused() {
        let text = include_str!("../../models/demo/config.json");
        let config = ModelConfig::from_json(text.as_bytes(), "config.json".as_ref()).unwrap();
        let selection = Selection::everything(&config);
        let with = |experts: usize, scale: f32, bias: f32| {
            let layer = LayerHealing { output_scale: vec![scale; 32], router_bias: vec![bias; experts] };
            Healing::new(&selection, vec![None, Some(layer), None, None, None])
        };
        assert!(with(32, 0.5, -3.0).is_ok());
        for (healing, expected) in [
            (with(31, 1.0, 0.0), "of layer 1 has 32 scales and 31 biases, expected 32 each"),
            (with(32, 0.0, 0.0), "has the scale 0, expected a positive number"),
            (with(32, f32::INFINITY, 0.0), "has the scale inf"),
            (with(32, 1.0, f32::NAN), "has the bias NaN"),
            (Healing::new(&selection, vec![None]), "has 1 layers, expected 5"),
        ] {
            let said = healing.unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }
}
