//! Every kernel against a plain reference, on fresh random inputs: on the emulated GPU with every check on and every
//! asynchronous operation early, late and at random, or on a real one with `ABRUZZI_TEST_GPU=1`.

mod echo;
mod expert_gemv;
mod gemv;
mod harness;
mod norm;
