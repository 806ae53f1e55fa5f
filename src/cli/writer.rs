//! [`Writer`]: a model that writes texts for the user.

use std::sync::atomic::AtomicBool;

use super::output::Output;
use crate::Result;
use crate::backend::Backend;
use crate::generate::{Generator, Limits, Sampler, StopReason, Tokenizer};

/// A model at work for the user.
pub struct Writer<'m, B: Backend> {
    pub generator: Generator<'m, B>,
    pub tokenizer: &'m Tokenizer,
    pub sampler: Sampler,
    pub limits: Limits,
    pub output: Output,
    pub interrupted: &'static AtomicBool,
    /// Bytes that each token reads.
    pub weight_bytes: u64,
}

impl<B: Backend> Writer<'_, B> {
    /// Writes the text that follows a prompt; the text, and why it ended.
    pub fn write(&mut self, prompt: &[u32]) -> Result<(String, Option<StopReason>)> {
        let Self { generator, sampler, limits, output, interrupted, .. } = self;
        let mut stream = generator.stream(prompt, sampler, limits.clone(), Some(interrupted))?;
        let mut text = String::new();
        let mut failed = None;
        while let Some(piece) = stream.next() {
            // What there is of the text is kept, and stands before the error.
            let piece = piece.unwrap_or_else(|error| {
                failed = Some(error);
                stream.fail()
            });
            if !piece.is_empty() {
                output.text(&piece)?;
                text += &piece;
            }
        }
        let reason = stream.reason();
        output.end(reason, stream.stats(), self.weight_bytes)?;
        match failed {
            Some(error) => Err(error),
            None => Ok((text, reason)),
        }
    }
}
