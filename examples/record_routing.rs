//! Records which experts a model's tokens go to: `cargo run --release --example record_routing -- MODEL TEXT OUT TOKENS`.
//!
//! The text is read in windows of 512 tokens, each in a new session and continued by the model itself at temperature 1
//! for as long again, until there are TOKENS tokens or no text is left. A prefilled token goes to the same experts as a
//! decoded one, so the trace is that of decoding everything.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use abruzzi::device::SampleSettings;
use abruzzi::device::cpu::CpuDevice;
use abruzzi::experts::trace::RoutingTrace;
use abruzzi::model::Model;
use abruzzi::{Checkpoint, LoadOptions, Tokenizer};
use rand_core::Rng;

const WINDOW: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, out, tokens] = &args[..] else {
        return Err("usage: record_routing MODEL TEXT OUT TOKENS".into());
    };
    let tokens: usize = tokens.parse()?;
    let checkpoint = Checkpoint::open(model)?;
    let config = checkpoint.config().clone();
    let text =
        Tokenizer::from_dir(model.as_ref(), config.vocab_size)?.encode(&std::fs::read_to_string(text)?)?;
    let (experts, top_k) = (config.moe.num_experts, config.moe.top_k);
    let model = Arc::new(Model::new(config, CpuDevice::new(0)?, &checkpoint.load(&LoadOptions::default())?)?);

    let settings = SampleSettings { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let mut random = rand_pcg::Pcg64Mcg::new(7);
    let cancel = AtomicBool::new(false);
    let mut trace: Option<RoutingTrace> = None;
    for window in text.chunks_exact(WINDOW) {
        let mut sequence = model.sequence()?;
        let mut next = sequence.next(window, &settings, random.next_u64(), &cancel)?;
        for step in 0..=WINDOW {
            let routing = sequence.routing()?;
            if trace.is_none() {
                let layers = (0_u32..).zip(&routing).filter(|(_, r)| r.is_some()).map(|(l, _)| l).collect();
                trace = Some(RoutingTrace::new(layers, experts, top_k)?);
            }
            let trace = trace.as_mut().ok_or("the model has no layers with experts")?;
            trace.push_pass(&routing)?;
            if trace.tokens() >= tokens {
                break;
            }
            if step < WINDOW {
                next = sequence.next(&[next], &settings, random.next_u64(), &cancel)?;
            }
        }
        let recorded = trace.as_ref().map_or(0, RoutingTrace::tokens);
        eprint!("\r{recorded} tokens");
        if recorded >= tokens {
            break;
        }
    }
    eprintln!();
    let trace = trace.ok_or("the text is shorter than 512 tokens")?;
    trace.save(out, &[])?;
    println!("{:?}", trace.stats());
    Ok(())
}
