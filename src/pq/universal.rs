//! Universal codebooks: the centroids of a unit Gaussian in d dimensions, the same for every model.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::sync::{Arc, LazyLock, Mutex};

use half::f16;
use rayon::prelude::*;

use super::kmeans;

/// (Sample vectors per centroid, Lloyd steps) of each stage: coarse on a small sample, then fine on a large one.
const STAGES: [(usize, usize); 2] = [(64, 60), (256, 10)];
/// Smallest and largest sample, in vectors.
const SAMPLE: (usize, usize) = (1 << 16, 1 << 20);
/// Distances that a stage may compute, but for at least 4 steps: a second or two on two cores. Four times as many lower
/// the error of large codebooks by half a percent.
const DISTANCES: u64 = 1 << 34;

type Tables = HashMap<(usize, usize), Arc<[f16]>>;

/// The universal codebook `[k, d]` in f16, computed at its first use in this process.
pub fn codebook(d: usize, k: usize) -> Arc<[f16]> {
    static BUILT: LazyLock<Mutex<Tables>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let entry = built.entry((d, k));
    entry.or_insert_with(|| table(d, k).into_iter().map(f16::from_f32).collect()).clone()
}

/// The universal codebook `[k, d]`, for vectors of mean 0 and variance 1 in each dimension.
///
/// Starts from the first k points of the sample, scaled to the density of an optimal quantizer's centroids (that of a
/// Gaussian with variance (d + 2) / d: Zador's f^(d / (d + 2))), and refines them by Lloyd's algorithm.
fn table(d: usize, k: usize) -> Vec<f32> {
    let scale = ((d + 2) as f32 / d as f32).sqrt();
    let mut centroids: Vec<f32> = gaussian(k, d).iter().map(|v| v * scale).collect();
    for (per_centroid, steps) in STAGES {
        let sample = gaussian((k * per_centroid).clamp(SAMPLE.0, SAMPLE.1), d);
        let affordable = (DISTANCES / (sample.len() / d * k) as u64).max(4) as usize;
        kmeans::lloyd(&sample, d, &mut centroids, steps.min(affordable));
    }
    centroids
}

/// `count` vectors `[count, d]` that fill a unit Gaussian evenly: the additive recurrence of the generalised golden
/// ratio (M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences"), mapped by Box and Muller.
fn gaussian(count: usize, d: usize) -> Vec<f32> {
    let dims = d.next_multiple_of(2);
    // The root above 1 of x^(dims + 1) = x + 1.
    let mut phi = 2f64;
    for _ in 0..64 {
        phi = libm::pow(1.0 + phi, 1.0 / (dims + 1) as f64);
    }
    let step: Vec<f64> = (1..=dims).map(|i| libm::pow(1.0 / phi, i as f64)).collect();
    let mut out = vec![0f32; count * d];
    out.par_chunks_mut(d).enumerate().for_each(|(n, vector)| {
        let uniform = |i: usize| {
            let u = 0.5 + (n + 1) as f64 * step[i];
            u - libm::floor(u)
        };
        for (i, pair) in vector.chunks_mut(2).enumerate() {
            let radius = libm::sqrt(-2.0 * libm::log(1.0 - uniform(2 * i)));
            let angle = TAU * uniform(2 * i + 1);
            pair[0] = (radius * libm::cos(angle)) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (radius * libm::sin(angle)) as f32;
            }
        }
    });
    out
}
