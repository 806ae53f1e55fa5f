//! [`Decoder`]: turns a stream of token ids into whole characters.

use super::Tokenizer;
use crate::Result;

/// Decodes ids one at a time; holds back a character until all its bytes have arrived.
///
/// Special tokens are left out. The pieces together equal [`Tokenizer::decode`] of all ids.
pub struct Decoder<'t> {
    tokenizer: &'t Tokenizer,
    /// The last ids: decoding may depend on whether a token is the first, so one whole piece is kept as context.
    ids: Vec<u32>,
    /// Bytes of the text of `ids` that have been returned.
    given: usize,
    /// Of `ids`, those of the last whole piece.
    context: usize,
}

impl<'t> Decoder<'t> {
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0, context: 0 }
    }

    /// The text that `id` completes, perhaps empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.special(id).is_some() {
            return Ok(String::new());
        }
        self.ids.push(id);
        // A run of byte tokens is text only as a whole: one bad byte turns each of them into U+FFFD.
        if self.tokenizer.is_byte(id) {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(&self.ids, true)?;
        // A character whose tokens are pieces of bytes is one U+FFFD at the very end until it is whole; what precedes it
        // will not change any more.
        let unfinished = (!self.tokenizer.has_byte_tokens()).then_some(char::REPLACEMENT_CHARACTER);
        let whole = unfinished.and_then(|end| text.strip_suffix(end)).unwrap_or(&text);
        let piece = whole.get(self.given..).unwrap_or_default().to_owned();
        self.given = self.given.max(whole.len());
        if whole.len() == text.len() {
            self.ids.drain(..self.context);
            self.context = self.ids.len();
            self.given = self.tokenizer.decode(&self.ids, true)?.len();
        }
        Ok(piece)
    }

    /// The rest at the end of a text: U+FFFD for an unfinished character, else nothing.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        let rest = text.get(self.given..).unwrap_or_default().to_owned();
        (self.ids, self.given, self.context) = (Vec::new(), 0, 0);
        Ok(rest)
    }
}
