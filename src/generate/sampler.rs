//! [`Sampler`]: chooses a token by its logits.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::Value;

use crate::{Error, Result};

/// How tokens are sampled. The filters apply in the order of the fields, which is that of transformers and so the one
/// that the published settings of models assume (llama.cpp applies the temperature last).
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides positive logits of tokens that are in the text already, multiplies negative ones; 1: off.
    pub repetition_penalty: f32,
    /// Divides the logits; 0: always the likeliest token, the lowest id among equals.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens are kept; 0: off.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities reach this sum are kept; 1: off, 0: the likeliest.
    pub top_p: f32,
    /// Only tokens at least this fraction as probable as the likeliest are kept; 0: off.
    pub min_p: f32,
    /// The same seed, logits and settings give the same tokens on every machine.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 0.8, top_k: 0, top_p: 0.95, min_p: 0.0, seed: 0 }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// The settings of a model's generation_config.json. If it has any sampling key, temperature and top-p default to 1
    /// instead of [`Sampling::default`]; `"do_sample": false` makes it greedy.
    pub fn from_generation_config(json: &str) -> Result<Self> {
        let file = "generation_config.json";
        let config: Value = serde_json::from_str(json).map_err(|e| Error::invalid(file, e))?;
        let number = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number as f32)),
                None => Err(Error::mismatch(format!("{file}: {key}"), "a number", value)),
            },
        };
        let (temperature, top_k, top_p) = (number("temperature")?, number("top_k")?, number("top_p")?);
        let (min_p, repetition_penalty) = (number("min_p")?, number("repetition_penalty")?);
        let mut sampling = Self::default();
        if temperature.is_some() || top_k.is_some() || top_p.is_some() || min_p.is_some() {
            sampling.temperature = temperature.unwrap_or(1.0);
            sampling.top_k = top_k.map_or(0, |k| k as usize);
            sampling.top_p = top_p.unwrap_or(1.0);
            sampling.min_p = min_p.unwrap_or(0.0);
        }
        sampling.repetition_penalty = repetition_penalty.unwrap_or(1.0);
        if config.get("do_sample") == Some(&Value::Bool(false)) {
            sampling.temperature = 0.0;
        }
        sampling.check().map_err(|e| Error::invalid(file, e))?;
        Ok(sampling)
    }

    /// Fails if a value is out of its range.
    fn check(&self) -> Result<()> {
        let within = |name: &str, value: f32, good: bool, expected: &str| match good {
            true => Ok(()),
            false => Err(Error::mismatch(name, expected, value)),
        };
        let Self { repetition_penalty, temperature, top_p, min_p, .. } = *self;
        let positive = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        within("repetition penalty", repetition_penalty, positive, "a positive number")?;
        let not_negative = temperature >= 0.0 && temperature.is_finite();
        within("temperature", temperature, not_negative, "0 (greedy) or a positive number")?;
        within("top-p", top_p, (0.0..=1.0).contains(&top_p), "a probability from 0 to 1")?;
        within("min-p", min_p, (0.0..=1.0).contains(&min_p), "a fraction from 0 to 1")
    }
}

/// Samples tokens from logits.
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Scratch: the tokens that the filters have kept, each with its logit, later its weight.
    candidates: Vec<(u32, f64)>,
}

impl Sampler {
    /// # Errors
    /// A setting is out of its range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, random, candidates: Vec::new() })
    }

    /// A token for `logits` `[vocab]`; `text` holds the tokens so far, prompt included. A logit of -inf excludes a
    /// token.
    ///
    /// # Errors
    /// A logit is NaN or +inf, or every token is excluded.
    pub fn sample(&mut self, logits: &[f32], text: &[u32]) -> Result<u32> {
        if let Some((token, logit)) =
            logits.iter().enumerate().find(|(_, l)| l.is_nan() || **l == f32::INFINITY)
        {
            return Err(Error::mismatch(format!("logit of token {token}"), "a finite number", logit));
        }
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits.iter().map(|&logit| number(logit))));
        self.penalize(text);
        self.choose()
    }

    /// The number of likeliest tokens whose logits [`Sampler::sample_top`] needs; none if it takes all logits.
    pub fn decides_among(&self) -> Option<usize> {
        let Sampling { repetition_penalty, temperature, top_k, .. } = self.sampling;
        match top_k {
            _ if repetition_penalty != 1.0 => None,
            _ if temperature == 0.0 => Some(1),
            0 => None,
            k => Some(k),
        }
    }

    /// The same token as [`Sampler::sample`], from the [`Sampler::decides_among`] likeliest tokens with their logits,
    /// in the order of [`crate::backend::Backend::top_k`].
    pub fn sample_top(&mut self, top: &[(u32, f32)]) -> Result<u32> {
        if let Some((token, logit)) = top.iter().find(|(_, l)| l.is_nan() || *l == f32::INFINITY) {
            return Err(Error::mismatch(format!("logit of token {token}"), "a finite number", logit));
        }
        self.candidates.clear();
        self.candidates.extend(top.iter().map(|&(token, logit)| (token, number(logit))));
        self.choose()
    }

    /// Filters the candidates, which have their logits, and samples one.
    fn choose(&mut self) -> Result<u32> {
        self.candidates.retain(|(_, logit)| *logit > f64::NEG_INFINITY);
        let likeliest =
            self.candidates.iter().copied().reduce(|best, next| if next.1 > best.1 { next } else { best });
        let Some((likeliest, max)) = likeliest else {
            return Err(Error::mismatch("logits", "a token that is not excluded", "none"));
        };
        if self.sampling.temperature == 0.0 {
            return Ok(likeliest);
        }
        self.keep_top_k();
        for (_, value) in &mut self.candidates {
            *value = libm::exp((*value - max) / self.sampling.temperature as f64);
        }
        self.keep_top_p();
        // The weight of the likeliest is exp(0) = 1.
        let least = self.sampling.min_p as f64;
        self.candidates.retain(|(_, weight)| *weight >= least);
        Ok(self.draw())
    }

    /// Applies the repetition penalty, once for each distinct token of the text.
    fn penalize(&mut self, text: &[u32]) {
        let penalty = self.sampling.repetition_penalty as f64;
        if penalty == 1.0 {
            return;
        }
        let mut seen = vec![false; self.candidates.len()];
        for &token in text {
            let Some(first) = seen.get_mut(token as usize).filter(|seen| !**seen) else { continue };
            *first = true;
            let logit = &mut self.candidates[token as usize].1;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }

    /// Keeps the `top_k` largest logits, in falling order; among equals, the lowest ids.
    fn keep_top_k(&mut self) {
        let k = self.sampling.top_k;
        if k == 0 {
            return;
        }
        if k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, heavier);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(heavier);
    }

    /// Keeps the smallest set of largest weights that sums to at least `top_p` of the total.
    fn keep_top_p(&mut self) {
        if self.sampling.top_p >= 1.0 {
            return;
        }
        let enough =
            self.sampling.top_p as f64 * self.candidates.iter().map(|(_, weight)| weight).sum::<f64>();
        let (mut sorted, mut sum) = (0, 0.0);
        while sorted < self.candidates.len() {
            // A few tokens have most of the weight: sort a growing prefix instead of the whole vocabulary.
            let front = (sorted * 4).max(64).min(self.candidates.len());
            let rest = &mut self.candidates[sorted..];
            if front - sorted < rest.len() {
                rest.select_nth_unstable_by(front - sorted, heavier);
            }
            rest[..front - sorted].sort_unstable_by(heavier);
            for i in sorted..front {
                sum += self.candidates[i].1;
                if sum >= enough {
                    return self.candidates.truncate(i + 1);
                }
            }
            sorted = front;
        }
    }

    /// Samples one of the candidates in proportion to the weights; there is at least one.
    fn draw(&mut self) -> u32 {
        let total: f64 = self.candidates.iter().map(|(_, weight)| weight).sum();
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * total;
        for &(token, weight) in &self.candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding may leave a remainder, which counts for the last.
        self.candidates[self.candidates.len() - 1].0
    }
}

/// Orders by falling weight, then by rising id.
fn heavier(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// A logit, with -0 as +0: they are equal, but `total_cmp` would order them.
fn number(logit: f32) -> f64 {
    f64::from(logit) + 0.0
}
