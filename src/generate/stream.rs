//! [`Generator`]: generates texts with one session of a model, and [`TokenStream`]: one text, piece by piece.

use std::sync::atomic::{AtomicBool, Ordering};

use web_time::Instant;

use super::{Completion, Limits, Sampler, Stats, StopReason, Tokenizer};
use crate::backend::Backend;
use crate::model::{Model, Session, SessionOptions};
use crate::{Error, Result};

/// Generates texts, one after the other. The prefix that a prompt shares with the text before it, as in a chat, is not
/// processed again.
pub struct Generator<'m, B: Backend> {
    session: Session<'m, B>,
    tokenizer: &'m Tokenizer,
    /// The tokens in slot 0 of the session.
    held: Vec<u32>,
}

impl<'m, B: Backend> Generator<'m, B> {
    /// For texts of up to `context` tokens, prompt included.
    pub fn new(model: &'m Model<B>, tokenizer: &'m Tokenizer, context: usize) -> Result<Self> {
        let session = Session::new(model, Self::options(context))?;
        Ok(Self { session, tokenizer, held: Vec::new() })
    }

    /// The session's options for texts of up to `context` tokens.
    pub fn options(context: usize) -> SessionOptions {
        SessionOptions { slots: 1, context, ..SessionOptions::default() }
    }

    /// The most tokens that a text may have, prompt included.
    pub fn context(&self) -> usize {
        self.session.options().context
    }

    /// Generates the text after `prompt`. Setting `cancel` ends it at the next token.
    ///
    /// # Errors
    /// The prompt is empty or longer than the context, or a stop string is empty.
    pub fn stream<'g>(
        &'g mut self,
        prompt: &[u32],
        sampler: &'g mut Sampler,
        limits: Limits,
        cancel: Option<&'g AtomicBool>,
    ) -> Result<TokenStream<'g, 'm, B>> {
        if prompt.is_empty() {
            let why = "it is empty, and this model's tokenizer adds no token to begin from";
            return Err(Error::invalid("prompt", why));
        }
        if prompt.len() > self.context() {
            let expected = format!("at most {} tokens, the context", self.context());
            return Err(Error::mismatch("prompt", expected, format!("{} tokens", prompt.len())));
        }
        let completion = Completion::new(self.tokenizer, &self.session.model().config().eos, limits)?;
        // The last token is always processed: its logits choose the next.
        let shared = self.held.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        self.held.truncate(self.session.rewind(0, shared)?);
        let stats = Stats::default();
        Ok(TokenStream {
            generator: self,
            sampler,
            completion,
            cancel,
            text: prompt.to_vec(),
            stats,
            clock: None,
        })
    }

    /// Processes the next batch of `text`, which begins with the tokens held.
    async fn advance(&mut self, text: &[u32]) -> Result<()> {
        let new = &text[self.held.len()..];
        let batch = &new[..new.len().min(self.session.options().max_rows)];
        let read = self.session.extend(0, batch).await;
        match read {
            Ok(()) => self.held.extend(batch),
            Err(_) => {
                self.session.reset(0)?;
                self.held.clear();
            }
        }
        read
    }

    /// Samples the token after `text`, all of which is held: from the few likeliest if they decide, else from all
    /// logits.
    async fn sample(&self, sampler: &mut Sampler, text: &[u32]) -> Result<u32> {
        // Rows of the head beyond the tokenizer's last id are padding.
        let tokens = self.tokenizer.len().min(self.session.model().config().vocab);
        match sampler.decides_among() {
            Some(k) => sampler.sample_top(&self.session.top_k(tokens, k).await?),
            None => sampler.sample(&self.session.logits(1).await?[..tokens], text),
        }
    }
}

/// A text as it is generated, piece by piece: whole characters, no special tokens, no stop strings.
///
/// An [`Iterator`] if the thread may block; [`TokenStream::next_piece`] if not.
pub struct TokenStream<'g, 'm, B: Backend> {
    generator: &'g mut Generator<'m, B>,
    sampler: &'g mut Sampler,
    completion: Completion<'m>,
    cancel: Option<&'g AtomicBool>,
    /// The prompt and the generated tokens.
    text: Vec<u32>,
    stats: Stats,
    /// Start of the phase: of the prompt until the first token is sampled, then of generation.
    clock: Option<Instant>,
}

impl<B: Backend> TokenStream<'_, '_, B> {
    /// The next piece, never empty; none after the end of the text.
    ///
    /// # Errors
    /// The backend fails, or the model's logits are not numbers.
    pub async fn next_piece(&mut self) -> Result<Option<String>> {
        while self.completion.reason().is_none() {
            let piece = self.step().await?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Why the text ended; none while it goes on.
    pub fn reason(&self) -> Option<StopReason> {
        self.completion.reason()
    }

    /// Ends the text after an error; returns the rest that was held back.
    pub fn fail(&mut self) -> String {
        self.completion.end(StopReason::Failed).unwrap_or_default()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Processes one batch and, if that was the last of the text, samples one token.
    async fn step(&mut self) -> Result<String> {
        if self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return self.completion.end(StopReason::Cancelled);
        }
        if self.text.len() > self.generator.context() {
            return self.completion.end(StopReason::Context);
        }
        let clock = *self.clock.get_or_insert_with(Instant::now);
        let held = self.generator.held.len();
        self.generator.advance(&self.text).await?;
        let read = self.generator.held.len() - held;
        let unread = self.text.len() - self.generator.held.len();
        let first = self.stats.generated_tokens == 0;
        if first {
            self.stats.prompt_tokens += read;
            self.stats.prompt_time = clock.elapsed();
            if unread > 0 {
                return Ok(String::new());
            }
        }
        let token = self.generator.sample(self.sampler, &self.text).await?;
        self.text.push(token);
        self.stats.generated_tokens += 1;
        if first {
            // Devices work asynchronously: the prompt is finished only when the token after it has arrived.
            self.stats.prompt_time = clock.elapsed();
            self.clock = Some(Instant::now());
        } else {
            self.stats.generation_time = clock.elapsed();
        }
        self.completion.push(token)
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl<B: Backend> Iterator for TokenStream<'_, '_, B> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        pollster::block_on(self.next_piece()).transpose()
    }
}
