//! Kernels' properties.

use std::ffi::{CString, c_char};

use crate::driver::args::Out;
use crate::driver::session::Session;
use crate::driver::state::Function;
use crate::driver::status::{Result, Status};

/// What is assumed of a kernel that does not say how many registers it takes.
const REGISTERS: u32 = 32;

impl Session {
    pub(super) fn kernel(&self, function: u64) -> Result<&Function> {
        self.functions.get(&function).ok_or(Status::INVALID_HANDLE)
    }

    /// Most dynamic shared memory a kernel may be launched with.
    pub(super) fn dynamic_limit(&self, function: &Function) -> u32 {
        let default = self.profile.limits.shared_per_block.saturating_sub(function.info.static_shared);
        function.dynamic_shared.unwrap_or(default)
    }

    /// Most threads a block of a kernel may have.
    pub(super) fn thread_limit(&self, function: &Function) -> u32 {
        let most = self.profile.limits.threads_per_block;
        let by_registers = match function.info.registers {
            Some(n) if n > 0 => {
                let warp = (n * 32).next_multiple_of(256);
                self.profile.limits.registers_per_sm / warp * 32
            }
            _ => most,
        };
        function.info.max_threads.unwrap_or(most).min(most).min(by_registers)
    }
}

api! {
    context fn cuFuncGetAttribute(value: Out<i32>, which: i32, function: u64) |s| {
        let f = s.kernel(function)?;
        value.set(match which {
            0 => s.thread_limit(f) as i32,
            1 => f.info.static_shared as i32,
            2 => 0,
            3 => f.info.local_bytes as i32,
            4 => f.info.registers.unwrap_or(REGISTERS) as i32,
            5 | 6 => (s.profile.compute_capability[0] * 10 + s.profile.compute_capability[1]) as i32,
            7 => 0,
            8 => s.dynamic_limit(f) as i32,
            9 => f.carveout,
            10..=13 | 15 => 0,
            14 => i32::from(f.large_clusters),
            _ => return Err(Status::INVALID_VALUE),
        })
    }

    context fn cuFuncSetAttribute(function: u64, which: i32, value: i32) |s| {
        let optin = s.profile.limits.shared_per_block_optin;
        let f = s.functions.get_mut(&function).ok_or(Status::INVALID_HANDLE)?;
        match which {
            8 => {
                let bytes = u32::try_from(value).map_err(|_| Status::INVALID_VALUE)?;
                if bytes > optin.saturating_sub(f.info.static_shared) {
                    return Err(Status::INVALID_VALUE);
                }
                f.dynamic_shared = Some(bytes);
            }
            9 if (-1..=100).contains(&value) => f.carveout = value,
            14 => f.large_clusters = value != 0,
            11..=13 | 15 => return Err(Status::NOT_SUPPORTED),
            _ => return Err(Status::INVALID_VALUE),
        }
        Ok(())
    }

    context fn cuFuncSetCacheConfig(function: u64, _config: i32) |s| { s.kernel(function).map(drop) }

    context fn cuFuncSetSharedMemConfig(function: u64, _config: i32) |s| { s.kernel(function).map(drop) }

    context fn cuFuncGetModule(module: Out<u64>, function: u64) |s| { module.set(s.kernel(function)?.module) }

    // The name lives as long as the process: programs keep the pointer.
    context fn cuFuncGetName(name: Out<*const c_char>, function: u64) |s| {
        let text = CString::new(s.kernel(function)?.info.name.clone()).map_err(|_| Status::UNKNOWN)?;
        name.check()?;
        name.set(s.name(text))
    }

    context fn cuFuncGetParamInfo(function: u64, index: usize, offset: Out<usize>, size: Out<usize>) |s| {
        let &(at, bytes) = s.kernel(function)?.info.params.get(index).ok_or(Status::INVALID_VALUE)?;
        offset.set(at as usize)?;
        size.set_some(bytes as usize);
        Ok(())
    }

    context fn cuFuncGetParamCount(function: u64, count: Out<usize>) |s| {
        count.set(s.kernel(function)?.info.params.len())
    }

    // CU_FUNCTION_LOADING_STATE_LOADED.
    context fn cuFuncIsLoaded(state: Out<i32>, function: u64) |s| {
        s.kernel(function)?;
        state.set(1)
    }

    context fn cuFuncLoad(function: u64) |s| { s.kernel(function).map(drop) }
}
