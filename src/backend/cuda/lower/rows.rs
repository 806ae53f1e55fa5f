//! Operations on rows by themselves: norms, rotation, GLU, selection.

use super::{Lowering, Packing, few, kernels};
use crate::Result;
use crate::backend::cuda::device::abi::SPAN;
use crate::backend::cuda::device::launch::{Commands, Launch, Shape};
use crate::backend::cuda::device::memory::Memory;
use crate::backend::cuda::device::unit::Source;
use crate::backend::cuda::lower::Buffer;
use crate::ops::{
    GatedNorm, GatherRows, GatherRowsParams, Glu, GluParams, KernelParams, QkNorm, QkNormParams, RmsNorm,
    RmsNormParams, Rotate, RotateParams,
};

/// Threads for a row of `dim` elements.
pub fn row_threads(dim: u32) -> u32 {
    (dim / 4).next_multiple_of(32).clamp(32, 1024)
}

/// The part of a row that a block takes where few rows are divided: a rotation's block, or a span.
fn unit(rotate: u32) -> u32 {
    if rotate > 0 { rotate } else { SPAN as u32 }
}

/// Of gather_rows.
pub fn gather_rows_shape(p: &GatherRowsParams) -> Shape {
    Shape { grid: [p.dim.div_ceil(256), p.rows, 1], threads: 256, shared: 0 }
}

/// Of rms_norm for few rows, which are divided among all multiprocessors, by blocks that fit beside a product's.
pub fn rms_norm_shape(p: &RmsNormParams, sms: u32) -> Shape {
    let unit = unit(p.rotate);
    let units = p.dim.div_ceil(unit);
    let parts = (sms / p.rows).clamp(1, units);
    Shape {
        grid: [p.rows, parts, 1],
        threads: 256,
        shared: kernels::row_shared(units.div_ceil(parts) * unit),
    }
}

/// Of qk_norm.
pub fn qk_norm_shape(p: &QkNormParams) -> Shape {
    Shape { grid: [2, p.rows, 1], threads: 512, shared: 0 }
}

/// Of glu for few rows.
pub fn glu_shape(p: &GluParams) -> Shape {
    Shape { grid: [p.dim.div_ceil(unit(p.rotate)), p.rows, 1], threads: 256, shared: 0 }
}

/// Of rotate, and of the kernels that take many rows by spans.
pub fn spans_shape(rows: u32, dim: u32) -> Shape {
    const WARPS: u32 = 4;
    let grid = [dim.div_ceil(SPAN as u32 * WARPS), rows, 1];
    Shape { grid, threads: WARPS * 32, shared: kernels::spans_shared(WARPS) }
}

impl Lowering {
    pub fn gather_rows(&self, c: &mut Commands, op: &GatherRows<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let function = Source::GatherRows.unit().function("gather_rows");
        c.launch(
            Launch::of(function, gather_rows_shape(&p))
                .memory(op.x.memory())
                .memory(op.index.memory())
                .memory(op.y.memory())
                .structure(p.words()),
        );
        Ok(())
    }

    pub fn rms_norm(
        &self,
        c: &mut Commands,
        op: &RmsNorm<'_, Buffer>,
        packing: Option<Packing>,
    ) -> Result<()> {
        let p = op.params;
        let few = few(self.capabilities(), p.rows);
        let mut shape = if few {
            rms_norm_shape(&p, self.capabilities().sms)
        } else {
            let warps = p.dim.div_ceil(SPAN as u32).min(16);
            Shape { grid: [p.rows, 1, 1], threads: warps * 32, shared: kernels::spans_shared(warps) }
        };
        let (rows, copy) = self.second_copy(packing, p.rows, p.dim as usize)?;
        shape.grid[0] = rows;
        let entry = match (few, op.residual) {
            (true, None) => "rms_norm",
            (true, Some(_)) => "rms_norm_added",
            (false, None) => "rms_norm_rows",
            (false, Some(_)) => "rms_norm_rows_added",
        };
        let launch = Launch::of(Source::RmsNorm.unit().function(entry), shape)
            .memory(op.x.memory())
            .memory(op.weight.memory());
        let launch = op.residual.iter().fold(launch, |launch, residual| launch.memory(residual.memory()));
        c.launch(launch.memory(op.y.memory()).structure(p.words()).structure(copy.words()));
        Ok(())
    }

    pub fn qk_norm(&self, c: &mut Commands, op: &QkNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let function = Source::QkNorm.unit().function("qk_norm");
        c.launch(
            Launch::of(function, qk_norm_shape(&p))
                .memory(op.qkv.memory())
                .memory(op.q_norm.memory())
                .memory(op.k_norm.memory())
                .structure(p.words()),
        );
        Ok(())
    }

    pub fn rotate(&self, c: &mut Commands, op: &Rotate<'_, Buffer>, packing: Option<Packing>) -> Result<()> {
        self.rotate_rows(c, op.x.memory(), op.y.memory(), op.params, packing)
    }

    /// x and y may be the same.
    pub(super) fn rotate_rows(
        &self,
        c: &mut Commands,
        x: &Memory,
        y: &Memory,
        p: RotateParams,
        packing: Option<Packing>,
    ) -> Result<()> {
        let (rows, copy) = self.second_copy(packing, p.rows, p.dim as usize)?;
        let function = Source::Rotate.unit().function("rotate");
        c.launch(
            Launch::of(function, spans_shape(rows, p.dim))
                .memory(x)
                .memory(y)
                .structure(p.words())
                .structure(copy.words()),
        );
        Ok(())
    }

    pub fn glu(&self, c: &mut Commands, op: &Glu<'_, Buffer>, packing: Option<Packing>) -> Result<()> {
        let p = op.params;
        let (rows, copy) = self.second_copy(packing, p.rows, p.dim as usize)?;
        let (entry, mut shape) = if few(self.capabilities(), p.rows) {
            ("glu", glu_shape(&p))
        } else {
            ("glu_rows", spans_shape(rows, p.dim))
        };
        shape.grid[1] = rows;
        let function = Source::Glu.unit().function(entry);
        c.launch(
            Launch::of(function, shape)
                .memory(op.x.memory())
                .memory(op.y.memory())
                .structure(p.words())
                .structure(copy.words()),
        );
        Ok(())
    }

    pub fn gated_norm(&self, c: &mut Commands, op: &GatedNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        // A block takes a rotation's block where that is of whole heads.
        let size = p.heads * p.dim;
        let part = if p.rotate > 0 && p.rotate.is_multiple_of(p.dim) { p.rotate } else { size };
        let function = Source::GatedNorm.unit().function("gated_norm");
        let shared = kernels::row_shared(part);
        c.launch(
            Launch::new(function, [size / part, p.rows, 1], row_threads(part), shared)
                .memory(op.x.memory())
                .memory(op.gate.memory())
                .memory(op.weight.memory())
                .memory(op.y.memory())
                .structure(p.words()),
        );
        Ok(())
    }
}
