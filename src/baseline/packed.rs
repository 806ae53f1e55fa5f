//! Packed layers of GPTQ and AWQ: integers packed into 32-bit words, and a scale and a zero point for each group of
//! input columns.

use half::f16;
use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Output rows that are unpacked together: their words are neighbours.
const ROWS: usize = 16;

/// The end of a packed matrix's name.
pub const QWEIGHT: &str = ".qweight";

/// Names of the packed layers, without [`QWEIGHT`].
pub fn layers(checkpoint: &Checkpoint) -> Result<Vec<String>> {
    let layers: Vec<String> =
        checkpoint.names().filter_map(|name| name.strip_suffix(QWEIGHT)).map(str::to_owned).collect();
    if layers.is_empty() {
        return Err(Error::invalid("config.json: quantization_config", "no tensor is called *.qweight"));
    }
    Ok(layers)
}

/// A matrix of 32-bit words.
pub struct Words {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    words: Vec<u32>,
}

impl Words {
    /// The I32 or U32 tensor called `name`, which must have two dimensions.
    pub fn read(checkpoint: &Checkpoint, name: String) -> Result<Self> {
        let words = words(checkpoint, &name)?;
        let &[rows, cols] = checkpoint.raw(&name)?.shape else {
            let found = format!("{:?}", checkpoint.raw(&name)?.shape);
            return Err(Error::mismatch(format!("tensor {name}"), "two dimensions", found));
        };
        Ok(Self { name, rows, cols, words })
    }

    pub fn check_shape(&self, rows: usize, cols: usize) -> Result<()> {
        check_shape(&self.name, &[rows, cols], &[self.rows, self.cols])
    }

    pub fn word(&self, row: usize, col: usize) -> u32 {
        self.words[row * self.cols + col]
    }
}

/// The elements of a tensor of I32 or U32.
pub fn words(checkpoint: &Checkpoint, name: &str) -> Result<Vec<u32>> {
    let raw = checkpoint.raw(name)?;
    if !matches!(raw.dtype, safetensors::Dtype::I32 | safetensors::Dtype::U32) {
        return Err(Error::mismatch(format!("tensor {name}"), "I32", format!("{:?}", raw.dtype)));
    }
    Ok(raw.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

pub fn check_shape(name: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::mismatch(format!("tensor {name}"), format!("shape {expected:?}"), format!("{found:?}")))
}

/// The number of groups of a layer, and its scales `[groups, outs]`.
pub fn scales(checkpoint: &Checkpoint, name: &str, outs: usize) -> Result<(usize, Vec<f32>)> {
    let view = checkpoint.tensor(name)?;
    let groups = view.shape.first().copied().unwrap_or(0);
    check_shape(name, &[groups, outs], &view.shape)?;
    let scales = view.to_f32();
    match scales.iter().find(|scale| !scale.is_finite()) {
        None => Ok((groups, scales)),
        Some(bad) => Err(Error::mismatch(format!("tensor {name}"), "finite numbers", bad)),
    }
}

/// The group of each input column if neighbours share one.
///
/// # Errors
/// `groups` is not the number of groups that this makes.
pub fn neighbours(name: &str, ins: usize, group: Option<usize>, groups: usize) -> Result<Vec<usize>> {
    let group = group.unwrap_or(ins).max(1);
    if groups != ins.div_ceil(group) {
        let expected = format!("{} groups of {group} columns", ins.div_ceil(group));
        return Err(Error::mismatch(format!("tensor {name}"), expected, groups));
    }
    Ok((0..ins).map(|column| column / group).collect())
}

/// A packed layer with its codes, whatever the packing.
pub struct Layer<'a, Q> {
    pub name: &'a str,
    pub ins: usize,
    pub outs: usize,
    /// Group of each input column.
    pub groups: Vec<usize>,
    /// `[groups, outs]`.
    pub scales: Vec<f32>,
    /// `[groups, outs]`.
    pub zeros: Vec<u32>,
    /// The code at (input column, output row).
    pub code: Q,
}

impl<Q: Fn(usize, usize) -> u32 + Sync> Layer<'_, Q> {
    /// Replaces the packed tensors by the matrix `scale (code - zero)` `[outs, ins]`.
    pub fn store(self, checkpoint: &mut Checkpoint) -> Result<()> {
        let Self { name, ins, outs, groups, scales, zeros, code } = self;
        let mut weights = vec![f16::ZERO; ins * outs];
        weights.par_chunks_mut((ROWS * ins).max(1)).enumerate().for_each(|(block, weights)| {
            for (column, group) in groups.iter().enumerate() {
                for (row, weights) in weights.chunks_exact_mut(ins).enumerate() {
                    let out = block * ROWS + row;
                    let at = group * outs + out;
                    let steps = i64::from(code(column, out)) - i64::from(zeros[at]);
                    weights[column] = f16::from_f32(scales[at] * steps as f32);
                }
            }
        });
        if weights.iter().any(|weight| !weight.is_finite()) {
            return Err(Error::invalid(format!("tensor {name}.scales"), "its weights do not fit into f16"));
        }
        let replaced = ["qweight", "qzeros", "scales", "g_idx"].map(|part| format!("{name}.{part}"));
        let weight = format!("{name}.weight");
        if checkpoint.contains(&weight) {
            return Err(Error::invalid(format!("tensor {weight}"), "its packed form is present as well"));
        }
        checkpoint.replace(&replaced, weight, [outs, ins], &weights, None);
        Ok(())
    }
}
