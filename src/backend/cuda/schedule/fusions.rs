//! What this backend fuses, for launches and for the persistent kernel.

use crate::Result;
use crate::backend::cuda::device::Capabilities;
use crate::backend::cuda::device::abi::{SUBSPACE_MATRICES, TILE_ROWS};
use crate::backend::cuda::lower::kernels::{self, Lookup, Matvec};
use crate::backend::cuda::lower::{AttentionAlgorithm, MatmulAlgorithm, Packing, Precision, few};
use crate::backend::cuda::lower::{SINGLE_ROWS, dtype_number};
use crate::ops::{Attention, Glu, Linear, Matrix, Op, Operand, RmsNorm, RopeCache};
use crate::plan::{Fuse, FusedLinear, Product, Step};
use crate::tensor::{Form, Stored};

/// Chooses how several rows are multiplied by a product-quantized part of a weight.
pub trait Choose<W> {
    fn choose(&self, weight: &W, part: usize, rows: u32) -> Result<MatmulAlgorithm>;
}

/// As what a run of steps is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A launch or two each.
    Launches,
    /// Phases of one launch.
    Persistent,
}

/// What is fused for one target.
pub struct Fusions<'c, C> {
    pub capabilities: Capabilities,
    pub precision: Precision,
    pub choose: &'c C,
    pub target: Target,
}

impl<C> Clone for Fusions<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Fusions<'_, C> {}

/// A step of this backend's plans.
pub type CudaStep<'a, 'c, B, W, C> = Step<'a, B, W, Fusions<'c, C>>;

impl<C> Fusions<'_, C> {
    /// The kernel of one row and a shared codebook, where that multiplies the product.
    pub fn matvec<B: Operand, W: Matrix>(&self, linear: &FusedLinear<'_, B, W, Self>) -> Option<Matvec>
    where
        Self: Fuse<B, W, Algorithm = MatmulAlgorithm>,
    {
        let form = only_part(linear)?;
        let Stored::Pq(spec) = form.stored else { return None };
        let limit = self.capabilities.shared_limit;
        match Lookup::of(&spec, form.cols, limit) {
            Lookup::Shared { replicas } if linear.product.algorithm == MatmulAlgorithm::Matvec => {
                (linear.linear.params.rows == 1).then(|| Matvec::new(&spec, replicas, limit))
            }
            Lookup::Shared { .. } | Lookup::Subspace | Lookup::Memory => None,
        }
    }

    /// Whether one row is multiplied by matrices with codebooks for each subspace, all in one launch.
    fn subspace<B: Operand, W: Matrix>(&self, linear: &FusedLinear<'_, B, W, Self>) -> bool
    where
        Self: Fuse<B, W, Algorithm = MatmulAlgorithm>,
    {
        let first = &linear.linear.weight.parts()[linear.product.parts.start];
        linear.linear.params.rows == 1
            && linear.product.algorithm == MatmulAlgorithm::Matvec
            && is_subspace(first, self.capabilities.shared_limit)
    }
}

/// The product's part, where it is one.
pub fn only_part<'w, B, W: Matrix, F: Fuse<B, W>>(linear: &FusedLinear<'w, B, W, F>) -> Option<&'w Form> {
    match &linear.linear.weight.parts()[linear.product.parts.clone()] {
        [form] => Some(form),
        _ => None,
    }
}

fn is_subspace(form: &Form, shared_limit: usize) -> bool {
    match form.stored {
        Stored::Pq(spec) => Lookup::of(&spec, form.cols, shared_limit) == Lookup::Subspace,
        Stored::Dense(_) => false,
    }
}

/// Whether one launch can take both: codebooks for each subspace, of one spec.
fn stacks(a: &Form, b: &Form, shared_limit: usize) -> bool {
    match (a.stored, b.stored) {
        (Stored::Pq(x), Stored::Pq(y)) => x == y && is_subspace(a, shared_limit),
        _ => false,
    }
}

impl<B: Operand, W: Matrix, C: Choose<W>> Fuse<B, W> for Fusions<'_, C> {
    type Algorithm = MatmulAlgorithm;
    type Packing = Packing;

    fn split(&self, linear: &Linear<'_, B, W>) -> Result<Vec<Product<MatmulAlgorithm>>> {
        let (rows, parts) = (linear.params.rows, linear.weight.parts());
        let limit = self.capabilities.shared_limit;
        let at_once = match self.precision {
            Precision::Half => rows,
            Precision::Single => SINGLE_ROWS,
        };
        let mut products = Vec::new();
        for start in (0..rows).step_by(at_once as usize) {
            let rows = start..rows.min(start + at_once);
            let count = rows.len() as u32;
            let mut first = 0;
            for stack in parts.chunk_by(|a, b| stacks(a, b, limit)) {
                let together = is_subspace(&stack[0], limit)
                    && self.choose.choose(linear.weight, first, count)? == MatmulAlgorithm::Matvec;
                for parts in stack.chunks(if together { SUBSPACE_MATRICES } else { 1 }) {
                    let algorithm = match parts[0].stored {
                        Stored::Pq(_) if together => MatmulAlgorithm::Matvec,
                        Stored::Pq(_) => self.choose.choose(linear.weight, first, count)?,
                        Stored::Dense(dtype) if count == 1 => {
                            let alone = kernels::dense_row(dtype_number(dtype), parts[0].cols, limit);
                            alone.map_or(MatmulAlgorithm::DenseFew, |_| MatmulAlgorithm::DenseRow)
                        }
                        Stored::Dense(_) if count <= SINGLE_ROWS => MatmulAlgorithm::DenseFew,
                        Stored::Dense(_) => MatmulAlgorithm::DenseGemm,
                    };
                    let parts = first..first + parts.len();
                    first = parts.end;
                    products.push(Product { rows: rows.clone(), parts, algorithm });
                }
            }
        }
        Ok(products)
    }

    fn packing(&self, linear: &FusedLinear<'_, B, W, Self>) -> Option<Packing> {
        let rows = linear.product.rows.len() as u32;
        linear.product.algorithm.packing(only_part(linear)?, rows, self.capabilities.shared_limit)
    }

    fn writes_packed(&self, op: &Op<'_, B, W>, packing: Packing) -> bool {
        // By spans a kernel can write any layout, else that of tensor cores alone.
        let (rows, cols, spans) = match op {
            Op::RmsNorm(op) => (op.params.rows, op.params.dim, !few(&self.capabilities, op.params.rows)),
            Op::Glu(op) => (op.params.rows, op.params.dim, !few(&self.capabilities, op.params.rows)),
            Op::Rotate(op) => (op.params.rows, op.params.dim, true),
            Op::Attention(op) => {
                let (p, cols) = (op.params, op.params.heads * op.params.head_dim);
                match AttentionAlgorithm::of(&p, self.precision.cache()) {
                    AttentionAlgorithm::Tiles { .. } if p.rotate > 0 => (p.rows, cols, true),
                    AttentionAlgorithm::Tiles { .. } => return false,
                    AttentionAlgorithm::Splits => (p.rows, cols, false),
                }
            }
            Op::Embed(_)
            | Op::GatherRows(_)
            | Op::Linear(_)
            | Op::QkNorm(_)
            | Op::RopeCache(_)
            | Op::CausalConv(_)
            | Op::DeltaRule(_)
            | Op::GatedNorm(_) => return false,
        };
        match packing {
            Packing::Half(_) => spans && cols.is_multiple_of(8),
            Packing::Tiles { d, .. } => {
                d.is_power_of_two()
                    && cols.is_multiple_of(64 * d as u32)
                    && packing.capacity().is_none_or(|capacity| rows <= capacity)
            }
        }
    }

    fn norm_linear(&self, norm: &RmsNorm<'_, B>, linear: &FusedLinear<'_, B, W, Self>) -> bool {
        match self.target {
            Target::Launches => norm.params.rotate == 0 && self.subspace(linear),
            Target::Persistent => match self.matvec(linear) {
                Some(matvec) => matvec.prepares(norm.params.rotate),
                None => norm.params.rotate == 0 && linear.product.algorithm == MatmulAlgorithm::DenseRow,
            },
        }
    }

    fn added_norm(&self, _: &RmsNorm<'_, B>, linear: &FusedLinear<'_, B, W, Self>) -> bool {
        self.target == Target::Persistent
            && self.matvec(linear).is_some_and(|matvec| matvec.adds_norms(linear.linear.weight.cols()))
    }

    fn linear_glu(&self, linear: &FusedLinear<'_, B, W, Self>, glu: &Glu<'_, B>) -> bool {
        match self.target {
            Target::Launches => glu.params.rotate == 0 && self.subspace(linear),
            Target::Persistent => {
                glu.params.dim.is_multiple_of(TILE_ROWS as u32) && self.matvec(linear).is_some()
            }
        }
    }

    fn rotate_linear(&self, block: u32, linear: &FusedLinear<'_, B, W, Self>) -> bool {
        self.target == Target::Persistent && self.matvec(linear).is_some_and(|matvec| matvec.prepares(block))
    }

    fn rope_attention(&self, _: &RopeCache<'_, B>, attention: &Attention<'_, B>) -> bool {
        self.target == Target::Persistent
            && attention.params.rows == 1
            && AttentionAlgorithm::of(&attention.params, self.precision.cache()) == AttentionAlgorithm::Splits
    }
}
