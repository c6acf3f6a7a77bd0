//! `abruzzi bench`: how fast a model prefills and decodes at several depths of context.

mod reads;
mod rounds;
mod show;

use std::time::Instant;

use abruzzi::{CancelToken, Checkpoint, Error, ModelConfig, SessionOptions};

use crate::args::BenchArgs;
use crate::ui;
use reads::Reads;
use rounds::{Rounds, Test};
use show::Show;

pub fn run(args: BenchArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    // What can be refused is refused before weights are read, which may take minutes.
    let checkpoint = Checkpoint::open(ui::model_path(args.model.model.as_deref())?)?;
    let context = context(&args, checkpoint.config())?;
    let mut depths = args.depth.clone();
    depths.sort_unstable();
    depths.dedup();

    let begun = Instant::now();
    let engine = ui::load(ui::builder(&args.model, Some(context))?, cancel)?;
    let load_seconds = begun.elapsed().as_secs_f64();
    let session = engine.session(SessionOptions::default().context(context).cancel(cancel.clone()))?;
    let bar = ui::count_bar("tokens", tokens(&args, &depths)).with_message("measuring");
    let mut rounds = Rounds::new(session, engine.config().vocab_size, bar);
    rounds.prefill(0, args.prompt_tokens.max(1))?;
    let first_token_seconds = begun.elapsed().as_secs_f64();

    let show = Show::new(&args, &checkpoint, &engine, load_seconds, first_token_seconds);
    let reads = engine.workers().map(|workers| Reads::new(workers.clone(), &checkpoint)).transpose()?;
    rounds.quietly(|| show.begin())?;
    for depth in depths {
        rounds.deepen(depth)?;
        if args.prompt_tokens > 0 {
            let mut test = Test::prefill(depth, args.prompt_tokens);
            for _ in 0..args.rounds {
                test.rates.push(rounds.prefill(depth, args.prompt_tokens)?);
            }
            rounds.quietly(|| show.test(&test))?;
        }
        if args.tokens > 0 {
            let mut test = Test::decode(depth, args.tokens);
            for _ in 0..args.rounds {
                test.reads.extend(reads.as_ref().map(Reads::rate));
                let stats = rounds.decode(depth, args.tokens)?;
                test.rates.push(stats.decode_rate());
                test.limit_shares.extend(stats.limit_share());
            }
            rounds.quietly(|| show.test(&test))?;
        }
    }
    show.end()
}

/// The tokens that a session has to hold: the deepest context, then a prompt and what is decoded after it, or a token to begin
/// with and all that are decoded.
fn context(args: &BenchArgs, config: &ModelConfig) -> abruzzi::Result<usize> {
    let refuse = |name, problem| Err(Error::Argument { name, problem });
    if args.rounds == 0 {
        return refuse("rounds", "is 0, expected at least 1".to_owned());
    }
    if args.prompt_tokens == 0 && args.tokens == 0 {
        return refuse(
            "prompt-tokens",
            "is 0, and so is --tokens: nothing is left to be measured".to_owned(),
        );
    }
    let more = args.prompt_tokens.saturating_add(1).max(args.tokens.saturating_add(2));
    let deepest = args.depth.iter().copied().max().unwrap_or_default();
    let most = config.max_context;
    match deepest.checked_add(more) {
        Some(context) if context <= most => Ok(context),
        _ if more > most => {
            let name = if args.prompt_tokens > args.tokens { "prompt-tokens" } else { "tokens" };
            refuse(name, format!("needs a context of {more}, the model's is {most}"))
        }
        _ => refuse(
            "depth",
            format!(
                "is {deepest}, expected at most {}: the model's context of {most} has to hold {more} tokens more",
                most - more
            ),
        ),
    }
}

/// The tokens that all rounds compute.
fn tokens(args: &BenchArgs, depths: &[usize]) -> usize {
    let of_depth = (args.prompt_tokens + args.tokens).saturating_mul(args.rounds);
    let deepest = depths.last().copied().unwrap_or_default();
    of_depth.saturating_mul(depths.len()).saturating_add(deepest).saturating_add(args.prompt_tokens.max(1))
}
