//! The library and its programs from outside, in one binary, because most of a small one is what it links.
//! `conformance` has its own: it runs alone on machines with GPUs.

mod baseline;
mod bench;
mod chat_template;
mod checkpoint;
mod cli;
#[cfg(feature = "cuda")]
mod cuda_compile;
mod documents;
mod engine;
mod eval;
mod examples;
mod fixture;
mod format;
mod generate;
mod gguf;
mod gguf_real;
mod gguf_writer;
mod hub;
mod hub_server;
mod memory;
#[cfg(feature = "test-support")]
mod plans;
mod quantize;
mod quantize_feedback;
mod sampler;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_client;
mod session;
mod size;
#[path = "../support/skip.rs"]
mod skip;
