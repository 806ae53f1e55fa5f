//! Few rows times stacked matrices with a codebook for each subspace (kernels/pq_matvec_subspace.cu): partial sums, which a
//! second kernel adds up. For one row the first normalises its input, and the second applies GLU to its output.

use super::kernels::MatvecSubspace;
use super::linear::Io;
use super::weight::{Part, Pq};
use super::{Buffer, Lowering};
use crate::backend::cuda::device::Scratch;
use crate::backend::cuda::device::abi::{SUBSPACE_MATRICES, SubspaceMatrices, SubspaceNorm, SubspaceRows};
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::{Memory, address};
use crate::backend::cuda::device::unit::Source;
use crate::ops::{Glu, KernelParams, RmsNorm};
use crate::{Error, Result};

impl Lowering {
    /// Stacked matrices, at most [`SUBSPACE_MATRICES`].
    pub(super) fn pq_matvec_subspace(
        &self,
        c: &mut Commands,
        parts: &[Part],
        io: &Io<'_>,
        norm: Option<&RmsNorm<'_, Buffer>>,
        glu: Option<&Glu<'_, Buffer>>,
    ) -> Result<()> {
        let all: Vec<&Pq> = parts.iter().filter_map(Part::pq).collect();
        if all.len() != parts.len() || !(1..=SUBSPACE_MATRICES).contains(&all.len()) {
            let found = format!("{} matrices, {} of them of codes", parts.len(), all.len());
            return Err(Error::mismatch("pq_matvec_subspace", "1 to 4 matrices of codes", found));
        }
        let (rows, params, sms) = (io.params.rows, io.of_part(&parts[0]), self.capabilities().sms);
        let (spec, code_tiles) = (&all[0].spec, all[0].code_tiles as u32);
        let kernel = MatvecSubspace::new(spec, rows);
        let heights: Vec<usize> = parts.iter().map(|part| part.rows).collect();
        let blocks = MatvecSubspace::blocks(spec, &heights, code_tiles, sms);
        let out: usize = heights.iter().sum();
        let partial = self.device.scratch(Scratch::Partial, code_tiles as usize * rows as usize * out)?;
        // Beyond the last matrix, the last again.
        let stacked: [&Pq; SUBSPACE_MATRICES] = std::array::from_fn(|i| all[i.min(all.len() - 1)]);
        let at = |memory: Option<&Memory>| memory.map_or(0, address);
        let matrices = SubspaceMatrices {
            codes: stacked.map(|pq| address(&pq.codes)),
            tables: stacked.map(|pq| at(pq.tables.as_ref())),
        };
        let ends = |counts: &[u32]| std::array::from_fn(|i| counts.iter().take(i + 1).sum::<u32>());
        let heights: Vec<u32> = heights.iter().map(|rows| *rows as u32).collect();
        let scales = stacked.map(|pq| at(pq.scales.as_ref()));
        let stack = SubspaceRows { scales, rows_end: ends(&heights), blocks_end: ends(&blocks) };
        let x = norm.map_or(io.x, |norm| norm.x.memory());
        let normed = norm.map_or(SubspaceNorm::default(), |norm| SubspaceNorm {
            weight: address(norm.weight.memory()),
            normed: address(norm.y.memory()),
            eps: norm.params.eps,
            weight_offset: norm.params.weight_offset,
        });
        let function = kernel.unit.function("pq_matvec_subspace");
        c.launch(
            Launch::new(function, [blocks.iter().sum(), 1, 1], kernel.warps * 32, kernel.table)
                .structure(matrices.words())
                .structure(stack.words())
                .memory_at(x, io.x_at())
                .memory(&partial)
                .word(io.cols as u32)
                .word(code_tiles)
                .structure(params.words())
                .structure(normed.words()),
        );
        let function = Source::PqSumParts.unit().function("pq_sum_parts");
        let grid = (out as u32 * rows).div_ceil(32).min(sms);
        c.launch(
            Launch::new(function, [grid, 1, 1], 512, 0)
                .structure(stack.words())
                .optional(io.bias, parts[0].first as u64 * 4)
                .memory_at(io.y, io.y_at())
                .memory(&partial)
                .word(code_tiles)
                .structure(params.words())
                .optional(glu.map(|glu| glu.y.memory()), 0)
                .word(glu.map_or(0, |glu| glu.params.gelu)),
        );
        Ok(())
    }
}
