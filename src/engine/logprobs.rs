//! [`Logprobs`]: how probable a token was, and which were likelier.

use crate::ops::top_k;

/// Natural logarithms of probabilities by the model alone: before penalties, bias, temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token that was sampled.
    pub sampled: f32,
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of the token `sampled` among `logits` `[vocab]`, and the `count` likeliest.
    pub fn of(logits: &[f32], sampled: u32, count: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let logprob = |logit: f32| (f64::from(logit - max) - sum.ln()) as f32;
        Self {
            sampled: logits.get(sampled as usize).map_or(f32::NEG_INFINITY, |logit| logprob(*logit)),
            top: top_k(logits, count).into_iter().map(|(token, logit)| (token, logprob(logit))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_to_one() {
        let logits = [1.0, 100.0, 99.0, f32::NEG_INFINITY];
        let all = Logprobs::of(&logits, 2, 4);
        assert_eq!(all.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2, 0, 3]);
        assert_eq!(all.top[1].1, all.sampled);
        assert!((all.sampled - -1.313_261_7).abs() < 1e-6, "ln(1 / (1 + e)) is {}", all.sampled);
        let sum: f32 = all.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!(Logprobs::of(&logits, 0, 0).top, []);
    }
}
