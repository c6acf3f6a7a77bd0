//! Allocation of device and pinned memory.

use crate::check::Kind;
use crate::driver::args::Out;
use crate::driver::session::Session;
use crate::driver::state::Pinned;
use crate::driver::status::{Result, Status};
use crate::driver::work::Action;
use crate::memory::HostRange;

const PAGE: usize = 4096;

impl Session {
    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let call = self.call;
        let label = self.label(call);
        let start = self.memory.arena().allocate(bytes as u64, label).ok_or(Status::OUT_OF_MEMORY)?;
        self.state()?.allocations.insert(start);
        Ok(start)
    }

    /// Frees device memory now. What is pending must not use it.
    fn free_device(&mut self, start: u64) -> Result {
        if start == 0 {
            return Ok(());
        }
        let Some((allocation, false)) = self.memory.arena().allocation(start) else {
            return Err(
                self.refuse(Kind::UseAfterFree, format!("{start:#x} is not (or no longer) allocated"))
            );
        };
        if allocation.start != start {
            let message = format!("{start:#x} is inside {}, not its start", allocation.label);
            return Err(self.refuse(Kind::UseAfterFree, message));
        }
        self.settle();
        let uses = self.pending_uses(start, allocation.len);
        if !uses.is_empty() {
            let message = format!("{} is freed while pending work uses it", allocation.label);
            let finding = self.fault(Kind::UseAfterFree, message, uses);
            let context = self.context;
            self.poison(context, finding);
        }
        self.memory.arena().free(start);
        for context in self.contexts.values_mut() {
            context.allocations.remove(&start);
        }
        Ok(())
    }

    fn allocate_pinned(&mut self, out: &Out<u64>, bytes: usize, flags: u32) -> Result {
        out.check()?;
        if bytes == 0 || flags & !7 != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let room = bytes.checked_add(PAGE).ok_or(Status::OUT_OF_MEMORY)?;
        let mut block = Vec::new();
        block.try_reserve_exact(room).map_err(|_| Status::OUT_OF_MEMORY)?;
        block.resize(room, 0_u8);
        let block = block.into_boxed_slice();
        let start = (block.as_ptr() as usize).next_multiple_of(PAGE) as u64;
        self.pin(start, bytes as u64, flags, Some(block));
        out.set(start)
    }

    fn pin(&mut self, start: u64, len: u64, flags: u32, block: Option<Box<[u8]>>) {
        let context = self.context;
        self.memory.register_host(HostRange { start, len, owned: block.is_some() });
        self.pinned.insert(start, Pinned { context, flags, len, block });
    }

    fn unpin(&mut self, start: u64, owned: bool, none: Status) -> Result {
        let Some(len) = self.pinned.get(&start).filter(|p| p.block.is_some() == owned).map(|p| p.len) else {
            return Err(none);
        };
        self.settle();
        let uses = self.pending_uses(start, len);
        if !uses.is_empty() {
            let verb = if owned { "freed" } else { "unregistered" };
            let message = format!("pinned memory [{start:#x}, +{len}) is {verb} while pending work uses it");
            let finding = self.fault(Kind::HostCopy, message, uses);
            let context = self.context;
            self.poison(context, finding);
        }
        self.memory.unregister_host(start);
        self.pinned.remove(&start);
        Ok(())
    }

    /// The pinned range that contains an address: its start and what is known of it.
    pub fn pinned_at(&self, address: u64) -> Option<(u64, &Pinned)> {
        let (&start, pinned) = self.pinned.range(..=address).next_back()?;
        (address - start < pinned.len).then_some((start, pinned))
    }
}

api! {
    context fn cuMemAlloc_v2(out: Out<u64>, bytes: usize) |s| {
        out.check()?;
        let start = s.allocate(bytes)?;
        out.set(start)
    }

    context fn cuMemAllocPitch_v2(out: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) |s| {
        out.check()?;
        pitch.check()?;
        if !matches!(element, 4 | 8 | 16) {
            return Err(Status::INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(512).ok_or(Status::INVALID_VALUE)?;
        let start = s.allocate(row.checked_mul(height).ok_or(Status::OUT_OF_MEMORY)?)?;
        pitch.set(row)?;
        out.set(start)
    }

    release fn cuMemFree_v2(start: u64) |s| { s.free_device(start) }

    context fn cuMemAllocAsync(out: Out<u64>, bytes: usize, stream: u64) |s| {
        out.check()?;
        s.stream(stream)?;
        let start = s.allocate(bytes)?;
        out.set(start)
    }

    context fn cuMemFreeAsync(start: u64, stream: u64) |s| {
        let stream = s.stream(stream)?;
        if start == 0 {
            return Ok(());
        }
        match s.memory.arena().allocation(start) {
            Some((a, false)) if a.start == start => {
                s.issue(stream, Action::Free { start }, Vec::new())?;
                Ok(())
            }
            _ => Err(s.refuse(Kind::UseAfterFree, format!("{start:#x} is not (or no longer) allocated"))),
        }
    }

    context fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |s| {
        let arena = s.memory.arena();
        free.set((arena.capacity() - arena.used()) as usize)?;
        total.set(arena.capacity() as usize)
    }

    context fn cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, address: u64) |s| {
        match s.memory.arena().allocation(address) {
            Some((a, false)) if address - a.start < a.len => {
                base.set_some(a.start);
                size.set_some(a.len as usize);
                Ok(())
            }
            _ => Err(Status::NOT_FOUND),
        }
    }

    context fn cuMemHostAlloc(out: Out<u64>, bytes: usize, flags: u32) |s| { s.allocate_pinned(&out, bytes, flags) }

    context fn cuMemAllocHost_v2(out: Out<u64>, bytes: usize) |s| { s.allocate_pinned(&out, bytes, 0) }

    release fn cuMemFreeHost(start: u64) |s| { s.unpin(start, true, Status::INVALID_VALUE) }

    context fn cuMemHostRegister_v2(start: u64, bytes: usize, flags: u32) |s| {
        if start == 0 || bytes == 0 || flags & !15 != 0 || s.memory.arena().contains(start) {
            return Err(Status::INVALID_VALUE);
        }
        let end = start.checked_add(bytes as u64).ok_or(Status::INVALID_VALUE)?;
        let before = s.pinned.range(..end).next_back();
        if before.is_some_and(|(&other, p)| other + p.len > start) {
            return Err(Status::HOST_MEMORY_ALREADY_REGISTERED);
        }
        s.pin(start, bytes as u64, flags, None);
        Ok(())
    }

    release fn cuMemHostUnregister(start: u64) |s| {
        s.unpin(start, false, Status::HOST_MEMORY_NOT_REGISTERED)
    }

    context fn cuMemHostGetDevicePointer_v2(out: Out<u64>, address: u64, flags: u32) |s| {
        if flags != 0 || s.pinned_at(address).is_none() {
            return Err(Status::INVALID_VALUE);
        }
        out.set(address)
    }

    context fn cuMemHostGetFlags(flags: Out<u32>, address: u64) |s| {
        // Memory of a context with unified addressing is always mapped.
        let (_, pinned) = s.pinned_at(address).ok_or(Status::INVALID_VALUE)?;
        flags.set(pinned.flags | 2)
    }
}
