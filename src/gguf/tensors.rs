//! A tensor as a Hugging Face folder would hold it: quantized ones become f16, and what a converter changed is undone.

use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;

use super::arch::{Arch, Place};
use super::container::TensorInfo;
use crate::config::{DeltaNet, ModelConfig};
use crate::{Error, Result};

/// How a tensor differs from the folder's.
#[derive(Default)]
pub struct Change {
    /// The file's row of each row.
    rows: Option<Vec<usize>>,
    /// The file's column of each column.
    columns: Option<Vec<usize>>,
    value: Option<Map>,
}

type Map = fn(f32) -> f32;

impl Change {
    /// Whether nothing differs.
    pub fn is_none(&self) -> bool {
        self.rows.is_none() && self.columns.is_none() && self.value.is_none()
    }

    /// Of a tensor in its place.
    ///
    /// # Errors
    /// Its rows do not divide into the heads that the configuration has.
    pub fn new(arch: &Arch, config: &ModelConfig, place: &Place, info: &TensorInfo<'_>) -> Result<Self> {
        let mut change = Self::default();
        let rows = info.shape[0];
        let heads = match place.part.as_str() {
            "self_attn.q_proj.weight" | "self_attn.q_proj.bias" => Some(config.heads),
            "self_attn.k_proj.weight" | "self_attn.k_proj.bias" => Some(config.kv_heads),
            _ => None,
        };
        if let Some(heads) = heads.filter(|_| arch.paired) {
            if !rows.is_multiple_of(2 * heads) {
                let expected = format!("pairs of rows for each of {heads} heads");
                return Err(Error::mismatch(format!("tensor {}", info.name), expected, rows));
            }
            change.rows = Some(halves(rows, rows / heads));
        }
        // Converters write the weight that multiplies; a delta net's norm is stored as such.
        let norm = place.part.ends_with("norm.weight") && place.part != "linear_attn.norm.weight";
        if norm && config.family.norm_offset != 0.0 {
            change.value = Some(|weight| weight - 1.0);
        }
        if let Some(net) = &config.delta_net {
            change.delta_net(net, &place.part, &info.shape)?;
        }
        Ok(change)
    }

    /// Value heads stand in the order of their number within a group of heads that share a key head; here a group's stand
    /// together. The decay stands as -exp(A_log).
    fn delta_net(&mut self, net: &DeltaNet, part: &str, shape: &[usize]) -> Result<()> {
        let (keys, width) = (2 * net.key_heads * net.key_dim, net.value_dim);
        match part {
            "linear_attn.in_proj_qkv.weight" | "linear_attn.conv1d.weight" => {
                self.rows = Some(grouped(net, shape[0], keys, width)?);
            }
            "linear_attn.in_proj_z.weight" => self.rows = Some(grouped(net, shape[0], 0, width)?),
            "linear_attn.in_proj_a.weight" | "linear_attn.in_proj_b.weight" | "linear_attn.dt_bias" => {
                self.rows = Some(grouped(net, shape[0], 0, 1)?);
            }
            "linear_attn.A_log" => {
                self.rows = Some(grouped(net, shape[0], 0, 1)?);
                self.value = Some(|decay| (-decay).ln());
            }
            "linear_attn.out_proj.weight" => {
                self.columns = Some(grouped(net, *shape.last().unwrap_or(&0), 0, width)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The tensor's type and bytes with this change: quantized elements as f16, others in their own type.
    ///
    /// # Errors
    /// An element that its type cannot hold as a finite number.
    pub fn apply(&self, info: &TensorInfo<'_>, file: &[u8]) -> Result<(Dtype, Vec<u8>)> {
        let dtype = info.blocks.dense().unwrap_or(Dtype::F16);
        let size = if dtype == Dtype::F32 { 4 } else { 2 };
        // A vector is a column, so that its elements can change places as rows do.
        let (rows, columns) =
            info.shape.split_first().map_or((1, 1), |(rows, rest)| (*rows, rest.iter().product()));
        if !columns.is_multiple_of(info.blocks.elements) {
            let found = info.blocks.name;
            return Err(Error::mismatch(
                format!("tensor {}", info.name),
                "a vector in F32, F16 or BF16",
                found,
            ));
        }
        let (data, row_bytes) = (&file[info.bytes.clone()], info.blocks.row_bytes(columns));
        let mut bytes = vec![0; rows * columns * size];
        let finite = bytes.par_chunks_exact_mut(columns * size).enumerate().map_init(
            || (vec![0.0; columns], vec![0.0; columns]),
            |(read, row), (at, out)| {
                let from = self.rows.as_ref().map_or(at, |rows| rows[at]);
                info.blocks.decode(&data[from * row_bytes..][..row_bytes], read);
                match &self.columns {
                    Some(columns) => row.iter_mut().zip(columns).for_each(|(to, from)| *to = read[*from]),
                    None => row.copy_from_slice(read),
                }
                if let Some(value) = self.value {
                    row.iter_mut().for_each(|x| *x = value(*x));
                }
                write(dtype, row, out)
            },
        );
        match finite.all(|finite| finite) {
            true => Ok((dtype, bytes)),
            false => Err(Error::invalid(
                format!("tensor {}", info.name),
                format!("its elements do not fit into {dtype:?}"),
            )),
        }
    }
}

/// Writes elements in a dense type; returns whether all are finite there.
fn write(dtype: Dtype, row: &[f32], out: &mut [u8]) -> bool {
    let mut finite = true;
    match dtype {
        Dtype::F32 => out.chunks_exact_mut(4).zip(row).for_each(|(out, x)| {
            finite &= x.is_finite();
            out.copy_from_slice(&x.to_le_bytes());
        }),
        Dtype::BF16 => out.chunks_exact_mut(2).zip(row).for_each(|(out, x)| {
            let x = half::bf16::from_f32(*x);
            finite &= x.is_finite();
            out.copy_from_slice(&x.to_le_bytes());
        }),
        _ => out.chunks_exact_mut(2).zip(row).for_each(|(out, x)| {
            let x = f16::from_f32(*x);
            finite &= x.is_finite();
            out.copy_from_slice(&x.to_le_bytes());
        }),
    }
    finite
}

/// The file's row of each row, where it has the two that are turned together side by side in a head of `head_dim` rows,
/// and the folder has them half a head apart.
fn halves(rows: usize, head_dim: usize) -> Vec<usize> {
    let from = |row: usize| {
        let (head, at) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (at % (head_dim / 2)) + at / (head_dim / 2)
    };
    (0..rows).map(from).collect()
}

/// The file's row (or column) of each of `count`: `before` are as they are, then value heads of `width`.
fn grouped(net: &DeltaNet, count: usize, before: usize, width: usize) -> Result<Vec<usize>> {
    if count != before + net.value_heads * width {
        let expected = format!("{before} and {} value heads of {width}", net.value_heads);
        return Err(Error::mismatch("rows of a delta net's tensor", expected, count));
    }
    let group = net.value_heads / net.key_heads;
    let from = |at: usize| match at.checked_sub(before) {
        None => at,
        Some(value) => {
            let head = value / width;
            before + (head % group * net.key_heads + head / group) * width + value % width
        }
    };
    Ok((0..count).map(from).collect())
}
