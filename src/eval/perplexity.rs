//! Perplexity by the protocol of llama.cpp's `llama-perplexity`: the text is cut into chunks of the context length,
//! each chunk's first token is replaced by BOS where the tokenizer adds one, and the second half of each chunk is
//! scored.

use rayon::prelude::*;

use super::mean::Mean;
use crate::backend::Backend;
use crate::model::{Batch, Model, Session, SessionOptions};
use crate::{Error, Result};

/// Rows of one batch: enough that a weight is decoded rarely.
const ROWS: usize = 512;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Tokens of a chunk, at least 4.
    pub context: usize,
    /// Chunks at most.
    pub chunks: Option<usize>,
    /// What replaces each chunk's first token.
    pub bos: Option<u32>,
}

impl Protocol {
    /// An error if the text is shorter than two chunks, as in llama.cpp.
    pub fn check(&self, tokens: &[u32]) -> Result<()> {
        if self.context < 4 {
            return Err(Error::mismatch("--ctx", "at least 4", self.context));
        }
        if tokens.len() < 2 * self.context {
            let expected = format!("at least {} tokens, two contexts", 2 * self.context);
            return Err(Error::mismatch("the text", expected, tokens.len()));
        }
        Ok(())
    }

    /// The chunks of a text that passes [`Protocol::check`].
    pub fn chunks(&self, tokens: &[u32]) -> Result<Vec<Vec<u32>>> {
        self.check(tokens)?;
        let chunk = |tokens: &[u32]| {
            let mut chunk = tokens.to_vec();
            chunk[0] = self.bos.unwrap_or(chunk[0]);
            chunk
        };
        Ok(tokens.chunks_exact(self.context).take(self.chunks.unwrap_or(usize::MAX)).map(chunk).collect())
    }

    /// First position whose next token is scored.
    pub fn first_scored(&self) -> usize {
        self.context / 2
    }
}

/// The perplexity so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Of the negative log-likelihood.
    pub nll: Mean,
}

impl Estimate {
    /// exp of the mean negative log-likelihood.
    pub fn perplexity(&self) -> f64 {
        self.nll.value().exp()
    }

    /// The perplexity's standard error.
    pub fn error(&self) -> f64 {
        self.nll.error() * self.perplexity()
    }

    /// Tokens scored.
    pub fn tokens(&self) -> usize {
        self.nll.count()
    }
}

/// `-ln softmax(logits)[token]`, in f64.
pub fn negative_log_likelihood(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, l| max.max(*l));
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}

/// One forward pass of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub batch: Batch,
    /// The token that follows each row whose logits are wanted.
    pub next: Vec<u32>,
}

/// A chunk as forward passes of `rows` rows from an empty slot 0, scored from position `first` on.
pub fn steps(chunk: &[u32], first: usize, rows: usize) -> impl Iterator<Item = Step> {
    (0..chunk.len()).step_by(rows).map(move |start| {
        let end = chunk.len().min(start + rows);
        let mut batch = Batch::of_slot(0, start, &chunk[start..end], false);
        for row in &mut batch.rows {
            let position = row.position as usize;
            row.want_logits = position >= first && position + 1 < chunk.len();
        }
        let wanted = batch.rows.iter().filter(|row| row.want_logits);
        let next = wanted.map(|row| chunk[row.position as usize + 1]).collect();
        Step { batch, next }
    })
}

/// A session for scoring chunks of this length.
pub fn session<B: Backend>(model: &Model<B>, context: usize) -> Result<Session<'_, B>> {
    Session::new(model, SessionOptions { slots: 1, context, max_rows: ROWS.min(context) })
}

/// The perplexity of a text; `progress` sees the running estimate after each chunk and stops by returning false.
pub async fn perplexity<B: Backend>(
    model: &Model<B>,
    tokens: &[u32],
    protocol: Protocol,
    mut progress: impl FnMut(usize, usize, &Estimate) -> bool,
) -> Result<Estimate> {
    let chunks = protocol.chunks(tokens)?;
    let mut session = session(model, protocol.context)?;
    let (vocab, rows) = (model.config().vocab, session.options().max_rows);
    let mut estimate = Estimate::default();
    for (i, chunk) in chunks.iter().enumerate() {
        session.reset(0)?;
        for Step { batch, next } in steps(chunk, protocol.first_scored(), rows) {
            let logits = session.forward(&batch).await?;
            let nll = logits.par_chunks_exact(vocab).zip(&next);
            let nll: Vec<f64> = nll.map(|(logits, next)| negative_log_likelihood(logits, *next)).collect();
            nll.into_iter().for_each(|nll| estimate.nll.add(nll));
        }
        check_finite("perplexity", i, estimate.perplexity())?;
        if !progress(i + 1, chunks.len(), &estimate) {
            return Err(Error::Interrupted);
        }
    }
    Ok(estimate)
}

/// An error where what was measured up to chunk `i` is not a number.
pub(super) fn check_finite(what: &str, i: usize, value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::mismatch(format!("{what} after chunk {}", i + 1), "a finite number", value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_begin_with_bos_and_leave_the_rest() {
        let tokens: Vec<u32> = (10..31).collect();
        let protocol = Protocol { context: 8, chunks: None, bos: Some(1) };
        let chunks = protocol.chunks(&tokens).unwrap();
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[1], [1, 19, 20, 21, 22, 23, 24, 25]);
        assert_eq!(
            Protocol { chunks: Some(1), bos: None, ..protocol }.chunks(&tokens).unwrap(),
            [tokens[..8].to_vec()]
        );
        assert!(protocol.chunks(&tokens[..15]).is_err());
    }

    #[test]
    fn steps_score_the_second_half() {
        let chunk: Vec<u32> = (20..28).collect();
        let steps: Vec<Step> = steps(&chunk, 4, 3).collect();
        let scored = |step: &Step| -> Vec<(u32, u32)> {
            let wanted = step.batch.rows.iter().filter(|row| row.want_logits);
            wanted.zip(&step.next).map(|(row, next)| (row.token, *next)).collect()
        };
        assert_eq!(steps.iter().map(|step| step.batch.rows.len()).collect::<Vec<_>>(), [3, 3, 2]);
        assert_eq!(steps.iter().flat_map(scored).collect::<Vec<_>>(), [(24, 25), (25, 26), (26, 27)]);
    }

    #[test]
    fn a_uniform_guess_has_the_vocabulary_as_perplexity() {
        let mut estimate = Estimate::default();
        for token in 0..7 {
            estimate.nll.add(negative_log_likelihood(&[2.5; 7], token));
        }
        assert!((estimate.perplexity() - 7.0).abs() < 1e-9);
        assert!(estimate.error() < 1e-6);
        estimate.nll.add(0.0);
        assert!(estimate.error() > 0.1);
    }
}
