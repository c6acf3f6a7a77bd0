//! A `config.json` changed field by field: everything that is not named stays what it was.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ModelConfig;
use crate::error::{Error, Result};

/// Where modules that stay unquantised are listed, by quantisation method.
const LISTS: [&str; 2] = ["modules_to_not_convert", "ignore"];

/// A configuration on its way to becoming another one.
#[derive(Debug, Clone)]
pub(crate) struct Rewrite {
    value: Value,
    file: PathBuf,
    /// Multimodal checkpoints keep the text model's fields in an object of their own.
    nested: bool,
}

impl Rewrite {
    /// From the bytes of a configuration; `file` is used in errors. Also what it means as it stands.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub(crate) fn parse(bytes: &[u8], file: &Path) -> Result<(Rewrite, ModelConfig)> {
        let config = ModelConfig::from_json(bytes, file)?;
        let value: Value = serde_json::from_slice(bytes).map_err(|e| Error::Config {
            file: file.to_owned(),
            field: "(the whole file)".into(),
            problem: format!("is not valid JSON: {e}"),
        })?;
        let nested = value.get("text_config").is_some_and(Value::is_object);
        Ok((Rewrite { value, file: file.to_owned(), nested }, config))
    }

    /// From a file, or from the `config.json` of a folder.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Config`].
    pub(crate) fn read(path: &Path) -> Result<(Rewrite, ModelConfig)> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        Rewrite::parse(&super::parse::read(&file)?, &file)
    }

    /// Sets a field of the text model.
    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.text()[field] = value.into();
    }

    /// Says how plain tensors are stored, under the names the file already uses for that.
    pub(crate) fn set_dtype(&mut self, name: &str) {
        let mut found = false;
        self.each_holder(|holder| {
            for field in ["torch_dtype", "dtype"] {
                if let Some(value) = holder.get_mut(field) {
                    *value = name.into();
                    found = true;
                }
            }
        });
        if !found {
            self.set("torch_dtype", name);
        }
    }

    /// Replaces the quantisation; `None` leaves weights plain.
    pub(crate) fn set_quantization(&mut self, quantization: Option<Value>) {
        self.each_holder(|holder| {
            if let Some(map) = holder.as_object_mut() {
                map.remove("quantization_config");
            }
        });
        if let Some(quantization) = quantization {
            self.set("quantization_config", quantization);
        }
    }

    /// Gives the modules that are listed as unquantised other names; one that gets none leaves the list. Regular
    /// expressions stay as they are.
    pub(crate) fn rename_unquantized(&mut self, rename: impl Fn(&str) -> Option<String>) {
        self.each_list(|list| {
            let renamed = list.drain(..).filter_map(|entry| match entry.as_str() {
                Some(module) if !module.starts_with("re:") => rename(module).map(Value::from),
                _ => Some(entry),
            });
            *list = renamed.collect();
        });
    }

    /// Lists exactly these modules as unquantised.
    pub(crate) fn list_unquantized(&mut self, modules: &[String]) {
        self.each_list(|list| *list = modules.iter().map(|module| module.as_str().into()).collect());
    }

    /// What it means now.
    ///
    /// # Errors
    /// [`Error::Config`], as for any configuration.
    pub(crate) fn meaning(&self) -> Result<ModelConfig> {
        ModelConfig::from_json(self.value.to_string().as_bytes(), &self.file)
    }

    /// The file's content.
    pub(crate) fn into_json(self) -> Value {
        self.value
    }

    fn text(&mut self) -> &mut Value {
        if self.nested { &mut self.value["text_config"] } else { &mut self.value }
    }

    /// Calls a function for each object that may speak of the text model's storage.
    fn each_holder(&mut self, mut f: impl FnMut(&mut Value)) {
        f(&mut self.value);
        if self.nested {
            f(&mut self.value["text_config"]);
        }
    }

    fn each_list(&mut self, mut f: impl FnMut(&mut Vec<Value>)) {
        self.each_holder(|holder| {
            for name in LISTS {
                let list = holder.get_mut("quantization_config").and_then(|q| q.get_mut(name));
                if let Some(Value::Array(list)) = list {
                    f(list);
                }
            }
        });
    }
}

/// DeepSeek's FP8: e4m3 in blocks of 128×128, every linear layer but these modules.
pub(crate) fn fp8(plain: &[String]) -> Value {
    let mut value = json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    });
    if !plain.is_empty() {
        value["modules_to_not_convert"] = plain.into();
    }
    value
}

/// INT4 in groups of 32, the routed experts only, as Kimi-K2-Thinking has it.
pub(crate) fn int4() -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    const KIMI_K25: &str = include_str!("../../tests/fixtures/configs/kimi-k25.json");
    const KIMI_K2: &str = include_str!("../../tests/fixtures/configs/kimi-k2-instruct.json");

    fn parse(text: &str) -> (Rewrite, ModelConfig) {
        Rewrite::parse(text.as_bytes(), Path::new("config.json")).unwrap()
    }

    #[test]
    fn nothing_changed_is_nothing_changed() {
        for text in [KIMI_K2, KIMI_K25] {
            let before: Value = serde_json::from_str(text).unwrap();
            let (rewrite, meant) = parse(text);
            assert_eq!(format!("{:?}", rewrite.meaning().unwrap()), format!("{meant:?}"));
            assert_eq!(rewrite.into_json(), before);
        }
    }

    #[test]
    fn a_nested_text_model_is_changed_where_it_is() {
        let (mut rewrite, _) = parse(KIMI_K25);
        rewrite.set("num_hidden_layers", 7);
        rewrite.set_quantization(Some(fp8(&["model.layers.0.mlp.up_proj".to_owned()])));
        rewrite.set_dtype("bfloat16");
        let config = rewrite.meaning().unwrap();
        assert_eq!(config.num_layers, 7);
        assert_eq!(config.tensor_prefix, "language_model.");
        let json = rewrite.into_json();
        assert_eq!(json["text_config"]["num_hidden_layers"], 7);
        assert!(json.get("num_hidden_layers").is_none() && json.get("quantization_config").is_none());
        let list = &json["text_config"]["quantization_config"]["modules_to_not_convert"];
        assert_eq!(*list, json!(["model.layers.0.mlp.up_proj"]));
        assert_eq!(json["vision_config"], serde_json::from_str::<Value>(KIMI_K25).unwrap()["vision_config"]);
    }

    #[test]
    fn listed_modules_get_other_names_and_expressions_stay() {
        let (mut rewrite, _) = parse(KIMI_K2);
        let listed = ["lm_head", "re:.*x", "model.layers.7.a", "model.layers.8.a"].map(str::to_owned);
        rewrite.set_quantization(Some(fp8(&listed)));
        rewrite.rename_unquantized(|name| match name {
            "model.layers.7.a" => Some("model.layers.1.a".to_owned()),
            "model.layers.8.a" => None,
            other => Some(other.to_owned()),
        });
        let json = rewrite.into_json();
        let list = &json["quantization_config"]["modules_to_not_convert"];
        assert_eq!(*list, json!(["lm_head", "re:.*x", "model.layers.1.a"]));
    }
}
