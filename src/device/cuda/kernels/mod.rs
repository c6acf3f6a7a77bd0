//! One safe function a kernel: it checks shapes, fills the parameter struct, launches. The kernels are in `cuda/`.
//!
//! Launchers return once the kernel is issued; what it does wrong shows at the next synchronisation. A wrong shape is a
//! bug of the caller and panics, as indexing would.

pub mod dequant;
pub mod echo;
pub mod elementwise;
pub mod expert_bf16;
pub mod expert_gemm;
pub mod expert_gemv;
pub mod gemm;
pub mod gemv;
pub mod mla;
pub mod norm;
pub mod rope;
pub mod route;
pub mod sample;
pub mod watch;
