//! Streams and what orders them.

use std::ffi::c_void;

use super::context::PRIORITIES;
use crate::driver::args::Out;
use crate::driver::session::Session;
use crate::driver::status::{Result, Status};
use crate::driver::work::Action;

impl Session {
    fn create_stream(&mut self, out: &Out<u64>, flags: u32, priority: i32) -> Result {
        out.check()?;
        if flags & !1 != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let context = self.context;
        let priority = priority.clamp(PRIORITIES.1, PRIORITIES.0);
        let stream = self.add_stream(context, flags, priority, false);
        out.set(stream)
    }

    /// An operation after all that the stream has, for waiting on.
    fn mark(&mut self, stream: u64) -> Result<usize> {
        self.issue(stream, Action::Mark, Vec::new())
    }

    fn host_function(
        &mut self,
        stream: u64,
        function: Option<extern "C" fn(*mut c_void)>,
        data: usize,
    ) -> Result {
        let function = function.ok_or(Status::INVALID_VALUE)?;
        let stream = self.stream(stream)?;
        self.issue(stream, Action::Host { function, data }, Vec::new())?;
        Ok(())
    }
}

api! {
    context fn cuStreamCreate(stream: Out<u64>, flags: u32) |s| { s.create_stream(&stream, flags, 0) }

    context fn cuStreamCreateWithPriority(stream: Out<u64>, flags: u32, priority: i32) |s| {
        s.create_stream(&stream, flags, priority)
    }

    release fn cuStreamDestroy_v2(stream: u64) |s| {
        if stream <= 2 {
            return Err(Status::INVALID_HANDLE);
        }
        let handle = s.stream(stream)?;
        if s.streams.get(&handle).is_some_and(|s| s.legacy) {
            return Err(Status::INVALID_HANDLE);
        }
        // CUDA lets pending work end; here it ends now.
        let last = s.streams.get(&handle).and_then(|s| s.last);
        if let Some(last) = last {
            s.force(handle, last);
        }
        if let Some(stream) = s.streams.remove(&handle) {
            s.clock.retire(stream.timeline);
        }
        Ok(())
    }

    context fn cuStreamSynchronize(stream: u64) |s| {
        let stream = s.stream(stream)?;
        let mark = s.mark(stream)?;
        s.synchronise(stream, mark)
    }

    context fn cuStreamQuery(stream: u64) |s| {
        let stream = s.stream(stream)?;
        let last = s.streams.get(&stream).and_then(|s| s.last);
        match last {
            Some(last) => s.poll(stream, stream, last),
            None => Ok(()),
        }
    }

    context fn cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) |s| {
        let stream = s.stream(stream)?;
        let event = *s.events.get(&event).ok_or(Status::INVALID_HANDLE)?;
        // An event that was never recorded holds nobody back.
        if let Some(record) = event.record {
            s.issue(stream, Action::Mark, vec![record])?;
        }
        Ok(())
    }

    context fn cuStreamGetPriority(stream: u64, priority: Out<i32>) |s| {
        let stream = s.stream(stream)?;
        priority.set(s.streams.get(&stream).map_or(0, |s| s.priority))
    }

    context fn cuStreamGetFlags(stream: u64, flags: Out<u32>) |s| {
        let stream = s.stream(stream)?;
        flags.set(s.streams.get(&stream).map_or(0, |s| s.flags))
    }

    context fn cuStreamGetCtx(stream: u64, context: Out<u64>) |s| {
        let stream = s.stream(stream)?;
        context.set(s.streams.get(&stream).map_or(0, |s| s.context))
    }

    context fn cuStreamGetCtx_v2(stream: u64, context: Out<u64>, green: Out<u64>) |s| {
        let stream = s.stream(stream)?;
        green.set_some(0);
        context.set(s.streams.get(&stream).map_or(0, |s| s.context))
    }

    context fn cuStreamGetDevice(stream: u64, device: Out<i32>) |s| {
        s.stream(stream)?;
        device.set(0)
    }

    context fn cuStreamGetId(stream: u64, id: Out<u64>) |s| {
        let stream = s.stream(stream)?;
        id.set(stream)
    }

    // Nothing is ever captured; programs ask before they do what capturing would forbid.
    context fn cuStreamIsCapturing(stream: u64, status: Out<i32>) |s| {
        s.stream(stream)?;
        status.set(0)
    }

    context fn cuLaunchHostFunc(stream: u64, function: Option<extern "C" fn(*mut c_void)>, data: usize) |s| {
        s.host_function(stream, function, data)
    }
}
