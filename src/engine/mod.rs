//! Many texts at once: continuous batching of requests over the slots of one session.
//!
//! A [`Request`] waits until a slot is free ([`Scheduler`]), is read in chunks beside the texts that are being written,
//! and gives its text piece by piece to a channel of its own ([`Event`]). [`queue`] connects an [`Engine`], which stays in
//! one thread with its backend, with the threads that ask.

mod adjust;
mod batching;
mod logprobs;
mod queue;
mod request;
mod scheduler;
mod slots;
mod text;

pub use adjust::Adjustments;
pub use batching::Engine;
pub use logprobs::Logprobs;
pub use queue::{Load, Place, Refusal, Requests, Submitter, queue};
pub use request::{Event, Failure, Outcome, Request, Usage};
pub use scheduler::{Scheduler, Share};
