//! [`Tokenizer`]: text to token ids and back.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl};

use super::splitter::Splitter;
use crate::checkpoint::Assets;
use crate::{Error, Result};

/// What of a tokenizer.json is read here.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

/// An added token.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

impl File {
    /// Whether tokens of single bytes stand for what the vocabulary lacks.
    fn byte_fallback(&self) -> bool {
        let decoder = self.decoder.iter();
        let mut parts = decoder
            .clone()
            .flat_map(|decoder| decoder["decoders"].as_array().into_iter().flatten())
            .chain(decoder);
        parts.any(|part| part["type"] == "ByteFallback")
    }
}

/// Fails if the template that puts special tokens around a text names one that it does not define, or a second text: the
/// tokenizers crate would panic at the first text.
fn check_template(file: &File) -> Result<()> {
    let invalid = |why: String| Error::invalid("tokenizer.json, post_processor", why);
    let mut open: Vec<&Value> = file.post_processor.iter().collect();
    while let Some(processor) = open.pop() {
        open.extend(processor["processors"].as_array().into_iter().flatten());
        for piece in processor["single"].as_array().into_iter().flatten() {
            let token = &piece["SpecialToken"]["id"];
            let defined = token.as_str().is_none_or(|id| processor["special_tokens"].get(id).is_some());
            if !defined {
                return Err(invalid(format!("it names {token} and does not define it")));
            }
            if piece["Sequence"]["id"] == "B" {
                return Err(invalid("its template for one text names a second".into()));
            }
        }
    }
    Ok(())
}

/// Special tokens that end a turn or a text in every model that has them, whatever its configuration says.
const ENDS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
];

type Inner = TokenizerImpl<ModelWrapper, NormalizerWrapper, Splitter, PostProcessorWrapper, DecoderWrapper>;

/// The tokenizer of a model: its tokenizer.json, checked against the model's vocabulary.
pub struct Tokenizer {
    inner: Inner,
    bos: Option<u32>,
    /// Tokens that end a text, besides those of the model's configuration.
    ends: Vec<u32>,
    /// Whether tokens of single bytes stand for what the vocabulary lacks.
    byte_fallback: bool,
    /// One more than the largest id.
    len: usize,
}

impl Tokenizer {
    /// Of a model whose embedding has `vocab` rows: its tokenizer.json, and the end-of-text token that
    /// tokenizer_config.json names.
    ///
    /// # Errors
    /// The model has no tokenizer, or its tokenizer_config.json is not JSON; else as [`Tokenizer::new`].
    pub fn of(assets: &Assets, vocab: usize) -> Result<Self> {
        let json = assets.tokenizer.as_ref();
        let json = json.ok_or_else(|| Error::invalid("tokenizer.json", "the model has none"))?;
        let mut tokenizer = Self::new(json, vocab)?;
        let side_file = assets.tokenizer_config.as_deref().unwrap_or("{}");
        let side_file: Value =
            serde_json::from_str(side_file).map_err(|e| Error::invalid("tokenizer_config.json", e))?;
        if let Some(text) = token_text(&side_file["eos_token"]) {
            match tokenizer.id(text) {
                Some(id) => tokenizer.ends.push(id),
                None => log::warn!("tokenizer_config.json: eos_token {text:?} is no token of tokenizer.json"),
            }
        }
        Ok(tokenizer)
    }

    /// From the text of a tokenizer.json, for a model whose embedding has `vocab` rows.
    ///
    /// # Errors
    /// The text is not a tokenizer, has no tokens, or has ids that the model lacks.
    pub fn new(json: &str, vocab: usize) -> Result<Self> {
        let mut inner = Inner::from_bytes(json)
            .map_err(|e| Error::invalid("tokenizer.json", e.to_string().replace('\n', " ")))?;
        let file: File = serde_json::from_str(json).map_err(|e| Error::invalid("tokenizer.json", e))?;
        check_template(&file)?;
        // Left on by some training scripts; they would cut or pad every prompt.
        inner.with_truncation(None).map_err(|e| Error::invalid("tokenizer.json", e))?;
        inner.with_padding(None);
        let last = inner.get_vocab(true).into_values().max();
        let len = match last {
            Some(last) if (last as usize) < vocab => last as usize + 1,
            Some(last) => {
                let expected = format!("ids below the model's vocabulary of {vocab}");
                return Err(Error::mismatch("tokenizer.json", expected, format!("id {last}")));
            }
            None => return Err(Error::invalid("tokenizer.json", "it has no tokens")),
        };
        let mut tokenizer =
            Self { inner, bos: None, ends: Vec::new(), byte_fallback: file.byte_fallback(), len };
        for added in &file.added_tokens {
            if let Some(id) = tokenizer.id(&added.content).filter(|id| *id != added.id) {
                log::warn!(
                    "tokenizer.json: token {:?} is said to be {} and is {id}",
                    added.content,
                    added.id
                );
            }
        }
        tokenizer.bos = tokenizer.detect_bos()?;
        let ends = ENDS.iter().filter_map(|name| tokenizer.id(name));
        tokenizer.ends = ends.filter(|id| tokenizer.special(*id).is_some()).collect();
        Ok(tokenizer)
    }

    /// The token that starts every text, if the tokenizer adds one: the first of an empty text and of any other.
    fn detect_bos(&self) -> Result<Option<u32>> {
        let empty = self.encode("", true)?;
        let text = self.encode("a", true)?;
        Ok(empty.first().copied().filter(|bos| text.len() > 1 && text.first() == Some(bos)))
    }

    /// The ids of a text; with the special tokens that the tokenizer puts around texts if `add_special_tokens`. Special
    /// tokens spelled out in the text are recognised either way.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| Error::invalid("tokenizer.json", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| Error::invalid("tokenizer.json", e))
    }

    /// The id of a token by its text, "<|eot_id|>".
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token by its id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text of a special token, which is no part of what a model writes; none for other ids.
    pub fn special(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        self.token(id).filter(|text| added.is_special_token(text))
    }

    /// Whether some tokens stand for a byte each, "<0x0A>", and decode to text together with those beside them.
    pub(super) fn has_byte_tokens(&self) -> bool {
        self.byte_fallback
    }

    /// Whether an id is such a token.
    pub(super) fn is_byte(&self, id: u32) -> bool {
        let byte = |token: String| {
            let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
        };
        self.byte_fallback && self.token(id).is_some_and(byte)
    }

    /// Tokens that end a text, besides those of the model's configuration: the end-of-text token that
    /// tokenizer_config.json names, the special tokens that are known by their names, and those of
    /// [`Tokenizer::end_with`].
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Makes a token end texts as well, by its text or its id.
    ///
    /// # Errors
    /// The tokenizer has no such token.
    pub fn end_with(&mut self, token: &str) -> Result<()> {
        let by_id = || token.parse().ok().filter(|id| self.token(*id).is_some());
        let id = self.id(token).or_else(by_id);
        let expected = "the text or the id of a token of this model";
        self.ends.push(id.ok_or_else(|| Error::mismatch("end of text", expected, format!("{token:?}")))?);
        Ok(())
    }

    /// Whether `encode(text, true)` begins with a BOS token.
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some()
    }

    /// One more than the largest id. A model's embedding may have more rows; the rest is padding, never sampled.
    #[allow(clippy::len_without_is_empty)] // a tokenizer without tokens is an error
    pub fn len(&self) -> usize {
        self.len
    }
}

/// A token's text in a side file: a string, or an object that has it.
pub fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}
