//! Files: the trace and the counters.

use std::path::Path;
use std::sync::Once;

use super::session::Session;
use crate::clock::{chrome_trace, table};

impl Session {
    /// Writes the Chrome trace of all there was since it was asked for.
    pub fn write_trace(&mut self, path: &Path) -> std::io::Result<()> {
        let trace = chrome_trace(&mut self.clock);
        std::fs::write(path, trace.to_string())
    }

    /// Writes the counters: JSON to `.json`, else a table.
    pub fn write_counters(&self, path: &Path) -> std::io::Result<()> {
        if path.extension().is_some_and(|e| e == "json") {
            std::fs::write(path, serde_json::to_string_pretty(&self.rows)?)
        } else {
            std::fs::write(path, table(&self.rows))
        }
    }

    /// Writes what the options ask for.
    pub fn write_files(&mut self) {
        if let Some(path) = self.options.trace.clone()
            && let Err(error) = self.write_trace(&path)
        {
            eprintln!("cuda-emulator: trace {}: {error}", path.display());
        }
        if let Some(path) = self.options.counters.clone()
            && let Err(error) = self.write_counters(&path)
        {
            eprintln!("cuda-emulator: counters {}: {error}", path.display());
        }
    }
}

extern "C" fn at_exit() {
    let _ = std::panic::catch_unwind(|| {
        if let Some(mut session) = Session::try_lock() {
            session.write_files();
        }
    });
}

/// Has the files written when the process ends.
pub(super) fn write_at_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `at_exit` has the signature asked for. Were this library unloaded, the C library would run the
        // handler before its code goes.
        if unsafe { libc::atexit(at_exit) } != 0 {
            eprintln!("cuda-emulator: no trace will be written at exit");
        }
    });
}
