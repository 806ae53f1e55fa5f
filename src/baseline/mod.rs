//! Weights of other quantizers, for comparison: round-to-nearest, computed in memory, and GPTQ and AWQ checkpoints. All
//! become f16 matrices, so that the same engine evaluates them.

mod awq;
mod gptq;
mod packed;
mod rtn;

pub use rtn::Rtn;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, read_text};
use crate::{Error, Result};

/// Replaces packed matrices by f16 ones if the folder `dir` of a checkpoint says that it is one of GPTQ or AWQ: in
/// `quantization_config` of config.json, or in a file of its own, as AutoGPTQ before 0.5 and AutoAWQ wrote.
///
/// # Errors
/// Another method of quantization; a tensor that is missing or does not fit the others, by its name.
pub fn unpack(checkpoint: &mut Checkpoint, dir: &Path) -> Result<()> {
    let parse = |file: &str, text: &str| -> Result<Value> {
        serde_json::from_str(text).map_err(|e| Error::invalid(file, e))
    };
    let config = parse("config.json", &checkpoint.assets().config)?;
    let found = [&config["quantization_config"], &config["text_config"]["quantization_config"]];
    if let Some(values) = found.into_iter().find(|config| !config.is_null()) {
        let config = Config { place: "config.json: quantization_config.", values };
        return match config.text("quant_method") {
            Some("gptq") => gptq::unpack(checkpoint, &config),
            Some("awq") => awq::unpack(checkpoint, &config),
            _ => Err(config.mismatch("quant_method", "gptq or awq")),
        };
    }
    if !is_packed(checkpoint) {
        return Ok(());
    }
    for (file, place, unpack) in OWN_FILES {
        if let Some(text) = read_text(&dir.join(file))? {
            return unpack(checkpoint, &Config { place, values: &parse(file, &text)? });
        }
    }
    Err(Error::mismatch(
        dir.display().to_string(),
        "quantization_config in config.json, quantize_config.json or quant_config.json, because matrices are packed",
        "none of them",
    ))
}

type Unpack = fn(&mut Checkpoint, &Config<'_>) -> Result<()>;

/// Files of their own, their names for messages, and what they describe.
const OWN_FILES: [(&str, &str, Unpack); 2] = [
    ("quantize_config.json", "quantize_config.json: ", gptq::unpack),
    ("quant_config.json", "quant_config.json: ", awq::unpack),
];

/// Whether a checkpoint has packed matrices of GPTQ or AWQ.
pub fn is_packed(checkpoint: &Checkpoint) -> bool {
    checkpoint.names().any(|name| name.ends_with(packed::QWEIGHT))
}

/// What a quantizer wrote of its settings.
struct Config<'a> {
    /// Where they stand, for messages; a key follows.
    place: &'a str,
    values: &'a Value,
}

impl Config<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.values[key].as_str()
    }

    fn mismatch(&self, key: &str, expected: &str) -> Error {
        let found = self.values.get(key).map_or("nothing".into(), Value::to_string);
        Error::mismatch(format!("{}{key}", self.place), expected, found)
    }

    fn bits(&self, allowed: &[u32]) -> Result<u32> {
        let found = ["bits", "w_bit"].iter().find_map(|key| self.values[*key].as_u64());
        let bits = found.and_then(|bits| u32::try_from(bits).ok()).filter(|bits| allowed.contains(bits));
        bits.ok_or_else(|| self.mismatch("bits", &format!("one of {allowed:?}")))
    }

    /// Input columns that share a scale; none if all do.
    fn group(&self) -> Result<Option<usize>> {
        let found = ["group_size", "q_group_size"].iter().find_map(|key| self.values[*key].as_i64());
        match found {
            Some(-1) => Ok(None),
            Some(group @ 1..=0xffff_ffff) => Ok(Some(group as usize)),
            _ => Err(self.mismatch("group_size", "-1 or at least 1")),
        }
    }
}
