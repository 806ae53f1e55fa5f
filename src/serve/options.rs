//! [`Options`]: how a call's texts are sampled, and when they end.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::ApiError;
use super::fields::Fields;
use crate::engine::Adjustments;
use crate::generate::{Limits, Sampling};

/// Stop strings that a call may have.
const STOPS: usize = 16;
/// Tokens that may be named beside each token.
const TOP_LOGPROBS: usize = 20;

/// What chat completions and completions have in common.
#[derive(Debug)]
pub struct Options {
    /// Texts for each prompt.
    pub n: usize,
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    pub sampling: Sampling,
    pub adjustments: Adjustments,
    pub limits: Limits,
    pub stop_tokens: Vec<u32>,
    /// How many of the likeliest tokens to name beside each token's log probability.
    pub logprobs: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize, Default)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Options {
    /// Takes the fields of a call whose defaults are `model`'s settings and `tokens` tokens at most, on a server whose
    /// tokenizer has ids below `known`.
    pub fn take(
        fields: &mut Fields,
        model: &Sampling,
        tokens: Option<usize>,
        logprobs: Option<usize>,
        known: usize,
    ) -> Result<Self, ApiError> {
        let n = fields.take("n", "a positive integer")?.unwrap_or(1);
        if n == 0 {
            return Err(ApiError::expected("n", "a positive integer", n));
        }
        let whole = "an integer that is not negative";
        let max_tokens = fields.take("max_tokens", whole)?;
        let max_completion_tokens = fields.take("max_completion_tokens", whole)?;
        let stream_options: Option<StreamOptions> =
            fields.take("stream_options", "an object with include_usage")?;
        Ok(Self {
            n,
            stream: fields.flag("stream")?.unwrap_or(false),
            include_usage: stream_options.unwrap_or_default().include_usage,
            sampling: sampling(fields, model)?,
            adjustments: adjustments(fields, known)?,
            limits: Limits {
                tokens: max_completion_tokens.or(max_tokens).or(tokens),
                stop: stop_strings(fields)?,
            },
            stop_tokens: fields.take("stop_token_ids", "a list of token ids")?.unwrap_or_default(),
            logprobs,
        })
    }
}

/// Takes how many of the likeliest tokens a field asks for.
pub fn top_logprobs(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let expected = "an integer from 0 to 20";
    match fields.take(name, expected)? {
        Some(count) if count > TOP_LOGPROBS => Err(ApiError::expected(name, expected, count)),
        count => Ok(count),
    }
}

/// The call's settings over the model's own.
fn sampling(fields: &mut Fields, model: &Sampling) -> Result<Sampling, ApiError> {
    let fraction = |x: f32| (0.0..=1.0).contains(&x);
    let temperature = fields.number("temperature", "0 (greedy) or a positive number", |x| x >= 0.0)?;
    let top_p = fields.number("top_p", "a probability from 0 to 1", fraction)?;
    let min_p = fields.number("min_p", "a fraction from 0 to 1", fraction)?;
    let repetition_penalty = fields.number("repetition_penalty", "a positive number", |x| x > 0.0)?;
    let expected = "a positive integer, or 0 or -1 for all tokens";
    let top_k = match fields.take::<i64>("top_k", expected)? {
        None => model.top_k,
        Some(-1) => 0,
        Some(k) => usize::try_from(k).map_err(|_| ApiError::expected("top_k", expected, k))?,
    };
    // Seeds are any integer in OpenAI's API.
    let seed = fields.take::<i64>("seed", "an integer")?;
    Ok(Sampling {
        repetition_penalty: repetition_penalty.unwrap_or(model.repetition_penalty),
        temperature: temperature.unwrap_or(model.temperature),
        top_k,
        top_p: top_p.unwrap_or(model.top_p),
        min_p: min_p.unwrap_or(model.min_p),
        seed: seed.map_or_else(|| fastrand::u64(..), i64::cast_unsigned),
    })
}

fn adjustments(fields: &mut Fields, known: usize) -> Result<Adjustments, ApiError> {
    let (name, expected) = ("logit_bias", "an object of token ids with numbers from -100 to 100");
    let listed: BTreeMap<String, f32> = fields.take(name, expected)?.unwrap_or_default();
    let mut bias = BTreeMap::new();
    for (id, value) in listed {
        let id: u32 = id.parse().map_err(|_| ApiError::expected(name, expected, &id))?;
        if id as usize >= known {
            return Err(ApiError::expected(name, &format!("token ids below {known}"), id));
        }
        if !(-100.0..=100.0).contains(&value) {
            return Err(ApiError::expected(name, expected, value));
        }
        bias.insert(id, value);
    }
    let range = |x: f32| (-2.0..=2.0).contains(&x);
    let mut penalty = |name: &str| fields.number(name, "a number from -2 to 2", range);
    Ok(Adjustments {
        bias,
        presence_penalty: penalty("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: penalty("frequency_penalty")?.unwrap_or(0.0),
    })
}

fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = "a text or a list of up to 16 texts, none empty";
    let stops = match fields.take("stop", expected)? {
        None => vec![],
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stops)) => stops,
    };
    match stops.iter().any(String::is_empty) || stops.len() > STOPS {
        true => Err(ApiError::expected("stop", expected, format!("{stops:?}"))),
        false => Ok(stops),
    }
}
