//! A model: families as data, loading, and the one forward pass.
//!
//! [`Source`] (a Hugging Face folder, a GGUF file or a .fasq file) -> [`Model`] (weights on a backend) -> [`Session`] (the state
//! of some sequences), which takes a [`Batch`] of rows and gives logits.

pub mod arch;
mod attention;
mod blocks;
mod delta_net;
mod forward;
mod linear;
mod load;
pub mod memory;
mod mlp;
mod pass;
#[cfg(not(target_arch = "wasm32"))]
pub mod random;
mod session;
mod source;
mod state;

pub use load::Model;
pub use session::{Session, Tap};
pub use source::Source;
pub use state::{Batch, Row, SessionOptions};
