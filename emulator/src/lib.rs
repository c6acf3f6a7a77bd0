//! A stand-in CUDA driver: parses the PTX in nvcc's fatbins, executes it on the CPU, checks it harder than hardware
//! does, and keeps a simulated clock.

pub mod check;
pub mod clock;
pub mod counters;
pub mod driver;
pub mod exec;
pub mod install;
pub mod memory;
pub mod num;
pub mod ptx;
pub mod settings;
pub mod tensor;

pub use check::Finding;
pub use counters::Counters;
pub use memory::Memory;
pub use settings::Settings;
