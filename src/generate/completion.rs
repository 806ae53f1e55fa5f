//! [`Completion`]: what each drawn token does to the text, and when the text ends.

use super::{Decoder, Tokenizer};
use crate::{Error, Result};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    EndOfText,
    /// A stop string appeared.
    StopString,
    /// As many tokens as were asked for.
    Tokens,
    /// The context is full.
    Context,
    /// The user broke it off.
    Cancelled,
    /// An error.
    Failed,
}

impl StopReason {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            StopReason::EndOfText => "end of text",
            StopReason::StopString => "stop string",
            StopReason::Tokens => "token limit",
            StopReason::Context => "context full",
            StopReason::Cancelled => "interrupted",
            StopReason::Failed => "error",
        }
    }
}

/// When to stop of one's own accord.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens to draw at most.
    pub tokens: Option<usize>,
    /// Texts that end the text; they are left out of it.
    pub stop: Vec<String>,
}

/// A text in the making: ids go in, text comes out once it is certain.
pub struct Completion<'t> {
    decoder: Decoder<'t>,
    stops: StopStrings,
    eos: Vec<u32>,
    left: Option<usize>,
    reason: Option<StopReason>,
}

impl<'t> Completion<'t> {
    /// A text that the ids `eos` end.
    ///
    /// # Errors
    /// A stop string is empty.
    pub fn new(tokenizer: &'t Tokenizer, eos: &[u32], limits: Limits) -> Result<Self> {
        let stops = StopStrings::new(limits.stop)?;
        let reason = (limits.tokens == Some(0)).then_some(StopReason::Tokens);
        Ok(Self { decoder: Decoder::new(tokenizer), stops, eos: eos.to_vec(), left: limits.tokens, reason })
    }

    /// The text that `token` makes certain, perhaps empty. Where the token ends the text, [`Completion::reason`]
    /// says so, and nothing is held back any more.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.eos.contains(&token) {
            return self.end(StopReason::EndOfText);
        }
        let mut text = self.decoder.push(token)?;
        if self.stops.push(&mut text) {
            self.reason = Some(StopReason::StopString);
            return Ok(text);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                text += &self.end(StopReason::Tokens)?;
            }
        }
        Ok(text)
    }

    /// Ends the text from outside; what was still held back.
    pub fn end(&mut self, reason: StopReason) -> Result<String> {
        let mut text = self.decoder.finish()?;
        let stopped = self.stops.push(&mut text);
        self.reason = Some(if stopped { StopReason::StopString } else { reason });
        if !stopped {
            text += &self.stops.finish();
        }
        Ok(text)
    }

    /// Why the text ended, once it has.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason
    }
}

/// Looks for stop strings in a text that arrives in pieces, and holds back what may be the beginning of one.
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// # Errors
    /// A stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        match stops.iter().any(String::is_empty) {
            true => Err(Error::mismatch("stop string", "some text", "an empty one")),
            false => Ok(Self { stops, held: String::new() }),
        }
    }

    /// Replaces the next `piece` of the text by what is certain now. True at a stop string: the piece then is what
    /// stood before it, and the text ends.
    pub fn push(&mut self, piece: &mut String) -> bool {
        self.held += piece;
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        let certain = found.unwrap_or_else(|| self.held.len() - self.open());
        let rest = self.held.split_off(certain);
        *piece = std::mem::replace(&mut self.held, rest);
        found.is_some()
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of the text that a stop string begins with.
    fn open(&self) -> usize {
        let longest = |stop: &String| {
            (1..stop.len())
                .rev()
                .find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n]))
                .unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}
