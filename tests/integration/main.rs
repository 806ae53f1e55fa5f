//! The library and its programs from outside, in one binary: linking is most of what a small one costs. Beside it stand
//! `conformance`, which travels to machines with GPUs alone, and `cuda_compile`, which sets the process's environment.

mod baseline;
mod bench;
mod chat_template;
mod checkpoint;
mod cli;
mod eval;
mod examples;
mod fixture;
mod format;
mod generate;
mod memory;
#[cfg(feature = "test-support")]
mod plans;
mod quantize;
mod quantize_feedback;
mod sampler;
mod size;
