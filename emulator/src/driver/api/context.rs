//! Contexts.

use super::errors::VERSION;
use crate::check::Kind;
use crate::driver::args::Out;
use crate::driver::call;
use crate::driver::session::Session;
use crate::driver::state::Context;
use crate::driver::status::{Result, Status};

/// Least and greatest (most urgent) priority of streams, as on current devices.
pub(super) const PRIORITIES: (i32, i32) = (0, -5);

impl Session {
    /// Ends a context: pending work is done, leaks are reported, everything in it goes.
    pub fn destroy_context(&mut self, context: u64) {
        self.settle();
        self.synchronise_context(context);
        let Some(state) = self.contexts.get(&context) else { return };
        let clean = state.sticky.is_none();
        let allocations = state.allocations.clone();
        let mut leaks = Vec::new();
        for &start in &allocations {
            if let Some((a, false)) = self.memory.arena().allocation(start) {
                leaks.push(format!("{}: {} bytes at {start:#x}", a.label, a.len));
            }
        }
        let pinned: Vec<u64> =
            self.pinned.iter().filter(|(_, p)| p.context == context).map(|(&start, _)| start).collect();
        for start in &pinned {
            if let Some(p) = self.pinned.get(start) {
                let what = if p.block.is_some() { "pinned memory" } else { "registered memory" };
                leaks.push(format!("{what}: {} bytes at {start:#x}", p.len));
            }
        }
        // After an error nobody could free anything.
        if clean && !leaks.is_empty() {
            let message = format!("{} allocations were never freed", leaks.len());
            let finding = self.fault(Kind::Leak, message, leaks);
            self.report(finding);
        }
        for start in allocations {
            self.memory.arena().free(start);
        }
        for start in pinned {
            self.memory.unregister_host(start);
            self.pinned.remove(&start);
        }
        self.events.retain(|_, e| e.context != context);
        let modules: Vec<u64> =
            self.modules.iter().filter(|(_, m)| m.context == context).map(|(&handle, _)| handle).collect();
        self.functions.retain(|_, f| !modules.contains(&f.module));
        for module in modules {
            self.modules.remove(&module);
        }
        let streams: Vec<u64> =
            self.streams.iter().filter(|(_, s)| s.context == context).map(|(&handle, _)| handle).collect();
        for stream in streams {
            if let Some(stream) = self.streams.remove(&stream) {
                self.clock.retire(stream.timeline);
            }
        }
        self.contexts.remove(&context);
        self.write_files();
    }

    /// Puts a fresh context in place of a destroyed one, under its handle.
    pub fn revive_context(&mut self, handle: u64) {
        let legacy = self.add_stream(handle, 0, 0, true);
        let flags = self.primary.flags;
        let state = Context {
            flags,
            limits: std::collections::BTreeMap::new(),
            sticky: None,
            legacy,
            allocations: std::collections::BTreeSet::new(),
        };
        self.contexts.insert(handle, state);
    }

    fn create(&mut self, context: &Out<u64>, flags: u32, device: i32) -> Result {
        context.check()?;
        if device != 0 {
            return Err(Status::INVALID_DEVICE);
        }
        let handle = self.add_context(flags);
        call::push_current(handle);
        context.set(handle)
    }
}

fn default_limit(session: &Session, limit: i32) -> Result<usize> {
    Ok(match limit {
        0 => 1024,
        1 => 1 << 20,
        2 => 8 << 20,
        3 => 2,
        4 => 2048,
        5 => 64,
        6 => session.profile.l2_bytes as usize / 16,
        _ => return Err(Status::UNSUPPORTED_LIMIT),
    })
}

api! {
    device fn cuCtxCreate_v2(context: Out<u64>, flags: u32, device: i32) |s| { s.create(&context, flags, device) }

    device fn cuCtxCreate_v3(context: Out<u64>, _affinity: usize, count: i32, flags: u32, device: i32) |s| {
        if count != 0 {
            return Err(Status::UNSUPPORTED_EXEC_AFFINITY);
        }
        s.create(&context, flags, device)
    }

    device fn cuCtxCreate_v4(context: Out<u64>, _parameters: usize, flags: u32, device: i32) |s| {
        s.create(&context, flags, device)
    }

    device fn cuCtxDestroy_v2(context: u64) |s| {
        if !s.contexts.contains_key(&context) || context == s.primary.context && s.primary.retained > 0 {
            return Err(Status::INVALID_CONTEXT);
        }
        s.destroy_context(context);
        if call::current() == context {
            call::pop_current();
        }
        Ok(())
    }

    device fn cuCtxGetCurrent(context: Out<u64>) |_| { context.set(call::current()) }

    device fn cuCtxSetCurrent(context: u64) |s| {
        if context != 0 {
            s.enter(context)?;
        }
        call::set_current(context);
        Ok(())
    }

    device fn cuCtxPushCurrent_v2(context: u64) |s| {
        s.enter(context)?;
        call::push_current(context);
        Ok(())
    }

    device fn cuCtxPopCurrent_v2(context: Out<u64>) |_| {
        let popped = call::pop_current().ok_or(Status::INVALID_CONTEXT)?;
        context.set_some(popped);
        Ok(())
    }

    context fn cuCtxSynchronize() |s| {
        let context = s.context;
        s.synchronise_context(context);
        s.check_sticky()
    }

    context fn cuCtxSynchronize_v2(context: u64) |s| {
        s.enter(context)?;
        s.synchronise_context(context);
        s.check_sticky()
    }

    context fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) |_| {
        least.set_some(PRIORITIES.0);
        greatest.set_some(PRIORITIES.1);
        Ok(())
    }

    context fn cuCtxGetFlags(flags: Out<u32>) |s| { flags.set(s.state()?.flags) }

    context fn cuCtxSetFlags(flags: u32) |s| {
        s.state()?.flags = flags;
        Ok(())
    }

    context fn cuCtxGetId(context: u64, id: Out<u64>) |s| {
        let handle = if context == 0 { s.context } else { context };
        s.enter(handle)?;
        id.set(handle)
    }

    device fn cuCtxGetApiVersion(context: u64, version: Out<u32>) |s| {
        if context != 0 {
            s.enter(context)?;
        }
        version.set(VERSION as u32)
    }

    context fn cuCtxGetLimit(value: Out<usize>, limit: i32) |s| {
        let default = default_limit(s, limit)?;
        value.set(s.state()?.limits.get(&limit).copied().unwrap_or(default))
    }

    context fn cuCtxSetLimit(limit: i32, value: usize) |s| {
        default_limit(s, limit)?;
        s.state()?.limits.insert(limit, value);
        Ok(())
    }

    context fn cuCtxGetCacheConfig(config: Out<i32>) |_| { config.set(0) }

    context fn cuCtxSetCacheConfig(_config: i32) |_| { Ok(()) }
}
