//! The persistent kernel (kernels/persistent.cu): a run of steps as phases of one launch, whose program lies in memory.
//!
//! One grid of resident blocks, one a multiprocessor, runs the phases with a barrier between them. Norms, rotations and
//! GLU are part of the products beside them by then (plan.rs).

use super::fusions::{Choose, CudaStep, Fusions};
use super::phases::{Phase, Shape, call_words, shape, unit_of};
use crate::backend::cuda::device::Scratch;
use crate::backend::cuda::device::abi::{
    AttentionStepCall, DenseRowCall, EmbedCall, GatherRowsCall, GluCall, PhaseHead, PqRowCall, QkNormCall,
    RmsNormCall, RotateCall, TILE_ROWS,
};
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::{Memory, address};
use crate::backend::cuda::lower::kernels::Matvec;
use crate::backend::cuda::lower::weight::{Kind, Part, Pq};
use crate::backend::cuda::lower::{
    Buffer, Lowering, Splits, Weight, gather_rows_shape, glu_shape, qk_norm_shape, rms_norm_shape,
    short_context, spans_shape,
};
use crate::ops::{self, LinearParams, Op, RotateParams};
use crate::plan::{Fuse, FusedLinear, Input, RopeAttention, Step};
use crate::{Error, Result};

/// A phase on its way into the program.
struct Planned {
    phase: Phase,
    when: When,
    grid: [u32; 3],
    call: Call,
}

/// For which rows a phase is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Where the row sees few positions, or many.
    Short,
    Long,
}

/// A phase's arguments.
enum Call {
    PqRow(PqRowCall, Matrix),
    DenseRow(DenseRowCall, Matrix),
    /// Those that know of no other phase.
    Words(Vec<u32>),
}

/// What a product's phase knows of the next product's matrix, to prefetch its beginning.
#[derive(Clone, Copy, Default)]
struct Matrix {
    at: u64,
    /// Bytes of what blocks divide it by, and their number.
    tile_bytes: u32,
    row_tiles: u32,
    /// 1: of gate and up, of which a block reads both halves.
    paired: u32,
}

impl Lowering {
    /// The steps as one launch.
    pub fn persistent<'c, C: Choose<Weight>>(
        &self,
        c: &mut Commands,
        steps: &[CudaStep<'_, 'c, Buffer, Weight, C>],
        fusions: &Fusions<'c, C>,
    ) -> Result<()> {
        let Shape { threads, shared, .. } = shape(steps, fusions);
        let (mut phases, mut rows, mut short) = (Vec::new(), None, 0);
        let plain = self.plain_row(steps)?;
        for (i, step) in steps.iter().enumerate() {
            self.phases(&mut phases, step, fusions, plain.as_ref())
                .map_err(|e| Error::invalid(format!("phase {i}, {step}"), e))?;
            if let Step::RopeAttention(fused) = step {
                rows = Some(fused.rope.rows.memory());
                short = short_context(&fused.attention.params);
            }
        }
        look_ahead(&mut phases);
        let function = unit_of(steps, fusions).function("persistent");
        let words = program(&phases);
        let memory = self.device.alloc(words.len(), false)?;
        self.device.write(&memory, bytemuck::cast_slice(&words))?;
        c.launch(
            Launch::new(function, [self.capabilities().sms, 1, 1], threads, shared)
                .resident()
                .own(memory)
                .word(phases.len() as u32)
                .optional(rows, 0)
                .word(short),
        );
        Ok(())
    }

    /// Memory for the largest row that a phase leaves to the next product to rotate.
    fn plain_row<'c, C: Choose<Weight>>(
        &self,
        steps: &[CudaStep<'_, 'c, Buffer, Weight, C>],
    ) -> Result<Option<Memory>> {
        let dim = |step: &CudaStep<'_, 'c, Buffer, Weight, C>| match step {
            Step::Linear(linear) => linear.activation.as_ref().map(|activation| activation.glu.params.dim),
            Step::RopeAttention(fused) => {
                Some(fused.attention.params.heads * fused.attention.params.head_dim)
            }
            Step::Op { .. } | Step::Pack(_) | Step::DeltaStep(_) => None,
        };
        let dim = steps.iter().filter_map(dim).max();
        dim.map(|dim| self.device.scratch(Scratch::Plain, dim as usize)).transpose()
    }

    /// Appends a step's phases.
    fn phases<'c, C: Choose<Weight>>(
        &self,
        phases: &mut Vec<Planned>,
        step: &CudaStep<'_, 'c, Buffer, Weight, C>,
        fusions: &Fusions<'c, C>,
        plain: Option<&Memory>,
    ) -> Result<()> {
        let at = |buffer: &Buffer| address(buffer.memory());
        let mut add = |phase, when, grid, call| phases.push(Planned { phase, when, grid, call });
        match step {
            Step::Op { op: Op::Embed(op), packed: None } => {
                let Kind::Pq(pq) = &op.table.parts[0].kind else { return Err(no_phase()) };
                let call = EmbedCall {
                    tokens: at(op.tokens),
                    codes: address(&pq.codes),
                    codebook: address(&pq.codebooks),
                    scales: pq.scales.as_ref().map_or(0, address),
                    y: at(op.y),
                    code_tiles: pq.code_tiles as u32,
                    group: pq.group as u32,
                    rotate: pq.rotation(op.table.cols),
                    params: op.params,
                };
                add(Phase::Embed, When::Always, [op.params.rows, 1, 1], Call::Words(call.words()));
            }
            Step::Op { op: Op::GatherRows(op), packed: None } => {
                let call =
                    GatherRowsCall { x: at(op.x), index: at(op.index), y: at(op.y), params: op.params };
                let grid = gather_rows_shape(&op.params).grid;
                add(Phase::GatherRows, When::Always, grid, Call::Words(call.words()));
            }
            Step::Op { op: Op::RmsNorm(op), packed: None } => {
                let call = RmsNormCall {
                    x: at(op.x),
                    weight: at(op.weight),
                    residual: op.residual.map_or(0, at),
                    y: at(op.y),
                    params: op.params,
                };
                let grid = rms_norm_shape(&op.params, self.capabilities().sms).grid;
                add(Phase::RmsNorm, When::Always, grid, Call::Words(call.words()));
            }
            Step::Op { op: Op::QkNorm(op), packed: None } => {
                let (qkv, q_norm, k_norm) = (at(op.qkv), at(op.q_norm), at(op.k_norm));
                let call = QkNormCall { qkv, q_norm, k_norm, params: op.params };
                let grid = qk_norm_shape(&op.params).grid;
                add(Phase::QkNorm, When::Always, grid, Call::Words(call.words()));
            }
            Step::Op { op: Op::Rotate(op), packed: None } => {
                let call = RotateCall { x: at(op.x), y: at(op.y), params: op.params };
                let grid = spans_shape(op.params.rows, op.params.dim).grid;
                add(Phase::Rotate, When::Always, grid, Call::Words(call.words()));
            }
            Step::Op { op: Op::Glu(op), packed: None } => {
                let call = GluCall { x: at(op.x), y: at(op.y), params: op.params };
                add(Phase::Glu, When::Always, glu_shape(&op.params).grid, Call::Words(call.words()));
            }
            Step::Linear(linear) => {
                let part = match &linear.linear.weight.parts[linear.product.parts.clone()] {
                    [part] => part,
                    parts => return Err(Error::mismatch("matrices of a phase", 1, parts.len())),
                };
                let (phase, call) = match (&part.kind, fusions.matvec(linear)) {
                    (Kind::Pq(pq), Some(matvec)) => {
                        let call = pq_row(linear, pq, part, &matvec, plain)?;
                        let matrix = Matrix {
                            at: call.codes,
                            tile_bytes: pq.code_tiles as u32 * matvec.tile_bytes,
                            row_tiles: part.rows.div_ceil(TILE_ROWS) as u32,
                            paired: call.paired,
                        };
                        (Phase::PqRow, Call::PqRow(call, matrix))
                    }
                    (Kind::Dense { dtype, memory }, None) => {
                        let call = dense_row_call(linear, memory, part)?;
                        let matrix = Matrix {
                            at: call.weight,
                            tile_bytes: (linear.linear.weight.cols * dtype.size()) as u32,
                            row_tiles: part.rows as u32,
                            paired: 0,
                        };
                        (Phase::DenseRow, Call::DenseRow(call, matrix))
                    }
                    _ => return Err(no_phase()),
                };
                add(phase, When::Always, [1, 1, 1], call);
            }
            Step::RopeAttention(fused) => self.attention_phases(add, fused, plain)?,
            Step::Op { .. } | Step::Pack(_) | Step::DeltaStep(_) => return Err(no_phase()),
        }
        Ok(())
    }

    /// Attention of one row: a block a head where it sees few positions, KV splits where it sees many; and its rotation,
    /// unless the next product does that.
    fn attention_phases(
        &self,
        mut add: impl FnMut(Phase, When, [u32; 3], Call),
        fused: &RopeAttention<'_, Buffer>,
        plain: Option<&Memory>,
    ) -> Result<()> {
        let at = |buffer: &Buffer| address(buffer.memory());
        let (rope, attention, p) = (&fused.rope, &fused.attention, fused.attention.params);
        let cache = self.precision.cache();
        let Splits { across, splits, group, .. } = Splits::of(&p, cache, self.capabilities());
        let [partial, sums] = self.split_memory(&p, splits)?;
        let y = if p.rotate > 0 { address(plain.ok_or_else(no_phase)?) } else { at(attention.y) };
        let call = |count: u32| {
            let call = AttentionStepCall {
                params: rope.params,
                qkv: at(rope.qkv),
                q_norm: rope.q_norm.map_or(0, at),
                k_norm: rope.k_norm.map_or(0, at),
                inv_freq: at(rope.inv_freq),
                k_cache: at(rope.k_cache),
                v_cache: at(rope.v_cache),
                y,
                partial: address(&partial),
                sums: address(&sums),
                score_scale: p.scale,
                window: p.window,
                gated: p.gated,
                with_signs: fused.rotated_by_next.into(),
                count,
            };
            Call::Words(call.words())
        };
        add(Phase::Attention, When::Short, [p.heads / p.kv_heads, p.kv_heads, 1], call(1));
        add(Phase::Attention, When::Long, [across / p.kv_heads, p.kv_heads, splits], call(group));
        if p.rotate > 0 && !fused.rotated_by_next {
            let params = RotateParams { rows: 1, dim: p.heads * p.head_dim, rotate: p.rotate };
            let call = RotateCall { x: y, y: at(attention.y), params };
            add(Phase::Rotate, When::Always, spans_shape(1, params.dim).grid, Call::Words(call.words()));
        }
        Ok(())
    }
}

fn no_phase() -> Error {
    Error::invalid("the persistent kernel", "it has no phase for this step")
}

/// The parameters of a product's part.
fn of_part(linear: &ops::Linear<'_, Buffer, Weight>, first: usize) -> LinearParams {
    LinearParams { y_offset: linear.params.y_offset + first as u32, ..linear.params }
}

/// The bias of a product's part, 0 for none.
fn bias(linear: &ops::Linear<'_, Buffer, Weight>, first: usize) -> u64 {
    linear.bias.map_or(0, |bias| address(bias.memory()) + 4 * first as u64)
}

fn pq_row<F: Fuse<Buffer, Weight>>(
    fused: &FusedLinear<'_, Buffer, Weight, F>,
    pq: &Pq,
    part: &Part,
    matvec: &Matvec,
    plain: Option<&Memory>,
) -> Result<PqRowCall> {
    let linear = &fused.linear;
    let code_tiles = pq.code_tiles as u32;
    let mut call = PqRowCall {
        codes: address(&pq.codes),
        codebook: address(&pq.codebooks),
        scales: pq.scales.as_ref().map_or(0, address),
        bias: bias(linear, part.first),
        x: address(linear.x.memory()),
        y: address(linear.y.memory()),
        out: part.rows as u64,
        cols: linear.weight.cols as u64,
        code_tiles: code_tiles.into(),
        chunk_passes: matvec.persistent_chunk(code_tiles).into(),
        params: of_part(linear, part.first),
        ..PqRowCall::default()
    };
    match &fused.input {
        Input::Plain => {}
        Input::Norm { norm, keep, added } => {
            if let Some(added) = added {
                call.added_weight = address(added.weight.memory());
                call.added = address(added.x.memory());
                call.residual = address(added.residual.ok_or_else(no_phase)?.memory());
                (call.added_eps, call.added_offset) = (added.params.eps, added.params.weight_offset);
            }
            (call.x, call.weight) = (address(norm.x.memory()), address(norm.weight.memory()));
            (call.eps, call.weight_offset) = (norm.params.eps, norm.params.weight_offset);
            (call.rotate, call.prepare) = (norm.params.rotate, 1);
            call.prepared = if *keep { address(norm.y.memory()) } else { 0 };
        }
        Input::Rotate { block, keep } => {
            call.x = address(plain.ok_or_else(no_phase)?);
            (call.rotate, call.prepare) = (*block, 1);
            call.prepared = if *keep { address(linear.x.memory()) } else { 0 };
        }
        Input::Packed(_) => return Err(no_phase()),
    }
    if let Some(activation) = &fused.activation {
        (call.paired, call.with_signs) = (1, activation.rotated_by_next.into());
        call.gelu = activation.glu.params.gelu;
        call.y = match activation.rotated_by_next {
            true => address(plain.ok_or_else(no_phase)?),
            false => address(activation.glu.y.memory()),
        };
    }
    Ok(call)
}

fn dense_row_call<F: Fuse<Buffer, Weight>>(
    fused: &FusedLinear<'_, Buffer, Weight, F>,
    weight: &Memory,
    part: &Part,
) -> Result<DenseRowCall> {
    let linear = &fused.linear;
    let mut call = DenseRowCall {
        weight: address(weight),
        bias: bias(linear, part.first),
        x: address(linear.x.memory()),
        y: address(linear.y.memory()),
        out: part.rows as u64,
        cols: linear.weight.cols as u64,
        params: of_part(linear, part.first),
        ..DenseRowCall::default()
    };
    match &fused.input {
        Input::Plain => {}
        Input::Norm { norm, added: None, .. } => {
            (call.x, call.norm) = (address(norm.x.memory()), address(norm.weight.memory()));
            (call.eps, call.weight_offset) = (norm.params.eps, norm.params.weight_offset);
            call.prepared = address(norm.y.memory());
        }
        Input::Norm { .. } | Input::Rotate { .. } | Input::Packed(_) => return Err(no_phase()),
    }
    if fused.activation.is_some() { Err(no_phase()) } else { Ok(call) }
}

/// Tells each product of the next one, whose beginning it prefetches.
fn look_ahead(phases: &mut [Planned]) {
    let mut next = Matrix::default();
    for planned in phases.iter_mut().rev() {
        match &mut planned.call {
            Call::PqRow(call, own) => {
                (call.next, call.next_tile_bytes) = (next.at, next.tile_bytes);
                (call.next_row_tiles, call.next_paired) = (next.row_tiles, next.paired);
                next = *own;
            }
            Call::DenseRow(call, own) => {
                (call.next, call.next_tile_bytes, call.next_row_tiles) =
                    (next.at, next.tile_bytes, next.row_tiles);
                next = *own;
            }
            Call::Words(_) => {}
        }
    }
}

/// The program as the kernel reads it.
fn program(phases: &[Planned]) -> Vec<u32> {
    let behind = |i: usize, skipped: When| {
        let next = phases.iter().skip(i + 1).position(|phase| phase.when != skipped);
        next.map_or(phases.len(), |next| i + 1 + next) as u32
    };
    let size = PhaseHead::default().words().len() + call_words();
    let mut words = Vec::with_capacity(phases.len() * size);
    for (i, planned) in phases.iter().enumerate() {
        let head = PhaseHead {
            kind: planned.phase as u32,
            grid: planned.grid,
            next_short: behind(i, When::Long),
            next_long: behind(i, When::Short),
        };
        words.extend(head.words());
        words.extend(match &planned.call {
            Call::PqRow(call, _) => call.words(),
            Call::DenseRow(call, _) => call.words(),
            Call::Words(words) => words.clone(),
        });
        words.resize((i + 1) * size, 0);
    }
    words
}
