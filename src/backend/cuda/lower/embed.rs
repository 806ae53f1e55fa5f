//! Token embedding.

use super::kernels;
use super::weight::{Kind, Weight};
use super::{Buffer, Lowering, dtype_number, row_threads};
use crate::Result;
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::unit::Source;
use crate::ops::{Embed, KernelParams};

impl Lowering {
    pub fn embed(&self, c: &mut Commands, op: &Embed<'_, Buffer, Weight>) -> Result<()> {
        let p = op.params;
        let (grid, threads, shared) = ([p.rows, 1, 1], row_threads(p.dim), kernels::row_shared(p.dim));
        let launch = match &op.table.parts[0].kind {
            Kind::Dense { dtype, memory } => {
                Launch::new(Source::Embed.unit().function("embed"), grid, threads, shared)
                    .memory(op.tokens.memory())
                    .memory(memory)
                    .memory(op.y.memory())
                    .word(dtype_number(*dtype))
            }
            Kind::Pq(pq) => {
                let function = kernels::embed_pq(&pq.spec).function("embed_pq");
                Launch::new(function, grid, threads, shared)
                    .memory(op.tokens.memory())
                    .memory(&pq.codes)
                    .memory(&pq.codebooks)
                    .optional(pq.scales.as_ref(), 0)
                    .memory(op.y.memory())
                    .word(pq.code_tiles as u32)
                    .word(pq.group as u32)
                    .word(pq.rotation(op.table.cols))
            }
        };
        c.launch(launch.structure(p.words()));
        Ok(())
    }
}
