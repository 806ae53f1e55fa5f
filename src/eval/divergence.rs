//! How far a model's predictions are from those of the model that it was made of: the Kullback-Leibler divergence of
//! each scored token, by the protocol of [`super::perplexity`]. Both models run side by side; nothing is saved.

use rayon::prelude::*;

use super::mean::Mean;
use super::perplexity::{Estimate, Protocol, Step, check_finite, session, steps};
use crate::backend::Backend;
use crate::model::Model;
use crate::{Error, Result};

/// Two models compared, so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Divergence {
    /// KL(base || model) in nats.
    pub kl: Mean,
    /// ln of the model's perplexity over the base's.
    pub ln_ratio: Mean,
    /// 1 where both find the same token likeliest, else 0.
    pub agreement: Mean,
    pub base: Estimate,
    pub model: Estimate,
    /// KL(base || model) of every scored token.
    pub tokens: Vec<f32>,
}

impl Divergence {
    fn add(&mut self, token: Token) {
        self.kl.add(token.kl);
        self.ln_ratio.add(token.model_nll - token.base_nll);
        self.agreement.add(if token.agree { 1.0 } else { 0.0 });
        self.base.nll.add(token.base_nll);
        self.model.nll.add(token.model_nll);
        self.tokens.push(token.kl as f32);
    }

    /// The model's perplexity over the base's.
    pub fn ratio(&self) -> f64 {
        self.ln_ratio.value().exp()
    }

    /// The ratio's standard error, of differences between the two models on the same token.
    pub fn ratio_error(&self) -> f64 {
        self.ln_ratio.error() * self.ratio()
    }

    /// The KL divergence that this part of the tokens, from 0 to 1, does not exceed; between two of them linearly.
    /// 0 where nothing is scored.
    pub fn quantiles<const N: usize>(&self, parts: [f64; N]) -> [f64; N] {
        let mut sorted = self.tokens.clone();
        sorted.sort_by(f32::total_cmp);
        parts.map(|part| {
            let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
            let place = part.clamp(0.0, 1.0) * last as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            f64::from(below) + place.fract() * f64::from(above - below)
        })
    }
}

/// One scored token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    kl: f64,
    base_nll: f64,
    model_nll: f64,
    agree: bool,
}

impl Token {
    /// From the logits `[vocab]` of both models and the token that follows.
    fn new(base: &[f32], model: &[f32], next: u32) -> Self {
        let (base_top, base_max) = top(base);
        let (model_top, model_max) = top(model);
        let (mut base_sum, mut model_sum, mut cross) = (0.0, 0.0, 0.0);
        for (b, m) in base.iter().zip(model) {
            let (b, m) = (f64::from(b - base_max), f64::from(m - model_max));
            let weight = b.exp();
            base_sum += weight;
            model_sum += m.exp();
            cross += weight * (b - m);
        }
        let (base_ln, model_ln) = (base_sum.ln(), model_sum.ln());
        Self {
            // Rounding may leave equal distributions a little below zero.
            kl: if cross.is_nan() { f64::NAN } else { (cross / base_sum - base_ln + model_ln).max(0.0) },
            base_nll: base_ln - f64::from(base[next as usize] - base_max),
            model_nll: model_ln - f64::from(model[next as usize] - model_max),
            agree: base_top == model_top,
        }
    }
}

/// KL(base || model) in nats, from the logits `[vocab]` of both.
pub fn kl(base: &[f32], model: &[f32]) -> f64 {
    Token::new(base, model, 0).kl
}

/// The first largest logit: where it is, and what.
fn top(logits: &[f32]) -> (usize, f32) {
    let first = (0, f32::NEG_INFINITY);
    logits.iter().enumerate().fold(first, |best, (i, l)| if *l > best.1 { (i, *l) } else { best })
}

/// Compares `model` with `base` on a text; `progress` sees the running result after each chunk and stops by
/// returning false.
pub async fn divergence<B: Backend>(
    base: &Model<B>,
    model: &Model<B>,
    tokens: &[u32],
    protocol: Protocol,
    mut progress: impl FnMut(usize, usize, &Divergence) -> bool,
) -> Result<Divergence> {
    let vocab = base.config().vocab;
    if model.config().vocab != vocab {
        let expected = format!("the base model's {vocab} tokens");
        return Err(Error::mismatch("the model's vocabulary", expected, model.config().vocab));
    }
    let chunks = protocol.chunks(tokens)?;
    let mut base = session(base, protocol.context)?;
    let mut model = session(model, protocol.context)?;
    let rows = base.options().max_rows;
    let mut result = Divergence::default();
    for (i, chunk) in chunks.iter().enumerate() {
        base.reset(0)?;
        model.reset(0)?;
        for Step { batch, next } in steps(chunk, protocol.first_scored(), rows) {
            let base_logits = base.forward(&batch).await?;
            let model_logits = model.forward(&batch).await?;
            let scored = base_logits.par_chunks_exact(vocab).zip(model_logits.par_chunks_exact(vocab));
            let scored: Vec<Token> =
                scored.zip(&next).map(|((base, model), next)| Token::new(base, model, *next)).collect();
            scored.into_iter().for_each(|token| result.add(token));
        }
        check_finite("the base model's perplexity", i, result.base.perplexity())?;
        check_finite("the model's perplexity", i, result.model.perplexity())?;
        check_finite("divergence", i, result.kl.value())?;
        if !progress(i + 1, chunks.len(), &result) {
            return Err(Error::Interrupted);
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_by_hand() {
        // Probabilities 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4: KL = ln 2 / 4. Softmax forgets the offsets.
        let base = [0.5f64, 0.25, 0.25].map(|p| p.ln() as f32 + 3.0);
        let model = [0.25f64, 0.5, 0.25].map(|p| p.ln() as f32 - 5.0);
        let token = Token::new(&base, &model, 1);
        assert!((token.kl - 2f64.ln() / 4.0).abs() < 1e-6, "{token:?}");
        assert!((token.base_nll - 4f64.ln()).abs() < 1e-6 && (token.model_nll - 2f64.ln()).abs() < 1e-6);
        assert!(!token.agree);
        let same = Token::new(&base, &base, 0);
        assert!(same.kl == 0.0 && same.agree && same.base_nll == same.model_nll);
        assert!(Token::new(&base, &[0.0, f32::NAN, 0.0], 0).kl.is_nan());
    }

    #[test]
    fn quantiles_lie_between_tokens() {
        let divergence = Divergence { tokens: vec![4.0, 0.0, 1.0, 2.0, 3.0], ..Default::default() };
        assert_eq!(divergence.quantiles([0.0, 0.5, 0.625, 1.0]), [0.0, 2.0, 2.5, 4.0]);
        assert_eq!(Divergence::default().quantiles([0.5]), [0.0]);
    }
}
