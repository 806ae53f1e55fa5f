//! What can be a phase of the persistent kernel, and what a run of phases takes: constants, threads, shared memory.

use std::collections::BTreeMap;

use super::fusions::{Choose, CudaStep, Fusions, only_part};
use crate::backend::cuda::device::abi::{AttentionStepCall, DenseRowCall, EmbedCall, PqRowCall, TILE_CODES};
use crate::backend::cuda::device::unit::{Source, Unit};
use crate::backend::cuda::lower::kernels;
use crate::backend::cuda::lower::{
    AttentionAlgorithm, MatmulAlgorithm, Splits, dtype_number, few, persistent_shared, rms_norm_shape,
    spans_shape,
};
use crate::ops::{Matrix, Op, Operand};
use crate::plan::{FusedLinear, Input, Step};
use crate::tensor::Stored;

/// Declares [`Phase`]: the kinds of phases, the source of each, and the constant without which that cannot be compiled.
macro_rules! phases {
    ($($phase:ident $define:literal $source:ident $($needs:literal)?),* $(,)?) => {
        /// A kind of phase.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Phase {
            $($phase,)*
        }

        /// The name of each kind's number in the kernel, its source, and a constant that this needs.
        const PHASES: &[(Phase, &str, Source, Option<&str>)] =
            &[$((Phase::$phase, $define, Source::$source, phases!(@ $($needs)?))),*];
    };
    (@) => { None };
    (@ $needs:literal) => { Some($needs) };
}

phases!(
    PqRow "PHASE_PQ_ROW" PqRow "PQ_TOKENS",
    DenseRow "PHASE_DENSE_ROW" DenseRow "DENSE_DTYPE",
    RmsNorm "PHASE_RMS_NORM" RmsNorm,
    QkNorm "PHASE_QK_NORM" QkNorm,
    Glu "PHASE_GLU" Glu,
    GatherRows "PHASE_GATHER_ROWS" GatherRows,
    Embed "PHASE_EMBED" Embed "PQ_D",
    Rotate "PHASE_ROTATE" Rotate,
    Attention "PHASE_ATTENTION" AttentionStep "HEAD_DIM",
);

/// Static shared memory of the kernel, at most (tests/integration/cuda_compile.rs).
const STATIC_SHARED: u32 = 11 << 10;

/// Words of the largest phase's arguments.
pub fn call_words() -> usize {
    [
        PqRowCall::default().words().len(),
        DenseRowCall::default().words().len(),
        AttentionStepCall::default().words().len(),
        EmbedCall::default().words().len(),
    ]
    .into_iter()
    .fold(0, usize::max)
}

/// The kernel's unit for products of `constants`, tables of `table` bytes and blocks of `threads`.
pub fn unit(constants: &BTreeMap<&'static str, u32>, table: u32, threads: u32) -> Unit {
    let mut unit = Unit::new(Source::Persistent, &[("PERSISTENT", 1)])
        .with("PERSISTENT_TABLE", table)
        .with("PERSISTENT_THREADS", threads)
        .with("PHASE_CALL_WORDS", call_words() as u32);
    for (name, value) in constants {
        unit = unit.with(name, *value);
    }
    let mut sources = Vec::new();
    for (kind, (_, define, source, needs)) in (0..).zip(PHASES) {
        unit = unit.with(define, kind);
        if needs.is_none_or(|constant| constants.contains_key(constant)) {
            sources.push(*source);
        }
    }
    unit.with_functions(sources)
}

/// The constants of a step that can be a phase, or a part of one.
pub fn constants<'c, B: Operand, W: Matrix, C: Choose<W>>(
    step: &CudaStep<'_, 'c, B, W, C>,
    fusions: &Fusions<'c, C>,
) -> Option<BTreeMap<&'static str, u32>> {
    let (capabilities, cache) = (&fusions.capabilities, fusions.precision.cache());
    let of = |unit: Unit| Some(unit.constants().clone());
    let nothing = |phase: bool| phase.then(BTreeMap::new);
    match step {
        Step::Op { op: Op::Embed(op), .. } => match op.table.parts()[0].stored {
            Stored::Pq(spec) => of(kernels::embed_pq(&spec)),
            Stored::Dense(_) => None,
        },
        Step::Op { op: Op::GatherRows(_) | Op::Rotate(_), .. } => nothing(true),
        Step::Op { op: Op::QkNorm(op), .. } => nothing(op.params.rows == 1),
        Step::Op { op: Op::RmsNorm(op), .. } => nothing(few(capabilities, op.params.rows)),
        Step::Op { op: Op::Glu(op), .. } => nothing(few(capabilities, op.params.rows)),
        Step::Op { op: Op::RopeCache(op), .. } if op.params.rows == 1 => of(kernels::rope_cache(128, cache)),
        Step::Op { op: Op::Attention(op), .. } if op.params.rows == 1 => {
            match AttentionAlgorithm::of(&op.params, cache) {
                AttentionAlgorithm::Splits => of(Splits::of(&op.params, cache, capabilities).unit),
                AttentionAlgorithm::Tiles { .. } => None,
            }
        }
        Step::Linear(linear) => match fusions.matvec(linear) {
            Some(matvec) => match linear.input {
                Input::Norm { added: Some(_), .. } => of(matvec.unit.with("PQ_ADDED_NORM", 1)),
                _ => of(matvec.unit),
            },
            None => of(dense_row(linear, fusions)?.0),
        },
        Step::RopeAttention(fused) => {
            let splits = Splits::of(&fused.attention.params, cache, capabilities).unit;
            joined(kernels::rope_cache(128, cache).constants(), splits.constants())
        }
        Step::Op { .. } | Step::Pack(_) | Step::DeltaStep(_) => None,
    }
}

/// The kernel's unit for fused steps.
pub fn unit_of<'c, B: Operand, W: Matrix, C: Choose<W>>(
    steps: &[CudaStep<'_, 'c, B, W, C>],
    fusions: &Fusions<'c, C>,
) -> Unit {
    let all = steps.iter().filter_map(|step| constants(step, fusions)).flatten().collect();
    let Shape { threads, table, .. } = shape(steps, fusions);
    unit(&all, table, threads)
}

/// The unit of a dense product of one row, and its shared memory.
pub fn dense_row<'c, B: Operand, W: Matrix, C: Choose<W>>(
    linear: &FusedLinear<'_, B, W, Fusions<'c, C>>,
    fusions: &Fusions<'c, C>,
) -> Option<(Unit, u32)> {
    let form = only_part(linear)?;
    let Stored::Dense(dtype) = form.stored else { return None };
    let limit = fusions.capabilities.shared_limit;
    (linear.linear.params.rows == 1 && linear.product.algorithm == MatmulAlgorithm::DenseRow)
        .then(|| kernels::dense_row(dtype_number(dtype), form.cols, limit))
        .flatten()
}

/// Both constants; none if a name has two values.
pub fn joined(
    a: &BTreeMap<&'static str, u32>,
    b: &BTreeMap<&'static str, u32>,
) -> Option<BTreeMap<&'static str, u32>> {
    let agree = b.iter().all(|(name, value)| a.get(name).is_none_or(|ours| ours == value));
    agree.then(|| a.iter().chain(b).map(|(name, value)| (*name, *value)).collect())
}

/// Whether a run of phases gains by being one launch: several of them, one a product.
pub fn worthwhile<'c, B, W, C>(run: &[CudaStep<'_, 'c, B, W, C>]) -> bool
where
    B: Operand,
    W: Matrix,
    C: Choose<W> + 'c,
{
    // A product that is no phase is a run by itself.
    run.len() > 1 && run.iter().any(|step| matches!(step, Step::Linear(_)))
}

/// Whether fused steps are all phases, and have shared memory enough.
pub fn fits<'c, B: Operand, W: Matrix, C: Choose<W>>(
    steps: &[CudaStep<'_, 'c, B, W, C>],
    fusions: &Fusions<'c, C>,
) -> bool {
    let phases = steps.iter().all(|step| match step {
        Step::Op { op: Op::RopeCache(_) | Op::Attention(_), .. } => false,
        Step::Op { .. } | Step::Linear(_) | Step::RopeAttention(_) => true,
        Step::Pack(_) | Step::DeltaStep(_) => false,
    });
    phases && shape(steps, fusions).shared + STATIC_SHARED <= fusions.capabilities.shared_limit as u32
}

/// A block of the kernel for some steps.
pub struct Shape {
    pub threads: u32,
    /// Bytes up to the end of the codebook's copies, and with what the phases need besides.
    pub table: u32,
    pub shared: u32,
}

pub fn shape<'c, B: Operand, W: Matrix, C: Choose<W>>(
    steps: &[CudaStep<'_, 'c, B, W, C>],
    fusions: &Fusions<'c, C>,
) -> Shape {
    let (mut table, mut threads, mut besides) = (0, kernels::DENSE_ROW_WARPS * 32, 0);
    for step in steps {
        besides = besides.max(match step {
            Step::Linear(linear) => match fusions.matvec(linear) {
                Some(matvec) => {
                    (table, threads) = (matvec.table, matvec.warps * 32);
                    matvec.persistent_shared(matvec.persistent_chunk(code_tiles(linear))) - matvec.table
                }
                None => dense_row(linear, fusions).map_or(0, |(_, shared)| shared),
            },
            Step::RopeAttention(fused) => {
                let p = fused.attention.params;
                let splits = Splits::of(&p, fusions.precision.cache(), &fusions.capabilities);
                persistent_shared(p.head_dim, splits.group)
            }
            Step::Op { op: Op::RmsNorm(op), .. } => {
                rms_norm_shape(&op.params, fusions.capabilities.sms).shared
            }
            Step::Op { op: Op::Rotate(op), .. } => spans_shape(op.params.rows, op.params.dim).shared,
            Step::Op { op: Op::Embed(op), .. } => kernels::row_shared(op.params.dim),
            Step::Op { .. } | Step::Pack(_) | Step::DeltaStep(_) => 0,
        });
    }
    Shape { threads, table, shared: table + besides }
}

/// Tiles of codes in a row of a product's matrix.
fn code_tiles<'c, B: Operand, W: Matrix, C: Choose<W>>(
    linear: &FusedLinear<'_, B, W, Fusions<'c, C>>,
) -> u32 {
    match only_part(linear).map(|form| (form.cols, form.stored)) {
        Some((cols, Stored::Pq(spec))) => spec.subspaces(cols).div_ceil(TILE_CODES) as u32,
        Some((_, Stored::Dense(_))) | None => 0,
    }
}
