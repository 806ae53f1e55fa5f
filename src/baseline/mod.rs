//! Weights of other quantizers, for comparison: round-to-nearest, computed in memory, and GPTQ and AWQ checkpoints. All
//! become f16 matrices, so that the same engine evaluates them.

mod awq;
mod gptq;
mod packed;
mod rtn;

pub use rtn::Rtn;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Replaces packed matrices by f16 ones if `quantization_config` in config.json names GPTQ or AWQ.
///
/// # Errors
/// Another method of quantization; a tensor that is missing or does not fit the others, by its name.
pub fn unpack(checkpoint: &mut Checkpoint) -> Result<()> {
    let config: Value =
        serde_json::from_str(&checkpoint.assets().config).map_err(|e| Error::invalid("config.json", e))?;
    let found = [&config["quantization_config"], &config["text_config"]["quantization_config"]];
    let Some(config) = found.into_iter().find(|config| !config.is_null()) else { return Ok(()) };
    let config = Config(config);
    match config.text("quant_method") {
        Some("gptq") => gptq::unpack(checkpoint, &config),
        Some("awq") => awq::unpack(checkpoint, &config),
        _ => Err(config.mismatch("quant_method", "gptq or awq")),
    }
}

/// config.json's `quantization_config`.
struct Config<'a>(&'a Value);

impl Config<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.0[key].as_str()
    }

    fn mismatch(&self, key: &str, expected: &str) -> Error {
        let found = self.0.get(key).map_or("nothing".into(), Value::to_string);
        Error::mismatch(format!("config.json: quantization_config.{key}"), expected, found)
    }

    fn bits(&self, allowed: &[u32]) -> Result<u32> {
        let found = ["bits", "w_bit"].iter().find_map(|key| self.0[*key].as_u64());
        let bits = found.and_then(|bits| u32::try_from(bits).ok()).filter(|bits| allowed.contains(bits));
        bits.ok_or_else(|| self.mismatch("bits", &format!("one of {allowed:?}")))
    }

    /// Input columns that share a scale; none if all do.
    fn group(&self) -> Result<Option<usize>> {
        let found = ["group_size", "q_group_size"].iter().find_map(|key| self.0[*key].as_i64());
        match found {
            Some(-1) => Ok(None),
            Some(group @ 1..=0xffff_ffff) => Ok(Some(group as usize)),
            _ => Err(self.mismatch("group_size", "-1 or at least 1")),
        }
    }
}
