//! Activation rows in the layouts that products of many rows read.

use std::fmt::{self, Display, Formatter};

use super::{Buffer, Lowering, dtype_number, kernels, pack_unit};
use crate::Result;
use crate::backend::cuda::device::Scratch;
use crate::backend::cuda::device::abi::{PackedRows, TILE_CODES};
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::{Memory, address};
use crate::backend::cuda::device::unit::Source;
use crate::plan::Pack;
use crate::tensor::Dtype;

/// A layout of rows of x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Rows of f16 or bf16, for cuBLAS.
    Half(Dtype),
    /// Tensor cores' operands (kernels/pack_rows.cu) for codes of `d` inputs, in `groups` groups of 8 columns; `split`: a
    /// row is two columns, f16 and what that leaves of the f32.
    Tiles { d: usize, groups: u32, split: bool },
}

impl Display for Packing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Half(dtype) => write!(f, "rows of {}", if *dtype == Dtype::BF16 { "bf16" } else { "f16" }),
            Self::Tiles { d, groups, split } => {
                let split = if *split { ", split" } else { "" };
                write!(f, "tiles for d = {d}, {groups} groups{split}")
            }
        }
    }
}

impl Packing {
    /// Rows that the layout has columns for; none where it takes any number.
    pub fn capacity(self) -> Option<u32> {
        match self {
            Self::Half(_) => None,
            Self::Tiles { groups, split, .. } => Some(groups * if split { 4 } else { 8 }),
        }
    }

    /// Pieces of 16 bytes that rows of `cols` take.
    fn pieces(d: usize, groups: u32, cols: usize) -> usize {
        let entry = if d == 1 { 1 } else { kernels::entry_halves(d) };
        cols.div_ceil(d).div_ceil(TILE_CODES) * groups as usize * TILE_CODES * entry
    }
}

impl Lowering {
    /// Where `rows` rows of `cols` stand in a layout.
    pub(super) fn packed(&self, packing: Packing, rows: u32, cols: usize) -> Result<Memory> {
        match packing {
            Packing::Half(_) => self.device.scratch(Scratch::HalfInput, (rows as usize * cols).div_ceil(2)),
            Packing::Tiles { d, groups, .. } => {
                self.device.scratch(Scratch::Packed, Packing::pieces(d, groups, cols) * 4)
            }
        }
    }

    /// What a kernel that makes `rows` rows of `cols` is told of a second copy, and the rows that it is launched for.
    pub(super) fn second_copy(
        &self,
        packing: Option<Packing>,
        rows: u32,
        cols: usize,
    ) -> Result<(u32, PackedRows)> {
        let Some(packing) = packing else { return Ok((rows, PackedRows::default())) };
        let at = address(&self.packed(packing, rows, cols)?);
        let copy = match packing {
            Packing::Half(dtype) => {
                PackedRows { at, cols: cols as u32, dtype: dtype_number(dtype), ..PackedRows::default() }
            }
            Packing::Tiles { d, groups, split } => {
                PackedRows { at, groups, split: split.into(), log_d: d.ilog2(), ..PackedRows::default() }
            }
        };
        Ok((packing.capacity().unwrap_or(rows), copy))
    }

    /// A step that does nothing else.
    pub fn pack(&self, c: &mut Commands, pack: &Pack<'_, Buffer, Packing>) -> Result<()> {
        let (rows, cols) = (pack.rows.len() as u32, pack.cols);
        let x_at = u64::from(pack.rows.start) * cols as u64 * 4;
        let packed = self.packed(pack.packing, rows, cols)?;
        c.launch(match pack.packing {
            Packing::Half(dtype) => {
                let function = Source::DenseMatmul.unit().function("to_half");
                let blocks = (rows as usize * cols).div_ceil(1024) as u32;
                Launch::new(function, [blocks, 1, 1], 256, 0)
                    .memory_at(pack.x.memory(), x_at)
                    .memory(&packed)
                    .word(rows)
                    .word(cols as u32)
                    .word(dtype_number(dtype))
            }
            Packing::Tiles { d, groups, split } => {
                let pieces = Packing::pieces(d, groups, cols) as u32;
                let function = pack_unit(d).function("pack_rows");
                Launch::new(function, [pieces.div_ceil(256), 1, 1], 256, 0)
                    .memory_at(pack.x.memory(), x_at)
                    .memory(&packed)
                    .word(rows)
                    .word(cols as u32)
                    .word(groups)
                    .word(pieces)
                    .word(split.into())
            }
        });
        Ok(())
    }
}
