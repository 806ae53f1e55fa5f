//! [`App`]: what every request needs: the model's description and the way to its engine.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use futures_channel::mpsc::unbounded;

use super::answer::Answer;
use super::error::ApiError;
use super::fields::Fields;
use super::metrics::{Metrics, Record};
use super::options::Options;
use crate::engine::{Request, Submitter};
use crate::generate::{ChatTemplate, Sampler, Sampling, Tokenizer};

/// A served model and the way to its engine.
pub struct App {
    /// What clients call the model.
    pub model: String,
    /// Tokens of a text at most, prompt included.
    pub context: usize,
    pub tokenizer: Arc<Tokenizer>,
    /// None: a base model, or why the model's own cannot be used.
    pub template: Option<Result<ChatTemplate, String>>,
    /// The model's recommended sampling.
    pub sampling: Sampling,
    pub submitter: Submitter,
    pub metrics: Metrics,
    /// Seconds since 1970 at which the server started.
    pub created: u64,
}

/// Texts to generate for one call.
pub struct Call {
    /// In the order of their choices.
    pub prompts: Vec<Vec<u32>>,
    pub options: Options,
    /// What each prompt's text begins with in the answer: the prompt itself with `echo`, else nothing.
    pub echo: Vec<String>,
    /// Which of the two APIs is answered.
    pub is_chat: bool,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl App {
    /// Fails if a call asks for another model, or for what this server cannot do.
    pub fn check(&self, fields: &mut Fields) -> Result<(), ApiError> {
        match fields.take::<String>("model", "a text")? {
            Some(model) if model != self.model => Err(self.unknown_model(&model)),
            _ => fields.refuse_unsupported(),
        }
    }

    pub fn unknown_model(&self, model: &str) -> ApiError {
        let message = format!("model: expected {:?}, found {model:?}", self.model);
        ApiError::field("model", message).status(StatusCode::NOT_FOUND).code("model_not_found")
    }

    /// The options of a call that writes up to `tokens` tokens unless it says otherwise.
    pub fn options(
        &self,
        fields: &mut Fields,
        tokens: Option<usize>,
        logprobs: Option<usize>,
    ) -> Result<Options, ApiError> {
        Options::take(fields, &self.sampling, tokens, logprobs, self.tokenizer.len())
    }

    /// Fails if the engine cannot take a prompt.
    pub fn check_prompt(&self, param: &str, prompt: &[u32]) -> Result<(), ApiError> {
        let (tokens, context) = (prompt.len(), self.context);
        if tokens == 0 {
            return Err(ApiError::field(param, format!("{param}: expected at least 1 token, found none")));
        }
        if tokens > context {
            let why = format!(
                "{param}: this model's context is {context} tokens, and the prompt has {tokens} tokens"
            );
            return Err(ApiError::field(param, why).code("context_length_exceeded"));
        }
        self.check_ids(param, prompt)
    }

    /// Fails if an id is none of the tokenizer's.
    pub fn check_ids(&self, param: &str, ids: &[u32]) -> Result<(), ApiError> {
        let known = self.tokenizer.len();
        match ids.iter().find(|id| **id as usize >= known) {
            Some(id) => Err(ApiError::expected(param, &format!("token ids below {known}"), id)),
            None => Ok(()),
        }
    }

    /// Hands a call's texts to the engine.
    ///
    /// # Errors
    /// It has more texts than the queue, as many requests wait as may, or the server shuts down.
    pub fn start(&self, call: Call) -> Result<Answer, ApiError> {
        let Call { prompts, options, .. } = &call;
        let capacity = self.submitter.load().capacity();
        let count = prompts.len().saturating_mul(options.n);
        if count > capacity {
            let why = format!("n: expected at most {capacity} texts of one call, found {count}");
            return Err(ApiError::field("n", why));
        }
        let places = self.submitter.reserve(count)?;
        let (events, receiver) = unbounded();
        for (index, place) in places.into_iter().enumerate() {
            let mut sampling = options.sampling.clone();
            // Texts of one prompt differ, whatever the seed.
            sampling.seed = sampling.seed.wrapping_add((index % options.n) as u64);
            self.submitter.submit(Request {
                prompt: prompts[index / options.n].clone(),
                sampler: Sampler::new(sampling)?,
                adjustments: options.adjustments.clone(),
                limits: options.limits.clone(),
                stop_tokens: options.stop_tokens.clone(),
                logprobs: options.logprobs,
                index,
                events: events.clone(),
                place,
            })?;
        }
        let record = Record::new(&self.metrics, if call.is_chat { "chat" } else { "completion" }, count);
        Ok(Answer::new(self.model.clone(), self.tokenizer.clone(), call, receiver, record))
    }
}
