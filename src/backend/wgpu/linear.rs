//! Linear layers: which kernel a weight is multiplied with, and how it is specialised.

use super::commands::Commands;
use super::device::{Matmul, UNIFORM};
use super::layout::Layout;
use super::pipelines::Arg;
use super::weight::{ALIGN, Slice, Weight};
use super::{Buffer, Wgpu};
use crate::{Result, ops};

/// Up to this many rows, a product-quantized weight is multiplied row by row without decoding it.
const MATVEC_ROWS: usize = 4;
/// Workgroups that keep a GPU busy.
const BUSY: usize = 512;
/// Words of a span in spans.wgsl.
const SPAN_WORDS: usize = 12;
/// Workgroup memory of the linear kernels besides their table.
const TILES_MEMORY: usize = 13 << 10;

/// Most invocations that share a row in pq_matvec_table.wgsl, and workgroups that keep a GPU busy with it.
const TABLE_LANES: usize = 128;
const TABLE_BUSY: usize = 800;
/// Workgroup memory of pq_matmul_tensor.wgsl besides its table.
const TENSOR_MEMORY: usize = 29 << 10;

impl Wgpu {
    /// The constants of codes.wgsl for a slice. A CPU's caches hold a table as well as its workgroup memory would.
    pub(super) fn codes(&self, slice: &Slice) -> [(&'static str, u32); 6] {
        let Layout::Pq { d, bits, book, .. } = slice.layout else {
            return [("D", 1), ("BITS", 1), ("BOOK", 1), ("SINGLE", 1), ("SHARED", 0), ("TABLE", 1)];
        };
        let room = (self.0.device.workgroup_memory as usize - TILES_MEMORY) / 4;
        let single = slice.single();
        let shared = single && book <= room && !self.0.device.is_software();
        let sizes = [("D", d), ("BITS", bits), ("BOOK", book), ("TABLE", if shared { book } else { 1 })];
        let [d, bits, book, table] = sizes.map(|(name, value)| (name, value as u32));
        [d, bits, book, ("SINGLE", single.into()), ("SHARED", shared.into()), table]
    }

    /// The LANES and TILES of pq_matvec for slices, and the rows of a workgroup.
    fn lanes(&self, slices: &[Slice]) -> (usize, usize, usize) {
        let workgroup = self.0.device.workgroup("pq_matvec");
        if self.0.device.is_software() {
            return (2, 1, 2 * workgroup);
        }
        let streams = slices.iter().map(Slice::chunks).max().unwrap_or(1);
        let rows: usize = slices.iter().map(|slice| slice.rows).sum();
        let tile = |lanes| 4 * workgroup / lanes;
        let mut lanes = streams.next_power_of_two().clamp(16, 64);
        while lanes < streams && lanes < workgroup && rows / tile(lanes) < BUSY {
            lanes *= 2;
        }
        // Rows of a workgroup share a table.
        let tiles = (rows / tile(lanes) / BUSY).clamp(1, 4).min(ALIGN / tile(lanes));
        let tiles = 1 << tiles.max(1).ilog2();
        (lanes, tiles, tile(lanes) * tiles)
    }

    /// `linear` of a whole weight.
    pub(super) fn linear_slices(&self, c: &mut Commands, op: &ops::Linear<'_, Buffer, Weight>) -> Result<()> {
        for slices in op.weight.slices.chunk_by(|a, b| a.words.id() == b.words.id()) {
            let dense = slices.iter().all(|slice| matches!(slice.layout, Layout::Dense(_)));
            // Dense slices have a kernel of their own.
            if slices.len() > 1 && !dense && op.params.rows as usize <= MATVEC_ROWS {
                self.matvec(c, op, slices)?;
            } else {
                slices.iter().try_for_each(|slice| self.linear_slice(c, op, slice))?;
            }
        }
        Ok(())
    }

    /// The spec of a slice as spans.wgsl has it.
    fn spec(&self, slice: &Slice) -> u32 {
        let [d, bits, book, single, shared, _] = self.codes(slice).map(|(_, value)| value);
        let dense = matches!(slice.layout, Layout::Dense(_));
        let flags = [single, shared, slice.ragged().into(), dense.into()];
        let sizes = d | bits << 5 | (book / d.div_ceil(2)).ilog2() << 10;
        (15..).zip(flags).fold(sizes, |word, (bit, flag)| word | flag << bit)
    }

    /// Few rows times the slices that lie in the same buffers (spans.wgsl).
    fn matvec(&self, c: &mut Commands, op: &ops::Linear<'_, Buffer, Weight>, slices: &[Slice]) -> Result<()> {
        let by_rows = self.0.device.rows;
        let (lanes, tiles, mut together) = self.lanes(slices);
        if by_rows {
            together = 4 * self.0.device.workgroup("pq_matvec_rows");
        }
        let specs: Vec<u32> = slices.iter().map(|slice| self.spec(slice)).collect();
        let (mut spans, mut begin) = (Vec::new(), 0);
        for (slice, spec) in slices.iter().zip(&specs) {
            let count = slice.rows.div_ceil(together);
            spans.extend(slice.span(begin, count, *spec));
            begin += count;
        }
        spans.resize(4 * SPAN_WORDS, 0);
        let mut constants = vec![("HAS_BIAS", op.bias.is_some().into())];
        if by_rows {
            constants.push(("SINGLE", slices.iter().all(Slice::single).into()));
        } else {
            let spec = |i: usize| specs.get(i).copied().unwrap_or(0);
            let table = slices.iter().map(|slice| self.codes(slice)[5].1).max().unwrap_or(1);
            constants.extend([
                ("SPANS", slices.len() as u32),
                ("SPEC_0", spec(0)),
                ("SPEC_1", spec(1)),
                ("SPEC_2", spec(2)),
                ("SPEC_3", spec(3)),
                ("LANES", lanes as u32),
                ("TILES", tiles as u32),
                ("TABLE", table),
            ]);
        }
        let nothing = &self.0.nothing;
        let whole = |part: &Option<Buffer>| part.as_ref().unwrap_or(nothing).whole();
        let (words, tables, places) =
            (slices[0].words.whole(), whole(&slices[0].tables), whole(&slices[0].places));
        let cols = slices[0].cols as u64;
        let short = [u64::from(op.params.rows) * cols * 4, tables.raw().size()].iter().all(|n| *n <= UNIFORM);
        let uniform = by_rows && short && self.0.device.uniforms;
        let lookup = |buffer| if uniform { Arg::Uniform(buffer) } else { Arg::Buffer(buffer) };
        let args = [
            Arg::Params(op.params.words()),
            Arg::Params(spans),
            Arg::Buffer(&places),
            Arg::Buffer(op.bias.unwrap_or(nothing)),
            Arg::Buffer(op.y),
            Arg::Buffer(&words),
            lookup(op.x),
            lookup(&tables),
        ];
        let kernel = match (by_rows, uniform) {
            (true, true) => "pq_matvec_rows_uniform",
            (true, false) => "pq_matvec_rows",
            _ => "pq_matvec",
        };
        self.kernel(c, kernel, &constants, &args, [begin, op.params.rows as usize])
    }

    fn linear_slice(
        &self,
        c: &mut Commands,
        op: &ops::Linear<'_, Buffer, Weight>,
        slice: &Slice,
    ) -> Result<()> {
        let nothing = &self.0.nothing;
        let rows = op.params.rows as usize;
        let (x, y) = (Arg::Buffer(op.x), Arg::Buffer(op.y));
        let (params, weight) = (Arg::Params(op.params.words()), Arg::Params(slice.params()));
        let has_bias = ("HAS_BIAS", op.bias.is_some().into());
        let bias = Arg::Buffer(op.bias.unwrap_or(nothing));
        let words = Arg::Buffer(&slice.words);
        let Layout::Pq { .. } = slice.layout else {
            let constants = [("FORMAT", slice.layout.format()), has_bias];
            let args = [params, weight, x, words, bias, y];
            return self.kernel(
                c,
                "dense_matmul",
                &constants,
                &args,
                [slice.rows.div_ceil(self.0.device.workgroup("dense_matmul") / 8), rows.div_ceil(4)],
            );
        };
        let tables = Arg::Buffer(slice.tables.as_ref().unwrap_or(nothing));
        let places = Arg::Buffer(slice.places.as_ref().unwrap_or(nothing));
        let args = [params, weight, x, words, tables, places, bias, y];
        let ragged = ("RAGGED", slice.ragged().into());
        let [d, bits, book, single, shared, table] = self.codes(slice);
        if rows <= MATVEC_ROWS
            && let Some((sizes, together)) = self.table(slice)
        {
            let constants = [&sizes[..], &[ragged, has_bias]].concat();
            self.kernel(c, "pq_matvec_table", &constants, &args, [slice.rows.div_ceil(together), rows])
        } else if rows <= MATVEC_ROWS {
            self.matvec(c, op, std::slice::from_ref(slice))
        } else {
            match self.matmul(slice) {
                Matmul::Lut => {
                    let k = book.1 / d.1.div_ceil(2);
                    let sizes = [("K", k), ("PRODUCTS", 2 * k), ("SHARED", 0), ("TABLE", 1)];
                    let constants = [&[d, bits, book, single][..], &sizes, &[has_bias]].concat();
                    let together = 4 * self.0.device.workgroup("pq_matmul_lut");
                    let grid = [slice.rows.div_ceil(together), rows.div_ceil(4)];
                    self.kernel(c, "pq_matmul_lut", &constants, &args, grid)
                }
                Matmul::Tile => {
                    let streams = ("STREAMS", 16 / d.1);
                    let constants = [d, bits, book, single, shared, table, streams, has_bias];
                    let grid = [slice.rows.div_ceil(64), rows.div_ceil(128)];
                    self.kernel(c, "pq_matmul", &constants, &args, grid)
                }
                Matmul::Tensor => {
                    let constants = [d, bits, book, ("STREAMS", 32 / d.1), has_bias];
                    let grid = [slice.rows.div_ceil(128), rows.div_ceil(128)];
                    self.kernel(c, "pq_matmul_tensor", &constants, &args, grid)
                }
            }
        }
    }

    /// The way to multiply many rows by a slice.
    fn matmul(&self, slice: &Slice) -> Matmul {
        let device = &self.0.device;
        let Layout::Pq { d, bits, book, .. } = slice.layout else { return Matmul::Tile };
        let memory = device.workgroup_memory as usize;
        // Whole pairs of columns, one table, codes that fill words.
        let tensor = device.tensor
            && [2, 4].contains(&d)
            && 32 % bits == 0
            && slice.cols.is_multiple_of(d)
            && slice.single()
            && TENSOR_MEMORY + 4 * book <= memory;
        let lut = slice.together && 32 * book / d.div_ceil(2) + 64 <= memory;
        match device.matmul {
            Some(Matmul::Lut) if lut => Matmul::Lut,
            None | Some(Matmul::Tensor) if tensor => Matmul::Tensor,
            _ => Matmul::Tile,
        }
    }

    /// The constants of pq_matvec_table for a slice, if it is to be used, and the rows of a workgroup.
    fn table(&self, slice: &Slice) -> Option<([(&'static str, u32); 7], usize)> {
        let Layout::Pq { d, bits, book, .. } = slice.layout else { return None };
        if !slice.single() || self.0.device.is_software() {
            return None;
        }
        // Whole codes, of which an invocation has up to 4 words, 32 columns and 16 words of centroids.
        let few = |words: &usize| {
            let codes = 32 * words / bits;
            (32 * words).is_multiple_of(bits)
                && bits.is_multiple_of(*words)
                && codes * d <= 32
                && codes * d.div_ceil(2) <= 16
        };
        let words = (1..=4).rev().find(few)?;
        let workgroup = self.0.device.workgroup("pq_matvec_table");
        let units = slice.chunks() * bits / words;
        // More rows at a time where there are enough of them.
        let most = if slice.rows >= 16 * TABLE_BUSY { TABLE_LANES / 2 } else { TABLE_LANES };
        let lanes = units.next_power_of_two().min(most);
        if units > TABLE_LANES {
            return None;
        }
        let together = workgroup / lanes;
        let mut passes = (ALIGN / together).max(4);
        while passes > 4 && together * passes > 16 && slice.rows.div_ceil(together * passes) < TABLE_BUSY {
            passes /= 2;
        }
        let parts = passes * workgroup;
        let memory = 4 * (book + parts + workgroup);
        if together * passes > ALIGN || memory > self.0.device.workgroup_memory as usize {
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
        Some((constants.map(|(name, n)| (name, n as u32)), together * passes))
    }
}
