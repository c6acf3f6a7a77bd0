//! What guesses of the routing would do for a cache if they were never wrong.

use std::ops::Range;

use super::ranked::PerExpert;
use super::{ExpertId, Passes, Policy, Reuse, Victim};
use crate::experts::trace::RoutingTrace;

/// [`Reuse`], told a recorded trace's routing a little ahead: always that of the layers the running pass has yet to reach, as
/// if every guess of theirs were right, and of some passes already while the pass before runs.
///
/// What will be used when its layer comes next does not make room, and as a newcomer it is not passed over. The passes it
/// sees must be those of the trace, from the first on.
#[derive(Debug)]
pub struct Foretold<'a> {
    reuse: Reuse,
    future: Future<'a>,
}

#[derive(Debug)]
struct Future<'a> {
    trace: &'a RoutingTrace,
    /// The tokens of each pass.
    tokens: Vec<Range<usize>>,
    /// The share of passes that are known a pass ahead.
    share: f64,
    passes: Passes,
    touched: PerExpert<u32>,
}

impl<'a> Foretold<'a> {
    /// Knows the rest of a pass, and of a share `next` of passes (0 to 1, evenly spread) all of it since the pass before.
    pub fn new(trace: &'a RoutingTrace, next: f64) -> Foretold<'a> {
        let (tokens, passes) = (trace.passes().collect(), Passes::default());
        let future = Future { trace, tokens, share: next, passes, touched: PerExpert::default() };
        Foretold { reuse: Reuse::new(), future }
    }
}

impl Future<'_> {
    fn touch(&mut self, id: ExpertId) {
        let now = self.passes.touch(id.layer, self.touched.get(id) == self.passes.now);
        *self.touched.get_mut(id) = now;
    }

    /// Whether it is known that the expert is used when its layer comes next.
    fn tells(&self, id: ExpertId) -> bool {
        let Some(running) = (self.passes.now as usize).checked_sub(1) else { return false };
        let pass = match id.layer > self.passes.layer {
            true => Some(running),
            false => Some(running + 1).filter(|&pass| self.known_ahead(pass)),
        };
        let tokens = pass.and_then(|pass| self.tokens.get(pass)).cloned().unwrap_or_default();
        let Ok(layer) = self.trace.layers().binary_search(&id.layer) else { return false };
        tokens
            .into_iter()
            .any(|token| self.trace.ids(token, layer).iter().any(|&used| u32::from(used) == id.expert))
    }

    /// Whether the pass of that index is known while the one before it runs.
    fn known_ahead(&self, pass: usize) -> bool {
        let before = |passes: usize| (passes as f64 * self.share).floor();
        before(pass + 1) > before(pass)
    }
}

impl Policy for Foretold<'_> {
    fn name(&self) -> &'static str {
        "foretold"
    }

    fn touch(&mut self, id: ExpertId) {
        self.future.touch(id);
        self.reuse.touch(id);
    }

    fn insert(&mut self, id: ExpertId) {
        self.reuse.insert(id);
    }

    fn remove(&mut self, id: ExpertId) {
        self.reuse.remove(id);
    }

    fn victim(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        if self.future.tells(newcomer) {
            return self.least(newcomer, may_go);
        }
        self.reuse.victim(newcomer, &mut |id| may_go(id) && !self.future.tells(id))
    }

    fn least(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        self.reuse.least(newcomer, &mut |id| may_go(id) && !self.future.tells(id))
    }

    fn worth(&self, id: ExpertId) -> f64 {
        // A chance is 1 at most.
        self.reuse.worth(id) + f64::from(u8::from(self.future.tells(id)))
    }
}
