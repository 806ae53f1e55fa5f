//! [`Stats`]: what a generation took.

use std::time::Duration;

/// Counts and times of one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens that were read before the first was drawn; what the session held from earlier is left out.
    pub prompt_tokens: usize,
    /// The time until the first was drawn.
    pub prompt_time: Duration,
    /// Tokens that were drawn, the one that ended the text included.
    pub generated_tokens: usize,
    /// From the first of them, which came with the prompt, to the last.
    pub generation_time: Duration,
}

impl Stats {
    /// Prompt tokens read per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt_time)
    }

    /// Tokens generated per second; 0 for fewer than two.
    pub fn generation_rate(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.generation_time)
    }

    /// Milliseconds per generated token; 0 for fewer than two.
    pub fn token_ms(&self) -> f64 {
        match self.generation_rate() {
            0.0 => 0.0,
            rate => 1e3 / rate,
        }
    }

    /// Bytes of weights read per second while generating, where each token reads `weight_bytes`.
    pub fn weight_rate(&self, weight_bytes: u64) -> f64 {
        self.generation_rate() * weight_bytes as f64
    }
}

/// `count` per second; 0 where no time was taken.
fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}
