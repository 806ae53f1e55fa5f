//! Linear layers: the launch of each product.

use cudarc::cublas::sys::cudaDataType;

use super::kernels::{self, Lookup, Matvec, Rows};
use super::weight::{Kind, Part, Pq, Weight};
use super::{Buffer, Lowering, MatmulAlgorithm, Packing};
use crate::backend::cuda::device::abi::TILE_ROWS;
use crate::backend::cuda::device::launch::{Commands, Gemm, Launch};
use crate::backend::cuda::device::memory::{Memory, address};
use crate::backend::cuda::device::unit::Source;
use crate::ops::{Glu, KernelParams, LinearParams, RmsNorm};
use crate::plan::{Fuse, FusedLinear, Input};
use crate::tensor::Dtype;
use crate::{Error, Result};

pub fn dtype_number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
    }
}

/// What a product reads and writes: `params.rows` rows of x and y, from row `first` on.
pub struct Io<'a> {
    pub x: &'a Memory,
    pub bias: Option<&'a Memory>,
    pub y: &'a Memory,
    pub first: u64,
    /// Columns of x.
    pub cols: usize,
    pub params: LinearParams,
}

impl Io<'_> {
    /// Bytes before the first row of x.
    pub fn x_at(&self) -> u64 {
        self.first * self.cols as u64 * 4
    }

    /// Bytes before the first row of y.
    pub fn y_at(&self) -> u64 {
        self.first * u64::from(self.params.y_stride) * 4
    }

    /// The parameters with the part's columns.
    pub fn of_part(&self, part: &Part) -> LinearParams {
        LinearParams { y_offset: self.params.y_offset + part.first as u32, ..self.params }
    }

    /// A launch with a part's codes, codebooks, scales and bias, which its other arguments follow.
    pub fn multiply(&self, launch: Launch, pq: &Pq, part: &Part) -> Launch {
        launch
            .memory(&pq.codes)
            .memory(&pq.codebooks)
            .optional(pq.scales.as_ref(), 0)
            .optional(self.bias, part.first as u64 * 4)
    }
}

/// What a product's kernels do besides multiplying.
#[derive(Clone, Copy)]
struct Besides<'a> {
    norm: Option<&'a RmsNorm<'a, Buffer>>,
    glu: Option<&'a Glu<'a, Buffer>>,
}

impl Lowering {
    /// One product.
    pub fn linear<F>(&self, c: &mut Commands, fused: &FusedLinear<'_, Buffer, Weight, F>) -> Result<()>
    where
        F: Fuse<Buffer, Weight, Algorithm = MatmulAlgorithm, Packing = Packing>,
    {
        let (linear, product) = (&fused.linear, &fused.product);
        let (rows, cols) = (product.rows.len() as u32, linear.weight.cols);
        let io = Io {
            x: linear.x.memory(),
            bias: linear.bias.map(|bias| bias.memory()),
            y: linear.y.memory(),
            first: product.rows.start.into(),
            cols,
            params: LinearParams { rows, ..linear.params },
        };
        let (norm, packed) = match &fused.input {
            Input::Plain => (None, None),
            Input::Norm { norm, .. } => (Some(norm), None),
            Input::Packed(packing) => (None, Some(self.packed(*packing, rows, cols)?)),
            Input::Rotate { .. } => return Err(cannot("rotate its input")),
        };
        let glu = fused.activation.as_ref().map(|activation| &activation.glu);
        let parts = &linear.weight.parts[product.parts.clone()];
        self.multiply(c, product.algorithm, parts, &io, packed.as_ref(), Besides { norm, glu })
    }

    /// Some parts of a weight, of which the algorithm takes several together or one, with x in the algorithm's layout.
    fn multiply(
        &self,
        c: &mut Commands,
        algorithm: MatmulAlgorithm,
        parts: &[Part],
        io: &Io<'_>,
        packed: Option<&Memory>,
        besides: Besides<'_>,
    ) -> Result<()> {
        let there = || packed.ok_or_else(|| cannot("read rows that are not packed"));
        let [part] = parts else {
            return self.pq_matvec_subspace(c, parts, io, besides.norm, besides.glu);
        };
        if let Kind::Pq(Pq { lookup: Lookup::Subspace, .. }) = &part.kind
            && algorithm == MatmulAlgorithm::Matvec
        {
            return self.pq_matvec_subspace(c, parts, io, besides.norm, besides.glu);
        }
        if besides.norm.is_some() || besides.glu.is_some() {
            return Err(cannot("take in its neighbours"));
        }
        match (algorithm, &part.kind) {
            (MatmulAlgorithm::DenseRow | MatmulAlgorithm::DenseFew, Kind::Dense { dtype, memory }) => {
                self.dense_matvec(c, algorithm, (*dtype, memory), part, io)
            }
            (MatmulAlgorithm::DenseGemm, Kind::Dense { dtype, memory }) => {
                let x = if *dtype == Dtype::F32 { io.x } else { there()? };
                self.gemm(c, *dtype, memory, x, (0, part.rows), part, io);
                self.add_bias(c, part, io)
            }
            (MatmulAlgorithm::Matvec, Kind::Pq(pq)) => self.pq_matvec(c, pq, part, io, packed),
            (MatmulAlgorithm::Tiles, Kind::Pq(pq)) => self.pq_matmul_tiles(c, pq, part, there()?, io),
            (MatmulAlgorithm::Tables, Kind::Pq(pq)) => self.pq_matmul_tables(c, pq, part, io),
            (MatmulAlgorithm::Decoded, Kind::Pq(pq)) => self.pq_matmul_decoded(c, pq, part, there()?, io),
            (
                MatmulAlgorithm::DenseRow | MatmulAlgorithm::DenseFew | MatmulAlgorithm::DenseGemm,
                Kind::Pq(_),
            ) => Err(cannot("multiply by codes")),
            (_, Kind::Dense { .. }) => Err(cannot("multiply by a dense matrix")),
        }
    }

    /// One product by itself, its rows packed by a launch of their own: what is measured.
    pub fn alone(
        &self,
        c: &mut Commands,
        algorithm: MatmulAlgorithm,
        part: &Part,
        x: &Buffer,
        io: &Io<'_>,
    ) -> Result<()> {
        let rows = io.params.rows;
        let packing = algorithm.packing(&part.form(io.cols), rows, self.capabilities().shared_limit);
        let packed = packing.map(|packing| {
            self.pack(c, &crate::plan::Pack { x, rows: 0..rows, cols: io.cols, packing })?;
            self.packed(packing, rows, io.cols)
        });
        let packed = packed.transpose()?;
        let besides = Besides { norm: None, glu: None };
        self.multiply(c, algorithm, std::slice::from_ref(part), io, packed.as_ref(), besides)
    }

    fn dense_matvec(
        &self,
        c: &mut Commands,
        algorithm: MatmulAlgorithm,
        (dtype, memory): (Dtype, &Memory),
        part: &Part,
        io: &Io<'_>,
    ) -> Result<()> {
        let (dtype, rows) = (dtype_number(dtype), io.params.rows);
        let limit = self.capabilities().shared_limit;
        let alone =
            kernels::dense_row(dtype, io.cols, limit).filter(|_| algorithm == MatmulAlgorithm::DenseRow);
        let (function, grid, threads, shared) = match alone {
            Some((unit, shared)) => {
                let grid = self.capabilities().sms.min(part.rows as u32);
                (unit.function("dense_row"), grid, kernels::DENSE_ROW_WARPS * 32, shared)
            }
            None => {
                let function = kernels::dense(dtype, rows).function("dense_matvec");
                // 8 warps of 4 rows a block.
                (function, part.rows.div_ceil(32) as u32, 256, 0)
            }
        };
        c.launch(
            Launch::new(function, [grid, 1, 1], threads, shared)
                .memory(memory)
                .optional(io.bias, part.first as u64 * 4)
                .memory_at(io.x, io.x_at())
                .memory_at(io.y, io.y_at())
                .word(part.rows as u32)
                .word(io.cols as u32)
                .structure(io.of_part(part).words()),
        );
        Ok(())
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
            k: io.cols as i32,
            w: address(w),
            x: address(x),
            y: address(io.y) + io.y_at() + column * 4,
            y_stride: io.params.y_stride as i32,
            accumulate: io.params.accumulate != 0,
        };
        c.gemm(gemm);
    }

    pub(super) fn add_bias(&self, c: &mut Commands, part: &Part, io: &Io<'_>) -> Result<()> {
        let Some(bias) = io.bias else { return Ok(()) };
        let function = Source::DenseMatmul.unit().function("add_bias");
        c.launch(
            Launch::new(function, [part.rows.div_ceil(256) as u32, io.params.rows, 1], 256, 0)
                .memory_at(bias, part.first as u64 * 4)
                .memory_at(io.y, io.y_at())
                .word(part.rows as u32)
                .structure(io.of_part(part).words()),
        );
        Ok(())
    }

    fn pq_matvec(
        &self,
        c: &mut Commands,
        pq: &Pq,
        part: &Part,
        io: &Io<'_>,
        packed: Option<&Memory>,
    ) -> Result<()> {
        let (rows, params) = (io.params.rows, io.of_part(part));
        let (sms, limit) = (self.capabilities().sms, self.capabilities().shared_limit);
        let row_tiles = part.rows.div_ceil(TILE_ROWS) as u32;
        let code_tiles = pq.code_tiles as u32;
        match pq.lookup {
            Lookup::Shared { replicas } if rows > 1 => {
                let kernel = Rows::new(&pq.spec, replicas, rows, limit);
                let packed = packed.ok_or_else(|| cannot("read rows that are not packed"))?;
                let function = kernel.unit.function("pq_rows");
                let launch =
                    Launch::new(function, [row_tiles.min(sms), 1, 1], kernel.warps * 32, kernel.shared);
                c.launch(
                    io.multiply(launch, pq, part)
                        .memory(packed)
                        .memory_at(io.y, io.y_at())
                        .word(part.rows as u32)
                        .word(code_tiles)
                        .structure(params.words()),
                );
            }
            Lookup::Shared { replicas } => {
                let kernel = Matvec::new(&pq.spec, replicas, limit);
                let chunk = kernel.chunk(code_tiles);
                let function = kernel.unit.function("pq_matvec_shared");
                let grid = [row_tiles.min(sms), 1, 1];
                c.launch(
                    io.multiply(
                        Launch::new(function, grid, kernel.warps * 32, kernel.shared(chunk)),
                        pq,
                        part,
                    )
                    .memory_at(io.x, io.x_at())
                    .memory_at(io.y, io.y_at())
                    .word(part.rows as u32)
                    .word(io.cols as u32)
                    .word(code_tiles)
                    .word(chunk)
                    .structure(params.words()),
                );
            }
            Lookup::Memory => {
                let function = kernels::matvec_any(&pq.spec).function("pq_matvec");
                c.launch(
                    io.multiply(Launch::new(function, [row_tiles.div_ceil(4), rows, 1], 128, 0), pq, part)
                        .memory_at(io.x, io.x_at())
                        .memory_at(io.y, io.y_at())
                        .word(part.rows as u32)
                        .word(io.cols as u32)
                        .word(code_tiles)
                        .word(pq.group as u32)
                        .structure(params.words()),
                );
            }
            Lookup::Subspace => return Err(cannot("look up codebooks of subspaces")),
        }
        Ok(())
    }
}

fn cannot(what: &str) -> Error {
    Error::invalid("a product's kernel on cuda", format!("it cannot {what}"))
}
