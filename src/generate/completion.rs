//! [`Completion`]: turns sampled tokens into text and decides when the text ends.

use std::ops::Range;

use super::{Decoder, Tokenizer};
use crate::{Error, Result};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model generated an end-of-text token.
    EndOfText,
    /// A stop string appeared.
    StopString,
    /// The token limit was reached.
    Tokens,
    /// The context is full.
    Context,
    /// The user cancelled it.
    Cancelled,
    /// An error.
    Failed,
}

impl StopReason {
    /// The reason in words, for users.
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

/// When to stop before the model ends the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of tokens to generate.
    pub tokens: Option<usize>,
    /// Strings that end the text and are not part of it.
    pub stop: Vec<String>,
}

/// A text being generated: token ids go in, text comes out as soon as later tokens cannot change it.
pub struct Completion<'t> {
    tokenizer: &'t Tokenizer,
    decoder: Decoder<'t>,
    stops: StopStrings,
    eos: Vec<u32>,
    left: Option<usize>,
    reason: Option<StopReason>,
}

impl<'t> Completion<'t> {
    /// A text that any of the ids `eos` ends, and any of the tokenizer's own [`Tokenizer::ends`].
    ///
    /// # Errors
    /// A stop string is empty.
    pub fn new(tokenizer: &'t Tokenizer, eos: &[u32], limits: Limits) -> Result<Self> {
        let stops = StopStrings::new(limits.stop)?;
        let reason = (limits.tokens == Some(0)).then_some(StopReason::Tokens);
        let eos = eos.iter().chain(tokenizer.ends()).copied().collect();
        let decoder = Decoder::new(tokenizer);
        Ok(Self { tokenizer, decoder, stops, eos, left: limits.tokens, reason })
    }

    /// Adds a token; returns the text that is certain now, perhaps empty. If the token ends the text,
    /// [`Completion::reason`] is set and the rest of the text is returned.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.eos.contains(&token) {
            return self.end(StopReason::EndOfText);
        }
        let mut text = self.decoder.push(token)?;
        let special = self.tokenizer.special(token);
        if self.stops.push(&mut text, special.as_deref()) {
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

    /// Ends the text; returns the rest that was held back.
    pub fn end(&mut self, reason: StopReason) -> Result<String> {
        let mut text = self.decoder.finish()?;
        let stopped = self.stops.push(&mut text, None);
        self.reason = Some(if stopped { StopReason::StopString } else { reason });
        if !stopped {
            text += &self.stops.finish();
        }
        Ok(text)
    }

    /// Why the text ended; none while it goes on.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason
    }
}

/// Finds stop strings in a text that arrives in pieces; holds back text that may be the beginning of one.
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    /// Special tokens in `held`: a stop string may contain them, the text does not.
    hidden: Vec<Range<usize>>,
}

impl StopStrings {
    /// # Errors
    /// A stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        match stops.iter().any(String::is_empty) {
            true => Err(Error::mismatch("stop string", "some text", "an empty one")),
            false => Ok(Self { stops, held: String::new(), hidden: Vec::new() }),
        }
    }

    /// Replaces `piece`, the next of the text, which a special token may follow, by the text that is certain now. True if
    /// a stop string was found: `piece` then ends before it.
    pub fn push(&mut self, piece: &mut String, special: Option<&str>) -> bool {
        self.held += piece;
        if let Some(special) = special.filter(|special| self.stops.iter().any(|stop| stop.contains(special)))
        {
            self.hidden.push(self.held.len()..self.held.len() + special.len());
            self.held += special;
        }
        let found = self.stops.iter().filter_map(|stop| self.find(stop)).min();
        let certain = found.unwrap_or_else(|| self.held.len() - self.open());
        *piece = self.take(certain);
        found.is_some()
    }

    /// The text still held back, at the end.
    pub fn finish(&mut self) -> String {
        self.take(self.held.len())
    }

    /// Where a stop string begins; one that cuts a special token in two is none.
    fn find(&self, stop: &str) -> Option<usize> {
        let within = |at: usize| self.hidden.iter().any(|hidden| hidden.start < at && at < hidden.end);
        let all = self.held.match_indices(stop).map(|(at, _)| at);
        all.into_iter().find(|at| !within(*at) && !within(at + stop.len()))
    }

    /// Takes the first `end` bytes, of which special tokens are left out.
    fn take(&mut self, end: usize) -> String {
        let rest = self.held.split_off(end);
        let mut text = std::mem::replace(&mut self.held, rest);
        let (gone, kept) = self.hidden.drain(..).partition::<Vec<_>, _>(|hidden| hidden.start < end);
        self.hidden = kept.into_iter().map(|hidden| hidden.start - end..hidden.end - end).collect();
        for hidden in gone.into_iter().rev() {
            text.replace_range(hidden, "");
        }
        text
    }

    /// Length in bytes of the longest suffix of the text that is a prefix of a stop string, whole special tokens and all.
    fn open(&self) -> usize {
        let longest = |stop: &String| {
            (1..stop.len())
                .rev()
                .find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n]))
                .unwrap_or(0)
        };
        let open = self.stops.iter().map(longest).max().unwrap_or(0);
        let begin = self.held.len() - open;
        let cut = self.hidden.iter().find(|hidden| hidden.start < begin && begin < hidden.end);
        cut.map_or(open, |hidden| self.held.len() - hidden.start)
    }
}
