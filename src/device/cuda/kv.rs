//! The latent key/value cache as kernels take it.

use super::memory::Slice;

/// One layer of a paged cache. A page holds [`crate::device::KV_PAGE`] positions of every layer.
#[derive(Clone, Copy)]
pub struct KvPages<'a> {
    /// Device address of each page.
    pub table: Slice<'a, u64>,
    /// Bytes from a page's begin to this layer's part of it.
    pub layer_offset: u64,
    /// bf16 elements from position to position, a multiple of 8.
    pub stride: u32,
    /// Positions in use.
    pub tokens: u32,
}
