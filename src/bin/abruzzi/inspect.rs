//! `abruzzi inspect`: what a model consists of, from its configuration alone.

use std::io::Write;

use abruzzi::ModelConfig;
use abruzzi::checkpoint::Inventory;

use crate::args::InspectArgs;
use crate::ui::{self, bytes, thousands};

pub fn run(args: InspectArgs) -> anyhow::Result<()> {
    let config = ModelConfig::from_file(&ui::model_path(args.model.as_deref())?)?;
    let inventory = Inventory::of(&config);
    let mut out = std::io::stdout();
    if args.output.json {
        let mut value = serde_json::to_value(&inventory)?;
        value["architecture"] = config.architecture.to_string().into();
        value["layers"] = config.num_layers.into();
        value["experts"] = config.moe.num_experts.into();
        value["top_k"] = config.moe.top_k.into();
        value["hidden_size"] = config.hidden_size.into();
        value["vocab_size"] = config.vocab_size.into();
        value["max_context"] = config.max_context.into();
        writeln!(out, "{value}")?;
        return Ok(());
    }
    let (a, moe) = (&config.attention, &config.moe);
    writeln!(
        out,
        "{}: {} layers ({} dense), hidden {}, vocabulary {}, context {}",
        config.architecture,
        config.num_layers,
        config.first_k_dense,
        config.hidden_size,
        thousands(config.vocab_size as u64),
        thousands(config.max_context as u64)
    )?;
    writeln!(
        out,
        "attention: MLA, {} heads, latent {} + {} rotary; experts: {} of {} a token, {} shared\n",
        a.num_heads, a.kv_lora_rank, a.rope_head_dim, moe.top_k, moe.num_experts, moe.num_shared
    )?;
    let mut row = |name: &str, amount: abruzzi::checkpoint::Amount| {
        writeln!(out, "{name:<24}{:>22}{:>14}", thousands(amount.parameters), bytes(amount.bytes))
    };
    for (part, amount) in &inventory.parts {
        row(part, *amount)?;
    }
    row("total", inventory.total)?;
    row("active per token", inventory.active)?;
    writeln!(out)?;
    for (format, amount) in &inventory.formats {
        writeln!(out, "{format:<24}{:>22}{:>14}", thousands(amount.parameters), bytes(amount.bytes))?;
    }
    writeln!(
        out,
        "\none expert {}; a decoded token reads {}, {} of it routed experts",
        bytes(inventory.expert_bytes),
        bytes(inventory.bytes_per_token),
        bytes(inventory.routed_bytes_per_token)
    )?;
    Ok(())
}
