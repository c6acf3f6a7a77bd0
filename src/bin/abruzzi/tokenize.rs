//! `abruzzi tokenize`: text to ids and back.

use std::io::Write;

use abruzzi::{ModelConfig, Tokenizer};

use crate::args::TokenizeArgs;
use crate::ui;

pub fn run(args: TokenizeArgs) -> anyhow::Result<()> {
    let dir = ui::model_path(args.model.as_deref())?;
    let config = ModelConfig::from_file(&dir)?;
    let tokenizer = Tokenizer::from_dir(&dir, config.vocab_size)?;
    let mut out = std::io::stdout();
    if let Some(ids) = args.decode {
        if let Some(id) = ids.iter().find(|&&id| tokenizer.token_bytes(id).is_none()) {
            anyhow::bail!("{id} is no token of this vocabulary of {}", tokenizer.vocab_size());
        }
        let text = tokenizer.decode(&ids);
        if args.output.json {
            writeln!(out, "{}", serde_json::json!({ "text": text }))?;
        } else {
            writeln!(out, "{text}")?;
        }
        return Ok(());
    }
    let ids = tokenizer.encode(&args.text.unwrap_or_default())?;
    if args.output.json {
        writeln!(out, "{}", serde_json::json!(ids))?;
    } else {
        let words: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", words.join(" "))?;
    }
    Ok(())
}
