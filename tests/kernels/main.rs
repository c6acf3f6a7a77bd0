//! Every kernel against a plain reference, on fresh random inputs: on the emulated GPU with every check on and every
//! asynchronous operation early, late and at random, or on a real one with `ABRUZZI_TEST_GPU=1`.

mod case;
mod counts;
mod dequant;
mod echo;
mod elementwise;
mod expert_bf16;
mod expert_gemm;
mod expert_gemv;
mod gemm;
mod gemv;
mod harness;
#[path = "../../benches/kernels/inputs.rs"]
mod inputs;
mod mla;
mod mutants;
mod norm;
mod rope;
mod route;
mod sample;
mod timing;
mod watch;
#[path = "../../benches/kernels/work.rs"]
mod work;
