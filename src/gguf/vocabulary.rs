//! The vocabulary: tokens with their ids and kinds, and the pairs that are merged.

use std::collections::HashMap;

use super::metadata::Metadata;
use crate::{Error, Result};

/// What a token is, by `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    /// What stands for characters that no token has.
    Unknown,
    /// No part of what is written: `<|im_end|>`.
    Control,
    /// Found in a text before it is cut into pieces.
    Added,
    /// A byte that no other token has: `<0x0A>`.
    Byte,
}

/// A token.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub id: u32,
    pub text: &'a str,
    pub kind: Kind,
    /// The higher, the sooner it is merged; 0 where the file has merges instead.
    pub score: f64,
}

/// The tokens of a file, without those that only fill the vocabulary.
#[derive(Debug)]
pub struct Vocabulary<'a> {
    pub tokens: Vec<Token<'a>>,
}

/// Bytes of the longest token that is merged by scores: it is looked up in all its cuts into two. (Gemma 3's longest has 48.)
const LONGEST: usize = 512;

impl<'a> Vocabulary<'a> {
    /// # Errors
    /// There are no tokens, two are the same, or the lists differ in length.
    pub fn new(metadata: &Metadata<'a>) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let texts = Metadata::required(key, metadata.texts(key)?)?;
        let list = |key: &str| -> Result<Option<Vec<f64>>> {
            let numbers = metadata.numbers(key)?;
            match &numbers {
                Some(numbers) if numbers.len() != texts.len() => {
                    let expected = format!("a number for each of {} tokens", texts.len());
                    Err(Error::mismatch(format!("metadata {key}"), expected, numbers.len()))
                }
                Some(_) | None => Ok(numbers),
            }
        };
        let (kinds, scores) = (list("tokenizer.ggml.token_type")?, list("tokenizer.ggml.scores")?);
        let mut tokens = Vec::new();
        let mut seen = HashMap::new();
        for (at, text) in texts.iter().copied().enumerate() {
            let kind = match kinds.as_ref().map_or(1, |kinds| kinds[at] as i64) {
                2 => Kind::Unknown,
                3 => Kind::Control,
                4 => Kind::Added,
                6 => Kind::Byte,
                // A filler, and what can never be found in a text.
                5 => continue,
                _ if text.is_empty() => continue,
                _ => Kind::Normal,
            };
            let id = u32::try_from(at).map_err(|e| Error::invalid(format!("metadata {key}"), e))?;
            if let Some(other) = seen.insert(text, id) {
                let why = format!("tokens {other} and {id} are both {text:?}");
                return Err(Error::invalid(format!("metadata {key}"), why));
            }
            tokens.push(Token { id, text, kind, score: scores.as_ref().map_or(0.0, |scores| scores[at]) });
        }
        Ok(Self { tokens })
    }

    /// The token whose id `tokenizer.ggml.NAME_token_id` has, if that key and that token are there.
    pub fn special(&self, metadata: &Metadata<'_>, name: &str) -> Result<Option<Token<'a>>> {
        let id = metadata.count(&format!("tokenizer.ggml.{name}_token_id"))?;
        let find = |id: u64| self.tokens.binary_search_by_key(&id, |token| token.id.into()).ok();
        Ok(id.and_then(find).map(|at| self.tokens[at]))
    }

    /// The pairs that are merged, in their order, as the file lists them.
    ///
    /// # Errors
    /// There is no list, or an entry is not two tokens with a blank between.
    pub fn listed_merges(&self, metadata: &Metadata<'a>) -> Result<Vec<(&'a str, &'a str)>> {
        let key = "tokenizer.ggml.merges";
        let merges = Metadata::required(key, metadata.texts(key)?)?;
        let pair = |merge: &&'a str| {
            let bad = || Error::mismatch(format!("metadata {key}"), "two tokens", format!("{merge:?}"));
            // The first token may begin with a blank.
            let start = merge.chars().next().map_or(0, char::len_utf8);
            let at = merge[start..].find(' ').ok_or_else(bad)? + start;
            Ok((&merge[..at], &merge[at + 1..]))
        };
        merges.iter().map(pair).collect()
    }

    /// The pairs that are merged, in their order, by the scores of what they become: SentencePiece merges the neighbours
    /// whose union has the highest score.
    ///
    /// # Errors
    /// A token that is too long to be one.
    pub fn scored_merges(&self) -> Result<Vec<(&'a str, &'a str)>> {
        let normal = || self.tokens.iter().filter(|token| token.kind == Kind::Normal);
        let ids: HashMap<&str, u32> = normal().map(|token| (token.text, token.id)).collect();
        let mut order: Vec<&Token<'_>> = normal().collect();
        order.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        let mut merges = Vec::new();
        for token in order {
            if token.text.len() > LONGEST {
                let expected = format!("at most {LONGEST} bytes in a token");
                return Err(Error::mismatch("metadata tokenizer.ggml.tokens", expected, token.text.len()));
            }
            let cuts = token.text.char_indices().skip(1).map(|(at, _)| token.text.split_at(at));
            let known = cuts.filter_map(|(a, b)| Some((*ids.get(a)?, *ids.get(b)?, a, b)));
            let mut pairs: Vec<_> = known.collect();
            pairs.sort_unstable();
            merges.extend(pairs.into_iter().map(|(_, _, a, b)| (a, b)));
        }
        Ok(merges)
    }
}
