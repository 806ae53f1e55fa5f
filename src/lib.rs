//! FASQ compresses large language models by product quantization, and runs them.
//!
//! Every weight row is cut into sub-vectors of `d` weights, and each sub-vector is stored as the index of one of `K`
//! centroids. Two numbers choose any size between the fixed bit widths ([`pq::PqSpec`]).
//!
//! # Rooms
//!
//! | module | what it holds | imports |
//! |---|---|---|
//! | [`pq`] | the mathematics: specs, codebooks, assignment, packing, rotation | |
//! | [`ops`] | the operations of a forward pass as argument structs | tensor |
//! | [`plan`] | lists of operations: checked, rewritten into fused steps | ops |
//! | [`family`] | the model families, each as data | |
//! | [`config`], [`checkpoint`] | a Hugging Face folder: config.json, safetensors | family |
//! | [`format`](mod@format) | the .fasq file | pq, checkpoint |
//! | [`backend`] | where a forward pass computes; `cpu` is the specification of every operation | pq, ops, plan |
//! | [`baseline`] | weights of other quantizers, for comparison: round-to-nearest, GPTQ, AWQ | checkpoint |
//! | [`model`] | a model's tensors, loading, the one forward pass | format, backend, baseline, gguf |
//! | [`generate`] | tokenizer, chat templates, sampling, text streams | model |
//! | [`engine`] | many texts at once: continuous batching | model, generate |
//! | [`eval`] | logits, perplexity, divergence, multiple choice | model, generate |
//! | [`quantize`] | from a checkpoint to a .fasq file of any size | pq, format, and for feedback and sensitivities model, generate, eval |
//! | `serve` | the HTTP server: OpenAI's API over the engine | engine, generate |
//! | [`cli`] | what the programs do | everything |
//!
//! # Data flow
//!
//! 1. [`checkpoint::Checkpoint`] + [`quantize::Plan`] -> [`quantize::run`] -> a [`pq::PqMatrix`] for each weight ->
//!    [`format::Writer`] -> one .fasq file.
//! 2. A .fasq file or a plain checkpoint ([`model::Source`]) -> [`model::Model`], weights on a backend.
//! 3. [`model::Session::forward`] takes a [`model::Batch`] of rows and gives logits -> [`generate::Sampler`] -> text.
//!
//! `docs/architecture.md` tells more; `docs/adding-a-kernel.md` and `docs/adding-a-model.md` list the places to touch.
//!
//! # A text
//!
//! ```
//! use fasq::backend::cpu::Cpu;
//! use fasq::generate::{Generator, Limits, Sampler, Sampling, Tokenizer};
//! use fasq::model::{Model, Source};
//!
//! # fn main() -> fasq::Result<()> {
//! let source = Source::open("tests/fixtures/llama3-tiny-sharded".as_ref())?;
//! let model = Model::load(Cpu, &source)?;
//! let tokenizer = Tokenizer::of(source.assets(), model.config().vocab)?;
//! let mut generator = Generator::new(&model, &tokenizer, 64)?;
//! let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() })?;
//!
//! let prompt = tokenizer.encode("licensee may copy", true)?;
//! let limits = Limits { tokens: Some(8), stop: vec![] };
//! let text: String = generator.stream(&prompt, &mut sampler, limits, None)?.collect::<fasq::Result<_>>()?;
//! assert!(!text.is_empty());
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod baseline;
#[cfg(not(target_arch = "wasm32"))]
pub mod bench;
pub mod checkpoint;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub mod cli;
pub mod config;
#[cfg(not(target_arch = "wasm32"))]
pub mod engine;
mod error;
pub mod eval;
pub mod family;
pub mod format;
mod gemm;
pub mod generate;
pub mod gguf;
pub mod model;
pub mod ops;
pub mod plan;
pub mod pq;
#[cfg(not(target_arch = "wasm32"))]
pub mod quantize;
#[cfg(all(feature = "serve", not(target_arch = "wasm32")))]
pub mod serve;
pub mod tensor;

pub use error::{Error, Result};
