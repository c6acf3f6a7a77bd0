//! `abruzzi chat`: a conversation with the model's chat template, a line a turn.

use std::io::{BufRead, IsTerminal, Write};

use abruzzi::{CancelToken, Error, Message};

use crate::args::ChatArgs;
use crate::{generate, ui};

pub fn run(args: ChatArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let sampling = ui::sampling(&args.sampling);
    sampling.validate()?;
    let engine = ui::load(&args.model, cancel)?;
    let mut session = engine.session(ui::session_options(&args.sampling, cancel))?;
    let mut messages: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let interactive = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if interactive {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        let Some(line) = lines.next().transpose()? else { break };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", line));
        let reply = generate::stream(session.chat(&messages, &sampling)?, args.output.json);
        println!();
        match reply {
            Ok(reply) => messages.push(Message::new("assistant", reply)),
            // At a prompt an interrupt ends the reply, not the conversation.
            Err(e) if interactive && matches!(e.downcast_ref(), Some(Error::Cancelled)) => {
                cancel.reset();
                messages.pop();
            }
            Err(e) => return Err(e),
        }
    }
    generate::report(&engine, session.stats(), false);
    Ok(())
}
