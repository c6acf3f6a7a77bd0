//! The `abruzzi` command: text on stdout, everything else on stderr.

mod args;
mod bars;
mod bench;
mod chat;
mod compress;
mod doctor;
mod eval;
mod generate;
mod inspect;
mod logits;
mod plan;
mod simulate;
mod synth;
mod tokenize;
mod ui;
mod units;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

/// Exit code of a run that was interrupted.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("ABRUZZI_LOG"))
        .with_writer(std::io::stderr)
        .init();
    #[cfg(feature = "cuda")]
    match abruzzi::device::cuda::emulate_if_asked() {
        Ok(true) => eprintln!(
            "emulated GPU: kernels run on the CPU, at its pace; times the driver reports are modelled"
        ),
        Ok(false) => {}
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    }
    let cancel = abruzzi::CancelToken::default();
    let interrupt = cancel.clone();
    // The first interrupt asks the work to stop between two layers; a second one, or one that comes while nothing
    // is at work, ends the process.
    let handler = ctrlc::set_handler(move || {
        if interrupt.is_cancelled() || chat::waiting_for_input() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        interrupt.cancel();
        // A wait that began in between looked at the token too early.
        if chat::waiting_for_input() {
            std::process::exit(i32::from(INTERRUPTED));
        }
    });
    if let Err(e) = handler {
        eprintln!("warning: interrupts will not be handled: {e}");
    }

    let result = match cli.command {
        Command::Generate(args) => generate::run(args, &cancel),
        Command::Chat(args) => chat::run(args, &cancel),
        Command::Eval(args) => eval::run(args, &cancel),
        Command::Logits(args) => logits::run(args, &cancel),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args, &cancel),
        Command::Plan(args) => plan::run(args),
        Command::Synth(args) => synth::run(args, &cancel),
        Command::Compress(args) => compress::compress(args, &cancel),
        Command::Quantize(args) => compress::quantize(args, &cancel),
        Command::Simulate(args) => simulate::run(args, &cancel),
        Command::Bench(args) => bench::run(args, &cancel),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions(args.shell),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => report(&e, &cancel),
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    // Into memory first: the generator panics if its writer fails, and a closed pipe is no reason to.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "abruzzi", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

fn report(error: &anyhow::Error, cancel: &abruzzi::CancelToken) -> ExitCode {
    // A closed pipe (`abruzzi … | head`) is the reader's choice, not a failure to speak of.
    let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<std::io::Error>().is_some_and(closed) {
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<abruzzi::Error>() {
        Some(abruzzi::Error::Cancelled) => {
            eprintln!("interrupted");
            return ExitCode::from(INTERRUPTED);
        }
        Some(abruzzi::Error::Argument { name, problem }) => {
            match args::flag_of(name) {
                Some(flag) => eprintln!("error: {flag} {problem}"),
                None => eprintln!("error: {}", chain(error)),
            }
            return ExitCode::from(2);
        }
        _ => {}
    }
    eprintln!("error: {}", chain(error));
    ExitCode::from(if cancel.is_cancelled() { INTERRUPTED } else { 1 })
}

/// An error and its causes. The library's own texts end with their cause already; it is not said twice.
fn chain(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.is_empty() {
            said = cause;
        } else if !said.ends_with(&cause) {
            said += &format!(": {cause}");
        }
    }
    said
}
