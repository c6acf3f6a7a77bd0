//! Tensor cores and tensor copies: swizzles, fragment layouts, descriptors, matrix micro-kernels.
