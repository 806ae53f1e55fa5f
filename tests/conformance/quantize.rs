//! A device's quantizer against the CPU's: the same bytes; with error feedback the same error; the same refusals.

use fasq::backend::cpu::Cpu;
use fasq::backend::{Backend, Dtype, Quantizer, Rows};
use fasq::pq::{Feedback, PqSpec, Quantized};
use fasq::quantize::Hessian;
use fasq::tensor::TensorView;
use half::{bf16, f16};

use crate::harness::{Checks, Device, EXACT, Random, SUMS, Tolerance, f64s};

/// Sums in f64 in another order.
const ORDER: Tolerance = Tolerance { abs: 0.0, rel: 1e-7 };
/// Corrections are summed in f32 in another order, so that a code here and there is its neighbour.
const FEEDBACK: Tolerance = Tolerance { abs: 0.0, rel: 1e-3 };

/// Specs with every d and scope, more centroids than vectors (which are then seeded anew) and more than one tile of them.
const SPECS: [&str; 18] = [
    "1-4@universal",
    "1-16@subspace",
    "2-256@universal",
    "2-256@subspace",
    "2-64@matrix",
    "2-64@matrix+norotate",
    "2-1024@universal+norotate+rms",
    "2-16@group:5+rotate+absmax",
    "2-32@subspace+rotate+rms",
    "3-512@universal",
    "3-64@group:4+norotate",
    "4-256@matrix+noscale",
    "4-2048@matrix",
    "5-64@universal+norotate",
    "6-128@subspace",
    "7-128@matrix",
    "8-256@universal",
    "8-1024@group:3",
];

/// Rows and columns: one row, blocks that are not full, sub-vectors that are cut off, rotations of every size, and more
/// vectors than a codebook is trained on.
const SHAPES: [(usize, usize); 7] =
    [(1, 16), (7, 97), (33, 2), (130, 512), (70, 2112), (1030, 48), (300, 1024)];

/// Weights as a file has them: rows of different size, one of zeros.
fn weights(rows: usize, cols: usize, dtype: Dtype) -> Vec<u8> {
    let mut random = Random::new((rows * cols) as u64);
    let mut values = random.values(rows * cols);
    for (n, row) in values.chunks_exact_mut(cols).enumerate() {
        let size = if n == 3 { 0.0 } else { 0.01 * (1 + n % 5) as f32 };
        row.iter_mut().for_each(|w| *w *= size * w.abs());
    }
    let bytes = values.iter().flat_map(|&w| match dtype {
        Dtype::F32 => w.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(w).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(w).to_le_bytes().to_vec(),
    });
    bytes.collect()
}

fn quantized(
    quantizer: &dyn Quantizer,
    (rows, cols): (usize, usize),
    (dtype, bytes): (Dtype, &[u8]),
    spec: PqSpec,
    feedback: Option<&Feedback>,
) -> fasq::Result<Quantized> {
    let weights = TensorView { dtype, shape: vec![rows, cols], bytes };
    quantizer.quantize(&Rows { name: "model.w", first: 10, weights }, spec, feedback)
}

fn codes(quantized: &Quantized) -> Vec<f32> {
    let matrix = &quantized.matrix;
    let mut codes = vec![0; matrix.rows * matrix.spec.subspaces(matrix.cols)];
    for (n, row) in codes.chunks_exact_mut(matrix.spec.subspaces(matrix.cols)).enumerate() {
        matrix.unpack_row(n, row);
    }
    codes.into_iter().map(f32::from).collect()
}

fn halves(values: &[f16]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let quantizer = device.0.quantizer();
    assert_ne!(quantizer.describe(), Quantizer::describe(&Cpu), "the CPU would be compared with itself");
    bytes(quantizer, checks, &SPECS, &SHAPES);
    feedback(quantizer, checks, &FEEDBACK_CASES);
    refusals(quantizer);
    hessian_sum(device, checks, &[(1, 3), (37, 70), (200, 300)]);
}

/// Each kind of kernel on little.
pub fn few<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let quantizer = device.0.quantizer();
    bytes(quantizer, checks, &["2-16@universal", "2-16@subspace+rms", "3-64@group:4+norotate"], &[(33, 70)]);
    feedback(quantizer, checks, &[("2-16@universal", (100, 160)), ("4-64@matrix+norotate", (70, 130))]);
    hessian_sum(device, checks, &[(37, 70)]);
}

fn bytes(quantizer: &dyn Quantizer, checks: &mut Checks, specs: &[&str], shapes: &[(usize, usize)]) {
    for (i, text) in specs.iter().enumerate() {
        for (j, &shape) in shapes.iter().enumerate() {
            let spec = text.parse::<PqSpec>().expect("a spec").for_cols(shape.1);
            let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][(i + j) % 3];
            let bytes = weights(shape.0, shape.1, dtype);
            let on_cpu = quantized(&Cpu, shape, (dtype, &bytes), spec, None).expect("finite weights");
            let found = quantized(quantizer, shape, (dtype, &bytes), spec, None).expect("finite weights");
            let what = format!("{spec} of {shape:?} in {dtype:?}");
            let mut compare = |part: &str, expected: Vec<f32>, got: Vec<f32>| {
                if !expected.is_empty() {
                    checks.close(
                        &format!("{part}, {what}"),
                        &[expected.len()],
                        &f64s(&expected),
                        &got,
                        EXACT,
                    );
                }
            };
            compare("scales", halves(&on_cpu.matrix.scales), halves(&found.matrix.scales));
            compare("codebooks", halves(&on_cpu.matrix.codebooks), halves(&found.matrix.codebooks));
            compare("codes", codes(&on_cpu), codes(&found));
            assert_eq!(on_cpu.matrix.codes, found.matrix.codes, "packed codes, {what}");
            let parts = |q: &Quantized| [q.error.error, q.error.total];
            let got = parts(&found).map(|v| v as f32);
            checks.close(&format!("error, {what}"), &[2], &parts(&on_cpu), &got, ORDER);
        }
    }
}

/// Specs, and the rows and columns of what is quantized with them with error feedback.
const FEEDBACK_CASES: [(&str, (usize, usize)); 6] = [
    ("2-256@universal", (300, 512)),
    ("1-16@universal", (100, 160)),
    ("3-64@universal+norotate", (300, 500)),
    ("2-64@subspace", (200, 258)),
    ("4-256@group:3+norotate", (150, 402)),
    ("8-256@matrix", (256, 512)),
];

fn feedback(quantizer: &dyn Quantizer, checks: &mut Checks, cases: &[(&str, (usize, usize))]) {
    for &(text, shape) in cases {
        let spec: PqSpec = text.parse().expect("a spec");
        let (rows, cols) = shape;
        let mut random = Random::new(cols as u64);
        // A quarter as many causes explain the inputs.
        let (causes, count) = (cols / 4, 2 * cols);
        let (mix, hidden) = (random.values(causes * cols), random.values(count * causes));
        let mut x = random.values(count * cols);
        for (x, hidden) in x.chunks_exact_mut(cols).zip(hidden.chunks_exact(causes)) {
            for (h, mix) in hidden.iter().zip(mix.chunks_exact(cols)) {
                x.iter_mut().zip(mix).for_each(|(x, m)| *x += h * m);
            }
        }
        let mut hessian = Hessian::new(cols);
        hessian.add(&x);
        let (feedback, _) = hessian.feedback("w", spec.rotation(cols), spec.d).expect("positive definite");
        let bytes = weights(rows, cols, Dtype::F16);
        let error = |quantizer: &dyn Quantizer, feedback: Option<&Feedback>| {
            let found =
                quantized(quantizer, shape, (Dtype::F16, &bytes), spec, feedback).expect("finite weights");
            found.error.relative()
        };
        let expected = error(&Cpu, Some(&feedback));
        let what = format!("relative error with feedback, {spec} of {shape:?}");
        checks.close(&what, &[1], &[expected], &[error(quantizer, Some(&feedback)) as f32], FEEDBACK);
        // Feedback costs error of the weights: without, the comparison would fail.
        assert!(error(quantizer, None) < 0.98 * expected, "{what}: no feedback");
    }
}

/// What the CPU says of weights that cannot be quantized.
fn refusals(quantizer: &dyn Quantizer) {
    let (rows, cols) = (9, 64);
    let good = weights(rows, cols, Dtype::F32);
    for (text, value) in [
        ("2-16@universal", f32::NAN),
        ("2-16@subspace", f32::INFINITY),
        ("2-16@matrix", 1e30),
        ("2-16@universal+norotate", -1e30),
        ("2-16@subspace", 1e30),
    ] {
        let mut bytes = good.clone();
        bytes[(5 * cols + 7) * 4..][..4].copy_from_slice(&value.to_le_bytes());
        let spec: PqSpec = text.parse().expect("a spec");
        let why = |quantizer: &dyn Quantizer| {
            quantized(quantizer, (rows, cols), (Dtype::F32, &bytes), spec, None).expect_err(text).to_string()
        };
        assert_eq!(why(quantizer), why(&Cpu), "{text} with {value}");
    }
}

fn hessian_sum<B: Backend>(device: &Device<B>, checks: &mut Checks, sizes: &[(usize, usize)]) {
    for &(rows, dim) in sizes {
        let mut random = Random::new(dim as u64);
        let x = random.values(2 * rows * dim);
        let mut sum = device.0.hessian_sum(dim).expect("memory").expect("a device's own sums");
        for part in x.chunks_exact(rows * dim) {
            sum.add(&device.floats(part), rows).expect("sums");
        }
        let sums = sum.sums().expect("sums");
        let (mut expected, mut got) = (vec![], vec![]);
        for i in 0..dim {
            for j in i..dim {
                let product = |x: &[f32]| f64::from(x[i]) * f64::from(x[j]);
                expected.push(x.chunks_exact(dim).map(product).sum());
                got.push(sums[i * dim + j] as f32);
            }
        }
        checks.close(&format!("sums of x^T x, {rows} x {dim}"), &[expected.len()], &expected, &got, SUMS);
    }
}
