//! Linear layers: which kernel a weight is multiplied with, and how it is specialised.

use super::layout::Layout;
use super::limits::{
    DENSE_LANES, DENSE_W_ROWS, DENSE_X_ROWS, LUT_W_ROWS, LUT_X_ROWS, MATVEC_ROWS, MAX_SPANS,
    TABLE_CENTROID_WORDS, TABLE_CODE_WORDS, TABLE_COLUMNS, TENSOR_COLUMNS, TENSOR_W_ROWS, TENSOR_X_ROWS,
    TILE_COLUMNS, TILE_W_ROWS, TILE_X_ROWS,
};
use super::pipelines::{Arg, Kernel};
use super::shader::Shader;
use super::weight::{ALIGN, Slice, Weight};
use super::{Buffer, Wgpu};
use crate::ops::{KernelParams, Operand};
use crate::{Result, ops};

/// Up to this many rows of x, a product-quantized weight is multiplied row by row, without decoding tiles of it.
const FEW_ROWS: usize = 4;
/// Workgroups that keep a GPU busy.
const BUSY: usize = 512;
/// Words of a span in spans.wgsl.
const SPAN_WORDS: usize = 12;
/// Bytes of workgroup memory of the linear kernels besides their codebook.
const TILES_MEMORY: usize = 13 << 10;
/// Most invocations that share a row in pq_matvec_table.wgsl, and workgroups that keep a GPU busy with it.
const TABLE_LANES: usize = 128;
const TABLE_BUSY: usize = 800;
/// Bytes of workgroup memory of pq_matmul_tensor.wgsl besides its codebook.
const TENSOR_MEMORY: usize = 29 << 10;

/// How many rows of x are multiplied by a product-quantized slice.
enum Algorithm {
    /// Tiles of the weight are decoded.
    Tile,
    /// Tiles are decoded and multiplied on matrix units, in f16.
    Tensor,
    /// The paper's LUT GEMM: products of x with all centroids are looked up.
    Lut,
}

/// How a kernel reads a slice's codes: what the constants of codes.wgsl are made of.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    d: usize,
    bits: usize,
    /// Words of a codebook.
    book: usize,
    /// Whether all subspaces share a codebook.
    single: bool,
    /// Whether it is brought into workgroup memory.
    shared: bool,
}

impl Codes {
    /// Those of a slice whose codebook, if it is one, may take `memory` bytes of workgroup memory.
    pub fn new(slice: &Slice, memory: usize) -> Self {
        let Layout::Pq { d, bits, book, .. } = slice.layout else {
            return Self { d: 1, bits: 1, book: 1, single: true, shared: false };
        };
        let single = slice.single();
        Self { d, bits, book, single, shared: single && 4 * book <= memory }
    }

    /// Centroids of a codebook.
    fn k(self) -> usize {
        self.book / self.d.div_ceil(2)
    }

    /// Words of the codebook in workgroup memory; an array has at least one.
    fn table(self) -> usize {
        if self.shared { self.book } else { 1 }
    }

    pub fn constants(self) -> [(&'static str, u32); 6] {
        [
            ("D", self.d as u32),
            ("BITS", self.bits as u32),
            ("BOOK", self.book as u32),
            ("SINGLE", self.single.into()),
            ("SHARED", self.shared.into()),
            ("TABLE", self.table() as u32),
        ]
    }

    /// The spec of spans.wgsl.
    fn spec(self, slice: &Slice) -> u32 {
        let sizes = self.d | self.bits << 5 | (self.k().ilog2() as usize) << 10;
        let dense = matches!(slice.layout, Layout::Dense(_));
        let flags = [self.single, self.shared, slice.ragged(), dense];
        (15..).zip(flags).fold(sizes as u32, |word, (bit, flag)| word | u32::from(flag) << bit)
    }
}

impl Wgpu {
    /// How the kernels that decode tiles, or multiply few rows, read a slice's codes.
    fn codes(&self, slice: &Slice) -> Codes {
        let memory = self.0.device.capabilities.workgroup_memory as usize;
        Codes::new(slice, memory.saturating_sub(TILES_MEMORY))
    }

    /// The LANES and TILES of pq_matvec for slices, and the rows of a workgroup.
    fn lanes(&self, slices: &[Slice]) -> (usize, usize, usize) {
        let workgroup = self.0.device.workgroup(Shader::PqMatvec);
        let streams = slices.iter().map(Slice::chunks).fold(1, usize::max);
        let rows: usize = slices.iter().map(|slice| slice.rows).sum();
        let tile = |lanes| MATVEC_ROWS * workgroup / lanes;
        let mut lanes = streams.next_power_of_two().clamp(16, 64);
        while lanes < streams && lanes < workgroup && rows / tile(lanes) < BUSY {
            lanes *= 2;
        }
        // Rows of a workgroup share a table.
        let tiles = (rows / tile(lanes) / BUSY).clamp(1, 4).min(ALIGN / tile(lanes)).max(1);
        let tiles = 1 << tiles.ilog2();
        (lanes, tiles, tile(lanes) * tiles)
    }

    /// `linear` of a whole weight.
    pub(super) fn linear(
        &self,
        kernels: &mut Vec<Kernel>,
        op: &ops::Linear<'_, Buffer, Weight>,
    ) -> Result<()> {
        for slices in op.weight.slices.chunk_by(|a, b| a.words.id() == b.words.id()) {
            let dense = slices.iter().all(|slice| matches!(slice.layout, Layout::Dense(_)));
            // Dense slices have a kernel of their own.
            if slices.len() > 1 && !dense && op.params.rows as usize <= FEW_ROWS {
                self.matvec(kernels, op, slices)?;
            } else {
                slices.iter().try_for_each(|slice| self.linear_slice(kernels, op, slice))?;
            }
        }
        Ok(())
    }

    /// Few rows of x times up to [`MAX_SPANS`] slices that lie in the same buffers (spans.wgsl).
    fn matvec(
        &self,
        kernels: &mut Vec<Kernel>,
        op: &ops::Linear<'_, Buffer, Weight>,
        slices: &[Slice],
    ) -> Result<()> {
        let (lanes, tiles, rows_per_workgroup) = self.lanes(slices);
        let codes: Vec<Codes> = slices.iter().map(|slice| self.codes(slice)).collect();
        let mut specs: Vec<u32> = codes.iter().zip(slices).map(|(codes, slice)| codes.spec(slice)).collect();
        let (mut spans, mut begin) = (Vec::new(), 0);
        for (slice, spec) in slices.iter().zip(&specs) {
            let count = slice.rows.div_ceil(rows_per_workgroup);
            spans.extend(slice.span(begin, count, *spec));
            begin += count;
        }
        spans.resize(MAX_SPANS * SPAN_WORDS, 0);
        specs.resize(MAX_SPANS, 0);
        let constants = [
            ("HAS_BIAS", op.bias.is_some().into()),
            ("SPANS", slices.len() as u32),
            ("SPEC_0", specs[0]),
            ("SPEC_1", specs[1]),
            ("SPEC_2", specs[2]),
            ("SPEC_3", specs[3]),
            ("LANES", lanes as u32),
            ("TILES", tiles as u32),
            ("TABLE", codes.iter().map(|codes| codes.table() as u32).fold(1, u32::max)),
        ];
        let unused = &self.0.unused;
        let (words, tables, row_info) =
            (slices[0].words.whole(), slices[0].tables.whole(), slices[0].row_info.whole());
        let args = [
            Arg::Params(op.params.words()),
            Arg::Params(spans),
            Arg::Buffer(&row_info),
            Arg::Buffer(op.bias.unwrap_or(unused)),
            Arg::Buffer(op.y),
            Arg::Buffer(&words),
            Arg::Buffer(op.x),
            Arg::Buffer(&tables),
        ];
        self.dispatch(kernels, Shader::PqMatvec, &constants, &args, [begin, op.params.rows as usize])
    }

    fn linear_slice(
        &self,
        kernels: &mut Vec<Kernel>,
        op: &ops::Linear<'_, Buffer, Weight>,
        slice: &Slice,
    ) -> Result<()> {
        let unused = &self.0.unused;
        let rows = op.params.rows as usize;
        let (x, y) = (Arg::Buffer(op.x), Arg::Buffer(op.y));
        let (params, weight) = (Arg::Params(op.params.words()), Arg::Params(slice.params()));
        let has_bias = ("HAS_BIAS", op.bias.is_some().into());
        let bias = Arg::Buffer(op.bias.unwrap_or(unused));
        let words = Arg::Buffer(&slice.words);
        let Layout::Pq { d, bits, book, .. } = slice.layout else {
            let constants = [("FORMAT", slice.layout.format()), has_bias];
            let args = [params, weight, x, words, bias, y];
            let w_rows = DENSE_W_ROWS * self.0.device.workgroup(Shader::DenseMatmul) / DENSE_LANES;
            let grid = [slice.rows.div_ceil(w_rows), rows.div_ceil(DENSE_X_ROWS)];
            return self.dispatch(kernels, Shader::DenseMatmul, &constants, &args, grid);
        };
        let (tables, row_info) = (Arg::Buffer(&slice.tables), Arg::Buffer(&slice.row_info));
        let args = [params, weight, x, words, tables, row_info, bias, y];
        if rows <= FEW_ROWS {
            let Some((sizes, rows_per_workgroup)) = self.table(slice) else {
                return self.matvec(kernels, op, std::slice::from_ref(slice));
            };
            let constants = [&sizes[..], &[("RAGGED", slice.ragged().into()), has_bias]].concat();
            let grid = [slice.rows.div_ceil(rows_per_workgroup), rows];
            return self.dispatch(kernels, Shader::PqMatvecTable, &constants, &args, grid);
        }
        let (shader, constants, tile) = match self.algorithm(slice) {
            Algorithm::Tile => {
                let streams = ("STREAMS", (TILE_COLUMNS / d) as u32);
                let constants = [&self.codes(slice).constants()[..], &[streams, has_bias]].concat();
                (Shader::PqMatmul, constants, [TILE_W_ROWS, TILE_X_ROWS])
            }
            Algorithm::Tensor => {
                let sizes = [("D", d), ("BITS", bits), ("BOOK", book), ("STREAMS", TENSOR_COLUMNS / d)]
                    .map(as_constant);
                let constants = [&sizes[..], &[has_bias]].concat();
                (Shader::PqMatmulTensor, constants, [TENSOR_W_ROWS, TENSOR_X_ROWS])
            }
            Algorithm::Lut => {
                let codes = Codes::new(slice, 0);
                let sizes = [("K", codes.k()), ("PRODUCTS", 2 * codes.k())].map(as_constant);
                let constants = [&codes.constants()[..], &sizes, &[has_bias]].concat();
                let w_rows = LUT_W_ROWS * self.0.device.workgroup(Shader::PqMatmulLut);
                (Shader::PqMatmulLut, constants, [w_rows, LUT_X_ROWS])
            }
        };
        self.dispatch(
            kernels,
            shader,
            &constants,
            &args,
            [slice.rows.div_ceil(tile[0]), rows.div_ceil(tile[1])],
        )
    }

    /// What many rows of x are multiplied by a slice with.
    fn algorithm(&self, slice: &Slice) -> Algorithm {
        let capabilities = &self.0.device.capabilities;
        let memory = capabilities.workgroup_memory as usize;
        let Layout::Pq { d, bits, book, .. } = slice.layout else { return Algorithm::Tile };
        // Two tables of products of four rows of x.
        let lut = slice.one_codebook && 32 * book / d.div_ceil(2) + 64 <= memory;
        // Whole pairs of columns, one codebook, codes that fill words.
        let tensor = [2, 4].contains(&d)
            && 32 % bits == 0
            && slice.cols.is_multiple_of(d)
            && slice.single()
            && TENSOR_MEMORY + 4 * book <= memory;
        if capabilities.lut && lut {
            Algorithm::Lut
        } else if capabilities.tensor && tensor {
            Algorithm::Tensor
        } else {
            Algorithm::Tile
        }
    }

    /// The constants of pq_matvec_table for a slice, if it is to be used, and the rows of a workgroup.
    fn table(&self, slice: &Slice) -> Option<([(&'static str, u32); 7], usize)> {
        let Layout::Pq { d, bits, book, .. } = slice.layout else { return None };
        if !slice.single() {
            return None;
        }
        // Whole codes, as many as an invocation can hold.
        let fits = |words: &usize| {
            let codes = 32 * words / bits;
            (32 * words).is_multiple_of(bits)
                && bits.is_multiple_of(*words)
                && codes * d <= TABLE_COLUMNS
                && codes * d.div_ceil(2) <= TABLE_CENTROID_WORDS
        };
        let words = (1..=TABLE_CODE_WORDS).rev().find(fits)?;
        let workgroup = self.0.device.workgroup(Shader::PqMatvecTable);
        let units = slice.chunks() * bits / words;
        // More rows at a time where there are enough of them.
        let most = if slice.rows >= 16 * TABLE_BUSY { TABLE_LANES / 2 } else { TABLE_LANES };
        let lanes = units.next_power_of_two().min(most);
        if units > TABLE_LANES {
            return None;
        }
        let at_a_time = workgroup / lanes;
        let mut passes = (ALIGN / at_a_time).max(4);
        while passes > 4 && at_a_time * passes > 16 && slice.rows.div_ceil(at_a_time * passes) < TABLE_BUSY {
            passes /= 2;
        }
        let parts = passes * workgroup;
        let memory = 4 * (book + parts + workgroup);
        if at_a_time * passes > ALIGN || memory > self.0.device.capabilities.workgroup_memory as usize {
            return None;
        }
        let constants = [
            ("D", d),
            ("BITS", bits),
            ("BOOK", book),
            ("LANES", lanes),
            ("WORDS", words),
            ("PASSES", passes),
            ("PARTS", parts),
        ];
        Some((constants.map(as_constant), at_a_time * passes))
    }
}

fn as_constant((name, value): (&'static str, usize)) -> (&'static str, u32) {
    (name, value as u32)
}
