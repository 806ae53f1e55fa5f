//! [`Linear`]: one linear layer, or several that share their input, dense or product-quantized.

use half::f16;

use super::arch::Input;
use super::source::Tensors;
use crate::backend::{Backend, Dtype, WeightData};
use crate::ops::{self, LinearParams, Op, Rotate, RotateParams};
use crate::pq::Rotation;
use crate::tensor::TensorView;
use crate::{Error, Result};

/// Recorded operations of a backend.
pub type Ops<'a, B> = Vec<Op<'a, <B as Backend>::Buffer, <B as Backend>::Weight>>;

/// Linear layers `[out, in]` over the same input, stacked along `out`: a row of the output holds theirs side by side.
pub struct Linear<B: Backend> {
    parts: Vec<Part<B>>,
    cols: usize,
    outs: usize,
}

/// Neighbouring layers with the same input rotation, all with a bias or all without.
struct Part<B: Backend> {
    weight: B::Weight,
    bias: Option<B::Buffer>,
    /// Block of the input's rotation, 0 for none.
    rotate: u32,
    /// First output column.
    offset: usize,
}

impl<B: Backend> Linear<B> {
    /// Loads the layers of a block that read `input`, each with its bias if it has one.
    pub fn load(tensors: &mut Tensors<'_, B>, input: Input) -> Result<Self> {
        let names = tensors.weights_of(input);
        let weights = names.iter().map(|name| tensors.weight(name)).collect::<Result<Vec<_>>>()?;
        let Some((_, cols)) = weights.first().map(WeightData::shape) else {
            let what = format!("input {} of block {}", input.at, input.layer);
            return Err(Error::invalid(what, "no linear layer reads it"));
        };
        let rotated = rotate_dense(&weights);
        let mut groups: Vec<Group<'_>> = Vec::new();
        let mut outs = 0;
        for ((name, weight), rotated) in names.iter().zip(weights).zip(&rotated) {
            let (rows, _) = weight.shape();
            let (rotate, weight) = match rotated {
                Some((bytes, block)) => (*block, WeightData::Dense { dtype: Dtype::F16, rows, cols, bytes }),
                None => (rotate_block(&weight), weight),
            };
            let bias = tensors.bias(name)?;
            match groups.last_mut() {
                Some(group) if group.rotate == rotate && group.bias.is_empty() == bias.is_empty() => {
                    group.weights.push(weight);
                    group.bias.extend(bias);
                }
                _ => groups.push(Group { weights: vec![weight], bias, rotate, offset: outs }),
            }
            outs += rows;
        }
        let backend = tensors.backend();
        let part = |group: Group<'_>| {
            let upload = |bias: &[f32]| backend.upload(bytemuck::cast_slice(bias));
            Ok(Part {
                weight: backend.weight(&group.weights)?,
                bias: if group.bias.is_empty() { None } else { Some(upload(&group.bias)?) },
                rotate: group.rotate,
                offset: group.offset,
            })
        };
        Ok(Self { parts: groups.into_iter().map(part).collect::<Result<_>>()?, cols, outs })
    }

    /// Output columns of all layers together.
    pub fn outs(&self) -> usize {
        self.outs
    }

    /// Columns of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Block of the rotation that the operation before should apply to its output, 0 for none: also if layers differ.
    pub fn input_rotation(&self) -> u32 {
        if self.parts.iter().all(|part| part.rotate == self.parts[0].rotate) {
            self.parts[0].rotate
        } else {
            0
        }
    }

    /// Records `y = W x`, or `y += W x`.
    pub fn record<'a>(&'a self, ops: &mut Ops<'a, B>, io: LinearIo<'a, B>) {
        let LinearIo { rows, x, rotated, y, accumulate } = io;
        let ready = self.input_rotation();
        if let Some(part) = self.parts.iter().find(|part| part.rotate != ready) {
            let params = RotateParams { rows, dim: self.cols as u32, rotate: part.rotate };
            ops.push(Rotate { x, y: rotated, params }.into());
        }
        for part in &self.parts {
            let params = LinearParams {
                rows,
                y_stride: self.outs as u32,
                y_offset: part.offset as u32,
                accumulate: accumulate.into(),
            };
            let x = if part.rotate == ready { x } else { rotated };
            ops.push(ops::Linear { x, weight: &part.weight, bias: part.bias.as_ref(), y, params }.into());
        }
    }
}

/// The buffers that a [`Linear`] reads and writes.
pub struct LinearIo<'a, B: Backend> {
    pub rows: u32,
    /// `[rows, cols]`, rotated by [`Linear::input_rotation`].
    pub x: &'a B::Buffer,
    /// Scratch of x's size, for a rotated copy if layers differ in their rotation.
    pub rotated: &'a B::Buffer,
    /// `[rows, outs]`.
    pub y: &'a B::Buffer,
    /// Add to y.
    pub accumulate: bool,
}

/// A [`Part`] before it is on the backend.
struct Group<'a> {
    weights: Vec<WeightData<'a>>,
    /// Of all rows; empty without one.
    bias: Vec<f32>,
    rotate: u32,
    offset: usize,
}

/// The dense layers as f16, rotated like the product-quantized layers next to them, and the rotation's block: all then
/// read the same rotated input, as `W x = (W R^T)(R x)`. None for the other layers, and for all if the quantized ones
/// differ in their rotation or there are none.
fn rotate_dense(weights: &[WeightData<'_>]) -> Vec<Option<(Vec<u8>, u32)>> {
    let mut blocks = weights.iter().filter(|w| matches!(w, WeightData::Pq(_))).map(rotate_block);
    let block = blocks.next().filter(|block| blocks.all(|other| other == *block));
    let rotate = |weight: &WeightData<'_>| {
        let (WeightData::Dense { dtype, rows, cols, bytes }, Some(block)) = (weight, block) else {
            return None;
        };
        let mut values = TensorView { dtype: *dtype, shape: vec![*rows, *cols], bytes }.to_f32();
        if block > 0 {
            let rotation = Rotation { block: block as usize };
            values.chunks_exact_mut(*cols).for_each(|row| rotation.apply(row));
        }
        Some((values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(), block))
    };
    weights.iter().map(rotate).collect()
}

/// Block of the rotation that a weight's input needs, 0 for none.
pub(super) fn rotate_block(weight: &WeightData<'_>) -> u32 {
    match weight {
        WeightData::Pq(matrix) => matrix.rotation().map_or(0, |rotation| rotation.block as u32),
        WeightData::Dense { .. } => 0,
    }
}

/// The token embedding, and the output head, which may be the same tensor.
pub struct Embedding<B: Backend> {
    weight: B::Weight,
    /// Block of the rotation that the head's input needs, 0 for none.
    pub rotate: u32,
}

impl<B: Backend> Embedding<B> {
    /// Loads the table `[vocab, hidden]` called `name`.
    pub fn load(tensors: &mut Tensors<'_, B>, name: &str) -> Result<Self> {
        let data = tensors.weight(name)?;
        let weight = tensors.backend().weight(std::slice::from_ref(&data))?;
        Ok(Self { weight, rotate: rotate_block(&data) })
    }

    pub fn weight(&self) -> &B::Weight {
        &self.weight
    }
}
