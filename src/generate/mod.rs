//! From a prompt to text: tokenizer, chat templates, sampling, and text streams over a model's session.

mod chat;
mod completion;
mod decoder;
mod sampler;
mod splitter;
mod stats;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use completion::{Completion, Limits, StopReason, StopStrings};
pub use decoder::Decoder;
pub use sampler::{Sampler, Sampling};
pub use stats::Stats;
pub use stream::{Generator, TokenStream};
pub use tokenizer::Tokenizer;
