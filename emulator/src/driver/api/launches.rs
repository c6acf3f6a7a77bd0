//! Launches.

use crate::check::Kind;
use crate::clock::{Footprint, blocks_per_sm};
use crate::driver::args::In;
use crate::driver::engine::Launch;
use crate::driver::session::Session;
use crate::driver::state::Function;
use crate::driver::status::{Result, Status};
use crate::driver::work::{Action, Kernel};

/// CUlaunchConfig.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: u64,
    attributes: In<Attribute>,
    count: u32,
}

/// CUlaunchAttribute.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

/// Keys of the `extra` array.
const EXTRA_END: u64 = 0;
const EXTRA_POINTER: u64 = 1;
const EXTRA_SIZE: u64 = 2;

/// How the arguments of a launch come.
struct Arguments {
    params: In<In<u8>>,
    extra: In<u64>,
}

impl Session {
    fn launch(
        &mut self,
        function: u64,
        launch: Launch,
        cooperative: bool,
        stream: u64,
        args: &Arguments,
    ) -> Result {
        let f = self.kernel(function)?.clone();
        let stream = self.stream(stream)?;
        if let Err(message) = self.check_launch(&f, &launch) {
            return Err(self.refuse(Kind::LaunchConfig, format!("{}: {message}", f.info.name)));
        }
        let shared = f.info.static_shared + launch.dynamic_shared;
        let registers = f.info.registers.unwrap_or(0);
        let footprint = Footprint { threads: launch.threads() as u32, registers, shared };
        let resident = blocks_per_sm(&self.profile.limits, footprint);
        if resident == 0 {
            let message = format!("{}: not even one block fits an SM ({footprint:?})", f.info.name);
            self.refuse(Kind::LaunchConfig, message);
            return Err(Status::LAUNCH_OUT_OF_RESOURCES);
        }
        if cooperative && launch.blocks() > u64::from(resident) * u64::from(self.profile.sms) {
            return Err(Status::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        let params = self.arguments(&f, args)?;
        let module = self.modules.get(&f.module).ok_or(Status::INVALID_HANDLE)?.module.clone();
        let kernel = Kernel { module, index: f.kernel, name: f.info.name, launch, params, footprint };
        self.issue(stream, Action::Kernel(Box::new(kernel)), Vec::new())?;
        // What the kernel did wrong shows in the next call, as on a device.
        Ok(())
    }

    fn check_launch(&self, f: &Function, launch: &Launch) -> std::result::Result<(), String> {
        let Launch { grid, block, cluster, dynamic_shared } = *launch;
        let (threads, most) = (launch.threads(), self.thread_limit(f));
        if grid.contains(&0) || block.contains(&0) || cluster.contains(&0) {
            return Err(format!("a dimension is 0: grid {grid:?}, block {block:?}, cluster {cluster:?}"));
        }
        if threads > u64::from(most) || block[0] > 1024 || block[1] > 1024 || block[2] > 64 {
            return Err(format!("block {block:?} has {threads} threads; the kernel allows {most}"));
        }
        if grid[0] > i32::MAX as u32 || grid[1] > 65_535 || grid[2] > 65_535 {
            return Err(format!("grid {grid:?} exceeds [2147483647, 65535, 65535]"));
        }
        let limit = self.dynamic_limit(f);
        if dynamic_shared > limit {
            return Err(format!(
                "{dynamic_shared} bytes of dynamic shared memory, {limit} allowed (cuFuncSetAttribute raises that to \
                 {} less the static {})",
                self.profile.limits.shared_per_block_optin, f.info.static_shared
            ));
        }
        let blocks: u64 = cluster.iter().map(|&n| u64::from(n)).product();
        let largest = if f.large_clusters { 16 } else { 8 };
        if blocks > largest || (0..3).any(|i| !grid[i].is_multiple_of(cluster[i])) {
            return Err(format!(
                "clusters of {cluster:?} do not divide grid {grid:?} or have over {largest} blocks"
            ));
        }
        Ok(())
    }

    /// The parameter bytes of a launch.
    fn arguments(&mut self, f: &Function, args: &Arguments) -> Result<Vec<u8>> {
        let info = &f.info;
        let mut bytes = vec![0; info.param_bytes as usize];
        if !args.extra.is_null() {
            if !args.params.is_null() {
                return Err(Status::INVALID_VALUE);
            }
            let given = extra_buffer(&args.extra)?;
            let needed = info.params.last().map_or(0, |&(at, len)| (at + len) as usize);
            if given.len() < needed || given.len() > bytes.len().next_multiple_of(16) {
                let message =
                    format!("{}: {} bytes of arguments given, {needed} declared", info.name, given.len());
                return Err(self.refuse(Kind::LaunchConfig, message));
            }
            let len = given.len().min(bytes.len());
            bytes[..len].copy_from_slice(&given[..len]);
            return Ok(bytes);
        }
        if info.params.is_empty() {
            return Ok(bytes);
        }
        if args.params.is_null() {
            let message = format!("{}: no arguments, {} declared", info.name, info.params.len());
            return Err(self.refuse(Kind::LaunchConfig, message));
        }
        for (i, &(at, len)) in info.params.iter().enumerate() {
            let argument = args.params.at(i)?;
            if argument.is_null() {
                let message = format!("{}: argument {i} of {} is null", info.name, info.params.len());
                return Err(self.refuse(Kind::LaunchConfig, message));
            }
            let room = bytes.get_mut(at as usize..(at + len) as usize).ok_or(Status::UNKNOWN)?;
            room.copy_from_slice(&argument.bytes(len as usize)?);
        }
        Ok(bytes)
    }
}

/// The bytes of CU_LAUNCH_PARAM_BUFFER_POINTER.
fn extra_buffer(extra: &In<u64>) -> Result<Vec<u8>> {
    let (mut buffer, mut size) = (0, 0);
    // Each key comes at most once.
    for pair in 0..3 {
        let key = extra.at(2 * pair)?;
        match key {
            EXTRA_END => break,
            EXTRA_POINTER => buffer = extra.at(2 * pair + 1)?,
            EXTRA_SIZE => size = extra.at(2 * pair + 1)?,
            _ => return Err(Status::INVALID_VALUE),
        }
    }
    let size = In::from_argument(size as *const usize).get()?;
    if size == 0 { Ok(Vec::new()) } else { In::from_argument(buffer as *const u8).bytes(size) }
}

const NO_CLUSTER: [u32; 3] = [1; 3];

api! {
    context fn cuLaunchKernel(
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: u64, params: In<In<u8>>, extra: In<u64>,
    ) |s| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let launch = Launch { grid, block, cluster: NO_CLUSTER, dynamic_shared: shared };
        s.launch(function, launch, false, stream, &Arguments { params, extra })
    }

    context fn cuLaunchCooperativeKernel(
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: u64, params: In<In<u8>>,
    ) |s| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let launch = Launch { grid, block, cluster: NO_CLUSTER, dynamic_shared: shared };
        s.launch(function, launch, true, stream, &Arguments { params, extra: In::from_argument(std::ptr::null()) })
    }

    context fn cuLaunchKernelEx(config: In<Config>, function: u64, params: In<In<u8>>, extra: In<u64>) |s| {
        let config = config.get()?;
        let mut launch = Launch {
            grid: config.grid,
            block: config.block,
            cluster: NO_CLUSTER,
            dynamic_shared: config.shared,
        };
        let mut cooperative = false;
        for i in 0..config.count as usize {
            let attribute = config.attributes.at(i)?;
            match attribute.id {
                2 => cooperative = attribute.value[0] != 0,
                4 => launch.cluster = [attribute.value[0], attribute.value[1], attribute.value[2]],
                // Access policy, synchronisation policy, cluster scheduling, programmatic stream serialisation,
                // priority, memory domains and carve-out change when things happen, never what.
                0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 | 14 => {}
                _ => return Err(Status::NOT_SUPPORTED),
            }
        }
        s.launch(function, launch, cooperative, config.stream, &Arguments { params, extra })
    }
}
