//! What the driver finds, refuses and remembers: launches, sticky errors, hazards of the host, leaks.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every block is calls of the C functions under test, with pointers to the test's own variables"
)]

mod driver_support;

use std::ffi::{CStr, c_void};

use driver_support::*;

#[test]
fn a_kernels_fault_sticks_to_its_context_with_cudas_code() {
    for (kernel, code) in [
        ("fault_bounds", 700),
        ("fault_misaligned", 716),
        ("fault_race", 719),
        ("fault_deadlock", 702),
        ("fault_assert", 710),
    ] {
        let d = Device::new("{}");
        let f = d.function(kernel);
        let (null, mut p, mut context) = (std::ptr::null(), 0, 0);
        unsafe {
            // As on a device: the launch succeeds, what follows fails, until the context is reset.
            ok(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, 0, null, null));
            assert_eq!(cuCtxSynchronize(), code, "{kernel}");
            assert_eq!(cuMemAlloc_v2(&mut p, 16), code);
            assert!(d.findings().contains(kernel));
            ok(cuDevicePrimaryCtxReset_v2(0));
            ok(cuDevicePrimaryCtxRetain(&mut context, 0));
            ok(cuMemAlloc_v2(&mut p, 16));
            ok(cuMemFree_v2(p));
            ok(cuDevicePrimaryCtxRelease_v2(0));
        }
    }
}

#[test]
fn a_panic_of_the_engine_becomes_an_error() {
    let d = Device::new("{}");
    let f = d.function("panic");
    unsafe {
        ok(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, 0, std::ptr::null(), std::ptr::null()));
        assert_eq!(cuCtxSynchronize(), 999);
    }
}

#[test]
fn launches_are_held_to_the_kernels_limits() {
    let d = Device::new("{}");
    let f = d.function("increment");
    let a = d.alloc(4);
    let count = 4_u32;
    let params = [(&raw const a).cast::<c_void>(), (&raw const count).cast()];
    let none = std::ptr::null();
    let launch = |grid: [u32; 3], block: [u32; 3], shared: u32| unsafe {
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, 0, params.as_ptr(), none)
    };
    let refused = |status: i32, words: &str| {
        let findings = d.findings();
        assert!(status == 1 && findings.contains(words) && findings.contains("LaunchConfig"), "{findings}");
    };
    ok(launch([1, 1, 1], [256, 1, 1], 0));
    refused(launch([1, 1, 1], [257, 1, 1], 0), "the kernel allows 256");
    refused(launch([1, 1, 1], [1, 1, 65], 0), "65 threads");
    refused(launch([1, 65_536, 1], [1, 1, 1], 0), "exceeds");
    refused(launch([0, 1, 1], [1, 1, 1], 0), "a dimension is 0");
    refused(launch([1, 1, 1], [1, 1, 1], 48 * 1024 - 1023), "48128 allowed");
    unsafe {
        assert_eq!(cuFuncSetAttribute(f, 8, 232_448 - 1023), 1);
        ok(cuFuncSetAttribute(f, 8, 232_448 - 1024));
        ok(launch([1, 1, 1], [1, 1, 1], 232_448 - 1024));
        let mut v = 0;
        ok(cuFuncGetAttribute(&mut v, 8, f));
        assert_eq!(v, 231_424);
        ok(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut v, f, 256, 0));
        assert_eq!(v, 6, "40 registers: 12 warps a scheduler, 48 an SM");
        // Arguments.
        let status = cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, 0, none, none);
        refused(status, "no arguments, 2 declared");
        let status = cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, 0, [params[0], none.cast()].as_ptr(), none);
        refused(status, "argument 1 of 2 is null");
        assert_eq!(cuLaunchKernel(0x77, 1, 1, 1, 1, 1, 1, 0, 0, params.as_ptr(), none), 400);
        let mut buffer = [0_u8; 12];
        buffer[..8].copy_from_slice(&a.to_le_bytes());
        for (size, status) in [(12_usize, 0), (11, 1), (17, 1)] {
            let extra: [*const c_void; 5] = [
                std::ptr::without_provenance::<c_void>(1),
                buffer.as_ptr().cast(),
                std::ptr::without_provenance::<c_void>(2),
                (&raw const size).cast(),
                none.cast(),
            ];
            let got = cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, 0, none, extra.as_ptr());
            assert_eq!(got, status, "{size} bytes");
        }
        ok(cuMemFree_v2(a));
    }
}

#[test]
fn clusters_come_with_the_launch() {
    let d = Device::new("{}");
    let f = d.function("increment");
    let (a, count) = (d.alloc(4), 0_u32);
    let params = [(&raw const a).cast::<c_void>(), (&raw const count).cast()];
    let launch = |grid: u32, cluster: u32| unsafe {
        let mut value = [0; 16];
        value[..3].copy_from_slice(&[cluster, 1, 1]);
        let serialise = Attribute { id: 6, pad: 0, value: [1; 16] };
        let attributes = [Attribute { id: 4, pad: 0, value }, serialise];
        let config = Config {
            grid: [grid, 1, 1],
            block: [32, 1, 1],
            shared: 0,
            stream: 0,
            attributes: attributes.as_ptr(),
            count: 2,
        };
        cuLaunchKernelEx(&config, f, params.as_ptr(), std::ptr::null())
    };
    ok(launch(8, 4));
    assert_eq!(LAST.lock().unwrap().unwrap().cluster, [4, 1, 1]);
    assert_eq!(launch(9, 4), 1);
    assert_eq!(launch(16, 16), 1);
    unsafe {
        ok(cuFuncSetAttribute(f, 14, 1));
        ok(launch(16, 16));
        ok(cuMemFree_v2(a));
    }
}

#[test]
fn memory_must_outlive_what_is_pending() {
    // Pinned memory of a pending copy.
    let d = Device::new(r#"{"schedule": "lazy"}"#);
    let (a, pinned, stream) = (d.alloc(4), d.pinned(4), d.stream(1));
    unsafe {
        ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), 4, stream));
        assert_eq!(cuMemFreeHost(pinned.cast()), 700);
        assert_eq!(cuStreamSynchronize(stream), 700);
    }
    let findings = d.findings();
    assert!(findings.contains("freed while pending work uses it"), "{findings}");
    assert!(findings.contains("copy to device, 4 bytes (cuMemcpyHtoDAsync_v2)"), "{findings}");
    drop(d);

    // Registered memory likewise.
    let d = Device::new(r#"{"schedule": "lazy"}"#);
    let mut host = vec![0_u8; 64];
    let (a, stream) = (d.alloc(4), d.stream(1));
    unsafe {
        ok(cuMemHostRegister_v2(host.as_mut_ptr().cast(), 64, 0));
        assert_eq!(cuMemHostRegister_v2(host.as_mut_ptr().wrapping_add(8).cast(), 8, 0), 712);
        ok(cuMemcpyHtoDAsync_v2(a, host.as_ptr().cast(), 4, stream));
        // A copy that leaves the registered range.
        assert_eq!(cuMemcpyHtoDAsync_v2(a, host.as_ptr().add(62).cast(), 4, stream), 1);
        assert_eq!(cuMemHostUnregister(host.as_mut_ptr().cast()), 700);
    }
    assert!(d.findings().contains("unregistered while pending"));
    drop(d);

    // Device memory that a pending kernel has an argument into.
    let d = Device::new(r#"{"schedule": "lazy"}"#);
    let (a, b, pinned, stream) = (d.alloc(4), d.alloc(4), d.pinned(4), d.stream(1));
    unsafe {
        ok(cuMemcpyHtoDAsync_v2(b, pinned.cast(), 4, stream));
        ok(d.launch("increment", a, 4, stream));
        assert_eq!(cuMemFree_v2(a), 700);
    }
    assert!(d.findings().contains("pending in stream 1: increment"));
    drop(d);

    // In stream order it is right.
    let d = Device::new(r#"{"schedule": "lazy"}"#);
    let (mut a, pinned, stream) = (0, d.pinned(4), d.stream(1));
    unsafe {
        ok(cuMemAllocAsync(&mut a, 4, stream));
        ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), 4, stream));
        ok(cuMemFreeAsync(a, stream));
        ok(cuStreamSynchronize(stream));
        assert_eq!(d.findings(), "[]");
        assert_eq!(cuMemFreeAsync(a, stream), 1);
        ok(cuMemFreeHost(pinned.cast()));
    }
}

#[test]
fn leaks_are_listed_when_the_context_goes() {
    let d = Device::new("{}");
    let a = d.alloc(1000);
    let kept = d.alloc(24);
    unsafe {
        ok(cuMemFree_v2(a));
        ok(cuDevicePrimaryCtxRelease_v2(0));
    }
    let findings = d.findings();
    assert!(findings.contains(&format!("cuMemAlloc_v2 #2: 24 bytes at {kept:#x}")), "{findings}");
    assert!(findings.contains("\"kind\":\"Leak\"") && !findings.contains("1000"), "{findings}");
}

#[test]
fn modules_handles_and_names() {
    let d = Device::new("{}");
    let (mut n, mut address, mut bytes, mut f) = (0, 0, 0, 0);
    let mut name = std::ptr::null();
    unsafe {
        ok(cuModuleGetFunctionCount(&mut n, d.module));
        assert_eq!(n, 7);
        ok(cuModuleGetGlobal_v2(&mut address, &mut bytes, d.module, c"table".as_ptr()));
        assert_eq!((address, bytes), (0x1234, 56));
        assert_eq!(cuModuleGetFunction(&mut f, d.module, c"none".as_ptr()), 500);
        assert_eq!(cuModuleLoadData(&mut f, c".version 8.0".as_ptr().cast()), 218);
        assert_eq!(cuModuleLoadData(&mut f, [0x7f_u8, b'E', b'L', b'F'].as_ptr().cast()), 209);
        let f = d.function("increment");
        assert_eq!(f, d.function("increment"));
        ok(cuFuncGetName(&mut name, f));
        assert_eq!(CStr::from_ptr(name), c"increment");
        ok(cuGetErrorName(716, &mut name));
        assert_eq!(CStr::from_ptr(name), c"CUDA_ERROR_MISALIGNED_ADDRESS");
        assert_eq!(cuGetErrorName(12_345, &mut name), 1);
        ok(cuModuleUnload(d.module));
        assert_eq!(cuFuncGetName(&mut name, f), 400);
        assert_eq!(cuStreamQuery(0x77), 400);
    }
}

#[test]
fn tensor_maps_go_to_the_engine() {
    #[repr(align(64))]
    struct Map([u8; 192]);
    let d = Device::new("{}");
    let mut map = Map([0; 192]);
    let (dims, strides, boxes, steps) = ([64_u64, 8], [128_u64], [64_u32, 8], [1_u32, 1]);
    let mut encode = |offset: usize, boxes: &[u32; 2]| unsafe {
        let at = map.0.as_mut_ptr().add(offset).cast();
        let (dims, strides, steps) = (dims.as_ptr(), strides.as_ptr(), steps.as_ptr());
        cuTensorMapEncodeTiled(at, 9, 2, 0x1000, dims, strides, boxes.as_ptr(), steps, 0, 3, 0, 0)
    };
    ok(encode(64, &boxes));
    assert_eq!(encode(32, &boxes), 1);
    assert_eq!(encode(0, &[257, 8]), 1);
    assert_eq!((map.0[64], map.0[0]), (2, 0));
    assert!(d.findings().contains("box over 256"));
}

#[test]
fn threads_share_the_device() {
    let d = Device::new(r#"{"schedule": "random:5"}"#);
    let mut context = 0;
    unsafe { ok(cuDevicePrimaryCtxRetain(&mut context, 0)) };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| unsafe {
                ok(cuCtxSetCurrent(context));
                let (a, pinned, stream) = (d.alloc(8), d.pinned(8), d.stream(0));
                for i in 0..50 {
                    pinned.write_bytes(i, 8);
                    ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), 8, stream));
                    ok(d.launch("increment", a, 8, stream));
                    ok(cuStreamSynchronize(stream));
                    let mut back = [0_u8; 8];
                    ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), a, 8));
                    assert_eq!(back, [i + 1; 8]);
                }
                ok(cuStreamDestroy_v2(stream));
                ok(cuMemFree_v2(a));
                ok(cuMemFreeHost(pinned.cast()));
            });
        }
    });
    unsafe { ok(cuDevicePrimaryCtxRelease_v2(0)) };
    assert_eq!(d.findings(), "[]");
}
