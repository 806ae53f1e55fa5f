//! Multiple choice by likelihood, as lm-evaluation-harness scores it: the answer is the choice whose continuation is
//! likeliest after its context (`acc`), or likeliest per character (`acc_norm`).

use rayon::prelude::*;

use super::mean::Mean;
use super::perplexity::negative_log_likelihood;
use super::tasks::{Choice, Question};
use crate::backend::Backend;
use crate::generate::Tokenizer;
use crate::model::{Batch, Model, Row, Session, SessionOptions};
use crate::{Error, Result};

/// Questions side by side.
const SLOTS: usize = 16;
/// Rows of one batch.
const ROWS: usize = 512;

/// The answers to some questions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// 1 for each question answered right, else 0.
    pub acc: Mean,
    /// The same by likelihood per character; empty where the task has no such score.
    pub acc_norm: Mean,
    /// ln of the probability of each question's choices.
    pub likelihoods: Vec<Vec<f64>>,
}

impl Scores {
    fn add(&mut self, question: &Question, likelihoods: Vec<f64>) {
        let right = |scores: &[f64]| if best(scores) == question.answer { 1.0 } else { 0.0 };
        self.acc.add(right(&likelihoods));
        let lengths: Option<Vec<usize>> = question.choices.iter().map(|choice| choice.length).collect();
        if let Some(lengths) = lengths {
            let per_char: Vec<f64> = likelihoods.iter().zip(lengths).map(|(l, n)| l / n as f64).collect();
            self.acc_norm.add(right(&per_char));
        }
        self.likelihoods.push(likelihoods);
    }
}

/// The first of the largest.
fn best(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// Answers the questions; `progress` sees how many are answered and the scores so far, and stops by returning false.
/// `bos`: with the tokens that the tokenizer puts before a text, which the harness leaves out unless told.
pub async fn choices<B: Backend>(
    model: &Model<B>,
    tokenizer: &Tokenizer,
    questions: &[Question],
    bos: bool,
    mut progress: impl FnMut(usize, &Scores) -> bool,
) -> Result<Scores> {
    let encode = |choice: &Choice| Sequence::new(model, tokenizer, choice, bos);
    let encoded: Vec<Vec<Sequence>> =
        questions.iter().map(|q| q.choices.iter().map(encode).collect()).collect::<Result<_>>()?;
    let context = encoded.iter().flatten().map(|sequence| sequence.input.len()).max().unwrap_or(1);
    let slots = SLOTS.min(questions.len()).max(1);
    let options = SessionOptions { slots, context, max_rows: ROWS.min(slots * context) };
    let mut session = Session::new(model, options)?;
    let mut scores = Scores::default();
    for (questions, encoded) in questions.chunks(slots).zip(encoded.chunks(slots)) {
        let likelihoods = side_by_side(&mut session, encoded).await?;
        for (question, likelihoods) in questions.iter().zip(likelihoods) {
            if likelihoods.iter().any(|l| !l.is_finite()) {
                let what = format!("likelihoods of question {}", scores.acc.count() + 1);
                return Err(Error::mismatch(what, "finite numbers", format!("{likelihoods:?}")));
            }
            scores.add(question, likelihoods);
        }
        if !progress(scores.acc.count(), &scores) {
            return Err(Error::Interrupted);
        }
    }
    Ok(scores)
}

/// Tokens to run, and those to score.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sequence {
    /// Context and continuation without its last token.
    input: Vec<u32>,
    /// The continuation, predicted by the last rows of the input.
    targets: Vec<u32>,
}

impl Sequence {
    /// Cut as the harness cuts: spaces at the end of the context belong to the continuation, whose tokens are those
    /// that the whole text has beyond the context's own number; of what is too long the beginning is dropped.
    fn new<B: Backend>(model: &Model<B>, tokenizer: &Tokenizer, choice: &Choice, bos: bool) -> Result<Self> {
        let context = choice.context.trim_end();
        let whole = tokenizer.encode(&format!("{}{}", choice.context, choice.continuation), bos)?;
        let mut input = tokenizer.encode(context, bos)?;
        let targets = whole.get(input.len()..).unwrap_or_default().to_vec();
        let config = model.config();
        if input.is_empty() {
            let first = config.bos.or(config.eos.first().copied());
            input.push(
                first.ok_or_else(|| Error::invalid("config.json", "no bos_token_id to begin a text with"))?,
            );
        }
        let Some((_, targets_but_last)) = targets.split_last() else {
            return Err(Error::invalid(
                format!("the continuation {:?}", choice.continuation),
                "it has no tokens",
            ));
        };
        if targets.len() > config.max_context {
            let expected = format!("at most {} tokens, the model's context", config.max_context);
            return Err(Error::mismatch("a continuation", expected, targets.len()));
        }
        input.extend(targets_but_last);
        input.drain(..input.len().saturating_sub(config.max_context));
        Ok(Self { input, targets })
    }

    /// First position whose logits are wanted.
    fn first_scored(&self) -> usize {
        self.input.len() - self.targets.len()
    }
}

/// Positions that all choices share and none scores.
fn shared(choices: &[Sequence]) -> usize {
    let Some((first, others)) = choices.split_first() else { return 0 };
    let common = |other: &Sequence| first.input.iter().zip(&other.input).take_while(|(a, b)| a == b).count();
    let unscored = choices.iter().map(Sequence::first_scored).min().unwrap_or(0);
    others.iter().map(common).fold(unscored, usize::min)
}

/// Log-likelihoods of the choices of as many questions as there are slots: first choices, then second ones, each
/// from where it departs from the others if the model can go back there.
async fn side_by_side<B: Backend>(
    session: &mut Session<'_, B>,
    questions: &[Vec<Sequence>],
) -> Result<Vec<Vec<f64>>> {
    let (vocab, max_rows) = (session.model().config().vocab, session.options().max_rows);
    let mut sums: Vec<Vec<f64>> = questions.iter().map(|choices| vec![0.0; choices.len()]).collect();
    (0..questions.len()).try_for_each(|slot| session.reset(slot))?;
    let most = questions.iter().map(Vec::len).max().unwrap_or(0);
    #[allow(
        clippy::needless_range_loop,
        reason = "the index runs over the choices of every question at once"
    )]
    for choice in 0..most {
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        for (slot, choices) in questions.iter().enumerate() {
            let Some(sequence) = choices.get(choice) else { continue };
            let start = session.rewind(slot, shared(choices))?;
            for (position, token) in sequence.input.iter().enumerate().skip(start) {
                let target = position.checked_sub(sequence.first_scored()).map(|i| sequence.targets[i]);
                targets.extend(target.map(|target| (slot, target)));
                rows.push(Row {
                    token: *token,
                    slot: slot as u32,
                    position: position as u32,
                    want_logits: target.is_some(),
                });
            }
        }
        let mut targets = targets.into_iter();
        for rows in rows.chunks(max_rows) {
            let batch = Batch { rows: rows.to_vec() };
            let logits = session.forward(&batch).await?;
            let wanted: Vec<_> = targets.by_ref().take(logits.len() / vocab).collect();
            let scored = logits.par_chunks_exact(vocab).zip(wanted);
            let scored: Vec<_> =
                scored.map(|(logits, (slot, next))| (slot, negative_log_likelihood(logits, next))).collect();
            scored.into_iter().for_each(|(slot, nll)| sums[slot][choice] -= nll);
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_positions_are_not_scored() {
        let sequence =
            |input: &[u32], targets: usize| Sequence { input: input.into(), targets: vec![9; targets] };
        assert_eq!(shared(&[sequence(&[1, 2, 3, 4], 2), sequence(&[1, 2, 3, 5], 2)]), 2);
        assert_eq!(shared(&[sequence(&[1, 2, 3, 4, 5], 1), sequence(&[1, 7, 3], 1)]), 1);
        assert_eq!(shared(&[sequence(&[1], 1)]), 0);
    }

    #[test]
    fn scores_by_hand() {
        let choice = |length| Choice { context: String::new(), continuation: String::new(), length };
        let mut scores = Scores::default();
        let question = Question { choices: vec![choice(Some(2)), choice(Some(8))], answer: 1 };
        scores.add(&question, vec![-3.0, -4.0]);
        assert_eq!((scores.acc.value(), scores.acc_norm.value()), (0.0, 1.0));
        scores.add(&Question { choices: vec![choice(None); 2], answer: 0 }, vec![-2.0, -2.0]);
        assert_eq!((scores.acc.value(), scores.acc.count(), scores.acc_norm.count()), (0.5, 2, 1));
    }
}
