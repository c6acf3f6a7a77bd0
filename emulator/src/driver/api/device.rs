//! cuInit and the device.

use crate::clock::Profile;
use crate::driver::args::{Out, put_text};
use crate::driver::call;
use crate::driver::session::Session;
use crate::driver::status::{Result, Status};

fn only(device: i32) -> Result {
    if device == 0 { Ok(()) } else { Err(Status::INVALID_DEVICE) }
}

/// CU_DEVICE_ATTRIBUTE_*, of a 9.0 device with one context that nobody else uses.
fn attribute(profile: &Profile, attribute: i32) -> Option<i32> {
    let limits = &profile.limits;
    Some(match attribute {
        1 => limits.threads_per_block as i32,
        2 | 3 => 1024,   // MAX_BLOCK_DIM_X, _Y
        4 => 64,         // MAX_BLOCK_DIM_Z
        5 => i32::MAX,   // MAX_GRID_DIM_X
        6 | 7 => 65_535, // MAX_GRID_DIM_Y, _Z
        8 => limits.shared_per_block as i32,
        9 => 65_536,                               // TOTAL_CONSTANT_MEMORY
        10 => 32,                                  // WARP_SIZE
        11 => i32::MAX,                            // MAX_PITCH
        12 | 82 => limits.registers_per_sm as i32, // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
        13 => profile.max_clock_khz as i32,
        14 => 512, // TEXTURE_ALIGNMENT
        15 => 1,   // GPU_OVERLAP
        16 => profile.sms as i32,
        17 | 18 => 0,  // KERNEL_EXEC_TIMEOUT, INTEGRATED
        19 => 1,       // CAN_MAP_HOST_MEMORY
        20 => 0,       // COMPUTE_MODE
        21 => 131_072, // texture and surface sizes of 9.0 from here on
        22 => 131_072,
        23 => 65_536,
        24..=26 => 16_384,
        27 | 28 => 32_768,
        29 => 2048,
        30 => 512,    // SURFACE_ALIGNMENT
        31 | 32 => 1, // CONCURRENT_KERNELS, ECC_ENABLED
        33 => 1,      // PCI_BUS_ID
        34 | 35 => 0, // PCI_DEVICE_ID, TCC_DRIVER
        36 => profile.memory_clock_khz as i32,
        37 => profile.memory_bus_bits as i32,
        38 => profile.l2_bytes as i32,
        39 => limits.threads_per_sm as i32,
        40 => profile.link.copy_engines as i32,
        41 => 1, // UNIFIED_ADDRESSING
        42 => 32_768,
        43 => 2048,
        44 => 1,
        45 | 46 => 32_768,
        47 | 48 => 8192,
        49 => 32_768,
        50 => 0,  // PCI_DOMAIN_ID
        51 => 32, // TEXTURE_PITCH_ALIGNMENT
        52 | 53 => 32_768,
        54 => 2046,
        55 => 32_768,
        56 => 131_072,
        57 => 65_536,
        58..=60 => 16_384,
        61 | 63 | 64 => 32_768,
        62 | 65 => 2048,
        66 | 67 => 32_768,
        68 => 2046,
        69 => 268_435_456,
        70 => 131_072,
        71 => 65_000,
        72 => 2_097_120,
        73 | 74 | 77 => 32_768,
        75 => profile.compute_capability[0] as i32,
        76 => profile.compute_capability[1] as i32,
        78..=80 => 1, // STREAM_PRIORITIES, GLOBAL_L1, LOCAL_L1
        81 => limits.shared_per_sm as i32,
        83 => 0,      // MANAGED_MEMORY: not emulated
        84 | 85 => 0, // MULTI_GPU_BOARD
        86 => 0,      // HOST_NATIVE_ATOMIC
        87 => 2,      // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        88 | 89 => 0, // PAGEABLE_MEMORY_ACCESS, CONCURRENT_MANAGED_ACCESS
        90 | 91 => 1, // COMPUTE_PREEMPTION, HOST_POINTER_FOR_REGISTERED_MEM
        92..=94 => 0, // stream memory operations: not emulated
        95 => 1,      // COOPERATIVE_LAUNCH
        96 => 0,
        97 => limits.shared_per_block_optin as i32,
        98 => 0,
        99 => 1,        // HOST_REGISTER_SUPPORTED
        100..=105 => 0, // virtual memory management: not emulated
        106 => limits.blocks_per_sm as i32,
        107 => 0,
        108 => (profile.l2_bytes / 8 * 5) as i32, // MAX_PERSISTING_L2_CACHE_SIZE
        109 => 134_213_632,                       // MAX_ACCESS_POLICY_WINDOW_SIZE
        110 => 0,
        111 => limits.shared_reserved as i32,
        112..=114 => 0,
        115 => 1, // MEMORY_POOLS_SUPPORTED: cuMemAllocAsync
        116..=119 | 121 => 0,
        120 => 1, // CLUSTER_LAUNCH
        122 | 123 | 124..=126 | 128..=144 => 0,
        127 => 1, // TENSOR_MAP_ACCESS_SUPPORTED
        _ => return None,
    })
}

fn uuid(session: &Session) -> [u8; 16] {
    let mut uuid = *b"cuda-emulator\0\0\0";
    uuid[15] = session.profile.sms as u8;
    uuid
}

api! {
    plain fn cuInit(flags: u32) |_| {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        Session::initialise()
    }

    device fn cuDeviceGetCount(count: Out<i32>) |_| { count.set(1) }

    device fn cuDeviceGet(device: Out<i32>, ordinal: i32) |_| {
        only(ordinal)?;
        device.set(0)
    }

    device fn cuDeviceGetName(name: Out<u8>, len: i32, device: i32) |s| {
        only(device)?;
        put_text(&name, usize::try_from(len).unwrap_or(0), s.profile.name.as_bytes())
    }

    device fn cuDeviceGetUuid(out: Out<[u8; 16]>, device: i32) |s| {
        only(device)?;
        out.set(uuid(s))
    }

    device fn cuDeviceGetUuid_v2(out: Out<[u8; 16]>, device: i32) |s| {
        only(device)?;
        out.set(uuid(s))
    }

    device fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) |s| {
        only(device)?;
        bytes.set(s.profile.memory_bytes as usize)
    }

    device fn cuDeviceGetAttribute(value: Out<i32>, which: i32, device: i32) |s| {
        value.check()?;
        only(device)?;
        value.set(attribute(&s.profile, which).ok_or(Status::INVALID_VALUE)?)
    }

    device fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) |s| {
        only(device)?;
        let [a, b] = s.profile.compute_capability;
        major.set(a as i32)?;
        minor.set(b as i32)
    }

    device fn cuDeviceGetPCIBusId(text: Out<u8>, len: i32, device: i32) |_| {
        only(device)?;
        put_text(&text, usize::try_from(len).unwrap_or(0), b"0000:01:00.0")
    }

    device fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) |_| {
        only(device)?;
        only(peer)?;
        can.set(0)
    }

    device fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: i32) |s| {
        context.check()?;
        only(device)?;
        if s.primary.retained == 0 {
            let flags = s.primary.flags;
            s.primary.context = s.add_context(flags);
        }
        s.primary.retained += 1;
        context.set(s.primary.context)
    }

    device fn cuDevicePrimaryCtxRelease_v2(device: i32) |s| {
        only(device)?;
        match s.primary.retained {
            0 => Err(Status::INVALID_CONTEXT),
            1 => {
                s.primary.retained = 0;
                let context = s.primary.context;
                s.destroy_context(context);
                Ok(())
            }
            _ => {
                s.primary.retained -= 1;
                Ok(())
            }
        }
    }

    device fn cuDevicePrimaryCtxReset_v2(device: i32) |s| {
        only(device)?;
        if s.primary.retained > 0 {
            // The handle stays, and so do those who retained it.
            let context = s.primary.context;
            s.destroy_context(context);
            s.revive_context(context);
        }
        Ok(())
    }

    device fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) |s| {
        only(device)?;
        s.primary.flags = flags;
        let context = s.primary.context;
        if let Some(context) = s.contexts.get_mut(&context) {
            context.flags = flags;
        }
        Ok(())
    }

    device fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) |s| {
        only(device)?;
        flags.set(s.primary.flags)?;
        active.set(i32::from(s.primary.retained > 0))
    }

    device fn cuCtxGetDevice(device: Out<i32>) |s| {
        s.enter(call::current())?;
        device.set(0)
    }

    device fn cuCtxGetDevice_v2(device: Out<i32>, context: u64) |s| {
        s.enter(if context == 0 { call::current() } else { context })?;
        device.set(0)
    }
}
