//! Linear layers: which kernel multiplies which weight by how many rows.

use cudarc::cublas::sys::cudaDataType;

use super::Cuda;
use super::commands::{Commands, Gemm, Launch};
use super::device::Scratch;
use super::io::{Io, Ready};
use super::kernels::{self, Lookup, Matvec, MatvecSubspace, Rows, TILE_ROWS};
use super::matmul::Way;
use super::memory::{Memory, address};
use super::weight::{Kind, Part, Pq, Weight};
use crate::Result;
use crate::backend::Dtype;

/// Rows of x that are multiplied in f32.
pub const SINGLE_ROWS: u32 = 4;

pub fn dtype_number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
    }
}

impl Cuda {
    pub(super) fn linear_parts(&self, c: &mut Commands, weight: &Weight, io: &Io<'_>) -> Result<()> {
        let mut ready = Ready::default();
        for stack in weight.parts.chunk_by(Part::stacks) {
            if let Kind::Pq(pq) = &stack[0].kind
                && pq.lookup == Lookup::Subspace
                && self.way(pq, &stack[0], weight.cols, io.params.rows)? == Way::Matvec
            {
                for parts in stack.chunks(MatvecSubspace::MATRICES) {
                    self.pq_matvec_subspace(c, parts, weight.cols, io)?;
                }
                continue;
            }
            for part in stack {
                self.linear_part(c, part, weight.cols, io, &mut ready)?;
            }
        }
        Ok(())
    }

    fn linear_part(
        &self,
        c: &mut Commands,
        part: &Part,
        cols: usize,
        io: &Io<'_>,
        ready: &mut Ready,
    ) -> Result<()> {
        match &part.kind {
            Kind::Dense { dtype, memory } if io.params.rows <= SINGLE_ROWS => {
                self.dense_matvec(c, *dtype, memory, part, cols, io)
            }
            Kind::Dense { dtype, memory } => {
                let x = self.input_as(c, *dtype, cols, io, ready)?;
                self.gemm(c, *dtype, memory, &x, (0, part.rows), part, cols, io);
                self.add_bias(c, part, io)
            }
            Kind::Pq(pq) => {
                let way = self.way(pq, part, cols, io.params.rows)?;
                self.pq_by(c, way, pq, part, cols, io, ready)
            }
        }
    }

    fn dense_matvec(
        &self,
        c: &mut Commands,
        dtype: Dtype,
        memory: &Memory,
        part: &Part,
        cols: usize,
        io: &Io<'_>,
    ) -> Result<()> {
        let (dtype, rows) = (dtype_number(dtype), io.params.rows);
        let alone = kernels::dense_row(dtype, cols, self.device.shared_limit).filter(|_| rows == 1);
        let (function, grid, threads, shared) = match alone {
            Some((unit, shared)) => {
                let grid = self.device.sms.min(part.rows as u32);
                (self.device.function(unit, "dense_row")?, grid, kernels::DENSE_ROW_WARPS * 32, shared)
            }
            None => {
                let function = self.device.function(kernels::dense(dtype, rows), "dense_matvec")?;
                // 8 warps of 4 rows a block.
                (function, part.rows.div_ceil(32) as u32, 256, 0)
            }
        };
        c.launch(
            Launch::new(function, [grid, 1, 1], threads, shared)
                .memory(memory)
                .optional(io.bias, part.first as u64 * 4)
                .memory_at(io.x, io.x_at(cols))
                .memory_at(io.y, io.y_at())
                .word(part.rows as u32)
                .word(cols as u32)
                .params(&io.of_part(part).words()),
        );
        Ok(())
    }

    /// x in the element type of a matrix product, converted once for all parts.
    pub(super) fn input_as(
        &self,
        c: &mut Commands,
        dtype: Dtype,
        cols: usize,
        io: &Io<'_>,
        ready: &mut Ready,
    ) -> Result<Memory> {
        if dtype == Dtype::F32 {
            return Ok(io.x.clone()); // all of its rows: cuBLAS serves Precision::Half alone
        }
        if let Some((_, memory)) = ready.half.as_ref().filter(|(ready, _)| *ready == dtype) {
            return Ok(memory.clone());
        }
        let count = io.params.rows as usize * cols;
        let memory = self.device.scratch(Scratch::HalfInput, count.div_ceil(2))?;
        let function = self.device.function(kernels::plain("dense_matmul"), "to_half")?;
        c.launch(
            Launch::new(function, [count.div_ceil(1024) as u32, 1, 1], 256, 0)
                .memory_at(io.x, io.x_at(cols))
                .memory(&memory)
                .word(io.params.rows)
                .word(cols as u32)
                .word(dtype_number(dtype)),
        );
        ready.half = Some((dtype, memory.clone()));
        Ok(memory)
    }

    /// y's columns of `rows` rows (first, count) of a part, whose weights stand at the start of `w`.
    #[expect(clippy::too_many_arguments, reason = "the two matrices, what of them, and where to")]
    pub(super) fn gemm(
        &self,
        c: &mut Commands,
        dtype: Dtype,
        w: &Memory,
        x: &Memory,
        rows: (usize, usize),
        part: &Part,
        cols: usize,
        io: &Io<'_>,
    ) {
        let column = io.of_part(part).y_offset as u64 + rows.0 as u64;
        let gemm = Gemm {
            dtype: match dtype {
                Dtype::F32 => cudaDataType::CUDA_R_32F,
                Dtype::F16 => cudaDataType::CUDA_R_16F,
                Dtype::BF16 => cudaDataType::CUDA_R_16BF,
            },
            m: rows.1 as i32,
            n: io.params.rows as i32,
            k: cols as i32,
            w: address(w),
            x: address(x),
            y: address(io.y) + io.y_at() + column * 4,
            y_stride: io.params.y_stride as i32,
            accumulate: io.params.accumulate != 0,
        };
        c.gemm(gemm, [w, x, io.y]);
    }

    pub(super) fn add_bias(&self, c: &mut Commands, part: &Part, io: &Io<'_>) -> Result<()> {
        let Some(bias) = io.bias else { return Ok(()) };
        let function = self.device.function(kernels::plain("dense_matmul"), "add_bias")?;
        c.launch(
            Launch::new(function, [part.rows.div_ceil(256) as u32, io.params.rows, 1], 256, 0)
                .memory_at(bias, part.first as u64 * 4)
                .memory_at(io.y, io.y_at())
                .word(part.rows as u32)
                .params(&io.of_part(part).words()),
        );
        Ok(())
    }

    pub(super) fn pq_matvec(
        &self,
        c: &mut Commands,
        pq: &Pq,
        part: &Part,
        cols: usize,
        io: &Io<'_>,
        ready: &mut Ready,
    ) -> Result<()> {
        let (rows, params) = (io.params.rows, io.of_part(part));
        let row_tiles = part.rows.div_ceil(TILE_ROWS) as u32;
        let code_tiles = pq.code_tiles as u32;
        match pq.lookup {
            Lookup::Shared { replicas } if rows > 1 => {
                let kernel = Rows::new(&pq.spec, replicas, rows, self.device.shared_limit);
                let packed = self.packed(c, pq, cols, io, kernel.groups, ready)?;
                let grid = row_tiles.min(self.device.sms);
                let function = self.device.function(kernel.unit, "pq_rows")?;
                c.launch(
                    io.multiply(
                        Launch::new(function, [grid, 1, 1], kernel.warps * 32, kernel.shared),
                        pq,
                        part,
                    )
                    .memory(&packed)
                    .memory_at(io.y, io.y_at())
                    .word(part.rows as u32)
                    .word(code_tiles)
                    .params(&params.words()),
                );
            }
            Lookup::Shared { replicas } => {
                let kernel = Matvec::new(&pq.spec, replicas, self.device.shared_limit);
                let chunk = kernel.chunk(code_tiles);
                let grid = row_tiles.min(self.device.sms);
                let function = self.device.function(kernel.unit, "pq_matvec_shared")?;
                c.launch(
                    io.multiply(
                        Launch::new(function, [grid, 1, 1], kernel.warps * 32, kernel.shared(chunk))
                            .matvec(kernel),
                        pq,
                        part,
                    )
                    .memory_at(io.x, io.x_at(cols))
                    .memory_at(io.y, io.y_at())
                    .word(part.rows as u32)
                    .word(cols as u32)
                    .word(code_tiles)
                    .word(chunk)
                    .params(&params.words()),
                );
            }
            Lookup::Subspace => self.pq_matvec_subspace(c, std::slice::from_ref(part), cols, io)?,
            Lookup::Memory => {
                let function = self.device.function(kernels::matvec_any(&pq.spec), "pq_matvec")?;
                c.launch(
                    io.multiply(Launch::new(function, [row_tiles.div_ceil(4), rows, 1], 128, 0), pq, part)
                        .memory_at(io.x, io.x_at(cols))
                        .memory_at(io.y, io.y_at())
                        .word(part.rows as u32)
                        .word(cols as u32)
                        .word(code_tiles)
                        .word(pq.group as u32)
                        .params(&params.words()),
                );
            }
        }
        Ok(())
    }

    /// Stacked matrices, each with codebooks per subspace.
    fn pq_matvec_subspace(&self, c: &mut Commands, parts: &[Part], cols: usize, io: &Io<'_>) -> Result<()> {
        let all: Vec<&Pq> = parts.iter().filter_map(Part::pq).collect();
        let (rows, params, sms) = (io.params.rows, io.of_part(&parts[0]), self.device.sms);
        let (spec, code_tiles) = (&all[0].spec, all[0].code_tiles as u32);
        let kernel = MatvecSubspace::new(spec, rows);
        let heights: Vec<usize> = parts.iter().map(|part| part.rows).collect();
        let blocks = MatvecSubspace::blocks(spec, &heights, code_tiles, sms);
        let out: usize = heights.iter().sum();
        let partial = self.device.scratch(Scratch::Partial, code_tiles as usize * rows as usize * out)?;
        // Places beyond the last matrix repeat it.
        let place = |i: usize| all[i.min(all.len() - 1)];
        let four = [0, 1, 2, 3].map(place);
        let ends = |counts: &[u32]| [1, 2, 3, 4].map(|n| counts.iter().take(n).sum::<u32>());
        let heights: Vec<u32> = heights.iter().map(|rows| *rows as u32).collect();
        let matrices = [four.map(|pq| Some(&pq.codes)), four.map(|pq| pq.tables.as_ref())].concat();
        let scales = four.map(|pq| pq.scales.as_ref());
        let places = [ends(&heights), ends(&blocks)].concat();
        let function = self.device.function(kernel.unit, "pq_matvec_subspace")?;
        c.launch(
            Launch::new(function, [blocks.iter().sum(), 1, 1], kernel.warps * 32, kernel.table)
                .record(&matrices, &[])
                .record(&scales, &places)
                .memory_at(io.x, io.x_at(cols))
                .memory(&partial)
                .word(cols as u32)
                .word(code_tiles)
                .params(&params.words())
                .params(&[]), // a norm that becomes part of this kernel; see join.rs
        );
        let function = self.device.function(kernels::plain("pq_matvec_subspace"), "pq_sum_parts")?;
        let grid = (out as u32 * rows).div_ceil(32).min(sms);
        c.launch(
            Launch::new(function, [grid, 1, 1], 512, 0)
                .record(&scales, &places)
                .optional(io.bias, parts[0].first as u64 * 4)
                .memory_at(io.y, io.y_at())
                .memory(&partial)
                .word(code_tiles)
                .params(&params.words())
                .optional(None, 0), // SwiGLU's result, where that becomes part of this kernel
        );
        Ok(())
    }

    /// Adds up `parts` partial sums `[parts, rows of x, rows of the part]`.
    pub(super) fn pq_reduce(
        &self,
        c: &mut Commands,
        partial: &Memory,
        parts: u32,
        pq: &Pq,
        part: &Part,
        io: &Io<'_>,
    ) -> Result<()> {
        let function = self.device.function(kernels::plain("pq_matmul"), "pq_reduce")?;
        c.launch(
            Launch::new(function, [part.rows.div_ceil(32) as u32, io.params.rows, 1], 256, 0)
                .memory(partial)
                .optional(pq.scales.as_ref(), 0)
                .optional(io.bias, part.first as u64 * 4)
                .memory_at(io.y, io.y_at())
                .word(part.rows as u32)
                .word(parts)
                .params(&io.of_part(part).words()),
        );
        Ok(())
    }
}
