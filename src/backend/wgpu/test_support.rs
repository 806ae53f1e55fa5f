//! Devices that use less than their adapter offers, so that tests on one adapter cover what others lack.

use super::device::{Capabilities, adapter};
use super::plan::Fusions;
use super::{Result, Wgpu};
use crate::backend::Form;
use crate::backend::dry::{self, Dry};
use crate::ops::Op;
use crate::plan;

/// What of an adapter is used, at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whether an adapter that computes on the CPU is taken.
    pub software: bool,
    pub subgroups: bool,
    /// Whether many rows are multiplied on matrix units.
    pub tensor: bool,
    /// Whether many rows are multiplied by the paper's LUT GEMM instead.
    pub lut: bool,
    /// Bytes of a weight that are bound at a time.
    pub weight_slice: u64,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Bytes of memory for a model; also where the adapter does not tell what it has.
    pub memory: Option<u64>,
}

impl Default for Limits {
    /// All that the adapter offers.
    fn default() -> Self {
        Self {
            software: true,
            subgroups: true,
            tensor: true,
            lut: false,
            weight_slice: u64::MAX,
            workgroup_memory: u32::MAX,
            memory: None,
        }
    }
}

/// Opens the best adapter within these limits.
pub async fn open(limits: Limits) -> Result<Wgpu> {
    let adapter = adapter(0, limits.software).await?;
    let all = Capabilities::of(&adapter);
    let capabilities = Capabilities {
        subgroups: all.subgroups && limits.subgroups,
        tensor: all.tensor && limits.tensor && limits.subgroups,
        lut: limits.lut,
        weight_slice: all.weight_slice.min(limits.weight_slice),
        workgroup_memory: all.workgroup_memory.min(limits.workgroup_memory),
        memory: [all.memory, limits.memory].into_iter().flatten().min(),
    };
    Wgpu::open_as(&adapter, capabilities).await
}

/// A backend that makes this backend's plans, and runs nothing.
pub fn dry() -> Dry {
    let planner = |ops: &[Op<'_, dry::Buffer, dry::Weight>]| {
        let steps = plan::rewrite(ops, &Fusions)?;
        Ok(steps.iter().map(|step| format!("{step}\n")).collect())
    };
    Dry::new(Box::new(planner), <[Form]>::to_vec)
}
