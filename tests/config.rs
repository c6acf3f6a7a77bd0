//! Configurations: real ones decide what they should, bad ones are refused by field name.

mod common;

use std::path::Path;

use abruzzi::ModelConfig;
use abruzzi::checkpoint::Inventory;
use abruzzi::config::{Architecture, Quantization};
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixture(name: &str) -> Value {
    let file = common::root().join("tests/fixtures/configs").join(name);
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn parse(value: &Value) -> abruzzi::Result<ModelConfig> {
    ModelConfig::from_json(value.to_string().as_bytes(), Path::new("config.json"))
}

#[test]
fn kimi_k2() {
    let c = parse(&fixture("kimi-k2-instruct.json")).unwrap();
    assert_eq!((c.architecture, c.num_layers, c.first_k_dense), (Architecture::KimiK2, 61, 1));
    assert_eq!((c.moe.num_experts, c.moe.top_k, c.attention.q_lora_rank), (384, 8, Some(1536)));
    assert!(matches!(&c.quantization, Quantization::Fp8Block { skip } if skip.is_empty()));
    assert_eq!((c.bos_token_id, c.eos_token_ids), (Some(163584), vec![163585]));
    let scale = 192f64.powf(-0.5) * (0.1 * 32f64.ln() + 1.0).powi(2);
    assert!((f64::from(c.attention.softmax_scale) - scale).abs() < 1e-7);
    assert_eq!(c.rope.amplitude, 1.0);
}

/// transformers' yarn for Kimi-K2-Instruct, computed once with its `_compute_yarn_parameters`.
#[rustfmt::skip]
const K2_INV_FREQ: [f32; 32] = [
    1.0, 0.713_111_1, 0.508_527_46, 0.362_636_54, 0.258_600_15, 0.184_410_62, 0.131_505_27, 0.093_777_86,
    0.066_874_035, 0.047_688_566, 0.034_007_277, 0.024_250_968, 0.017_293_634, 0.012_332_281, 0.008_794_286,
    0.006_271_303_6, 0.004_472_136, 0.003_189_129_8, 0.002_274_203_8, 0.001_621_76, 3.614_046_7e-5,
    2.577_216_8e-5, 1.837_842e-5, 1.310_585_4e-5, 9.345_93e-6, 6.664_686e-6, 4.752_661_4e-6, 3.389_175_6e-6,
    2.416_859e-6, 1.723_488_8e-6, 1.229_039e-6, 8.764_413e-7,
];

#[test]
fn yarn_frequencies() {
    let c = parse(&fixture("kimi-k2-instruct.json")).unwrap();
    assert_eq!(c.rope.inv_freq.len(), 32);
    for (got, want) in c.rope.inv_freq.iter().zip(K2_INV_FREQ) {
        assert!((got / want - 1.0).abs() < 1e-6, "{got} for {want}");
    }
}

#[test]
fn kimi_k25_text_part() {
    let c = parse(&fixture("kimi-k25.json")).unwrap();
    assert_eq!((c.architecture, c.tensor_prefix.as_str()), (Architecture::KimiK25, "language_model."));
    assert!(matches!(c.quantization, Quantization::Int4Group32 { .. }));
    let inventory = Inventory::of(&c);
    // Only the routed experts are INT4.
    assert_eq!(inventory.formats["int4-g32"].parameters, 60 * 384 * 3 * 7168 * 2048);
    assert_eq!(inventory.total.parameters, 1_026_408_232_448);
}

#[test]
fn moonlight_and_deepseek_v3() {
    let c = parse(&fixture("moonlight.json")).unwrap();
    assert_eq!((c.attention.q_lora_rank, c.moe.num_shared, c.rms_norm_eps), (None, 2, 1e-5));
    assert_eq!(c.attention.softmax_scale, 192f32.powf(-0.5));
    assert!(matches!(c.quantization, Quantization::None));

    let c = parse(&fixture("deepseek-v3.json")).unwrap();
    assert_eq!((c.moe.n_group, c.moe.topk_group, c.first_k_dense, c.num_mtp_layers), (8, 4, 3, 1));
}

#[test]
fn inventory_of_kimi_k2_is_exact() {
    let inventory = Inventory::of(&parse(&fixture("kimi-k2-instruct.json")).unwrap());
    assert_eq!(inventory.total.parameters, 1_026_408_232_448);
    assert_eq!(inventory.active.parameters / 100_000_000, 316, "31.7 B when rounded");
    assert_eq!(inventory.expert_bytes, 3 * (7168 * 2048 + 56 * 16 * 4));
    assert_eq!(inventory.routed_bytes_per_token, 480 * inventory.expert_bytes);
    let parts: u64 = inventory.parts.values().map(|a| a.bytes).sum();
    let formats: u64 = inventory.formats.values().map(|a| a.bytes).sum();
    assert_eq!((parts, formats), (inventory.total.bytes, inventory.total.bytes));
}

#[test]
fn transformers_5_spelling_of_rope() {
    let mut value = fixture("kimi-k2-instruct.json");
    let mut rope = value["rope_scaling"].take();
    rope["rope_type"] = rope["type"].take();
    rope["rope_theta"] = value["rope_theta"].take();
    value["rope_parameters"] = rope;
    let (old, new) = (parse(&fixture("kimi-k2-instruct.json")).unwrap(), parse(&value).unwrap());
    assert_eq!(old.rope, new.rope);
    assert_eq!(old.attention, new.attention);
}

#[test]
fn bad_values_are_refused_by_name() {
    let cases: Vec<(&str, Value, &str)> = vec![
        ("model_type", json!("llama"), "`model_type` is \"llama\""),
        ("model_type", json!(null), "`model_type` is missing"),
        ("hidden_size", json!(-7168), "`hidden_size` is -7168, expected a whole number"),
        ("hidden_size", json!(7168.0), "`hidden_size` is 7168.0"),
        ("hidden_size", json!(null), "`hidden_size` is null"),
        ("hidden_size", json!("7168"), "`hidden_size` is \"7168\""),
        ("hidden_size", json!(0), "`hidden_size` is 0"),
        ("vocab_size", json!(u64::MAX), "`vocab_size`"),
        ("num_hidden_layers", json!(1_000_000_000), "`num_hidden_layers` is 1000000000"),
        ("n_routed_experts", json!(1e300), "`n_routed_experts`"),
        (
            "first_k_dense_replace",
            json!(62),
            "`first_k_dense_replace` is 62, expected a whole number from 0 to 61",
        ),
        ("num_experts_per_tok", json!(385), "`num_experts_per_tok` is 385"),
        ("n_group", json!(5), "`n_group` is 5, which does not divide"),
        ("topk_group", json!(2), "`topk_group` is 2"),
        ("num_key_value_heads", json!(8), "`num_key_value_heads` is 8"),
        ("qk_rope_head_dim", json!(63), "`qk_rope_head_dim` is 63, expected an even number"),
        ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\""),
        ("attention_bias", json!(true), "`attention_bias` is true"),
        ("scoring_func", json!("softmax"), "`scoring_func` is \"softmax\""),
        ("topk_method", json!("greedy"), "`topk_method`"),
        ("moe_layer_freq", json!(2), "`moe_layer_freq` is 2"),
        ("rms_norm_eps", json!(0), "`rms_norm_eps` is 0"),
        ("rms_norm_eps", json!("NaN"), "`rms_norm_eps`"),
        ("rope_theta", json!(0), "`rope_theta` is 0"),
        ("eos_token_id", json!(163840), "`eos_token_id` is 163840"),
        ("eos_token_id", json!([1, -1]), "`eos_token_id` is -1"),
        ("rope_scaling", json!({"type": "linear", "factor": 2}), "`rope_scaling.type` is \"linear\""),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 0, "original_max_position_embeddings": 4096}),
            "`rope_scaling.factor` is 0",
        ),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 2}),
            "`rope_scaling.original_max_position_embeddings` is missing",
        ),
        ("rope_scaling", json!(7), "`rope_scaling` is 7, expected an object"),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "`quantization_config.quant_method` is \"gptq\"",
        ),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "fmt": "e5m2"}),
            "`quantization_config.fmt` is \"e5m2\"",
        ),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [64, 64]}),
            "`quantization_config.weight_block_size`",
        ),
        (
            "quantization_config",
            json!({"quant_method": "fp8"}),
            "`quantization_config.weight_block_size` is missing",
        ),
        (
            "quantization_config",
            json!({"quant_method": "compressed-tensors", "format": "float"}),
            "`quantization_config.format`",
        ),
    ];
    for (field, bad, expected) in cases {
        let mut value = fixture("kimi-k2-instruct.json");
        value[field] = bad;
        let message = parse(&value).unwrap_err().to_string();
        assert!(message.contains(expected), "{field}: {message}");
    }
    let mut value = fixture("kimi-k2-instruct.json");
    value["n_group"] = json!(384);
    assert!(parse(&value).unwrap_err().to_string().contains("`topk_group` is 1: 1 groups of 1 experts"));

    let mut value = fixture("kimi-k25.json");
    let rules = &mut value["text_config"]["quantization_config"]["ignore"];
    *rules = json!(["re:(a{1000}){1000}"]);
    assert!(
        parse(&value).unwrap_err().to_string().contains("`quantization_config.ignore` holds the expression")
    );
    value["text_config"]["quantization_config"]["ignore"] = json!(vec!["re:a"; 257]);
    assert!(parse(&value).unwrap_err().to_string().contains("holds more than 256 expressions"));
    let mut value = fixture("kimi-k25.json");
    value["text_config"]["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = json!(8);
    assert!(parse(&value).unwrap_err().to_string().contains("`weights.num_bits` = 8"));
    let mut value = fixture("kimi-k25.json");
    value["text_config"]["hidden_size"] = json!(7150);
    assert!(
        parse(&value)
            .unwrap_err()
            .to_string()
            .contains("`text_config.hidden_size` is 7150, expected a multiple")
    );
}

#[test]
fn files_that_are_no_configuration() {
    for (bytes, expected) in [
        (&b""[..], "is empty"),
        (b"<!doctype html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git-LFS pointer"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b"{", "not valid JSON"),
        (b"[]", "expected an object"),
        (b"\xff", "not valid JSON"),
        (&b"[".repeat(100_000), "not valid JSON"),
    ] {
        let message = ModelConfig::from_json(bytes, Path::new("config.json")).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("config.json"), "{message}");
    }
}

proptest! {
    /// Whatever stands in a field, parsing ends in a configuration or a named error, and counting never overflows.
    #[test]
    fn random_edits_never_panic(
        edits in prop::collection::vec((0usize..60, prop_oneof![
            any::<i64>().prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)),
            (0u64..5000).prop_map(|n| json!(n)),
            Just(json!(null)), Just(json!([])), Just(json!({})), Just(json!("yarn")), Just(json!(true)),
        ]), 1..4),
        which in prop::sample::select(vec!["kimi-k2-instruct.json", "moonlight.json", "deepseek-v3.json"]),
    ) {
        let mut value = fixture(which);
        let keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        for (key, new) in edits {
            value[&keys[key % keys.len()]] = new;
        }
        if let Ok(config) = parse(&value) {
            prop_assert!(Inventory::of(&config).total.parameters > 0);
        }
    }
}
