//! The exported functions, by what they are about.
#![allow(non_snake_case, reason = "names of CUDA")]

mod context;
mod copies;
mod device;
mod emulator;
mod errors;
mod events;
mod functions;
mod launches;
mod memory;
mod modules;
mod occupancy;
mod pointers;
mod streams;
mod tensor_maps;
mod unsupported;
