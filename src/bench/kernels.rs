//! Linear layers with cold caches.

use super::{Samples, cold, copies};
use crate::Result;
use crate::backend::{Backend, WeightData};
use crate::model::random::{Random, Storage};
use crate::ops::{Linear, LinearParams};
use crate::pq::PqSpec;

/// One linear layer's shape `[out, in]` with its storage (None: dense f16), applied to `rows` rows.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub out: usize,
    pub cols: usize,
    pub spec: Option<PqSpec>,
    pub rows: usize,
}

/// Time of one launch, and bytes of the weight.
#[derive(Clone, Debug)]
pub struct Timing {
    pub samples: Samples,
    pub bytes: usize,
}

/// Times a linear layer.
pub async fn linear<B: Backend>(backend: &B, case: &Case, repeat: usize) -> Result<Timing> {
    let bytes = case.spec.map_or(case.out * case.cols * 2, |spec| spec.matrix_bytes(case.out, case.cols));
    let random =
        Random::matrices(case.out, case.cols, copies(bytes), Storage { linear: case.spec, head: None })?;
    let names: Vec<String> = random.names().map(str::to_owned).collect();
    let data: Vec<WeightData<'_>> = names.iter().map(|name| random.weight(name)).collect::<Result<_>>()?;
    let weights =
        data.iter().map(|data| backend.weight(std::slice::from_ref(data))).collect::<Result<Vec<_>>>()?;
    let x: Vec<f32> =
        (0..case.rows * case.cols).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0).collect();
    let x = backend.upload(bytemuck::cast_slice(&x))?;
    let y = backend.alloc(case.rows * case.out)?;
    let params =
        LinearParams { rows: case.rows as u32, y_stride: case.out as u32, y_offset: 0, accumulate: 0 };
    let op = |weight| Linear { x: &x, weight, bias: None, y: &y, params }.into();
    let ops: Vec<_> = weights.iter().map(op).collect();
    Ok(Timing { samples: cold(backend, &ops, repeat).await?, bytes })
}
