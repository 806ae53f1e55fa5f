//! Quantizing on the device: rows in as a file has them, codes out (kernels/{quantize,kmeans,feedback}.cu).

mod hessian;

pub use hessian::Sums;

use std::sync::Arc;

use cudarc::cublas::sys::cublasOperation_t;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Cuda;
use super::device::abi::{FEEDBACK_ROWS, FEEDBACK_WARPS};
use super::device::graphs::enqueue;
use super::device::launch::{Commands, Launch};
use super::device::memory::{Memory, address};
use super::device::unit::Source;
use super::device::{Device, error};
use super::lower::{dtype_number, kernels};
use crate::backend::{Backend, Quantizer, Rows};
use crate::pq::quantize::{self as cpu, SAMPLE, check, round};
use crate::pq::{
    self, Feedback, PqMatrix, PqSpec, Quantized, RowScale, Scope, SquaredError, feedback, universal,
};
use crate::tensor::TensorView;
use crate::{Error, Result};

/// EACH in kmeans.cu times its threads: vectors of a block of the search.
fn block_vectors(d: usize) -> usize {
    256 * if d <= 4 { 4 } else { 2 }
}

impl Quantizer for Cuda {
    fn describe(&self) -> String {
        Backend::describe(self)
    }

    /// 256 MB of f32: enough that the copies keep going.
    fn block(&self) -> usize {
        1 << 26
    }

    fn quantize(&self, rows: &Rows<'_>, spec: PqSpec, feedback: Option<&Feedback>) -> Result<Quantized> {
        let cols = rows.weights.shape.last().copied().unwrap_or(0);
        let weights = rows.weights.bytes.len() / rows.weights.dtype.size();
        let count = check(rows.name, weights, cols, spec, feedback)?;
        if weights as u64 >> 32 > 0 {
            return Err(error(format!("{}: more than 2^32 weights at a time", rows.name)));
        }
        self.device().keep_freed_memory()?;
        Work { device: self.device(), rows: count, cols, spec }.run(rows, feedback)
    }
}

/// Rows that are being quantized.
struct Work<'a> {
    device: &'a Device,
    rows: usize,
    cols: usize,
    spec: PqSpec,
}

/// Prepared rows.
struct Prepared {
    /// f32 `[rows, cols]`.
    weights: Memory,
    /// f16 `[rows]`.
    scales: Memory,
    /// f64 `[rows]`: sums of squares before the scales.
    squares: Memory,
}

impl Work<'_> {
    fn run(&self, rows: &Rows<'_>, feedback: Option<&Feedback>) -> Result<Quantized> {
        let Self { spec, cols, .. } = *self;
        let prepared = self.prepare(rows)?;
        let codebooks = match spec.scope {
            Scope::Universal => universal::codebook(spec.d, spec.k),
            _ => round(rows.name, &self.train(&prepared.weights)?, spec.d)?,
        };
        let centroids = self.upload(bytemuck::cast_slice(&codebooks.to_f32_vec()))?;
        let codes = self.device.alloc((self.rows * spec.subspaces(cols)).div_ceil(2), false)?;
        match feedback {
            Some(feedback) => self.feedback(&prepared.weights, &centroids, feedback, &codes)?,
            None => self.assign(&prepared.weights, &centroids, &codes)?,
        }
        self.finish(rows.name, prepared, codebooks, &centroids, &codes)
    }

    fn launch(&self, launch: Launch) -> Result<()> {
        let mut commands = Commands::default();
        commands.launch(launch);
        enqueue(self.device, &commands)
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = self.device.alloc(bytes.len().div_ceil(4), false)?;
        self.device.write_large(&memory, bytes)?;
        Ok(memory)
    }

    fn download<T: bytemuck::Pod>(&self, memory: &Memory, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); count];
        self.device.read_large(memory, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The kernel's number of how rows are scaled.
    fn scale(&self) -> u32 {
        match self.spec.scale {
            RowScale::None => 0,
            RowScale::Rms => 1,
            RowScale::AbsMax => 2,
        }
    }

    fn prepare(&self, rows: &Rows<'_>) -> Result<Prepared> {
        let TensorView { dtype, bytes, .. } = &rows.weights;
        let source = self.upload(bytes)?;
        let alloc = |bytes: usize| self.device.alloc(bytes.div_ceil(4), false);
        let prepared = Prepared {
            weights: alloc(self.rows * self.cols * 4)?,
            scales: alloc(self.rows * 2)?,
            squares: alloc(self.rows * 8)?,
        };
        let bad = self.upload(&u32::MAX.to_le_bytes())?;
        let rotate = self.spec.rotation(self.cols).map_or(0, |rotation| rotation.block);
        let norm = 1.0 / (rotate as f32).sqrt();
        self.launch(
            Launch::new(Source::Quantize.unit().function("prepare"), [self.rows as u32, 1, 1], 256, 0)
                .memory(&source)
                .memory(&prepared.weights)
                .memory(&prepared.scales)
                .memory(&prepared.squares)
                .memory(&bad)
                .word(self.cols as u32)
                .word(dtype_number(*dtype))
                .word(rotate as u32)
                .word(norm.to_bits())
                .word(self.scale()),
        )?;
        match self.download::<u32>(&bad, 1)?[0] {
            u32::MAX => Ok(prepared),
            row => Err(self.why(rows, row as usize)),
        }
    }

    /// What the CPU has to say of a row that cannot be quantized.
    fn why(&self, rows: &Rows<'_>, row: usize) -> Error {
        let TensorView { dtype, bytes, .. } = rows.weights;
        let row_bytes = self.cols * dtype.size();
        let view =
            TensorView { dtype, shape: vec![1, self.cols], bytes: &bytes[row * row_bytes..][..row_bytes] };
        let spec = PqSpec { scope: Scope::Universal, ..self.spec };
        let result = pq::quantize(rows.name, rows.first + row, view.to_f32(), self.cols, spec, None);
        result.err().unwrap_or_else(|| error(format!("{}, row {row}: not finite", rows.name)))
    }

    /// Shape in kmeans.cu, for samples that are `stride` vectors apart.
    fn shape(&self, stride: usize) -> Vec<u32> {
        let Self { spec, cols, .. } = *self;
        let (subspaces, group) = (spec.subspaces(cols), spec.subspaces_per_codebook(cols));
        let words = [self.rows, cols, subspaces, cols / spec.d, group, spec.codebooks(cols), spec.k, stride];
        words.map(|word| word as u32).to_vec()
    }

    fn kmeans(&self, entry: &'static str, blocks: usize, threads: u32) -> Result<Launch> {
        let function = kernels::kmeans(self.spec.d).function(entry);
        Ok(Launch::new(function, [blocks as u32, 1, 1], threads, 0))
    }

    /// Codebooks `[codebooks, k, d]` by k-means from the Gaussian table.
    fn train(&self, weights: &Memory) -> Result<Vec<f32>> {
        let Self { spec, cols, .. } = *self;
        let PqSpec { d, k, .. } = spec;
        let books = spec.codebooks(cols);
        let stride = SAMPLE.min(self.rows * spec.subspaces_per_codebook(cols));
        let shape = self.shape(stride);
        let start = self.upload(bytemuck::cast_slice(&universal::codebook(d, k).to_f32_vec()))?;
        let alloc = |words: usize| self.device.alloc(words, false);
        let (vectors, errors) = (alloc(books * stride * d)?, alloc(books * stride)?);
        let (codes, counts) = (alloc((books * stride).div_ceil(2))?, alloc(books * k)?);
        let centroids = alloc(books * k * d)?;
        let (samples, chunks) = (stride.div_ceil(256), stride.div_ceil(block_vectors(d)));
        self.launch(
            self.kmeans("sample", books * samples, 256)?
                .memory(weights)
                .memory(&vectors)
                .structure(shape.clone()),
        )?;
        self.launch(
            self.kmeans("fit", books, 32)?
                .memory(&vectors)
                .memory(&start)
                .memory(&centroids)
                .structure(shape.clone()),
        )?;
        let threads = k.next_multiple_of(32).min(256);
        let update = kernels::kmeans(d).function("update");
        for _ in 0..cpu::steps(spec) {
            let assign = self.kmeans("assign_sample", books * chunks, 256)?;
            self.launch(assign.memory(&vectors).memory(&centroids).memory(&codes).structure(shape.clone()))?;
            let grid = [books as u32, k.div_ceil(threads) as u32, 1];
            self.launch(
                Launch::new(update.clone(), grid, threads as u32, 0)
                    .memory(&vectors)
                    .memory(&codes)
                    .memory(&centroids)
                    .memory(&counts)
                    .structure(shape.clone()),
            )?;
            let reseed =
                self.kmeans("reseed", books, 256)?.memory(&vectors).memory(&codes).memory(&centroids);
            self.launch(reseed.memory(&counts).memory(&errors).structure(shape.clone()))?;
        }
        self.download(&centroids, books * k * d)
    }

    /// The nearest centroid of every sub-vector.
    fn assign(&self, weights: &Memory, centroids: &Memory, codes: &Memory) -> Result<()> {
        let Self { spec, cols, .. } = *self;
        let (full, group) = (cols / spec.d, spec.subspaces_per_codebook(cols));
        let chunks = (self.rows * group.min(full)).div_ceil(block_vectors(spec.d));
        let shape = self.shape(0);
        let on =
            |launch: Launch| launch.memory(weights).memory(centroids).memory(codes).structure(shape.clone());
        if chunks > 0 {
            self.launch(on(self.kmeans("assign_rows", spec.codebooks(cols) * chunks, 256)?))?;
        }
        if full < spec.subspaces(cols) {
            self.launch(on(self.kmeans("assign_ragged", self.rows.div_ceil(256), 256)?))?;
        }
        Ok(())
    }

    /// The same with error feedback.
    fn feedback(
        &self,
        weights: &Memory,
        centroids: &Memory,
        feedback: &Feedback,
        codes: &Memory,
    ) -> Result<()> {
        let Self { spec, cols, rows, .. } = *self;
        let width = feedback::BLOCK / spec.d * spec.d;
        let count = spec.codebooks(cols) * spec.k;
        let unit = kernels::feedback(spec.d);
        let shares = self.upload(bytemuck::cast_slice(feedback.shares()))?;
        let table = self.device.alloc(count * (spec.d + 4) / 4 * 4, false)?;
        let errors = self.device.alloc(rows * cols, false)?;
        let correction = self.device.alloc(rows * width, false)?;
        let fill = unit.function("centroid_table");
        self.launch(
            Launch::new(fill, [count.div_ceil(256) as u32, 1, 1], 256, 0)
                .memory(centroids)
                .memory(&table)
                .word(count as u32),
        )?;
        let function = unit.function("feedback");
        for start in (0..cols).step_by(width) {
            let end = cols.min(start + width);
            if start > 0 {
                self.product(&shares, &errors, start, end, &correction)?;
            }
            let group = spec.subspaces_per_codebook(cols);
            let place = [rows, cols, spec.subspaces(cols), group, spec.k, start, end].map(|word| word as u32);
            self.launch(
                Launch::new(
                    function.clone(),
                    [rows.div_ceil(FEEDBACK_ROWS) as u32, 1, 1],
                    FEEDBACK_WARPS as u32 * 32,
                    0,
                )
                .memory(weights)
                .optional(Some(&correction).filter(|_| start > 0), 0)
                .memory(&errors)
                .memory(&shares)
                .memory(&table)
                .memory(codes)
                .structure(place.to_vec()),
            )?;
        }
        Ok(())
    }

    /// `correction` `[rows, end - start]` = the first `start` columns of `errors` `[rows, cols]` times those rows of
    /// `shares` `[cols, cols]`, columns `start..end`. In f32.
    fn product(
        &self,
        shares: &Memory,
        errors: &Memory,
        start: usize,
        end: usize,
        correction: &Memory,
    ) -> Result<()> {
        let (one, none) = (1f32, 0f32);
        let normal = cublasOperation_t::CUBLAS_OP_N;
        let (blas, cols, width) = (self.device.blas()?, self.cols as i32, (end - start) as i32);
        // cuBLAS is column-major: correction^T = shares^T errors^T.
        // SAFETY: the three are alive and of the sizes that this function says; start + width is at most cols.
        unsafe {
            cudarc::cublas::result::sgemm(
                *blas.handle(),
                normal,
                normal,
                width,
                self.rows as i32,
                start as i32,
                &raw const one,
                (address(shares) + 4 * start as u64) as *const f32,
                cols,
                address(errors) as *const f32,
                cols,
                &raw const none,
                address(correction) as *mut f32,
                width,
            )
        }
        .map_err(error)
    }

    /// Sums the error up and packs the codes.
    fn finish(
        &self,
        name: &str,
        prepared: Prepared,
        codebooks: Arc<[f16]>,
        centroids: &Memory,
        codes: &Memory,
    ) -> Result<Quantized> {
        let Self { spec, rows, cols, .. } = *self;
        let unit = Source::Quantize.unit();
        let errors = self.device.alloc(rows * 2, false)?;
        let grid = [rows as u32, 1, 1];
        self.launch(
            Launch::new(unit.function("row_errors"), grid, 256, 0)
                .memory(&prepared.weights)
                .memory(codes)
                .memory(centroids)
                .memory(&prepared.scales)
                .memory(&prepared.squares)
                .memory(&errors)
                .word(cols as u32)
                .word(spec.d as u32)
                .word(spec.k as u32)
                .word(spec.subspaces_per_codebook(cols) as u32)
                .word(self.scale()),
        )?;
        let packed = self.device.alloc((rows * spec.row_bytes(cols)).div_ceil(4), false)?;
        self.launch(
            Launch::new(unit.function("pack"), grid, 256, 0)
                .memory(codes)
                .memory(&packed)
                .word(spec.subspaces(cols) as u32)
                .word(spec.row_bytes(cols) as u32)
                .word(spec.code_bits() as u32),
        )?;
        let sum = |memory: &Memory| Ok::<f64, Error>(self.download::<f64>(memory, rows)?.iter().sum());
        let error = SquaredError { error: sum(&errors)?, total: sum(&prepared.squares)? };
        let scales = match spec.scale {
            RowScale::None => vec![],
            _ => self.download::<f16>(&prepared.scales, rows)?,
        };
        let codes = self.download::<u8>(&packed, rows * spec.row_bytes(cols))?;
        let matrix = PqMatrix { spec, rows, cols, codes: codes.into(), codebooks, scales: scales.into() };
        Ok(Quantized { matrix: matrix.checked(name)?, error })
    }
}
