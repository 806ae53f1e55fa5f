//! [`Request`]: a text to continue, and [`Event`]: what becomes of it.

use std::time::Instant;

use futures_channel::mpsc::UnboundedSender;

use super::adjust::Adjustments;
use super::logprobs::Logprobs;
use super::queue::Place;
use crate::generate::{Limits, Sampler, StopReason};

/// A text to continue.
pub struct Request {
    /// At least one token, at most the context; ids of the tokenizer.
    pub prompt: Vec<u32>,
    pub sampler: Sampler,
    pub adjustments: Adjustments,
    pub limits: Limits,
    /// Tokens that end the text, besides those of the model.
    pub stop_tokens: Vec<u32>,
    /// How many of the likeliest tokens to name beside each token with its log probability; none: no log probabilities.
    pub logprobs: Option<usize>,
    /// Which of the texts that share a channel this is.
    pub index: usize,
    /// Where the text goes. Dropping the receiver cancels the request, wherever it is.
    pub events: UnboundedSender<Event>,
    /// The request's place in the queue, which is free again once the request is dropped.
    pub place: Place,
}

/// Something that happened to a request.
#[derive(Clone, Debug)]
pub struct Event {
    /// [`Request::index`].
    pub index: usize,
    pub at: Instant,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// A token was written. The text is what is certain after it, perhaps empty.
    Text { text: String, token: u32, logprobs: Option<Logprobs> },
    /// The last event of a text that ended well.
    End { reason: StopReason, usage: Usage },
    /// The last event of a text that did not.
    Failed(Failure),
}

/// Tokens that a text took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Of the prompt, those that a slot held already.
    pub cached_tokens: usize,
    /// Generated tokens, the one that ended the text included.
    pub generated_tokens: usize,
}

/// Why a text failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request is at fault.
    Request(String),
    /// The device failed, or the model's logits are not numbers.
    Device(String),
    /// The engine ends.
    Shutdown,
}

impl Request {
    /// Whether nobody waits for the text any more.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Sends an event. That nobody waits for it is found at the next step.
    pub fn send(&self, outcome: Outcome) {
        let _ = self.events.unbounded_send(Event { index: self.index, at: Instant::now(), outcome });
    }
}
