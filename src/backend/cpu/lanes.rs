//! Vector arithmetic: written in lanes so that the compiler uses the machine's vector unit, chosen at run time.

use multiversion::multiversion;

const LANES: usize = 16;

/// Sum of `a[i] * b[i]`; both have the same length.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// `y[i] += a * x[i]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Mean of `x[i]^2`, summed in f64.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn mean_square(x: &[f32]) -> f32 {
    let mut sums = [0f64; 8];
    let lanes = x.chunks_exact(8);
    let tail: f64 = lanes.remainder().iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    for x in lanes {
        for i in 0..8 {
            sums[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    ((sums.iter().sum::<f64>() + tail) / x.len() as f64) as f32
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// GELU as approximated by tanh: `x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
pub fn gelu(x: f32) -> f32 {
    // (1 + tanh(u)) / 2 is sigmoid(2 u).
    const TWICE_ROOT: f32 = 1.595_769;
    x * sigmoid(TWICE_ROOT * (x + 0.044715 * x * x * x))
}

/// `x * sigmoid(x)`.
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}
