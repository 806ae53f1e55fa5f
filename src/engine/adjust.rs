//! [`Adjustments`]: what a request adds to the logits.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// Additions to the logits before a token is sampled, of OpenAI's API: `logit_bias`, `presence_penalty` and
/// `frequency_penalty`, of which the penalties count the tokens that were generated, not those of the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adjustments {
    /// Added to the logits of tokens, by their ids.
    pub bias: BTreeMap<u32, f32>,
    /// Subtracted from the logit of each token that was generated.
    pub presence_penalty: f32,
    /// Subtracted once for each time that the token was generated.
    pub frequency_penalty: f32,
}

impl Adjustments {
    /// Fails if a number is not finite.
    pub fn check(&self) -> Result<()> {
        let penalties = [self.presence_penalty, self.frequency_penalty];
        match self.bias.values().chain(&penalties).find(|number| !number.is_finite()) {
            Some(number) => Err(Error::mismatch("bias or penalty", "a finite number", number)),
            None => Ok(()),
        }
    }

    /// Whether nothing is added.
    pub fn is_empty(&self) -> bool {
        self.bias.is_empty() && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0
    }

    /// Adjusts the logits `[vocab]` of the token after `generated`. Ids beyond the logits are ignored.
    pub fn apply(&self, logits: &mut [f32], generated: &[u32]) {
        for (token, bias) in &self.bias {
            add(logits, *token, *bias);
        }
        if self.presence_penalty == 0.0 && self.frequency_penalty == 0.0 {
            return;
        }
        let mut counts = BTreeMap::<u32, f32>::new();
        generated.iter().for_each(|token| *counts.entry(*token).or_default() += 1.0);
        for (token, count) in counts {
            add(logits, token, -self.presence_penalty - self.frequency_penalty * count);
        }
    }
}

fn add(logits: &mut [f32], token: u32, bias: f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit += bias;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_and_penalties_add_up() {
        let adjustments = Adjustments {
            bias: [(0, 5.0), (2, -1.0), (9, 1.0)].into(),
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
        };
        let mut logits = [0.0; 4];
        adjustments.apply(&mut logits, &[2, 3, 2, 3, 3]);
        assert_eq!(logits, [5.0, 0.0, -2.0, -1.25]);
        assert!(!adjustments.is_empty() && Adjustments::default().is_empty());
        let infinite = Adjustments { presence_penalty: f32::INFINITY, ..Default::default() };
        assert!(adjustments.check().is_ok() && infinite.check().is_err());
    }
}
