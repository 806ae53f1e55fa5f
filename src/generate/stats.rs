//! [`Stats`]: counts and times of a generation.

use std::time::Duration;

/// Counts and times of one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Prompt tokens that were processed; tokens that the session held already do not count.
    pub prompt_tokens: usize,
    /// From the start to the first generated token.
    pub prompt_time: Duration,
    /// Generated tokens, the one that ended the text included.
    pub generated_tokens: usize,
    /// From the first generated token, which counts for the prompt, to the last.
    pub generation_time: Duration,
}

impl Stats {
    /// Prompt tokens per second.
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

    /// Bytes of weights read per second while generating, at `weight_bytes` for each token.
    pub fn weight_rate(&self, weight_bytes: u64) -> f64 {
        self.generation_rate() * weight_bytes as f64
    }
}

/// `count` per second; 0 if no time has passed.
fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}
