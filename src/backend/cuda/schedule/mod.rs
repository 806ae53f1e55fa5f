//! Schedule: what is fused, which runs of steps become one launch, and which algorithm multiplies what.

mod fusions;
mod persistent;
mod phases;
mod plan;
mod tune;

pub use fusions::{Choose, Target};
pub use phases::unit as persistent_unit;
pub use plan::{Segment, plan};
#[cfg(any(test, feature = "test-support"))]
pub use tune::Untuned;
pub use tune::{Tuned, Tuner};

use super::device::launch::Commands;
use super::lower::{Buffer, Lowering, Weight};
use crate::ops::Op;
use crate::plan::Step;
use crate::{Error, Result};
use fusions::CudaStep;

/// The launches of a plan.
pub fn lower<C: Choose<Weight>>(
    lowering: &Lowering,
    segments: &[Segment<'_, '_, Buffer, Weight, C>],
) -> Result<Commands> {
    let mut commands = Commands::default();
    for segment in segments {
        match segment.target {
            Target::Persistent => lowering.persistent(&mut commands, &segment.steps, &segment.fusions)?,
            Target::Launches => {
                segment.steps.iter().try_for_each(|step| launch(lowering, &mut commands, step))?;
            }
        }
    }
    Ok(commands)
}

/// The launches of one step.
fn launch<C: Choose<Weight>>(
    lowering: &Lowering,
    c: &mut Commands,
    step: &CudaStep<'_, '_, Buffer, Weight, C>,
) -> Result<()> {
    let (op, packed) = match step {
        Step::Op { op, packed } => (op, *packed),
        Step::Pack(pack) => return lowering.pack(c, pack),
        Step::Linear(linear) => return lowering.linear(c, linear),
        Step::RopeAttention(_) | Step::DeltaStep(_) => {
            return Err(Error::invalid(step.to_string(), "cuda has no launch for it"));
        }
    };
    match (op, packed) {
        (Op::RmsNorm(op), packed) => lowering.rms_norm(c, op, packed),
        (Op::QkNorm(op), None) => lowering.qk_norm(c, op),
        (Op::Rotate(op), packed) => lowering.rotate(c, op, packed),
        (Op::Glu(op), packed) => lowering.glu(c, op, packed),
        (Op::Attention(op), packed) => lowering.attention(c, op, packed),
        (Op::Embed(op), None) => lowering.embed(c, op),
        (Op::GatherRows(op), None) => lowering.gather_rows(c, op),
        (Op::RopeCache(op), None) => lowering.rope_cache(c, op),
        (Op::CausalConv(op), None) => lowering.causal_conv(c, op),
        (Op::DeltaRule(op), None) => lowering.delta_rule(c, op),
        (Op::GatedNorm(op), None) => lowering.gated_norm(c, op),
        (Op::Linear(_), _) | (_, Some(_)) => {
            Err(Error::invalid(step.to_string(), "cuda has no launch for it"))
        }
    }
}
