//! Prefill and decode speed of a whole model.

use std::time::Instant;

use super::Samples;
use crate::Result;
use crate::backend::Backend;
use crate::model::{Batch, Model, Row, Session, SessionOptions};

/// Runs that are not counted: they compile kernels and capture graphs.
const WARM_UP: usize = 2;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Prompt lengths.
    pub prompts: Vec<usize>,
    /// Tokens to decode after each prompt.
    pub tokens: usize,
    /// Numbers of sequences that decode together.
    pub batches: Vec<usize>,
    /// Runs that are counted.
    pub repeat: usize,
    /// The most rows of one batch.
    pub max_rows: usize,
}

impl Plan {
    /// The session for `batch` prompts of `prompt` tokens.
    fn session(&self, prompt: usize, batch: usize) -> SessionOptions {
        SessionOptions {
            slots: batch,
            context: prompt + self.tokens + 1,
            max_rows: self.max_rows.min(prompt).max(batch),
        }
    }

    /// The largest session that it needs.
    pub fn largest(&self) -> SessionOptions {
        let [prompt, batch] =
            [&self.prompts, &self.batches].map(|all| all.iter().copied().max().unwrap_or(1));
        self.session(prompt, batch)
    }
}

/// The result of a measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    pub what: What,
    /// Times of the runs.
    pub samples: Samples,
    /// Tokens per run.
    pub tokens: usize,
    /// Passes per run, each of which reads every weight once.
    pub steps: usize,
    /// Kernel launches per pass, if the backend counts them.
    pub dispatches: Option<u64>,
}

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Prefill { prompt: usize },
    Decode { prompt: usize, tokens: usize, batch: usize },
}

impl Measured {
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.samples.median()
    }

    pub fn seconds_per_step(&self) -> f64 {
        self.samples.median() / self.steps as f64
    }
}

/// Measures every batch size and prompt length of the plan; prefill at batch size 1 only.
pub async fn measure<B: Backend>(model: &Model<B>, plan: &Plan) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for batch in &plan.batches {
        for prompt in &plan.prompts {
            let options = plan.session(*prompt, *batch);
            let mut session = Session::new(model, options)?;
            let (mut prefill, mut decode) = (Vec::new(), Vec::new());
            let count = || model.backend().dispatches();
            let mut counts = [count(); 3];
            for run in 0..WARM_UP + plan.repeat {
                counts[0] = count();
                let start = Instant::now();
                let tokens = prompt_tokens(model.config().vocab, *prompt, run);
                let mut next = Vec::new();
                for slot in 0..*batch {
                    session.reset(slot)?;
                    next.push(best(&session.prefill(slot, &tokens).await?));
                }
                let prefilled = start.elapsed();
                counts[1] = count();
                let start = Instant::now();
                for _ in 0..plan.tokens {
                    next = step(&mut session, &next).await?;
                }
                counts[2] = count();
                if run >= WARM_UP {
                    prefill.push(prefilled);
                    decode.push(start.elapsed());
                }
            }
            let started = |i: usize, steps: usize| Some((counts[i + 1]? - counts[i]?) / steps as u64);
            if *batch == 1 {
                let steps = prompt.div_ceil(options.max_rows);
                let what = What::Prefill { prompt: *prompt };
                let (samples, dispatches) = (Samples::new(prefill), started(0, steps));
                all.push(Measured { what, samples, tokens: *prompt, steps, dispatches });
            }
            if plan.tokens > 0 {
                let what = What::Decode { prompt: *prompt, tokens: plan.tokens, batch: *batch };
                let (tokens, steps) = (plan.tokens * batch, plan.tokens);
                let (samples, dispatches) = (Samples::new(decode), started(1, steps));
                all.push(Measured { what, samples, tokens, steps, dispatches });
            }
        }
    }
    Ok(all)
}

/// Decodes one greedy token for every slot.
async fn step<B: Backend>(session: &mut Session<'_, B>, tokens: &[u32]) -> Result<Vec<u32>> {
    let row = |(slot, &token): (usize, &u32)| {
        let position = session.position(slot)? as u32;
        Ok(Row { token, slot: slot as u32, position, want_logits: true })
    };
    let batch = Batch { rows: tokens.iter().enumerate().map(row).collect::<Result<_>>()? };
    session.greedy(&batch).await
}

fn best(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::MIN), |best, (i, v)| if *v > best.1 { (i, *v) } else { best });
    best.0 as u32
}

/// `count` tokens that differ from run to run.
fn prompt_tokens(vocab: usize, count: usize, run: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + run * 104_729 + 13) % vocab) as u32).collect()
}
