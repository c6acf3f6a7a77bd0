//! The `abruzzi` command: text on stdout, everything else on stderr.

mod args;
mod chat;
mod doctor;
mod generate;
mod inspect;
mod logits;
mod tokenize;
mod ui;
mod verify;

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
    let cancel = abruzzi::CancelToken::default();
    let interrupt = cancel.clone();
    // The first interrupt asks the work to stop between two layers; a second one ends the process.
    let handler = ctrlc::set_handler(move || {
        if interrupt.is_cancelled() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        interrupt.cancel();
    });
    if let Err(e) = handler {
        eprintln!("warning: interrupts will not be handled: {e}");
    }

    let result = match cli.command {
        Command::Generate(args) => generate::run(args, &cancel),
        Command::Chat(args) => chat::run(args, &cancel),
        Command::Logits(args) => logits::run(args, &cancel),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args, &cancel),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "abruzzi", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => report(&e, &cancel),
    }
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
        Some(abruzzi::Error::Argument { .. }) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
        _ => {}
    }
    eprintln!("error: {error:#}");
    ExitCode::from(if cancel.is_cancelled() { INTERRUPTED } else { 1 })
}
