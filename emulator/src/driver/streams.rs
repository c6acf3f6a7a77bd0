//! Streams: when operations are issued, put off, forced and executed.
//!
//! Invariant: an operation is executed after those before it in its stream and after everything in `after`, which were
//! all issued earlier. So forcing always ends: it walks back in order of issue.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::session::Session;
use super::status::{Result, Status};
use super::work::{Action, Op, Rows};
use crate::check::Kind;
use crate::clock::{Engine, KernelRow, OpId, Work, kernel_cost};
use crate::memory::State;
use crate::settings::Timing;

impl Session {
    /// Handle of the stream that an argument names: null and 1 are the legacy default stream, 2 the calling thread's,
    /// for which the legacy one stands in.
    pub fn stream(&mut self, handle: u64) -> Result<u64> {
        let handle = if handle <= 2 { self.state()?.legacy } else { handle };
        if self.streams.contains_key(&handle) { Ok(handle) } else { Err(Status::INVALID_HANDLE) }
    }

    /// Appends an operation, and executes it if nothing before it is pending and the schedule does not put it off.
    pub fn issue(&mut self, stream: u64, action: Action, mut after: Vec<(u64, usize)>) -> Result<usize> {
        let id = self.executed.len();
        let (context, legacy, non_blocking) = match self.streams.get(&stream) {
            Some(s) => (s.context, s.legacy, s.non_blocking()),
            None => return Err(Status::INVALID_HANDLE),
        };
        // The legacy default stream and blocking streams wait for each other.
        for (&other, s) in &self.streams {
            let waits = if legacy { !s.non_blocking() } else { s.legacy && !non_blocking };
            if other != stream && s.context == context && waits {
                after.extend(s.last.map(|last| (other, last)));
            }
        }
        let deferrable = action.deferrable();
        let op = Op { id, after, issued: self.clock.now(), call: self.call, action };
        let call_cost = self.profile.cost.launch_call_us - self.profile.cost.call_us;
        if matches!(op.action, Action::Kernel(_)) {
            self.clock.advance(call_cost);
        }
        let idle = op.after.iter().all(|&(_, op)| self.executed[op].is_some());
        self.executed.push(None);
        let Some(state) = self.streams.get_mut(&stream) else { return Err(Status::INVALID_HANDLE) };
        let idle = idle && state.queue.is_empty() && !state.running;
        state.queue.push_back(op);
        state.last = Some(id);
        let now = match self.options.settings.schedule.host_copies {
            Timing::Eager => true,
            Timing::Lazy => !deferrable,
            Timing::Random => !deferrable || self.draw() & 1 == 0,
        };
        if idle && now || self.options.settings.schedule.host_copies == Timing::Eager {
            self.force(stream, id);
        }
        Ok(id)
    }

    /// With a random schedule: executes some of what is pending and could be executed.
    pub fn stir(&mut self) -> Result {
        if self.options.settings.schedule.host_copies != Timing::Random {
            return Ok(());
        }
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for stream in streams {
            while self.draw() & 3 == 0 {
                let head = self.streams.get(&stream).and_then(|s| s.queue.front()).map(|op| op.id);
                match head {
                    Some(id) => self.force(stream, id),
                    None => break,
                }
            }
        }
        self.check_sticky()
    }

    /// Executes a stream's operations up to `id`, and what they wait for.
    pub fn force(&mut self, stream: u64, id: usize) {
        let mut goals = vec![(stream, id)];
        while let Some(&(stream, id)) = goals.last() {
            if self.executed[id].is_some() {
                goals.pop();
                continue;
            }
            let Some(state) = self.streams.get(&stream) else {
                goals.pop();
                continue;
            };
            if state.running {
                self.wait();
                continue;
            }
            let Some(head) = state.queue.front() else {
                goals.pop();
                continue;
            };
            if let Some(&before) = head.after.iter().find(|&&(_, op)| self.executed[op].is_none()) {
                goals.push(before);
                continue;
            }
            let Some(state) = self.streams.get_mut(&stream) else { continue };
            let Some(op) = state.queue.pop_front() else { continue };
            let (context, timeline) = (state.context, state.timeline);
            state.running = true;
            let (id, issued) = (op.id, op.issued);
            let waits: Vec<OpId> = op.after.iter().filter_map(|&(_, op)| self.executed[op]).collect();
            let label = op.action.label();
            let executed = catch_unwind(AssertUnwindSafe(|| self.execute(context, op)));
            let (engine, duration) = executed.unwrap_or_else(|_| {
                // Others must not wait for this operation for ever.
                eprintln!("cuda-emulator: internal error in {label}");
                if let Some(context) = self.contexts.get_mut(&context) {
                    context.sticky.get_or_insert(Status::UNKNOWN);
                }
                (Engine::None, 0.0)
            });
            let work = Work { engine, duration, issued, label };
            let place = self.clock.submit(timeline, work, waits);
            self.executed[id] = Some(place);
            if let Some(state) = self.streams.get_mut(&stream) {
                state.running = false;
            }
            self.done();
        }
    }

    /// The host waits for an operation.
    pub fn synchronise(&mut self, stream: u64, id: usize) -> Result {
        self.force(stream, id);
        if let Some(place) = self.executed[id] {
            self.clock.synchronise(place);
        }
        self.check_sticky()
    }

    /// The host waits for all of a context.
    pub fn synchronise_context(&mut self, context: u64) {
        let last: Vec<(u64, usize)> = self
            .streams
            .iter()
            .filter(|(_, s)| s.context == context)
            .filter_map(|(&handle, s)| Some((handle, s.last?)))
            .collect();
        for (stream, id) in last {
            self.force(stream, id);
            if let Some(place) = self.executed[id] {
                self.clock.synchronise(place);
            }
        }
    }

    /// Whether an operation has ended on the clock; polling `what` over and over gets there in few polls.
    pub fn poll(&mut self, what: u64, stream: u64, id: usize) -> Result {
        self.force(stream, id);
        self.check_sticky()?;
        let Some(place) = self.executed[id] else { return Err(Status::NOT_READY) };
        let (last, times) = self.polled;
        let times = if last == what { (times + 1).min(40) } else { 0 };
        self.polled = (what, times);
        let patience = self.profile.cost.call_us * (1_u64 << times) as f64;
        if self.clock.poll(place, patience) { Ok(()) } else { Err(Status::NOT_READY) }
    }

    /// Pending operations that use a byte of [start, start + len).
    pub fn pending_uses(&self, start: u64, len: u64) -> Vec<String> {
        let mut uses = Vec::new();
        for stream in self.streams.values() {
            for op in stream.queue.iter().filter(|op| op.action.uses(start, len)) {
                let name = self.clock.stream_name(stream.timeline);
                uses.push(format!("pending in {name}: {} ({})", op.action.label(), op.call));
            }
        }
        uses
    }

    /// Lets operations that other threads are executing end.
    pub fn settle(&mut self) {
        while self.streams.values().any(|s| s.running) {
            self.wait();
        }
    }

    /// Executes an operation and says what it cost. In a context with an error nothing happens any more.
    fn execute(&mut self, context: u64, op: Op) -> (Engine, f64) {
        if self.contexts.get(&context).is_none_or(|c| c.sticky.is_some()) {
            return (Engine::None, 0.0);
        }
        for (at, len) in op.action.device_ranges() {
            if !self.memory.arena().is_live(at, len) && len > 0 {
                let (kind, message) = self.outside_device(at, len);
                let finding =
                    self.fault(kind, format!("{} of {}: {message}", op.action.label(), op.call), vec![]);
                self.poison(context, finding);
                return (Engine::None, 0.0);
            }
        }
        let cost = op.action.cost(&self.profile);
        let memory = self.memory.clone();
        let arena = memory.arena();
        match op.action {
            Action::Upload { from, to, rows, .. } => {
                copy(from, to, rows);
                each_row(to, rows.to_pitch, rows, |at| arena.mark_valid(at, rows.bytes));
            }
            Action::Download { from, to, rows, .. } | Action::HostMove { from, to, rows } => {
                copy(from, to, rows)
            }
            Action::Move { from, to, rows } => {
                copy(from, to, rows);
                for row in 0..rows.count {
                    arena.copy_states(from + row * rows.from_pitch, to + row * rows.to_pitch, rows.bytes);
                }
            }
            Action::Fill { to, value, width, rows } => {
                each_row(to, rows.to_pitch, rows, |at| {
                    fill(at, value, width, rows.bytes);
                    arena.mark_valid(at, rows.bytes);
                });
            }
            Action::Host { function, data } => self.outside(|| {
                super::call::in_host_function(|| function(data as *mut std::ffi::c_void));
            }),
            Action::Free { start } => {
                if !arena.free(start) {
                    let message = format!("{start:#x} is not (or no longer) allocated");
                    let finding = self.fault(Kind::UseAfterFree, message, vec![]);
                    self.poison(context, finding);
                }
                for context in self.contexts.values_mut() {
                    context.allocations.remove(&start);
                }
            }
            Action::Mark => {}
            Action::Kernel(kernel) => {
                let settings = self.options.settings;
                let result = self.outside(|| {
                    kernel.module.launch(kernel.index, &kernel.launch, &kernel.params, &memory, &settings)
                });
                match result {
                    Ok(counters) => {
                        let blocks = kernel.launch.blocks();
                        let cost = kernel_cost(&self.profile, kernel.footprint, blocks, &counters);
                        KernelRow::add(&mut self.rows, &kernel.name, cost, &counters);
                        return (Engine::Sm, cost.total());
                    }
                    Err(finding) => {
                        self.poison(context, *finding);
                        return (Engine::Sm, self.profile.cost.launch_us);
                    }
                }
            }
        }
        cost
    }

    /// What is wrong with a range that is not in one live allocation.
    pub fn outside_device(&self, at: u64, len: u64) -> (Kind, String) {
        let arena = self.memory.arena();
        match arena.allocation(at) {
            Some((a, true)) => (
                Kind::UseAfterFree,
                format!("[{at:#x}, +{len}) lies in {} of {} bytes, which was freed", a.label, a.len),
            ),
            Some((a, false)) => (
                Kind::OutOfBounds,
                format!("[{at:#x}, +{len}) ends outside {} of {} bytes at {:#x}", a.label, a.len, a.start),
            ),
            None => {
                let known = arena.contains(at) && arena.first_other(at, 1, State::Unallocated).is_none();
                let what = if known { "unallocated device memory" } else { "not device memory" };
                (Kind::OutOfBounds, format!("[{at:#x}, +{len}) is {what}"))
            }
        }
    }
}

fn each_row(at: u64, pitch: u64, rows: Rows, mut f: impl FnMut(u64)) {
    for row in 0..rows.count {
        f(at + row * pitch);
    }
}

fn copy(from: u64, to: u64, rows: Rows) {
    for row in 0..rows.count {
        let (from, to) = (from + row * rows.from_pitch, to + row * rows.to_pitch);
        // SAFETY: device ranges were just checked to be live; host ranges are those the C caller promised to keep
        // valid until the copy is done (pinned ones were checked when issued). Overlap is allowed.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, rows.bytes as usize) };
    }
}

fn fill(at: u64, value: u32, width: u64, bytes: u64) {
    let pattern = value.to_le_bytes();
    if width == 1 {
        // SAFETY: the range was just checked to be live device memory.
        unsafe { std::ptr::write_bytes(at as *mut u8, pattern[0], bytes as usize) };
        return;
    }
    for offset in (0..bytes).step_by(width as usize) {
        // SAFETY: as above; `bytes` is a multiple of `width`, and `width` is at most 4.
        unsafe {
            std::ptr::copy_nonoverlapping(pattern.as_ptr(), (at + offset) as *mut u8, width as usize);
        }
    }
}
