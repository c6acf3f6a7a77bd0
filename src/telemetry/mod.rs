//! What happened when: spans of host and device, and the routing, of one run, in one file.
//!
//! The host's clock is the only one. What the host does is measured where it does it. What a device does beside it (copies,
//! computing) counts from the moment it could begin, issued and with what stands before it seen to be over, to the moment
//! the host sees that it is over: such a span may be too long, never too short. Spans of a row never overlap.
//!
//! A [`Tracer`] that is off costs one comparison a question. Memory is bounded: beyond [`MAX_SPANS`] spans or
//! [`MAX_ROUTING`] bytes of routing no more are kept, and the file says how many were not.

mod chrome;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::device::Routing;
use crate::error::Result;
use crate::experts::ExpertId;
use crate::experts::trace::RoutingTrace;

/// Spans that are kept.
pub const MAX_SPANS: usize = 1_000_000;

/// Bytes of routing that are kept: some 280,000 tokens of Kimi-K2.
pub const MAX_ROUTING: usize = 256 << 20;

/// Records a run, or does nothing. Clones record into the same file.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    begun: Instant,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    spans: Vec<Recorded>,
    /// Spans that were not kept.
    dropped: u64,
    sessions: u32,
    routing: Option<RoutingTrace>,
    /// Lengths of the passes that began the trace, as long as none of them was a single token behind another.
    prompt: Vec<u32>,
    prompt_over: bool,
    /// Tokens whose routing was not kept.
    dropped_tokens: u64,
}

/// What a span stands beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// What a session's thread does, by the session's number.
    Session(u32),
    /// The device's resident and shared experts.
    Residents,
    /// The device's experts that had to be copied.
    Arrived,
    /// Copies of experts to the device.
    Copies,
    /// Experts on the CPU, beside a device.
    Cpu,
}

/// What a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A part of a layer's work.
    Layer(usize, &'static str),
    /// An expert.
    Expert(ExpertId),
    /// Several experts of a layer together.
    Experts(usize, usize),
    /// Work outside the layers.
    Other(&'static str),
}

struct Recorded {
    row: Row,
    what: What,
    /// Nanoseconds since the tracer was made.
    begun: u64,
    ended: u64,
    bytes: u64,
}

impl Tracer {
    /// Records nothing.
    pub fn off() -> Tracer {
        Tracer(None)
    }

    /// Records from now on.
    pub fn on() -> Tracer {
        Tracer(Some(Arc::new(Inner { begun: Instant::now(), log: Mutex::default() })))
    }

    /// Whether it records.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Spans kept so far.
    pub fn spans(&self) -> usize {
        self.log().map_or(0, |log| log.spans.len())
    }

    /// Spans and tokens of routing that were not kept because there were too many.
    pub fn dropped(&self) -> (u64, u64) {
        self.log().map_or((0, 0), |log| (log.dropped, log.dropped_tokens))
    }

    /// The routing so far: tokens in the order in which they were computed, whatever their session. `None` if
    /// there was none.
    pub fn routing(&self) -> Option<RoutingTrace> {
        self.log()?.routing()
    }

    /// Writes everything recorded so far: a Chrome trace (`traceEvents`) with the routing beside it (`routing`), as
    /// [`RoutingTrace::from_json_file`] reads it. Nobody sees half a file. Nothing is written while it is off.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        match self.log() {
            Some(log) => chrome::save(&log, path.as_ref()),
            None => Ok(()),
        }
    }

    fn log(&self) -> Option<MutexGuard<'_, Log>> {
        // A thread that panicked here has at worst not added its span.
        Some(self.0.as_ref()?.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number for a session's row.
    pub(crate) fn session(&self) -> u32 {
        self.log().map_or(0, |mut log| {
            log.sessions += 1;
            log.sessions
        })
    }

    /// The moment, if it is of interest.
    pub(crate) fn now(&self) -> Option<Instant> {
        self.is_on().then(Instant::now)
    }

    /// Ends a span that began at `begun` and returns the moment, at which the next may begin.
    pub(crate) fn end(&self, row: Row, what: What, begun: Option<Instant>) -> Option<Instant> {
        let ended = self.now()?;
        self.record(row, what, begun?, ended, 0);
        Some(ended)
    }

    /// Records a span.
    pub(crate) fn record(&self, row: Row, what: What, begun: Instant, ended: Instant, bytes: u64) {
        let Some(inner) = &self.0 else { return };
        let since = |at: Instant| at.saturating_duration_since(inner.begun).as_nanos() as u64;
        let (begun, ended) = (since(begun), since(ended));
        let Some(mut log) = self.log() else { return };
        if log.spans.len() < MAX_SPANS {
            log.spans.push(Recorded { row, what, begun, ended, bytes });
        } else {
            log.dropped += 1;
        }
    }

    /// Records the routing of a forward pass, by layer, none in dense ones; `experts` is how many a layer has.
    pub(crate) fn pass(&self, routing: &[Option<Routing>], experts: usize) -> Result<()> {
        match self.log() {
            Some(mut log) => log.pass(routing, experts),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_on() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

impl Log {
    fn pass(&mut self, routing: &[Option<Routing>], experts: usize) -> Result<()> {
        let Some(first) = routing.iter().flatten().next() else { return Ok(()) };
        let tokens = first.tokens();
        let trace = match &mut self.routing {
            Some(trace) => trace,
            none => {
                let layers = routing.iter().enumerate().filter(|(_, r)| r.is_some()).map(|(l, _)| l as u32);
                none.insert(RoutingTrace::new(layers.collect(), experts, first.top_k())?)
            }
        };
        if (trace.tokens() + tokens) * trace.working_set() * size_of::<u16>() > MAX_ROUTING {
            self.dropped_tokens += tokens as u64;
            return Ok(());
        }
        self.prompt_over |= tokens == 1 && trace.tokens() > 0;
        trace.push_pass(routing)?;
        if !self.prompt_over {
            self.prompt.push(tokens as u32);
        }
        Ok(())
    }

    fn routing(&self) -> Option<RoutingTrace> {
        let mut trace = self.routing.clone()?;
        // They are the first tokens of the trace and none is empty: nothing can be refused.
        trace.set_prompt(self.prompt.clone()).ok()?;
        Some(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_means_off() {
        let tracer = Tracer::off();
        assert_eq!((tracer.session(), tracer.now()), (0, None));
        tracer.record(Row::Copies, What::Other("x"), Instant::now(), Instant::now(), 1);
        assert_eq!((tracer.spans(), tracer.routing()), (0, None));
        let dir = tempfile::tempdir().unwrap();
        tracer.save(dir.path().join("t.json")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_too_much_is_counted_and_not_kept() {
        let tracer = Tracer::on();
        let now = Instant::now();
        for _ in 0..MAX_SPANS + 3 {
            tracer.record(Row::Copies, What::Other("x"), now, now, 0);
        }
        assert_eq!((tracer.spans(), tracer.dropped()), (MAX_SPANS, (3, 0)));
    }
}
