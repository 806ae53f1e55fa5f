//! [`Named`]: log probabilities of tokens as the two APIs write them.

use serde_json::{Map, Value, json};

use crate::engine::Logprobs;
use crate::generate::Tokenizer;

/// What stands for a probability of 0, whose logarithm JSON cannot hold.
const IMPOSSIBLE: f32 = -9999.0;

/// A token's text and log probability, and those of the likeliest in its place.
#[derive(Clone, Debug)]
pub struct Named {
    text: String,
    logprob: f32,
    top: Vec<(String, f32)>,
}

/// The text of a token within a text: some decoders leave out the space before the first.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
    let (one, two) = (decode(&[id]), decode(&[id, id]));
    two.strip_prefix(&one).map(str::to_owned).unwrap_or(one)
}

impl Named {
    pub fn new(tokenizer: &Tokenizer, token: u32, logprobs: &Logprobs) -> Self {
        let top = logprobs.top.iter().map(|(id, logprob)| (piece(tokenizer, *id), logprob.max(IMPOSSIBLE)));
        Self { text: piece(tokenizer, token), logprob: logprobs.sampled.max(IMPOSSIBLE), top: top.collect() }
    }

    /// Length of its text.
    pub fn characters(&self) -> usize {
        self.text.chars().count()
    }
}

/// As chat completions have them.
pub fn of_chat(tokens: &[Named]) -> Value {
    let entry = |text: &str, logprob: f32| {
        // A part of a character has no text of its own.
        let bytes = (!text.contains(char::REPLACEMENT_CHARACTER)).then_some(text.as_bytes());
        json!({ "token": text, "logprob": logprob, "bytes": bytes })
    };
    let content = tokens.iter().map(|token| {
        let mut content = entry(&token.text, token.logprob);
        content["top_logprobs"] = token.top.iter().map(|(text, logprob)| entry(text, *logprob)).collect();
        content
    });
    json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
}

/// As completions have them; the first token begins at character `offset` of the text.
pub fn of_completion(tokens: &[Named], mut offset: usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(offset);
        offset += token.characters();
    }
    let top = tokens.iter().map(|token| {
        token.top.iter().map(|(text, logprob)| (text.clone(), json!(logprob))).collect::<Map<_, _>>()
    });
    json!({
        "tokens": tokens.iter().map(|token| &token.text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
