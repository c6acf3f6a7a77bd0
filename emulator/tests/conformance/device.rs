//! A device with one module loaded, buffers, and launches under a schedule with every check on.

use cuda_emulator::check::Finding;
use cuda_emulator::counters::Counters;
use cuda_emulator::exec::{Launch, Module, Program};
use cuda_emulator::memory::Memory;
use cuda_emulator::settings::{Schedule, Settings, Timing};

/// Types that any bytes are a value of.
///
/// # Safety
/// No padding, no invalid bit patterns.
pub unsafe trait Plain: Copy + PartialEq + std::fmt::Debug {}

macro_rules! plain {
    ($($ty:ty),*) => {
        $(
            // SAFETY: numbers.
            unsafe impl Plain for $ty {}
            // SAFETY: arrays of numbers have no padding.
            unsafe impl<const N: usize> Plain for [$ty; N] {}
        )*
    };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// The bytes of values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types are all bytes.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The schedules every kernel runs under.
pub fn schedules() -> Vec<(String, Schedule)> {
    let random =
        [0x5eed, 7, 99, 1, 2].map(|seed| (format!("random {seed}"), Schedule::all(Timing::Random, seed)));
    let mut all = vec![
        ("eager".to_owned(), Schedule::all(Timing::Eager, 0)),
        ("lazy".to_owned(), Schedule::all(Timing::Lazy, 0)),
    ];
    all.extend(random);
    all
}

/// SplitMix64: test data that is the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number from `low` up to, not including, `high`.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low) as u64) as i64
    }

    pub fn vec<T>(&mut self, len: usize, mut draw: impl FnMut(&mut Random) -> T) -> Vec<T> {
        (0..len).map(|_| draw(self)).collect()
    }
}

/// Memory and a module in it.
pub struct Device {
    pub memory: Memory,
    pub module: Module,
    pub settings: Settings,
}

impl Device {
    pub fn new(ptx: &str) -> Device {
        let memory = Memory::new(1 << 30).expect("address space");
        let module = Module::load(ptx, &memory).unwrap_or_else(|e| panic!("{e}"));
        Device { memory, module, settings: Settings::default() }
    }

    /// A buffer nobody has written to.
    pub fn allocate<T: Plain>(&self, len: usize) -> u64 {
        let bytes = (len * size_of::<T>()) as u64;
        self.memory.arena().allocate(bytes, format!("{len} × {}", std::any::type_name::<T>())).expect("room")
    }

    /// A buffer that holds `values`.
    pub fn upload<T: Plain>(&self, values: &[T]) -> u64 {
        let address = self.allocate::<T>(values.len());
        let bytes = bytes_of(values);
        // SAFETY: just allocated with as many bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        self.memory.arena().mark_valid(address, bytes.len() as u64);
        address
    }

    /// What a buffer holds; all of it must have been written.
    pub fn download<T: Plain>(&self, address: u64, len: usize) -> Vec<T> {
        let bytes = (len * size_of::<T>()) as u64;
        let unwritten = self.memory.arena().first_other(address, bytes, cuda_emulator::memory::State::Valid);
        assert_eq!(unwritten, None, "of the buffer at {address:#x}, {len} × {}", std::any::type_name::<T>());
        // SAFETY: allocated and written by the check above; buffers are aligned to 256 bytes and `T` is plain.
        unsafe { std::slice::from_raw_parts(address as *const T, len) }.to_vec()
    }

    /// Gives buffers back.
    pub fn free(&self, buffers: &[u64]) {
        for &buffer in buffers {
            assert!(self.memory.arena().free(buffer), "{buffer:#x} is no buffer");
        }
    }

    pub fn kernel(&self, name: &str) -> &Program {
        self.module.kernel(name).unwrap_or_else(|| panic!("no kernel {name}"))
    }

    /// Runs a kernel.
    pub fn launch(&self, name: &str, launch: &Launch, arguments: &[&[u8]]) -> Result<Counters, Box<Finding>> {
        let kernel = self.kernel(name);
        kernel.launch(launch, &parameters(kernel, arguments), &self.memory, &self.settings)
    }

    /// Runs a kernel; a finding fails the test.
    pub fn run(&self, name: &str, launch: &Launch, arguments: &[&[u8]]) {
        if let Err(finding) = self.launch(name, launch, arguments) {
            panic!("{:?}\n{finding}", self.settings.schedule);
        }
    }
}

/// The parameter block, an argument a parameter.
fn parameters(kernel: &Program, arguments: &[&[u8]]) -> Vec<u8> {
    let mut block = vec![0; kernel.param_bytes() as usize];
    assert_eq!(kernel.params().len(), arguments.len(), "parameters of {}", kernel.name());
    for (&(offset, bytes), argument) in kernel.params().iter().zip(arguments) {
        assert_eq!(argument.len(), bytes as usize, "parameter at {offset} of {}", kernel.name());
        block[offset as usize..][..argument.len()].copy_from_slice(argument);
    }
    block
}

/// Arguments as bytes: `args![pointer, n]`.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$(&$value.to_le_bytes()[..]),*] };
}
