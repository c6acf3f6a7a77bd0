//! The compiled kernel files inside this library, and the kernels in them.

use std::ffi::CStr;

/// A fatbin: sm_90a code and compute_90a PTX of one `cuda/*.cu`.
pub struct Image {
    /// Place among all images.
    pub(super) index: usize,
    /// File name without `.cu`.
    pub(super) name: &'static str,
    pub(super) bytes: &'static Aligned<[u8]>,
}

/// The driver reads fatbins in words.
#[repr(C, align(64))]
pub(super) struct Aligned<B: ?Sized>(pub B);

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// A kernel by name.
#[derive(Clone, Copy)]
pub struct Kernel {
    pub(super) image: &'static Image,
    pub(super) name: &'static CStr,
}

impl Kernel {
    /// The kernel `name` of an image.
    pub const fn new(image: &'static Image, name: &'static CStr) -> Kernel {
        Kernel { image, name }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name.to_str().unwrap_or("?")
    }
}
