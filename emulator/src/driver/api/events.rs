//! Events.

use crate::driver::args::Out;
use crate::driver::session::Session;
use crate::driver::state::Event;
use crate::driver::status::{Result, Status};
use crate::driver::work::Action;

/// CU_EVENT_DISABLE_TIMING.
const DISABLE_TIMING: u32 = 2;

impl Session {
    fn event(&self, event: u64) -> Result<Event> {
        self.events.get(&event).copied().ok_or(Status::INVALID_HANDLE)
    }

    fn record(&mut self, event: u64, stream: u64) -> Result {
        let of = self.event(event)?.context;
        let stream = self.stream(stream)?;
        if self.streams.get(&stream).is_none_or(|s| s.context != of) {
            return Err(Status::INVALID_HANDLE);
        }
        let id = self.issue(stream, Action::Mark, Vec::new())?;
        if let Some(event) = self.events.get_mut(&event) {
            event.record = Some((stream, id));
        }
        Ok(())
    }

    /// When an event's last record was reached.
    fn reached(&mut self, event: u64) -> Result<f64> {
        let event = self.event(event)?;
        let (Some((_, id)), 0) = (event.record, event.flags & DISABLE_TIMING) else {
            return Err(Status::INVALID_HANDLE);
        };
        let place = self.executed[id].ok_or(Status::NOT_READY)?;
        let end = self.clock.end(place);
        if end <= self.clock.now() { Ok(end) } else { Err(Status::NOT_READY) }
    }

    fn elapsed(&mut self, ms: &Out<f32>, start: u64, end: u64) -> Result {
        ms.check()?;
        let (start, end) = (self.reached(start)?, self.reached(end)?);
        ms.set(((end - start) / 1e3) as f32)
    }
}

api! {
    context fn cuEventCreate(event: Out<u64>, flags: u32) |s| {
        event.check()?;
        if flags & !7 != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let handle = s.handle();
        let context = s.context;
        s.events.insert(handle, Event { context, flags, record: None });
        event.set(handle)
    }

    release fn cuEventDestroy_v2(event: u64) |s| {
        s.events.remove(&event).map(drop).ok_or(Status::INVALID_HANDLE)
    }

    context fn cuEventRecord(event: u64, stream: u64) |s| { s.record(event, stream) }

    context fn cuEventRecordWithFlags(event: u64, stream: u64, flags: u32) |s| {
        if flags > 1 {
            return Err(Status::INVALID_VALUE);
        }
        s.record(event, stream)
    }

    context fn cuEventQuery(event: u64) |s| {
        match s.event(event)?.record {
            Some((stream, id)) => s.poll(event, stream, id),
            None => Ok(()),
        }
    }

    context fn cuEventSynchronize(event: u64) |s| {
        match s.event(event)?.record {
            Some((stream, id)) => s.synchronise(stream, id),
            None => Ok(()),
        }
    }

    context fn cuEventElapsedTime(ms: Out<f32>, start: u64, end: u64) |s| { s.elapsed(&ms, start, end) }

    context fn cuEventElapsedTime_v2(ms: Out<f32>, start: u64, end: u64) |s| { s.elapsed(&ms, start, end) }
}
