//! [`Engine`]: runs the requests of a queue through one session.

use super::queue::Requests;
use super::request::{Failure, Outcome, Request};
use super::scheduler::{Scheduler, Share};
use super::slots::Slots;
use super::text::Text;
use crate::backend::Backend;
use crate::generate::Tokenizer;
use crate::model::{Batch, Model, Session, SessionOptions};
use crate::{Error, Result};

/// Continuous batching over the slots of one session: but for rounding, every request gets what it would get alone.
pub struct Engine<'m, B: Backend> {
    session: Session<'m, B>,
    tokenizer: &'m Tokenizer,
    scheduler: Scheduler<Request>,
    slots: Slots,
    /// By slot.
    texts: Vec<Option<Text<'m>>>,
}

/// What a step found after the rows whose logits were wanted.
enum Next {
    /// The likeliest tokens.
    Tokens(Vec<u32>),
    /// Logits `[rows, vocab]`.
    Logits(Vec<f32>),
}

impl<'m, B: Backend> Engine<'m, B> {
    /// With the slots and the context of the options; a step reads up to `max_rows` tokens.
    ///
    /// # Errors
    /// As [`Session::new`]; a step has less than a row for each slot.
    pub fn new(model: &'m Model<B>, tokenizer: &'m Tokenizer, options: SessionOptions) -> Result<Self> {
        let SessionOptions { slots, max_rows, .. } = options;
        if max_rows < slots {
            return Err(Error::mismatch(
                "rows of a step",
                format!("one for each of {slots} slots"),
                max_rows,
            ));
        }
        Ok(Self {
            session: Session::new(model, options)?,
            tokenizer,
            scheduler: Scheduler::new(slots, max_rows),
            slots: Slots::new(slots, model.config().delta_net.is_none()),
            texts: (0..slots).map(|_| None).collect(),
        })
    }

    /// Runs the requests of a queue until nobody can send one. An error of the device ends the requests that it hits.
    pub fn run(mut self, requests: &Requests) {
        let Requests { receiver, load } = requests;
        load.set_ready();
        loop {
            if self.is_idle() {
                match receiver.recv() {
                    Ok(request) => self.push(request),
                    Err(_) => return,
                }
            }
            receiver.try_iter().for_each(|request| self.push(request));
            if load.is_ending() {
                self.fail_all(&Failure::Shutdown);
            }
            self.admit();
            load.set_running(self.scheduler.running());
            pollster::block_on(self.advance());
            load.set_running(self.scheduler.running());
        }
    }

    /// Runs one token through the model, so that kernels are compiled and memory is there before the first request.
    pub async fn warm_up(&mut self) -> Result<()> {
        let token = self.tokenizer.encode("a", true)?.first().copied().unwrap_or(0);
        let result = self.session.greedy(&Batch::of_slot(0, 0, &[token], false)).await;
        self.session.reset(0)?;
        result.map(drop)
    }

    /// Adds a request behind those that wait.
    pub fn push(&mut self, request: Request) {
        self.scheduler.push(request);
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Admits what there are slots for, then reads the tokens of one step and samples a token for each text that is read to
    /// its end.
    pub async fn step(&mut self) {
        self.admit();
        self.advance().await;
    }

    /// Drops what nobody waits for any more, then gives free slots to the requests that have waited longest.
    fn admit(&mut self) {
        self.scheduler.retain_waiting(|request| !request.is_cancelled());
        for slot in 0..self.texts.len() {
            if self.texts[slot].as_ref().is_some_and(|text| text.request().is_cancelled()) {
                self.end(slot);
            }
        }
        while let Some(request) = self.scheduler.admit() {
            self.start(request);
        }
    }

    /// Gives a request a slot, or ends it at once.
    fn start(&mut self, request: Request) {
        let context = self.session.options().context;
        let eos = &self.session.model().config().eos;
        let mut text = match Text::new(request, self.tokenizer, eos, context) {
            Ok(text) => text,
            Err(refused) => return refused.0.send(Outcome::Failed(Failure::Request(refused.1))),
        };
        if text.has_ended() {
            return;
        }
        let Some(slot) = self.slots.choose(self.scheduler.free(), text.prompt()) else {
            return text.fail(Failure::Device("no slot is free".into()));
        };
        match self.session.rewind(slot, self.slots.shared(slot, text.prompt())) {
            Ok(kept) => {
                self.slots.give(slot, kept);
                text.set_cached(kept);
                self.scheduler.start(slot, text.prompt().len() - kept);
                self.texts[slot] = Some(text);
            }
            Err(error) => text.fail(Failure::Device(error.to_string())),
        }
    }

    async fn advance(&mut self) {
        let shares = self.scheduler.step();
        let mut batch = Batch::default();
        for Share { slot, rows, .. } in &shares {
            let text = self.texts[*slot].iter();
            batch.rows.extend(text.flat_map(|text| text.rows(*slot, self.slots.held(*slot), *rows)));
        }
        if batch.rows.is_empty() {
            return;
        }
        match self.read(&batch, &shares).await {
            Ok(next) => {
                for row in &batch.rows {
                    self.slots.extend(row.slot as usize, &[row.token]);
                }
                self.write(&shares, next);
            }
            Err(error) => {
                let failure = Failure::Device(error.to_string());
                log::error!("{error}");
                shares.iter().for_each(|share| self.fail(share.slot, failure.clone()));
            }
        }
    }

    /// Runs a batch; the likeliest tokens where they are all that is asked for.
    async fn read(&mut self, batch: &Batch, shares: &[Share]) -> Result<Next> {
        let mut last = shares.iter().filter(|share| share.last).peekable();
        if last.peek().is_none() {
            self.session.run(batch, None).await?;
            return Ok(Next::Tokens(Vec::new()));
        }
        let mut texts = last.filter_map(|share| self.texts[share.slot].as_ref());
        if !texts.all(Text::is_greedy) {
            return Ok(Next::Logits(self.session.forward(batch).await?));
        }
        let tokens = self.session.greedy(batch).await?;
        // Rows of the head beyond the tokenizer's last id are padding, and never sampled.
        if tokens.iter().any(|token| *token as usize >= self.tokenizer.len()) {
            return Ok(Next::Logits(self.session.logits(tokens.len()).await?));
        }
        Ok(Next::Tokens(tokens))
    }

    /// Appends a token to each text that was read to its end.
    fn write(&mut self, shares: &[Share], next: Next) {
        let (context, vocab) = (self.session.options().context, self.session.model().config().vocab);
        let known = self.tokenizer.len().min(vocab);
        for (row, Share { slot, .. }) in shares.iter().filter(|share| share.last).enumerate() {
            let Some(text) = &mut self.texts[*slot] else { continue };
            let sampled = match &next {
                Next::Tokens(tokens) => Ok((tokens[row], None)),
                Next::Logits(logits) => text.sample(&logits[row * vocab..][..known]),
            };
            match sampled.and_then(|(token, logprobs)| text.push(token, logprobs, context)) {
                Ok(false) => {}
                Ok(true) => self.end(*slot),
                Err(error) => self.fail(*slot, Failure::Device(error.to_string())),
            }
        }
    }

    /// Frees a slot, which keeps its tokens.
    fn end(&mut self, slot: usize) {
        self.scheduler.end(slot);
        self.texts[slot] = None;
    }

    /// Ends a slot's text and empties the slot.
    fn fail(&mut self, slot: usize, failure: Failure) {
        if let Some(text) = self.texts[slot].take() {
            text.fail(failure);
        }
        self.scheduler.end(slot);
        self.slots.clear(slot);
        if let Err(error) = self.session.reset(slot) {
            log::error!("{error}");
        }
    }

    /// Ends every text and every request that waits.
    fn fail_all(&mut self, failure: &Failure) {
        self.scheduler.retain_waiting(|request| {
            request.send(Outcome::Failed(failure.clone()));
            false
        });
        (0..self.texts.len()).for_each(|slot| self.fail(slot, failure.clone()));
    }
}
