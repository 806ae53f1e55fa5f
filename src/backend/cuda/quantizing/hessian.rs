//! The sums of x^T x that error feedback needs, where x is.

use cudarc::cublas::sys::{cublasFillMode_t, cublasOperation_t, cublasSsyrk_v2};

use crate::Result;
use crate::backend::HessianSum;
use crate::backend::cuda::device::error;
use crate::backend::cuda::device::graphs::enqueue;
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::{Memory, address};
use crate::backend::cuda::device::unit::Source;
use crate::backend::cuda::lower::{Buffer, Lowering};

/// Sums of x^T x in f64, of products in f32 for each [`HessianSum::add`].
pub struct Sums<'a> {
    lowering: &'a Lowering,
    dim: usize,
    /// f32 and f64 `[dim, dim]`.
    product: Memory,
    sums: Memory,
}

impl<'a> Sums<'a> {
    pub fn new(lowering: &'a Lowering, dim: usize) -> Result<Self> {
        let product = lowering.device.alloc(dim * dim, true)?;
        Ok(Self { lowering, dim, product, sums: lowering.device.alloc(2 * dim * dim, true)? })
    }
}

impl HessianSum<Buffer> for Sums<'_> {
    fn add(&mut self, x: &Buffer, rows: usize) -> Result<()> {
        let (one, none, dim) = (1f32, 0f32, self.dim as i32);
        let blas = self.lowering.device.blas()?;
        // Row-major x is x^T to cuBLAS, and the lower triangle of its result our upper one.
        // SAFETY: x has `rows` rows of `dim` elements, the product `dim` of them; both are alive.
        unsafe {
            cublasSsyrk_v2(
                *blas.handle(),
                cublasFillMode_t::CUBLAS_FILL_MODE_LOWER,
                cublasOperation_t::CUBLAS_OP_N,
                dim,
                rows as i32,
                &raw const one,
                address(x.memory()) as *const f32,
                dim,
                &raw const none,
                address(&self.product) as *mut f32,
                dim,
            )
        }
        .result()
        .map_err(error)?;
        let mut commands = Commands::default();
        commands.launch(
            Launch::new(Source::Hessian.unit().function("hessian_add"), [self.dim as u32, 1, 1], 256, 0)
                .memory(&self.product)
                .memory(&self.sums)
                .word(self.dim as u32),
        );
        enqueue(&self.lowering.device, &commands)
    }

    fn sums(&self) -> Result<Vec<f64>> {
        let mut sums = vec![0f64; self.dim * self.dim];
        self.lowering.device.read_large(&self.sums, bytemuck::cast_slice_mut(&mut sums))?;
        Ok(sums)
    }
}
