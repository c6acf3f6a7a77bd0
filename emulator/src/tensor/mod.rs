//! Tensor cores and tensor copies: swizzles, fragment layouts, descriptors, matrix micro-kernels.
//!
//! Nothing here knows of warps or of PTX: layouts are functions from lane and register to row and column or from row
//! and column to an address, and products are over plain f32 panels.

pub mod descriptor;
pub mod fp8;
pub mod fragment;
pub mod gemm;
pub mod panel;
pub mod swizzle;
pub mod tensor_map;
mod vector;
pub mod warp_tile;

#[cfg(test)]
mod tests;
