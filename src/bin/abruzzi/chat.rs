//! `abruzzi chat`: a conversation with the model's chat template, a line a turn.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use abruzzi::{CancelToken, Error, Message};

use anyhow::Context;

use crate::args::ChatArgs;
use crate::{generate, ui};

/// Set while a line is awaited: then an interrupt has nothing to stop but the program.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Whether the conversation waits for its next line.
pub fn waiting_for_input() -> bool {
    WAITING.load(Ordering::SeqCst)
}

pub fn run(args: ChatArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let sampling = ui::sampling(&args.sampling);
    sampling.validate()?;
    let engine = ui::load(ui::builder(&args.model, args.sampling.ctx_size)?, cancel)?;
    let mut session = engine.session(ui::session_options(&args.sampling, cancel))?;
    let mut messages: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let interactive = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if interactive {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        WAITING.store(true, Ordering::SeqCst);
        // An interrupt that came after the last token asked nobody to stop: it is this wait's.
        if cancel.is_cancelled() {
            if !interactive {
                return Err(Error::Cancelled.into());
            }
            cancel.reset();
        }
        let line = lines.next();
        WAITING.store(false, Ordering::SeqCst);
        let Some(line) = line.transpose().context("cannot read the standard input")? else { break };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", line));
        match generate::stream(session.chat(&messages, &sampling)?, args.output.json) {
            Ok(reply) => {
                if args.output.json {
                    writeln!(std::io::stdout(), "{}", generate::done(&engine, session.stats()))?;
                }
                messages.push(Message::new("assistant", reply));
            }
            // At a prompt an interrupt ends the reply, not the conversation.
            Err(e) if interactive && matches!(e.downcast_ref(), Some(Error::Cancelled)) => {
                cancel.reset();
                messages.pop();
            }
            Err(e) => return Err(e),
        }
    }
    if !args.output.json {
        generate::report(&engine, session.stats(), false);
    }
    Ok(())
}
