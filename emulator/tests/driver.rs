//! The driver with a fake engine: what a program sees of memory, streams, events, modules and errors.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every block is calls of the C functions under test, with pointers to the test's own variables"
)]

mod driver_support;

use std::ffi::c_void;

use driver_support::*;

#[test]
fn a_device_describes_itself_by_its_profile() {
    let _d = Device::new(r#"{"profile": "h100-mig-10gb"}"#);
    let (mut n, mut v, mut bytes) = (0, 0, 0);
    let mut name = [0_u8; 64];
    unsafe {
        ok(cuDeviceGetCount(&mut n));
        ok(cuDeviceGetAttribute(&mut v, 16, 0));
        ok(cuDeviceTotalMem_v2(&mut bytes, 0));
        ok(cuDeviceGetName(name.as_mut_ptr(), 64, 0));
        assert_eq!((n, v, bytes), (1, 16, 10_334_765_056));
        assert!(String::from_utf8_lossy(&name).contains("MIG 1g.10gb"));
        ok(cuDeviceGetAttribute(&mut v, 97, 0));
        assert_eq!(v, 232_448);
        assert_eq!(cuDeviceGet(&mut n, 1), 101);
        assert_eq!(cuDeviceGetAttribute(std::ptr::null_mut(), 16, 0), 1);
        assert_eq!(cuDeviceGetAttribute(&mut v, 100_000, 0), 1);
        // Nothing here emulates graphs.
        assert_eq!(cuGraphCreate(std::ptr::null_mut(), 0), 801);
    }
}

#[test]
fn memory_is_copied_set_and_bounded() {
    let d = Device::new("{}");
    let a = d.alloc(1000);
    let b = d.alloc(1000);
    let source: Vec<u8> = (0..1000_u32).map(|i| i as u8).collect();
    let mut back = vec![0_u8; 1000];
    unsafe {
        ok(cuMemcpyHtoD_v2(a, source.as_ptr().cast(), 1000));
        ok(cuMemcpyDtoD_v2(b, a, 1000));
        ok(cuMemsetD32_v2(b, 0x0102_0304, 2));
        ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), b, 1000));
        assert_eq!(&back[..9], &[4, 3, 2, 1, 4, 3, 2, 1, 8]);
        assert_eq!(back[9..], source[9..]);
        assert_eq!(d.findings(), "[]");
        // One byte too many: an error of the call, not of the context.
        assert_eq!(cuMemcpyHtoD_v2(a, source.as_ptr().cast(), 1001), 1);
        assert!(d.findings().contains("ends outside cuMemAlloc_v2 #1 of 1000 bytes"));
        assert_eq!(cuMemsetD32_v2(b + 1, 0, 1), 1);
        assert_eq!(cuMemcpyHtoD_v2(a, std::ptr::null(), 8), 1);
        let (mut base, mut size) = (0, 0);
        ok(cuMemGetAddressRange_v2(&mut base, &mut size, a + 999));
        assert_eq!((base, size), (a, 1000));
        ok(cuMemFree_v2(a));
        assert_eq!(cuMemFree_v2(a), 1);
        assert_eq!(cuMemFree_v2(b + 8), 1);
        assert_eq!(cuMemcpyHtoD_v2(a, source.as_ptr().cast(), 8), 1);
        assert!(d.findings().contains("which was freed"));
        let mut p = 0;
        assert_eq!(cuMemAlloc_v2(&mut p, 1 << 40), 2);
        ok(cuMemFree_v2(b));
    }
}

#[test]
fn rows_are_copied_with_their_pitches() {
    let d = Device::new("{}");
    let (mut a, mut pitch) = (0, 0);
    let source: Vec<u8> = (0..30).collect();
    let mut back = [0_u8; 30];
    unsafe {
        ok(cuMemAllocPitch_v2(&mut a, &mut pitch, 10, 3, 4));
        assert_eq!(pitch, 512);
        let host = |at: *const u8| Side { kind: 1, host: at as u64, pitch: 10, ..Side::default() };
        let device = Side { kind: 2, device: a, pitch, ..Side::default() };
        ok(cuMemcpy2D_v2(&Copy2d { from: host(source.as_ptr()), to: device, width: 10, height: 3 }));
        ok(cuMemcpy2D_v2(&Copy2d { from: device, to: host(back.as_mut_ptr()), width: 10, height: 3 }));
        assert_eq!(back[..], source[..]);
        ok(cuMemFree_v2(a));
    }
    drop(d);
}

#[test]
fn a_lazy_copy_sees_what_its_pinned_buffer_holds_when_it_runs() {
    for (schedule, seen) in [("eager", 1), ("lazy", 2)] {
        let d = Device::new(&format!(r#"{{"schedule": "{schedule}"}}"#));
        let (a, pinned, stream) = (d.alloc(4), d.pinned(4), d.stream(1));
        let mut back = [0_u8; 4];
        unsafe {
            pinned.write_bytes(1, 4);
            ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), 4, stream));
            // The mistake: reuse before the copy is known to be done.
            pinned.write_bytes(2, 4);
            ok(cuStreamSynchronize(stream));
            ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), a, 4));
            assert_eq!(back, [seen; 4], "{schedule}");
            // Pageable memory is the caller's again at once, whatever the schedule.
            let mut pageable = [7_u8; 4];
            ok(cuMemcpyHtoDAsync_v2(a, pageable.as_ptr().cast(), 4, stream));
            pageable.fill(8);
            ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), a, 4));
            assert_eq!((back, pageable[0]), ([7; 4], 8), "{schedule}");
            ok(cuMemFree_v2(a));
            ok(cuMemFreeHost(pinned.cast()));
        }
    }
}

#[test]
fn an_event_orders_streams_and_its_absence_shows_when_lazy() {
    for waits in [true, false] {
        let d = Device::new(r#"{"schedule": "lazy"}"#);
        let (a, pinned) = (d.alloc(4), d.pinned(4));
        let (copies, kernels) = (d.stream(1), d.stream(1));
        let mut event = 0;
        unsafe {
            ok(cuMemsetD8_v2(a, 0, 4));
            pinned.write_bytes(5, 4);
            ok(cuEventCreate(&mut event, 0));
            ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), 4, copies));
            ok(cuEventRecord(event, copies));
            if waits {
                ok(cuStreamWaitEvent(kernels, event, 0));
            }
            // Adds one to each byte.
            ok(d.launch("increment", a, 4, kernels));
            ok(cuStreamSynchronize(kernels));
            ok(cuStreamSynchronize(copies));
            let mut back = [0_u8; 4];
            ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), a, 4));
            assert_eq!(back, [if waits { 6 } else { 5 }; 4]);
            ok(cuEventDestroy_v2(event));
            ok(cuMemFree_v2(a));
            ok(cuMemFreeHost(pinned.cast()));
        }
    }
}

#[test]
fn the_default_stream_waits_for_blocking_streams_only() {
    for (flags, expected) in [(0, 6), (1, 5)] {
        let d = Device::new(r#"{"schedule": "lazy"}"#);
        let (a, pinned, stream) = (d.alloc(4), d.pinned(4), d.stream(flags));
        unsafe {
            ok(cuMemsetD8Async(a, 0, 4, stream));
            pinned.write_bytes(5, 4);
            ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), 4, stream));
            ok(d.launch("increment", a, 4, 0));
            ok(cuCtxSynchronize());
            let mut back = [0_u8; 4];
            ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), a, 4));
            assert_eq!(back, [expected; 4], "flags {flags}");
            ok(cuMemFree_v2(a));
            ok(cuMemFreeHost(pinned.cast()));
        }
    }
}

#[test]
fn random_schedules_repeat_and_reach_the_same_end() {
    let run = |seed: u32| {
        let d = Device::new(&format!(r#"{{"schedule": "random:{seed}"}}"#));
        let (a, pinned, stream) = (d.alloc(64), d.pinned(64), d.stream(1));
        let mut seen = 0_u64;
        unsafe {
            for i in 0..64 {
                pinned.add(i).write(1);
                ok(cuMemcpyHtoDAsync_v2(a + i as u64, pinned.add(i).cast(), 1, stream));
                pinned.add(i).write(2);
            }
            ok(cuStreamSynchronize(stream));
            let mut back = [0_u8; 64];
            ok(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), a, 64));
            for (i, byte) in back.iter().enumerate() {
                seen |= u64::from(*byte == 2) << i;
            }
            ok(cuMemFree_v2(a));
            ok(cuMemFreeHost(pinned.cast()));
        }
        seen
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!(run(1) != 0 && run(1) != u64::MAX);
}

extern "C" fn count(data: *mut c_void) {
    let mut n = 0;
    unsafe {
        // No calls from here.
        assert_eq!(cuDeviceGetCount(&mut n), 800);
        *data.cast::<u32>() += 1;
    }
}

#[test]
fn host_functions_run_in_stream_order() {
    let d = Device::new(r#"{"schedule": "lazy"}"#);
    let (a, pinned, stream) = (d.alloc(4), d.pinned(4), d.stream(1));
    let mut counter = 0_u32;
    let data = (&raw mut counter).cast::<c_void>();
    unsafe {
        ok(cuLaunchHostFunc(stream, Some(count), data));
        assert_eq!(data.cast::<u32>().read(), 1);
        ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), 4, stream));
        ok(cuLaunchHostFunc(stream, Some(count), data));
        assert_eq!(data.cast::<u32>().read(), 1);
        ok(cuStreamSynchronize(stream));
        assert_eq!(data.cast::<u32>().read(), 2);
        assert_eq!(cuLaunchHostFunc(stream, None, data), 1);
        ok(cuMemFree_v2(a));
        ok(cuMemFreeHost(pinned.cast()));
    }
}

#[test]
fn events_tell_modelled_time_to_the_nanosecond() {
    let d = Device::new("{}");
    let bytes = 55_000_000;
    let (a, pinned, stream) = (d.alloc(bytes), d.pinned(bytes), d.stream(1));
    let (mut start, mut end, mut ms) = (0, 0, 0.0);
    unsafe {
        ok(cuEventCreate(&mut start, 0));
        ok(cuEventCreate(&mut end, 0));
        ok(cuEventRecord(start, stream));
        ok(cuMemcpyHtoDAsync_v2(a, pinned.cast(), bytes, stream));
        ok(cuEventRecord(end, stream));
        // The copy was made, but on the clock it is under way.
        assert_eq!(cuEventQuery(end), 600);
        assert_eq!(cuEventElapsedTime_v2(&mut ms, start, end), 600);
        let mut polls = 1;
        while cuEventQuery(end) == 600 {
            polls += 1;
        }
        assert!(polls < 15, "{polls} polls");
        ok(cuEventElapsedTime_v2(&mut ms, start, end));
        // 2 us + 55 MB at 55 GB/s; issued one call after the start.
        assert!((ms - 1.003).abs() < 1e-6, "{ms}");
        ok(cuEventSynchronize(end));
        ok(cuMemFree_v2(a));
        ok(cuMemFreeHost(pinned.cast()));
    }
}

#[test]
fn a_trace_and_counters_are_written() {
    let d = Device::new("{}");
    let dir = std::env::temp_dir();
    let (trace, table) = (dir.join("cuda-emulator-trace.json"), dir.join("cuda-emulator-counters.txt"));
    let c = |p: &std::path::Path| std::ffi::CString::new(p.to_str().unwrap()).unwrap();
    let (stream, a) = (d.stream(1), d.alloc(16));
    unsafe {
        ok(cuEmulatorTrace(c(&trace).as_ptr()));
        ok(cuMemsetD8Async(a, 0, 16, stream));
        ok(d.launch("increment", a, 16, stream));
        ok(cuEmulatorTrace(c(&trace).as_ptr()));
        ok(cuEmulatorCounters(c(&table).as_ptr()));
        ok(cuMemFree_v2(a));
    }
    let text = std::fs::read_to_string(&trace).unwrap();
    assert!(text.contains("increment") && text.contains("memset, 16 bytes"), "{text}");
    assert!(std::fs::read_to_string(&table).unwrap().contains("increment"));
    let _ = (std::fs::remove_file(trace), std::fs::remove_file(table));
}
