//! Lloyd's k-means. Results are bit-identical on every machine and for any number of threads.

use rayon::prelude::*;

use super::assign::Nearest;

/// Vectors that one task assigns. Results do not depend on it: sums run over all vectors in order.
const CHUNK: usize = 4096;

/// Moves `centroids` `[k, d]` towards the means of the `vectors` `[n, d]` nearest to them, `steps` times or until
/// nothing changes. A centroid without vectors moves to the vector with the largest error.
pub fn lloyd(vectors: &[f32], d: usize, centroids: &mut [f32], steps: usize) {
    let mut codes = vec![0; vectors.len() / d];
    let mut previous = Vec::new();
    for _ in 0..steps {
        assign(vectors, d, centroids, &mut codes);
        if codes == previous {
            break;
        }
        let empty = update(vectors, d, centroids, &codes);
        if !empty.is_empty() {
            reseed(vectors, d, centroids, &codes, &empty);
        }
        previous.clone_from(&codes);
    }
}

/// The nearest centroid of every vector.
fn assign(vectors: &[f32], d: usize, centroids: &[f32], codes: &mut [u16]) {
    let nearest = Nearest::for_many(centroids, d, codes.len());
    codes
        .par_chunks_mut(CHUNK)
        .zip(vectors.par_chunks(CHUNK * d))
        .for_each(|(codes, vectors)| nearest.assign(vectors, codes));
}

/// Replaces each centroid by the mean of its vectors; returns the centroids that have none.
fn update(vectors: &[f32], d: usize, centroids: &mut [f32], codes: &[u16]) -> Vec<usize> {
    let mut sums = vec![0f64; centroids.len()];
    let mut counts = vec![0u32; centroids.len() / d];
    for (vector, &code) in vectors.chunks_exact(d).zip(codes) {
        let code = usize::from(code);
        counts[code] += 1;
        for (sum, &v) in sums[code * d..][..d].iter_mut().zip(vector) {
            *sum += f64::from(v);
        }
    }
    for ((centroid, sum), &count) in centroids.chunks_exact_mut(d).zip(sums.chunks_exact(d)).zip(&counts) {
        if count > 0 {
            for (c, s) in centroid.iter_mut().zip(sum) {
                *c = (s / f64::from(count)) as f32;
            }
        }
    }
    (0..counts.len()).filter(|&i| counts[i] == 0).collect()
}

/// Moves the `empty` centroids to the vectors with the largest errors.
fn reseed(vectors: &[f32], d: usize, centroids: &mut [f32], codes: &[u16], empty: &[usize]) {
    let mut worst: Vec<(f32, usize)> = vectors
        .chunks_exact(d)
        .zip(codes)
        .map(|(vector, &code)| distance(vector, &centroids[usize::from(code) * d..][..d]))
        .enumerate()
        .filter_map(|(i, error)| (error > 0.0).then_some((error, i)))
        .collect();
    worst.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (&centroid, &(_, i)) in empty.iter().zip(&worst) {
        let vector = &vectors[i * d..][..d];
        centroids[centroid * d..][..d].copy_from_slice(vector);
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}
