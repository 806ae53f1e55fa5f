//! Round-to-nearest: a scale and a zero point for each group of a row's weights.

use std::fmt;
use std::str::FromStr;

use half::f16;
use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Plain rounding of linear layers, written `rtn-BITS-gGROUP`: codes of 2 to 8 bits, and for every GROUP neighbouring
/// weights of a row a scale in f16 and a zero point of as many bits as a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtn {
    pub bits: u32,
    pub group: usize,
}

impl FromStr for Rtn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (bits, group) = text.strip_prefix("rtn-")?.split_once("-g")?;
            Some(Self { bits: bits.parse().ok()?, group: group.parse().ok()? })
        };
        let valid = parse().filter(|rtn| (2..=8).contains(&rtn.bits) && rtn.group > 0);
        let expected = "rtn-BITS-gGROUP with 2 to 8 bits, like rtn-4-g128";
        valid.ok_or_else(|| Error::mismatch("baseline", expected, format!("{text:?}")))
    }
}

impl fmt::Display for Rtn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rtn-{}-g{}", self.bits, self.group)
    }
}

impl Rtn {
    /// Rounds the matrix called `name` to f16 values; its size then counts as that of codes, scales and zero points.
    pub fn round(&self, checkpoint: &mut Checkpoint, name: &str) -> Result<()> {
        let view = checkpoint.tensor(name)?;
        let &[rows, cols] = &view.shape[..] else {
            return Err(Error::mismatch(
                format!("tensor {name}"),
                "two dimensions",
                format!("{:?}", view.shape),
            ));
        };
        let mut weights = view.to_f32();
        weights.par_chunks_mut(cols.max(1)).for_each(|row| {
            row.chunks_mut(self.group).for_each(|group| self.round_group(group));
        });
        let rounded: Vec<f16> = weights.par_iter().map(|w| f16::from_f32(*w)).collect();
        if rounded.iter().any(|weight| !weight.is_finite()) {
            return Err(Error::invalid(format!("tensor {name}"), "its weights do not fit into f16"));
        }
        checkpoint.release(name);
        let stored = self.matrix_bytes(rows, cols);
        checkpoint.replace(&[name.to_owned()], name.to_owned(), [rows, cols], &rounded, Some(stored));
        Ok(())
    }

    /// Bytes of a matrix `[rows, cols]` as it would be stored.
    pub fn matrix_bytes(&self, rows: usize, cols: usize) -> u64 {
        let groups = cols.div_ceil(self.group) as u64;
        let row_bits = cols as u64 * u64::from(self.bits) + groups * u64::from(16 + self.bits);
        (rows as u64 * row_bits).div_ceil(8)
    }

    /// Rounds weights that share a scale and a zero point; the range includes 0, so that 0 stays 0.
    fn round_group(&self, weights: &mut [f32]) {
        let low = weights.iter().fold(0f32, |low, w| low.min(*w));
        let high = weights.iter().fold(0f32, |high, w| high.max(*w));
        let top = ((1u32 << self.bits) - 1) as f32;
        let scale = f16::from_f32((high - low) / top).to_f32();
        if scale == 0.0 {
            return weights.fill(0.0);
        }
        let zero = (-low / scale).round().clamp(0.0, top);
        for weight in weights {
            *weight = ((*weight / scale).round() + zero).clamp(0.0, top) * scale - zero * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!("rtn-3-g64".parse::<Rtn>().unwrap(), Rtn { bits: 3, group: 64 });
        assert_eq!(Rtn { bits: 4, group: 128 }.to_string(), "rtn-4-g128");
        for bad in ["rtn-1-g128", "rtn-9-g128", "rtn-4-g0", "rtn-4", "awq-4-g128", "rtn-4-g", ""] {
            assert!(bad.parse::<Rtn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_codes_scales_and_zero_points() {
        let bits = |rtn: &str| {
            rtn.parse::<Rtn>().unwrap().matrix_bytes(512, 512) as f64 * 8.0 / f64::from(512 * 512)
        };
        assert_eq!((bits("rtn-4-g128"), bits("rtn-3-g128")), (4.15625, 3.1484375));
    }

    #[test]
    fn groups_round_to_their_steps() {
        let rtn = Rtn { bits: 2, group: 4 };
        // Range -1 to 2 in three steps of 1.
        let mut weights = [-1.0, 0.2, 1.4, 2.0];
        rtn.round_group(&mut weights);
        assert_eq!(weights, [-1.0, 0.0, 1.0, 2.0]);
        let mut zeros = [0.0; 4];
        rtn.round_group(&mut zeros);
        assert_eq!(zeros, [0.0; 4]);
        let mut far = [5.0, 5.5];
        rtn.round_group(&mut far);
        assert!((far[0] - 5.5).abs() < 0.01 && far[0] == far[1], "{far:?}");
    }
}
