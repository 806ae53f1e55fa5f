//! Which runs of operations become one launch of the persistent kernel.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use super::fusions::{Choose, CudaStep, Fusions, Target};
use super::phases;
use crate::Result;
use crate::backend::cuda::device::Capabilities;
use crate::backend::cuda::lower::Precision;
use crate::ops::{Matrix, Op, Operand};
use crate::plan::{self, Fuse};

/// Neighbouring steps with one target.
pub struct Segment<'a, 'c, B, W, C>
where
    Fusions<'c, C>: Fuse<B, W>,
{
    pub steps: Vec<CudaStep<'a, 'c, B, W, C>>,
    pub target: Target,
    pub fusions: Fusions<'c, C>,
}

impl<B: Operand, W: Matrix, C: Choose<W>> Display for Segment<'_, '_, B, W, C> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.target {
            Target::Launches => self.steps.iter().try_for_each(|step| writeln!(f, "{step}")),
            Target::Persistent => {
                writeln!(f, "persistent {{")?;
                self.steps.iter().try_for_each(|step| writeln!(f, "    {step}"))?;
                writeln!(f, "}}")
            }
        }
    }
}

/// The plan of a list of operations.
pub fn plan<'a, 'c, B: Operand, W: Matrix, C: Choose<W>>(
    ops: &[Op<'a, B, W>],
    capabilities: Capabilities,
    precision: Precision,
    choose: &'c C,
) -> Result<Vec<Segment<'a, 'c, B, W, C>>> {
    let fusions = |target| Fusions { capabilities, precision, choose, target };
    let launches = fusions(Target::Launches);
    let steps = plan::split(ops, &launches)?;
    // A delta net's operations are no phases, and persistent kernels between them are slower than launches that overlap.
    let delta_net = ops.iter().any(|op| matches!(op, Op::DeltaRule(_)));
    let mut segments: Vec<Segment<'a, 'c, B, W, C>> = Vec::new();
    let add = |segments: &mut Vec<Segment<'a, 'c, B, W, C>>, steps: Vec<_>, target| match segments.last_mut()
    {
        Some(last) if target == Target::Launches && last.target == target => last.steps.extend(steps),
        _ => segments.push(Segment { steps, target, fusions: fusions(target) }),
    };
    if delta_net {
        add(&mut segments, steps, Target::Launches);
    } else {
        for run in runs(steps, &launches) {
            let target = if phases::worthwhile(&run) { Target::Persistent } else { Target::Launches };
            add(&mut segments, run, target);
        }
    }
    for i in 0..segments.len() {
        let (now, after) = segments.split_at_mut(i + 1);
        let now = &mut now[i];
        let later = |buffer: &B| {
            plan::reads(after.iter().flat_map(|segment| &segment.steps), buffer).unwrap_or(false)
        };
        if now.target == Target::Persistent {
            let mut fused = now.steps.clone();
            plan::fuse_steps(&mut fused, &later, &now.fusions);
            if phases::fits(&fused, &now.fusions) {
                now.steps = fused;
                continue;
            }
            (now.target, now.fusions) = (Target::Launches, launches);
        }
        plan::fuse_steps(&mut now.steps, &later, &now.fusions);
    }
    Ok(segments)
}

/// Steps in runs whose kernels' constants agree, so that one unit can hold them all; a step that is no phase is a run of
/// its own.
fn runs<'a, 'c, B: Operand, W: Matrix, C: Choose<W>>(
    steps: Vec<CudaStep<'a, 'c, B, W, C>>,
    fusions: &Fusions<'c, C>,
) -> Vec<Vec<CudaStep<'a, 'c, B, W, C>>> {
    let mut runs: Vec<Vec<_>> = Vec::new();
    // None behind a step that is no phase.
    let mut constants: Option<BTreeMap<&'static str, u32>> = None;
    for step in steps {
        let own = phases::constants(&step, fusions);
        let joined = match (&constants, &own) {
            (Some(all), Some(own)) => phases::joined(all, own),
            _ => None,
        };
        match runs.last_mut() {
            Some(run) if joined.is_some() => run.push(step),
            _ => runs.push(vec![step]),
        }
        constants = joined.or(own);
    }
    runs
}
