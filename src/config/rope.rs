//! Rotary position embedding: the angles that a position turns pairs of elements by.
//!
//! Formulas as in transformers' `modeling_rope_utils.py`; `2i / rotary_dim` is pair i's exponent of theta.

use std::f64::consts::PI;

use super::keys::Keys;
use crate::{Error, Result};

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Leading elements of a head that are turned; even.
    pub rotary_dim: usize,
    pub scaling: Scaling,
}

/// How the frequencies differ from `theta^(-2i / rotary_dim)`, so that a model reaches beyond its first context.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// All divided.
    Linear {
        factor: f64,
    },
    /// Low ones divided, those between the two factors in part.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// Those that make fewer turns than `beta_slow` in the first context divided, those that make more than `beta_fast`
    /// kept, a ramp between.
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole pairs.
        whole: bool,
        amplitude: f64,
    },
    /// Each divided by a number of its own: of `long` in sessions beyond the first context, else of `short`.
    Long {
        short: Vec<f64>,
        long: Vec<f64>,
        original_context: usize,
        amplitude: f64,
    },
}

impl Rope {
    /// Radians per position of each pair, `[rotary_dim / 2]`, for sequences of up to `context` positions.
    pub fn inv_freq(&self, context: usize) -> Vec<f32> {
        let exponent = |i: usize| -2.0 * i as f64 / self.rotary_dim as f64;
        let scaled = |i: usize| self.scaled(i, self.theta.powf(exponent(i)), context) as f32;
        (0..self.rotary_dim / 2).map(scaled).collect()
    }

    /// What sines and cosines are multiplied by.
    pub fn amplitude(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { amplitude, .. } | Scaling::Long { amplitude, .. } => amplitude as f32,
            Scaling::None | Scaling::Linear { .. } | Scaling::Llama3 { .. } => 1.0,
        }
    }

    /// The frequency of pair `i`, which is `freq` without scaling.
    fn scaled(&self, i: usize, freq: f64, context: usize) -> f64 {
        match &self.scaling {
            Scaling::None => freq,
            Scaling::Linear { factor } => freq / factor,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * freq / (2.0 * PI);
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - kept) * freq / factor + kept * freq
            }
            Scaling::Yarn { factor, original_context, beta_fast, beta_slow, whole, .. } => {
                let dim = self.rotary_dim as f64;
                // The pair that makes so many turns in the first context.
                let pair =
                    |turns: f64| dim * (original_context / (2.0 * PI * turns)).ln() / (2.0 * self.theta.ln());
                let (low, high) = (pair(*beta_fast), pair(*beta_slow));
                let (low, high) = if *whole { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                ramp * freq / factor + (1.0 - ramp) * freq
            }
            Scaling::Long { short, long, original_context, .. } => {
                freq / if context > *original_context { long[i] } else { short[i] }
            }
        }
    }
}

/// The keys of one kind of layers: a value inside `rope_scaling` (if it has any) or `rope_parameters` wins over a
/// top-level one.
pub(super) struct RopeKeys<'a> {
    text: &'a Keys<'a>,
    inner: Option<Keys<'a>>,
    head_dim: usize,
}

impl<'a> RopeKeys<'a> {
    /// Of all layers, or of those without a window.
    pub fn new(text: &'a Keys<'a>, head_dim: usize) -> Self {
        let filled = |key| text.object(key).filter(|keys: &Keys<'_>| !keys.is_empty());
        let inner = filled("rope_scaling").or_else(|| filled("rope_parameters"));
        let inner = inner.map(|inner| inner.object("full_attention").unwrap_or(inner));
        Self { text, inner, head_dim }
    }

    /// Of layers with a window, where those differ: they have an entry of their own, or no scaling.
    pub fn windowed(text: &'a Keys<'a>, head_dim: usize) -> Self {
        let inner = text.object("rope_parameters").and_then(|keys| keys.object("sliding_attention"));
        Self { text, inner, head_dim }
    }

    /// The keys that have a value of this name.
    pub fn of(&self, key: &str) -> &Keys<'a> {
        self.inner.as_ref().filter(|inner| inner.get(key).is_some()).unwrap_or(self.text)
    }

    /// The embedding, with `theta` from that key at the top level where the inner keys have no `rope_theta`.
    pub fn parse(&self, theta: &str) -> Result<Rope> {
        let rotary_dim = self.rotary_dim()?;
        let inner = self.inner.as_ref().filter(|inner| inner.get("rope_theta").is_some());
        let theta = match inner {
            Some(inner) => inner.positive("rope_theta")?,
            None => self.text.positive(theta)?,
        };
        Ok(Rope { theta, rotary_dim, scaling: self.scaling(rotary_dim)? })
    }

    fn rotary_dim(&self) -> Result<usize> {
        let key = "partial_rotary_factor";
        let partial = self.of(key).number(key, 1.0)?;
        let rotary_dim = (self.head_dim as f64 * partial) as usize;
        if !(partial > 0.0 && partial <= 1.0) || rotary_dim < 2 || !rotary_dim.is_multiple_of(2) {
            let expected = format!("a part of head_dim {} that is an even number of elements", self.head_dim);
            return Err(self.of(key).mismatch(key, expected));
        }
        Ok(rotary_dim)
    }

    fn scaling(&self, rotary_dim: usize) -> Result<Scaling> {
        let Some(keys) = &self.inner else { return Ok(Scaling::None) };
        let kind = keys.text("rope_type").or_else(|| keys.text("type")).unwrap_or("default");
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: keys.positive("factor")? }),
            "llama3" => self.llama3(keys),
            // Older files of Phi-3 call it so.
            "longrope" | "su" => self.long(keys, rotary_dim),
            "yarn" if keys.get("long_factor").is_some() => self.long(keys, rotary_dim),
            "yarn" => self.yarn(keys),
            other => {
                let expected = "default, linear, llama3, yarn or longrope";
                Err(Error::mismatch("config.json: rope_type", expected, format!("{other:?}")))
            }
        }
    }

    /// The context before it was extended.
    fn original_context(&self) -> Result<f64> {
        let key = "original_max_position_embeddings";
        match self.of(key).get(key) {
            Some(_) => self.of(key).positive(key),
            None => self.text.positive("max_position_embeddings"),
        }
    }

    fn llama3(&self, keys: &Keys<'_>) -> Result<Scaling> {
        let [factor, low, high] = [("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0)]
            .map(|(key, default)| keys.number(key, default));
        let (factor, low, high) = (factor?, low?, high?);
        if !(factor.is_finite() && factor > 0.0 && low > 0.0 && high > low && high.is_finite()) {
            let expected = "positive factors with high_freq_factor above low_freq_factor";
            let found = format!("factor {factor}, low_freq_factor {low} and high_freq_factor {high}");
            return Err(Error::mismatch("config.json: rope_scaling", expected, found));
        }
        let original_context = self.original_context()?;
        Ok(Scaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context })
    }

    fn yarn(&self, keys: &Keys<'_>) -> Result<Scaling> {
        let original_context = self.original_context()?;
        let factor = match keys.get("factor") {
            Some(_) => keys.positive("factor")?,
            None => self.text.positive("max_position_embeddings")? / original_context,
        };
        let [beta_fast, beta_slow] = [("beta_fast", 32.0), ("beta_slow", 1.0)]
            .map(|(key, default)| if keys.get(key).is_some() { keys.positive(key) } else { Ok(default) });
        let root = |m: f64| if factor > 1.0 { 0.1 * m * factor.ln() + 1.0 } else { 1.0 };
        let [mscale, mscale_all] = ["mscale", "mscale_all_dim"].map(|key| keys.number(key, 0.0));
        let (mscale, mscale_all) = (mscale?, mscale_all?);
        let amplitude = match keys.get("attention_factor") {
            Some(_) => keys.positive("attention_factor")?,
            None if mscale != 0.0 && mscale_all != 0.0 => root(mscale) / root(mscale_all),
            None => root(1.0),
        };
        let whole = keys.get("truncate").is_none() || keys.flag("truncate");
        let (beta_fast, beta_slow) = (beta_fast?, beta_slow?);
        Ok(Scaling::Yarn { factor, original_context, beta_fast, beta_slow, whole, amplitude })
    }

    fn long(&self, keys: &Keys<'_>, rotary_dim: usize) -> Result<Scaling> {
        let [short, long] = ["short_factor", "long_factor"].map(|key| keys.positives(key, rotary_dim / 2));
        // The top-level key, even if rope_scaling has another (transformers' Phi3Config).
        let key = "original_max_position_embeddings";
        let original_context = match self.text.size_if(key)? {
            Some(context) => context,
            None => self.original_context()? as usize,
        };
        let factor = match keys.get("factor") {
            Some(_) => keys.positive("factor")?,
            None => self.text.positive("max_position_embeddings")? / original_context as f64,
        };
        let amplitude = match keys.get("attention_factor") {
            Some(_) => keys.positive("attention_factor")?,
            None if factor > 1.0 => (1.0 + factor.ln() / (original_context as f64).ln()).sqrt(),
            None => 1.0,
        };
        Ok(Scaling::Long { short: short?, long: long?, original_context, amplitude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(text: &str) -> Rope {
        let keys = Keys::parse("config.json", text).unwrap();
        RopeKeys::new(&keys, 16).parse("rope_theta").unwrap()
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let plain = rope(r#"{"rope_theta":10000.0}"#).inv_freq(0);
        let yarn = rope(
            r#"{"rope_theta":10000.0,"max_position_embeddings":4096,"rope_scaling":
            {"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":1024}}"#,
        );
        let scaled = yarn.inv_freq(0);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[7] - plain[7] / 4.0).abs() < 1e-9);
        // 0.1 ln 4 + 1.
        assert!((yarn.amplitude() - 1.138_629_4).abs() < 1e-6);
    }

    #[test]
    fn long_factors_are_of_sessions_beyond_the_first_context() {
        let long = rope(
            r#"{"rope_theta":10000.0,"max_position_embeddings":128,"original_max_position_embeddings":32,
            "rope_scaling":{"type":"su","short_factor":[1,1,1,1,1,1,1,1],"long_factor":[2,2,2,2,2,2,2,2]}}"#,
        );
        let (short, beyond) = (long.inv_freq(32), long.inv_freq(33));
        assert!(short.iter().zip(&beyond).all(|(short, beyond)| *short == 2.0 * beyond));
        // sqrt(1 + ln 4 / ln 32).
        assert!((long.amplitude() - 1.183_216).abs() < 1e-6);
    }

    #[test]
    fn layers_with_a_window_have_an_embedding_of_their_own() {
        let of = |text: &str| {
            let keys = Keys::parse("config.json", text).unwrap();
            let all = RopeKeys::new(&keys, 16).parse("rope_theta").unwrap();
            (all, RopeKeys::windowed(&keys, 16).parse("rope_local_base_freq").unwrap())
        };
        let flat = of(
            r#"{"rope_theta":1e6,"rope_local_base_freq":1e4,"rope_scaling":{"rope_type":"linear","factor":8}}"#,
        );
        let nested =
            of(r#"{"rope_parameters":{"full_attention":{"rope_type":"linear","factor":8,"rope_theta":1e6},
            "sliding_attention":{"rope_type":"default","rope_theta":1e4}}}"#);
        assert_eq!(flat, nested);
        assert_eq!((flat.0.theta, &flat.0.scaling), (1e6, &Scaling::Linear { factor: 8.0 }));
        assert_eq!((flat.1.theta, &flat.1.scaling), (1e4, &Scaling::None));
    }
}
