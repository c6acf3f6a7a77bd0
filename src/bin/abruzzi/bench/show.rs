//! The table of a bench, or its events.

use std::io::Write;

use abruzzi::checkpoint::Inventory;
use abruzzi::{Checkpoint, Engine};
use serde_json::{Value, json};

use super::rounds::{Phase, Test};
use crate::args::BenchArgs;
use crate::ui::{bytes, peak_memory, thousands};

/// What was asked for, on what, and how it is written.
pub struct Show {
    json: bool,
    rounds: usize,
    /// Folder of the model.
    name: String,
    architecture: String,
    inventory: Inventory,
    /// Bytes of the checkpoint's tensors.
    size: u64,
    placement: String,
    /// Threads and instruction set, where the processor computes.
    workers: Option<(usize, &'static str)>,
    /// Bytes that a token's cache has.
    cache_bytes: u64,
    load_seconds: f64,
    prompt_tokens: usize,
    first_token_seconds: f64,
}

impl Show {
    pub fn new(
        args: &BenchArgs,
        checkpoint: &Checkpoint,
        engine: &Engine,
        load_seconds: f64,
        first_token_seconds: f64,
    ) -> Show {
        let dir = checkpoint.dir();
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let config = engine.config();
        let workers = engine.workers().map(|w| (w.threads(), w.isa().name()));
        // f32 on the CPU, bf16 on a GPU.
        let element = if workers.is_some() { 4 } else { 2 };
        Show {
            json: args.output.json,
            rounds: args.rounds,
            name: dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned(),
            architecture: config.architecture.to_string(),
            inventory: Inventory::of(config),
            size: checkpoint.bytes(),
            placement: engine.placement(),
            workers,
            cache_bytes: (element * config.num_layers * config.attention.cached_dim()) as u64,
            load_seconds,
            prompt_tokens: args.prompt_tokens.max(1),
            first_token_seconds,
        }
    }

    /// What is measured, and the table's head.
    pub fn begin(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout();
        if self.json {
            writeln!(out, "{}", self.model())?;
            return Ok(());
        }
        let formats: Vec<String> = self
            .inventory
            .formats
            .iter()
            .map(|(name, amount)| format!("{name} {}", bytes(amount.bytes)))
            .collect();
        writeln!(
            out,
            "- abruzzi {}; {}: {}, {} parameters, {} ({})",
            env!("CARGO_PKG_VERSION"),
            self.name,
            self.architecture,
            thousands(self.inventory.total.parameters),
            bytes(self.size),
            formats.join(", ")
        )?;
        writeln!(out, "- {}", self.placement)?;
        writeln!(
            out,
            "- loaded in {:.2} s; first token after a prompt of {} at {:.2} s",
            self.load_seconds,
            thousands(self.prompt_tokens as u64),
            self.first_token_seconds
        )?;
        writeln!(out, "- medians of {}, least to greatest\n", self.rounds)?;
        // The clock is the host's: an emulated GPU's kernels run at the CPU's pace.
        let rate = if self.placement.contains("(emulated)") { "tok/s (of the emulator)" } else { "tok/s" };
        writeln!(out, "| test | depth | {rate} | | a token reads | reading | plain reads | of the limit |")?;
        writeln!(out, "|---|--:|--:|---|--:|--:|--:|--:|")?;
        Ok(())
    }

    fn model(&self) -> Value {
        json!({
            "event": "model",
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.name,
            "architecture": self.architecture,
            "parameters": self.inventory.total.parameters,
            "bytes": self.size,
            "formats": self.inventory.formats,
            "placement": self.placement,
            "threads": self.workers.map(|(threads, _)| threads),
            "instructions": self.workers.map(|(_, isa)| isa),
            "load_seconds": self.load_seconds,
            "prompt_tokens": self.prompt_tokens,
            "first_token_seconds": self.first_token_seconds,
        })
    }

    /// A line of the table.
    pub fn test(&self, test: &Test) -> anyhow::Result<()> {
        let mut out = std::io::stdout();
        let line = if self.json { self.event(test).to_string() } else { self.line(test) };
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    }

    fn line(&self, test: &Test) -> String {
        let cell = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let rate = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
        let (least, greatest) = range(&test.rates);
        format!(
            "| {} | {} | {} | {}–{} | {} | {} | {} | {} |",
            test.name,
            thousands(test.depth as u64),
            figure(median(&test.rates).unwrap_or_default()),
            figure(least),
            figure(greatest),
            cell(self.token_bytes(test).map(bytes)),
            cell(self.read_rate(test).map(rate)),
            cell(median(&test.reads).map(rate)),
            cell(self.limit_share(test).map(|share| format!("{:.0} %", 100.0 * share))),
        )
    }

    fn event(&self, test: &Test) -> Value {
        let (least, greatest) = range(&test.rates);
        json!({
            "event": "test",
            "test": test.name,
            "phase": test.phase,
            "depth": test.depth,
            "tokens": test.tokens,
            "rounds": self.rounds,
            "tok_s": median(&test.rates),
            "tok_s_least": least,
            "tok_s_greatest": greatest,
            "bytes_per_token": self.token_bytes(test),
            "read_bytes_s": self.read_rate(test),
            "plain_read_bytes_s": median(&test.reads),
            "limit_share": self.limit_share(test),
        })
    }

    /// Bytes that a token reads in the middle of what is decoded: weights, and the cache of all tokens before it. A prompt's tokens
    /// read theirs together.
    fn token_bytes(&self, test: &Test) -> Option<u64> {
        let before = (test.depth + test.tokens / 2) as u64;
        (test.phase == Phase::Decode).then_some(self.inventory.bytes_per_token + before * self.cache_bytes)
    }

    /// Bytes a second at which that was read.
    fn read_rate(&self, test: &Test) -> Option<f64> {
        Some(self.token_bytes(test)? as f64 * median(&test.rates)?)
    }

    fn limit_share(&self, test: &Test) -> Option<f64> {
        let of_reads = || Some(self.read_rate(test)? / median(&test.reads)?);
        median(&test.limit_shares).or_else(of_reads)
    }

    /// The last event.
    pub fn end(&self) -> anyhow::Result<()> {
        if self.json {
            writeln!(std::io::stdout(), "{}", json!({"event": "done", "peak_memory": peak_memory()}))?;
        }
        Ok(())
    }
}

/// The middle value, or the mean of both.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(least, most), &v| (f64::min(least, v), f64::max(most, v)))
}

/// Four digits, or all before the point.
fn figure(rate: f64) -> String {
    match rate {
        ..10.0 => format!("{rate:.2}"),
        ..1000.0 => format!("{rate:.1}"),
        _ => thousands(rate.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ranges_and_figures() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        assert_eq!(range(&[3.0, 1.0, 2.0]), (1.0, 3.0));
        for (rate, text) in [(4.526, "4.53"), (57.26, "57.3"), (1569.6, "1,570")] {
            assert_eq!(figure(rate), text);
        }
    }
}
