//! What the cases of `dense_matmul`, `pq_matvec`, `pq_matmul` and `embed` share: random weights and their oracle.

use std::borrow::Cow;
use std::sync::Arc;

use fasq::backend::{Backend, Dtype, WeightData};
use fasq::ops::{Linear, LinearParams};
use fasq::pq::{PqMatrix, PqSpec, Rotation, RowScale, pack};
use half::{bf16, f16};

use crate::harness::{Checks, Device, Random, SUMS, f64s};

/// A random weight with its stored values, row-major in f64.
pub struct Case {
    pub data: WeightData<'static>,
    pub values: Vec<f64>,
}

/// A dense weight.
pub fn dense(random: &mut Random, dtype: Dtype, rows: usize, cols: usize) -> Case {
    let values = random.values(rows * cols);
    let (bytes, values): (Vec<u8>, Vec<f64>) = match dtype {
        Dtype::F32 => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), f64s(&values)),
        Dtype::F16 => (
            values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            values.iter().map(|v| f16::from_f32(*v).to_f64()).collect(),
        ),
        Dtype::BF16 => (
            values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            values.iter().map(|v| bf16::from_f32(*v).to_f64()).collect(),
        ),
    };
    Case { data: WeightData::Dense { dtype, rows, cols, bytes: bytes.leak() }, values }
}

/// A random table for `spec`, as a universal one is shared between matrices.
pub fn table(random: &mut Random, spec: &PqSpec, cols: usize) -> Arc<[f16]> {
    random.values(spec.codebooks(cols) * spec.k * spec.d).iter().map(|v| f16::from_f32(*v)).collect()
}

/// A product-quantized weight over `codebooks`.
pub fn pq(random: &mut Random, spec: PqSpec, rows: usize, cols: usize, codebooks: Arc<[f16]>) -> Case {
    let subspaces = spec.subspaces(cols);
    let mut codes = vec![0; rows * spec.row_bytes(cols)];
    let mut values = Vec::new();
    let scales: Vec<f16> = random
        .values(if spec.scale == RowScale::None { 0 } else { rows })
        .iter()
        .map(|v| f16::from_f32(*v))
        .collect();
    for (n, packed) in codes.chunks_exact_mut(spec.row_bytes(cols)).enumerate() {
        let row: Vec<u16> = (0..subspaces).map(|_| random.below(spec.k) as u16).collect();
        pack::pack(&row, spec.code_bits(), packed);
        let scale = scales.get(n).map_or(1.0, |s| s.to_f64());
        values.extend((0..cols).map(|i| {
            let j = i / spec.d;
            let book = j / spec.subspaces_per_codebook(cols);
            scale * codebooks[(book * spec.k + row[j] as usize) * spec.d + i % spec.d].to_f64()
        }));
    }
    let matrix =
        PqMatrix { spec, rows, cols, codes: Cow::Owned(codes), codebooks, scales: Cow::Owned(scales) };
    Case { data: WeightData::Pq(matrix.checked("a random matrix").expect("a valid matrix")), values }
}

/// Row `n` as an embedding gives it: un-rotated where it is stored rotated.
pub fn lookup(case: &Case, n: usize) -> Vec<f64> {
    let (_, cols) = case.data.shape();
    let row = &case.values[n * cols..][..cols];
    let rotation: Option<Rotation> = match &case.data {
        WeightData::Pq(matrix) => matrix.rotation(),
        WeightData::Dense { .. } => None,
    };
    let Some(Rotation { block }) = rotation else { return row.to_vec() };
    let sum = |x: &[f64], i: usize| {
        (0..block).map(|j| if (i & j).count_ones().is_multiple_of(2) { x[j] } else { -x[j] }).sum::<f64>()
            / (block as f64).sqrt()
    };
    let plain = row.chunks_exact(block).flat_map(|x| (0..block).map(move |i| sum(x, i)));
    plain.enumerate().map(|(i, v)| v * f64::from(fasq::pq::rotate::sign(i as u32))).collect()
}

/// Multiplies `rows` random rows by the stacked weights, plain and accumulating with bias into a wider output.
pub fn check<B: Backend>(
    device: &Device<B>,
    checks: &mut Checks,
    random: &mut Random,
    what: &str,
    stack: &[Case],
    rows: usize,
) {
    let (cols, outs) = (stack[0].data.shape().1, stack.iter().map(|case| case.data.shape().0).sum::<usize>());
    let data: Vec<WeightData<'_>> = stack.iter().map(|case| case.data.clone()).collect();
    let weight = device.0.weight(&data).expect("a weight");
    let x = random.values(rows * cols);
    let x_buffer = device.floats(&x);
    let x = f64s(&x);
    let product = |r: usize, n: usize| {
        let (mut n, mut case) = (n, stack.iter());
        let mut now = case.next().expect("a weight");
        while n >= now.data.shape().0 {
            n -= now.data.shape().0;
            now = case.next().expect("a weight");
        }
        (0..cols).map(|i| x[r * cols + i] * now.values[n * cols + i]).sum::<f64>()
    };

    let y = device.poison(rows * outs);
    let params = LinearParams { rows: rows as u32, y_stride: outs as u32, y_offset: 0, accumulate: 0 };
    device.run(Linear { x: &x_buffer, weight: &weight, bias: None, y: &y, params });
    let expected: Vec<f64> = (0..rows * outs).map(|i| product(i / outs, i % outs)).collect();
    checks.close(
        &format!("{what}, {rows} rows"),
        &[rows, outs],
        &expected,
        &device.read(&y, rows * outs),
        SUMS,
    );

    let (stride, offset) = (outs + 5, 3);
    let (before, bias) = (random.values(rows * stride), random.values(outs));
    let (y, bias_buffer) = (device.floats(&before), device.floats(&bias));
    let params =
        LinearParams { rows: rows as u32, y_stride: stride as u32, y_offset: offset as u32, accumulate: 1 };
    device.run(Linear { x: &x_buffer, weight: &weight, bias: Some(&bias_buffer), y: &y, params });
    let mut expected = f64s(&before);
    for r in 0..rows {
        for n in 0..outs {
            expected[r * stride + offset + n] += product(r, n) + f64::from(bias[n]);
        }
    }
    checks.close(
        &format!("{what}, {rows} rows, accumulated"),
        &[rows, stride],
        &expected,
        &device.read(&y, rows * stride),
        SUMS,
    );
}

/// Specs of every scope, d and code width, with awkward shapes `(spec, rows, cols)`.
pub const SPECS: &[(&str, usize, usize)] = &[
    ("2-256@universal", 257, 96),
    ("2-256@universal", 300, 512),
    ("2-64@universal", 33, 80),
    ("2-256@subspace", 257, 33),
    ("2-256@subspace", 31, 64),
    ("2-256@subspace", 530, 402),
    ("2-512@subspace", 33, 140),
    ("1-16@subspace", 40, 131),
    ("3-128@subspace+absmax", 300, 400),
    ("4-256@subspace", 70, 260),
    ("5-64@subspace+rms", 17, 330),
    ("2-256@matrix", 300, 31),
    ("2-1024@matrix", 7, 96),
    ("2-512@group:5", 40, 66),
    ("3-512@matrix", 33, 32),
    ("3-4096@universal", 65, 96),
    ("4-4096@universal", 33, 64),
    ("4-256@group:3", 260, 52),
    ("1-4@matrix", 5, 7),
    ("1-16@universal", 31, 48),
    ("5-32@matrix+noscale", 17, 33),
    ("6-128@subspace+rms", 9, 32),
    ("7-8@matrix+norotate", 9, 31),
    ("8-65536@matrix", 3, 257),
    ("2-256@universal+norotate", 31, 257),
];
