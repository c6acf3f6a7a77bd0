//! Engines and streams: a discrete-event simulation that advances only as far as the host looks.
//!
//! Operations are queued with what they wait for; nothing gets a start time until somebody asks for an end. Then
//! operations start in order of time, and an engine that becomes free takes, of those ready, the one of the most urgent
//! stream (the oldest of equals). Since the host's clock has not passed what was not asked for, an operation issued
//! later can still overtake one that was issued earlier but has not started.

use std::collections::{BTreeMap, VecDeque};

use super::Profile;

/// What executes an operation, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// Copies from the host.
    H2d,
    /// Copies to the host.
    D2h,
    /// Kernels, memsets, copies within the device.
    Sm,
    /// Functions on the host.
    Host,
    /// Nothing: marks and waits take no time.
    None,
}

impl Engine {
    /// Those that have a row of their own in traces.
    pub const ROWS: [Engine; 4] = [Engine::H2d, Engine::D2h, Engine::Sm, Engine::Host];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Engine::H2d => "copy engine H2D",
            Engine::D2h => "copy engine D2H",
            Engine::Sm => "SMs",
            Engine::Host => "host functions",
            Engine::None => "marks",
        }
    }
}

/// A stream's timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u32);

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(usize);

/// What an operation needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// What executes it.
    pub engine: Engine,
    /// For how long.
    pub duration: f64,
    /// When the host issued it.
    pub issued: f64,
    /// For traces.
    pub label: String,
}

/// An operation that was executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Name.
    pub label: String,
    /// Stream it was in.
    pub stream: StreamId,
    /// Engine it ran on.
    pub engine: Engine,
    /// Start.
    pub start: f64,
    /// End.
    pub end: f64,
}

struct Pending {
    id: OpId,
    work: Work,
    waits: Vec<OpId>,
}

struct Stream {
    name: String,
    priority: i32,
    /// End of the last operation that was given a time.
    ready: f64,
    last: Option<OpId>,
    queue: VecDeque<Pending>,
}

/// The clock of a device and of the host that drives it.
pub struct Clock {
    host: f64,
    call_us: f64,
    wake_us: f64,
    /// With a single copy engine, both directions are its.
    one_copy_engine: bool,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u32,
    free: BTreeMap<Engine, f64>,
    /// End of each operation; NaN while it has none.
    ends: Vec<f64>,
    /// Filled only while a trace is wanted.
    spans: Option<Vec<Span>>,
    /// Names of all streams there were, for the trace.
    names: Vec<(StreamId, String)>,
    busy: BTreeMap<Engine, f64>,
}

impl Clock {
    /// A clock at 0.
    pub fn new(profile: &Profile) -> Clock {
        Clock {
            host: 0.0,
            call_us: profile.cost.call_us,
            wake_us: profile.cost.wake_us,
            one_copy_engine: profile.link.copy_engines < 2,
            streams: BTreeMap::new(),
            next_stream: 0,
            free: BTreeMap::new(),
            ends: Vec::new(),
            spans: None,
            names: Vec::new(),
            busy: BTreeMap::new(),
        }
    }

    /// Keeps every operation's times from here on.
    pub fn keep_spans(&mut self) {
        self.spans.get_or_insert_default();
    }

    /// The operations kept, in order of their start on each engine. All pending ones are given their times first.
    pub fn spans(&mut self) -> &[Span] {
        while self.step() {}
        self.spans.as_deref().unwrap_or_default()
    }

    /// Names of all streams there were.
    pub fn stream_names(&self) -> &[(StreamId, String)] {
        &self.names
    }

    /// How long an engine has worked.
    pub fn busy(&self, engine: Engine) -> f64 {
        self.busy.get(&self.engine(engine)).copied().unwrap_or(0.0)
    }

    /// The host's time.
    pub fn now(&self) -> f64 {
        self.host
    }

    /// The host spends `us`.
    pub fn advance(&mut self, us: f64) {
        self.host += us;
    }

    /// The host makes a call.
    pub fn call(&mut self) {
        self.host += self.call_us;
    }

    /// A new stream; smaller priorities are more urgent.
    pub fn stream(&mut self, name: String, priority: i32) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        self.names.push((id, name.clone()));
        let stream = Stream { name, priority, ready: 0.0, last: None, queue: VecDeque::new() };
        self.streams.insert(id, stream);
        id
    }

    /// A stream's name.
    pub fn stream_name(&self, stream: StreamId) -> &str {
        self.streams.get(&stream).map_or("", |s| s.name.as_str())
    }

    /// Ends a stream, once its operations have their times.
    pub fn retire(&mut self, stream: StreamId) {
        if let Some(last) = self.last(stream) {
            self.end(last);
        }
        self.streams.remove(&stream);
    }

    /// The operation submitted last in a stream.
    pub fn last(&self, stream: StreamId) -> Option<OpId> {
        self.streams.get(&stream).and_then(|s| s.last)
    }

    /// Queues an operation behind those of its stream and those of `waits`, which must have been submitted before.
    ///
    /// # Panics
    /// If the stream was retired.
    pub fn submit(&mut self, stream: StreamId, work: Work, waits: Vec<OpId>) -> OpId {
        let id = OpId(self.ends.len());
        self.ends.push(f64::NAN);
        let engine = self.engine(work.engine);
        let stream = self.streams.get_mut(&stream).expect("stream exists");
        stream.last = Some(id);
        stream.queue.push_back(Pending { id, work: Work { engine, ..work }, waits });
        id
    }

    /// When an operation ends. Simulates as far as that takes.
    pub fn end(&mut self, op: OpId) -> f64 {
        while self.ends[op.0].is_nan() && self.step() {}
        self.ends[op.0]
    }

    /// The host waits for an operation.
    pub fn synchronise(&mut self, op: OpId) {
        let end = self.end(op);
        if end > self.host {
            self.host = end + self.wake_us;
        }
    }

    /// Whether an operation has ended by the host's time. If not, `patience` µs pass on the host, but no more than
    /// are missing: a program that polls must get there.
    pub fn poll(&mut self, op: OpId, patience: f64) -> bool {
        let end = self.end(op);
        if end <= self.host {
            return true;
        }
        self.host = end.min(self.host + patience);
        false
    }

    fn engine(&self, engine: Engine) -> Engine {
        if engine == Engine::D2h && self.one_copy_engine { Engine::H2d } else { engine }
    }

    /// Gives the operation that starts next its times. `false` if nothing is pending.
    fn step(&mut self) -> bool {
        let mut best: Option<(f64, i32, OpId, StreamId)> = None;
        for (&id, stream) in &self.streams {
            let Some(head) = stream.queue.front() else { continue };
            let mut ready = stream.ready.max(head.work.issued);
            for wait in &head.waits {
                ready = ready.max(self.ends[wait.0]);
                if self.ends[wait.0].is_nan() {
                    ready = f64::NAN;
                    break;
                }
            }
            if ready.is_nan() {
                continue;
            }
            let start = ready.max(self.free.get(&head.work.engine).copied().unwrap_or(0.0));
            let candidate = (start, stream.priority, head.id, id);
            let earlier = best.is_none_or(|b| {
                candidate.0.total_cmp(&b.0).then((candidate.1, candidate.2).cmp(&(b.1, b.2))).is_lt()
            });
            if earlier {
                best = Some(candidate);
            }
        }
        let Some((start, _, _, id)) = best else { return false };
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let Some(op) = stream.queue.pop_front() else { return false };
        let end = start + op.work.duration;
        stream.ready = end;
        self.ends[op.id.0] = end;
        let engine = op.work.engine;
        if engine != Engine::None {
            self.free.insert(engine, end);
            *self.busy.entry(engine).or_default() += op.work.duration;
            if let Some(spans) = &mut self.spans {
                spans.push(Span { label: op.work.label, stream: id, engine, start, end });
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        clock: Clock,
    }

    impl Bench {
        fn new(profile: &str) -> Bench {
            Bench { clock: Clock::new(&Profile::named(profile).unwrap()) }
        }

        fn op(&mut self, stream: StreamId, engine: Engine, duration: f64, waits: &[OpId]) -> OpId {
            let issued = self.clock.now();
            let work = Work { engine, duration, issued, label: String::new() };
            self.clock.submit(stream, work, waits.to_vec())
        }

        fn ends(&mut self, ops: &[OpId], expected: &[f64]) {
            for (i, (&op, &expected)) in ops.iter().zip(expected).enumerate() {
                let end = self.clock.end(op);
                assert!((end - expected).abs() < 1e-9, "operation {i} ends at {end}, not {expected}");
            }
        }
    }

    #[test]
    fn a_copy_hides_behind_a_kernel_of_another_stream() {
        let mut b = Bench::new("h100-80gb");
        let (s, t) = (b.clock.stream("s".into(), 0), b.clock.stream("t".into(), 0));
        let ops = [
            b.op(s, Engine::H2d, 10.0, &[]),
            b.op(s, Engine::Sm, 20.0, &[]),
            b.op(t, Engine::H2d, 10.0, &[]),
            b.op(t, Engine::Sm, 20.0, &[]),
        ];
        b.ends(&ops, &[10.0, 30.0, 20.0, 50.0]);
        assert!((b.clock.busy(Engine::Sm) - 40.0).abs() < 1e-9);
    }

    #[test]
    fn an_event_holds_a_stream_back_and_nobody_else() {
        let mut b = Bench::new("h100-80gb");
        let (s, t, u) =
            (b.clock.stream("s".into(), 0), b.clock.stream("t".into(), 0), b.clock.stream("u".into(), 0));
        let copy = b.op(s, Engine::H2d, 40.0, &[]);
        let event = b.op(s, Engine::None, 0.0, &[]);
        let after = b.op(t, Engine::Sm, 5.0, &[event]);
        let free = b.op(u, Engine::Sm, 7.0, &[]);
        b.ends(&[copy, event, after, free], &[40.0, 40.0, 45.0, 7.0]);
    }

    #[test]
    fn an_engine_does_one_thing_at_a_time_and_the_urgent_first() {
        let mut b = Bench::new("h100-80gb");
        let (low, high) = (b.clock.stream("low".into(), 0), b.clock.stream("high".into(), -5));
        let first = b.op(low, Engine::Sm, 10.0, &[]);
        let second = b.op(low, Engine::Sm, 10.0, &[]);
        // Issued at 4, while the first runs: overtakes the second, does not interrupt the first.
        b.clock.advance(4.0);
        let urgent = b.op(high, Engine::Sm, 3.0, &[]);
        b.ends(&[first, second, urgent], &[10.0, 23.0, 13.0]);
    }

    #[test]
    fn directions_share_the_copy_engine_of_a_mig_slice() {
        for (profile, second) in [("h100-80gb", 10.0), ("h100-mig-10gb", 20.0)] {
            let mut b = Bench::new(profile);
            let (s, t) = (b.clock.stream("s".into(), 0), b.clock.stream("t".into(), 0));
            let ops = [b.op(s, Engine::H2d, 10.0, &[]), b.op(t, Engine::D2h, 10.0, &[])];
            b.ends(&ops, &[10.0, second]);
        }
    }

    #[test]
    fn nothing_starts_before_the_host_issued_it_and_waiting_takes_the_host_along() {
        let mut b = Bench::new("h100-80gb");
        let s = b.clock.stream("s".into(), 0);
        b.clock.call();
        let op = b.op(s, Engine::Sm, 10.0, &[]);
        b.ends(&[op], &[11.0]);
        b.clock.synchronise(op);
        assert!((b.clock.now() - 13.0).abs() < 1e-9);
        b.clock.synchronise(op);
        assert!((b.clock.now() - 13.0).abs() < 1e-9);
        let late = b.op(s, Engine::Sm, 10.0, &[]);
        assert!(!b.clock.poll(late, 4.0) && !b.clock.poll(late, 8.0) && b.clock.poll(late, 1.0));
        assert!((b.clock.now() - 23.0).abs() < 1e-9);
    }
}
