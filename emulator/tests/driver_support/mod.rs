//! A fake engine, a device per test, and C declarations of what the tests call.
#![allow(
    dead_code,
    non_snake_case,
    missing_docs,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks
)]

use std::ffi::{CString, c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard};

use cuda_emulator::check::{Kind, Place};
use cuda_emulator::driver::{
    Engine, KernelInfo, Launch, LoadCode, LoadError, Module, TensorMapRequest, set_engine,
};
use cuda_emulator::{Counters, Finding, Memory, Settings};

unsafe extern "C" {
    pub fn cuInit(flags: u32) -> i32;
    pub fn cuDeviceGet(device: *mut i32, ordinal: i32) -> i32;
    pub fn cuDeviceGetCount(count: *mut i32) -> i32;
    pub fn cuDeviceGetName(name: *mut u8, len: i32, device: i32) -> i32;
    pub fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) -> i32;
    pub fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32) -> i32;
    pub fn cuDevicePrimaryCtxRetain(context: *mut u64, device: i32) -> i32;
    pub fn cuDevicePrimaryCtxRelease_v2(device: i32) -> i32;
    pub fn cuDevicePrimaryCtxReset_v2(device: i32) -> i32;
    pub fn cuCtxSetCurrent(context: u64) -> i32;
    pub fn cuCtxSynchronize() -> i32;
    pub fn cuGraphCreate(graph: *mut u64, flags: u32) -> i32;
    pub fn cuGetErrorName(error: i32, name: *mut *const c_char) -> i32;
    pub fn cuMemAlloc_v2(out: *mut u64, bytes: usize) -> i32;
    pub fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: u64) -> i32;
    pub fn cuMemAllocPitch_v2(
        out: *mut u64,
        pitch: *mut usize,
        width: usize,
        height: usize,
        element: u32,
    ) -> i32;
    pub fn cuMemFree_v2(start: u64) -> i32;
    pub fn cuMemFreeAsync(start: u64, stream: u64) -> i32;
    pub fn cuMemGetAddressRange_v2(base: *mut u64, size: *mut usize, address: u64) -> i32;
    pub fn cuMemHostAlloc(out: *mut *mut u8, bytes: usize, flags: u32) -> i32;
    pub fn cuMemFreeHost(start: *mut c_void) -> i32;
    pub fn cuMemHostRegister_v2(start: *mut c_void, bytes: usize, flags: u32) -> i32;
    pub fn cuMemHostUnregister(start: *mut c_void) -> i32;
    pub fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> i32;
    pub fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> i32;
    pub fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> i32;
    pub fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) -> i32;
    pub fn cuMemcpy2D_v2(copy: *const Copy2d) -> i32;
    pub fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> i32;
    pub fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> i32;
    pub fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) -> i32;
    pub fn cuStreamCreate(stream: *mut u64, flags: u32) -> i32;
    pub fn cuStreamDestroy_v2(stream: u64) -> i32;
    pub fn cuStreamSynchronize(stream: u64) -> i32;
    pub fn cuStreamQuery(stream: u64) -> i32;
    pub fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> i32;
    pub fn cuLaunchHostFunc(
        stream: u64,
        function: Option<extern "C" fn(*mut c_void)>,
        data: *mut c_void,
    ) -> i32;
    pub fn cuEventCreate(event: *mut u64, flags: u32) -> i32;
    pub fn cuEventDestroy_v2(event: u64) -> i32;
    pub fn cuEventRecord(event: u64, stream: u64) -> i32;
    pub fn cuEventQuery(event: u64) -> i32;
    pub fn cuEventSynchronize(event: u64) -> i32;
    pub fn cuEventElapsedTime_v2(ms: *mut f32, start: u64, end: u64) -> i32;
    pub fn cuModuleLoadData(module: *mut u64, image: *const c_void) -> i32;
    pub fn cuModuleUnload(module: u64) -> i32;
    pub fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> i32;
    pub fn cuModuleGetFunctionCount(count: *mut u32, module: u64) -> i32;
    pub fn cuModuleGetGlobal_v2(
        address: *mut u64,
        bytes: *mut usize,
        module: u64,
        name: *const c_char,
    ) -> i32;
    pub fn cuFuncGetAttribute(value: *mut i32, attribute: i32, function: u64) -> i32;
    pub fn cuFuncSetAttribute(function: u64, attribute: i32, value: i32) -> i32;
    pub fn cuFuncGetName(name: *mut *const c_char, function: u64) -> i32;
    pub fn cuLaunchKernel(
        function: u64,
        gx: u32,
        gy: u32,
        gz: u32,
        bx: u32,
        by: u32,
        bz: u32,
        shared: u32,
        stream: u64,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) -> i32;
    pub fn cuLaunchKernelEx(
        config: *const Config,
        function: u64,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) -> i32;
    pub fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        n: *mut i32,
        f: u64,
        threads: i32,
        dynamic: usize,
    ) -> i32;
    pub fn cuTensorMapEncodeTiled(
        map: *mut c_void,
        data_type: u32,
        rank: u32,
        address: u64,
        dims: *const u64,
        strides: *const u64,
        boxes: *const u32,
        element_strides: *const u32,
        interleave: u32,
        swizzle: u32,
        l2: u32,
        oob: u32,
    ) -> i32;
    pub fn cuEmulatorConfigure(json: *const c_char) -> i32;
    pub fn cuEmulatorTakeFindings(buffer: *mut u8, len: usize) -> usize;
    pub fn cuEmulatorTrace(path: *const c_char) -> i32;
    pub fn cuEmulatorCounters(path: *const c_char) -> i32;
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Side {
    pub x: usize,
    pub y: usize,
    pub kind: u32,
    pub host: u64,
    pub device: u64,
    pub array: u64,
    pub pitch: usize,
}

#[repr(C)]
pub struct Copy2d {
    pub from: Side,
    pub to: Side,
    pub width: usize,
    pub height: usize,
}

#[repr(C)]
pub struct Config {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: u64,
    pub attributes: *const Attribute,
    pub count: u32,
}

#[repr(C)]
pub struct Attribute {
    pub id: u32,
    pub pad: u32,
    pub value: [u32; 16],
}

/// Kernels by name: `increment(pointer, bytes)`; `fault_<Kind>()`; `big_shared(pointer, bytes)`.
struct Fake;
struct FakeModule;

/// The shape of the last launch.
pub static LAST: Mutex<Option<Launch>> = Mutex::new(None);

const FAULTS: [(&str, Kind); 5] = [
    ("fault_bounds", Kind::OutOfBounds),
    ("fault_misaligned", Kind::Misaligned),
    ("fault_race", Kind::SharedRace),
    ("fault_deadlock", Kind::Deadlock),
    ("fault_assert", Kind::Assertion),
];

impl Module for FakeModule {
    fn kernels(&self) -> Vec<KernelInfo> {
        let increment = KernelInfo {
            name: "increment".into(),
            params: vec![(0, 8), (8, 4)],
            param_bytes: 12,
            static_shared: 1024,
            max_threads: Some(256),
            registers: Some(40),
            ..KernelInfo::default()
        };
        let faults =
            FAULTS.iter().map(|(name, _)| KernelInfo { name: (*name).into(), ..KernelInfo::default() });
        let panics = KernelInfo { name: "panic".into(), ..KernelInfo::default() };
        std::iter::once(increment).chain(faults).chain([panics]).collect()
    }

    fn global(&self, name: &str) -> Option<(u64, u64)> {
        (name == "table").then_some((0x1234, 56))
    }

    fn launch(
        &self,
        kernel: usize,
        launch: &Launch,
        params: &[u8],
        memory: &Memory,
        _settings: &Settings,
    ) -> Result<Counters, Box<Finding>> {
        *LAST.lock().unwrap() = Some(*launch);
        assert_ne!(kernel, FAULTS.len() + 1, "as asked");
        if let Some((name, kind)) = kernel.checked_sub(1).map(|at| FAULTS[at]) {
            let place = Place { kernel: name.into(), ..Place::default() };
            let finding = Finding { kind, message: "as asked".into(), place, details: vec![] };
            return Err(Box::new(finding));
        }
        let at = u64::from_le_bytes(params[..8].try_into().unwrap());
        let len = u32::from_le_bytes(params[8..12].try_into().unwrap());
        assert!(memory.arena().is_live(at, len.into()));
        for i in 0..u64::from(len) {
            let byte = (at + i) as *mut u8;
            unsafe { *byte = (*byte).wrapping_add(1) };
        }
        Ok(Counters { dram_read_bytes: len.into(), ..Counters::default() })
    }
}

impl Engine for Fake {
    fn load(&self, image: &[u8], _memory: &Arc<Memory>) -> Result<Arc<dyn Module>, LoadError> {
        if image != b"fake" {
            let message = "line 1: not fake".to_owned();
            return Err(LoadError { code: LoadCode::InvalidPtx, message });
        }
        Ok(Arc::new(FakeModule))
    }

    fn encode_tensor_map(&self, request: &TensorMapRequest) -> Option<Result<[u8; 128], String>> {
        Some(if request.boxes[0] > 256 { Err("box over 256".into()) } else { Ok([request.rank as u8; 128]) })
    }
}

/// The process has one driver: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

pub struct Device {
    _turn: MutexGuard<'static, ()>,
    pub module: u64,
}

pub fn ok(status: i32) {
    assert_eq!(status, 0);
}

impl Device {
    /// A fresh device with options on top of the defaults, its primary context current, a module loaded.
    pub fn new(options: &str) -> Device {
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        set_engine(&Fake);
        let defaults = r#"{"reset": true, "profile": "h100-80gb", "schedule": "eager", "log": false}"#;
        let (mut context, mut module) = (0, 0);
        unsafe {
            ok(cuInit(0));
            for options in [defaults, options] {
                ok(cuEmulatorConfigure(CString::new(options).unwrap().as_ptr()));
            }
            ok(cuDevicePrimaryCtxRetain(&mut context, 0));
            ok(cuCtxSetCurrent(context));
            ok(cuModuleLoadData(&mut module, c"fake".as_ptr().cast()));
        }
        Device { _turn: turn, module }
    }

    pub fn alloc(&self, bytes: usize) -> u64 {
        let mut a = 0;
        unsafe { ok(cuMemAlloc_v2(&mut a, bytes)) };
        a
    }

    pub fn pinned(&self, bytes: usize) -> *mut u8 {
        let mut p = std::ptr::null_mut();
        unsafe { ok(cuMemHostAlloc(&mut p, bytes, 0)) };
        p
    }

    pub fn stream(&self, flags: u32) -> u64 {
        let mut s = 0;
        unsafe { ok(cuStreamCreate(&mut s, flags)) };
        s
    }

    pub fn function(&self, name: &str) -> u64 {
        let mut f = 0;
        unsafe { ok(cuModuleGetFunction(&mut f, self.module, CString::new(name).unwrap().as_ptr())) };
        f
    }

    /// Launches one block of 32 threads with a pointer and a count.
    pub fn launch(&self, name: &str, pointer: u64, count: u32, stream: u64) -> i32 {
        let f = self.function(name);
        let params = [(&raw const pointer).cast::<c_void>(), (&raw const count).cast()];
        unsafe { cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, stream, params.as_ptr(), std::ptr::null()) }
    }

    /// Findings since the last look, as JSON.
    pub fn findings(&self) -> String {
        let mut buffer = vec![0; 1 << 16];
        let len = unsafe { cuEmulatorTakeFindings(buffer.as_mut_ptr(), buffer.len()) };
        String::from_utf8(buffer[..len - 1].to_vec()).unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        unsafe { cuDevicePrimaryCtxRelease_v2(0) };
    }
}
