//! Functions of the emulator's own, for tests.

use std::path::Path;

use serde_json::json;

use crate::Finding;
use crate::driver::args::{Out, Text, put_text};
use crate::driver::call;
use crate::driver::options::Changes;
use crate::driver::session::Session;
use crate::driver::state::Driver;
use crate::driver::status::{Result, Status};

fn refuse(error: impl std::fmt::Display) -> Status {
    eprintln!("cuda-emulator: {error}");
    Status::INVALID_VALUE
}

impl Session {
    fn configure(&mut self, text: &str) -> Result {
        let changes: Changes = serde_json::from_str(text).map_err(refuse)?;
        let options = self.options.changed(&changes).map_err(refuse)?;
        if changes.reset {
            self.settle();
            let contexts: Vec<u64> = self.contexts.keys().copied().collect();
            for context in contexts {
                self.destroy_context(context);
            }
        }
        if options.profile != self.options.profile && !self.contexts.is_empty() {
            return Err(refuse("the profile cannot change while there are contexts"));
        }
        if changes.reset || options.profile != self.options.profile {
            **self = Driver::new(options).map_err(refuse)?;
            return Ok(());
        }
        if options.trace.is_some() {
            self.clock.keep_spans();
        }
        self.random = options.settings.schedule.seed;
        self.options = options;
        Ok(())
    }
}

fn document(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|f| {
        json!({"kind": format!("{:?}", f.kind), "message": f.message, "kernel": f.place.kernel,
            "line": f.place.ptx_line, "source": f.place.source, "details": f.details, "report": f.to_string()})
    });
    serde_json::Value::from_iter(rows).to_string()
}

api! {
    // Changes options; see `driver::Changes`. Initialises the driver if nobody has.
    plain fn cuEmulatorConfigure(text: Text) |_| {
        let text = text.get()?;
        Session::initialise()?;
        Session::lock()?.configure(&text)
    }

    // Writes the trace of everything since a trace was first asked for.
    device fn cuEmulatorTrace(path: Text) |s| {
        s.clock.keep_spans();
        let path = path.get()?;
        s.write_trace(Path::new(&path)).map_err(refuse)
    }

    // Writes the counters, as JSON or a table by the path's ending.
    device fn cuEmulatorCounters(path: Text) |s| {
        let path = path.get()?;
        s.write_counters(Path::new(&path)).map_err(refuse)
    }

    // Modelled microseconds: the host's time, and what copies and kernels took of it.
    device fn cuEmulatorTimes(host: Out<f64>, copies: Out<f64>, kernels: Out<f64>) |s| {
        use crate::clock::Engine;
        s.clock.spans();
        host.set_some(s.clock.now());
        let upload = s.clock.busy(Engine::H2d);
        let download = if s.profile.link.copy_engines > 1 { s.clock.busy(Engine::D2h) } else { 0.0 };
        copies.set_some(upload + download);
        kernels.set_some(s.clock.busy(Engine::Sm));
        Ok(())
    }
}

/// Writes the findings so far as a JSON array and a 0, and forgets them. Returns the bytes that takes; if `len` is
/// less, nothing is written or forgotten.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEmulatorTakeFindings(buffer: Out<u8>, len: usize) -> usize {
    let mut needed = 0;
    call::device("cuEmulatorTakeFindings", |s| {
        let text = document(&s.findings);
        needed = text.len() + 1;
        if needed <= len {
            put_text(&buffer, len, text.as_bytes())?;
            s.findings.clear();
        }
        Ok(())
    });
    needed
}
