//! [`Text`]: a request in a slot.

use super::logprobs::Logprobs;
use super::request::{Failure, Outcome, Request, Usage};
use crate::Result;
use crate::generate::{Completion, StopReason, Tokenizer};
use crate::model::Row;

/// A text that is being read or written.
pub struct Text<'m> {
    request: Request,
    completion: Completion<'m>,
    /// The prompt and the generated tokens.
    tokens: Vec<u32>,
    usage: Usage,
}

impl<'m> Text<'m> {
    /// The text of a request, of whose prompt nothing is read.
    ///
    /// # Errors
    /// The request, with what is wrong with it.
    pub fn new(
        request: Request,
        tokenizer: &'m Tokenizer,
        eos: &[u32],
        context: usize,
    ) -> Result<Self, Box<(Request, String)>> {
        let prompt = request.prompt.len();
        let known = tokenizer.len();
        let wrong = match request.prompt.iter().find(|id| **id as usize >= known) {
            Some(id) => Some(format!("prompt: expected ids below {known}, found {id}")),
            None if prompt == 0 => Some("prompt: expected at least 1 token, found 0".into()),
            None if prompt > context => {
                Some(format!("prompt: expected at most {context} tokens, the context, found {prompt}"))
            }
            None => request.adjustments.check().err().map(|error| error.to_string()),
        };
        if let Some(wrong) = wrong {
            return Err(Box::new((request, wrong)));
        }
        let eos = [eos, &request.stop_tokens].concat();
        match Completion::new(tokenizer, &eos, request.limits.clone()) {
            Ok(completion) => {
                let usage = Usage { prompt_tokens: prompt, ..Usage::default() };
                Ok(Self { completion, tokens: request.prompt.clone(), usage, request })
            }
            Err(error) => Err(Box::new((request, error.to_string()))),
        }
    }

    pub fn request(&self) -> &Request {
        &self.request
    }

    pub fn prompt(&self) -> &[u32] {
        &self.request.prompt
    }

    /// The first `kept` tokens of the prompt need not be read.
    pub fn set_cached(&mut self, kept: usize) {
        self.usage.cached_tokens = kept;
    }

    /// The rows of tokens `from..from + count`, with logits after the last one if it is the text's last.
    pub fn rows(&self, slot: usize, from: usize, count: usize) -> impl Iterator<Item = Row> {
        let end = self.tokens.len();
        let positions = (from..end).take(count);
        positions.map(move |position| Row {
            token: self.tokens[position],
            slot: slot as u32,
            position: position as u32,
            want_logits: position + 1 == end,
        })
    }

    /// Whether the likeliest token is the one to take, whatever else the logits are.
    pub fn is_greedy(&self) -> bool {
        let request = &self.request;
        request.sampler.decides_among() == Some(1)
            && request.adjustments.is_empty()
            && request.logprobs.is_none()
    }

    /// Samples the next token, with its log probabilities if they are wanted.
    ///
    /// # Errors
    /// A logit is not a number, or no token is left.
    pub fn sample(&mut self, logits: &[f32]) -> Result<(u32, Option<Logprobs>)> {
        let request = &mut self.request;
        let mut adjusted = logits.to_vec();
        request.adjustments.apply(&mut adjusted, &self.tokens[request.prompt.len()..]);
        let token = request.sampler.sample(&adjusted, &self.tokens)?;
        Ok((token, request.logprobs.map(|count| Logprobs::of(logits, token, count))))
    }

    /// Appends a token and sends what it adds to the text; true if the text has ended.
    ///
    /// # Errors
    /// The tokenizer cannot decode it.
    pub fn push(&mut self, token: u32, logprobs: Option<Logprobs>, context: usize) -> Result<bool> {
        self.tokens.push(token);
        self.usage.generated_tokens += 1;
        let mut text = self.completion.push(token)?;
        if self.completion.reason().is_none() && self.tokens.len() > context {
            text += &self.completion.end(StopReason::Context)?;
        }
        self.request.send(Outcome::Text { text, token, logprobs });
        Ok(self.has_ended())
    }

    /// Whether the text has ended; its last event is sent if so.
    pub fn has_ended(&self) -> bool {
        let reason = self.completion.reason();
        if let Some(reason) = reason {
            self.request.send(Outcome::End { reason, usage: self.usage });
        }
        reason.is_some()
    }

    /// Ends the text without its end.
    pub fn fail(self, failure: Failure) {
        self.request.send(Outcome::Failed(failure));
    }
}
