//! Every kernel against a plain reference, on fresh random inputs: on the emulated GPU with every check on and every
//! asynchronous operation early, late and at random, or on a real one with `ABRUZZI_TEST_GPU=1`.

mod echo;
mod harness;
mod mutants;
mod norm;
mod elementwise;
mod rope;
mod watch;
mod dequant;
mod gemm;
mod expert_gemm;
mod route;
mod mla;
mod timing;
mod gemv;
mod sample;
mod expert_gemv;
