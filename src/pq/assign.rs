//! Nearest-centroid search.

use multiversion::multiversion;

use super::cells::Cells;

/// Vectors that are searched together, one in each SIMD lane.
const LANES: usize = 64;

/// A codebook prepared for search: each centroid c is followed by -|c|^2 / 2, because the nearest centroid of x has the
/// largest x.c - |c|^2 / 2.
///
/// Sums run in index order without fused multiply-add, so the same vectors give the same codes on every machine.
#[derive(Clone, Debug)]
pub struct Nearest {
    d: usize,
    /// `[k, d + 1]`.
    rows: Vec<f32>,
    /// For many vectors.
    cells: Option<Cells>,
}

impl Nearest {
    /// For `centroids` `[k, d]` with d from 1 to 8 and k up to 65536.
    pub fn new(centroids: &[f32], d: usize) -> Self {
        let rows = centroids
            .chunks_exact(d)
            .flat_map(|c| {
                let half_norm = c.iter().map(|v| v * v).sum::<f32>() * 0.5;
                c.iter().copied().chain([-half_norm])
            })
            .collect();
        Self { d, rows, cells: None }
    }

    /// [`Nearest::new`], prepared for `count` vectors or more: searches faster.
    pub fn for_many(centroids: &[f32], d: usize, count: usize) -> Self {
        Self { cells: Cells::new(centroids, d, count), ..Self::new(centroids, d) }
    }

    /// Writes the index of the nearest centroid of each of `vectors` `[codes.len(), d]`; the lowest index wins a tie.
    pub fn assign(&self, vectors: &[f32], codes: &mut [u16]) {
        debug_assert_eq!(vectors.len(), codes.len() * self.d);
        match (&self.cells, self.d) {
            (Some(cells), 1) => self.look_up::<1>(cells, vectors, codes),
            (Some(cells), 2) => self.look_up::<2>(cells, vectors, codes),
            (Some(cells), 3) => self.look_up::<3>(cells, vectors, codes),
            (Some(cells), 4) => self.look_up::<4>(cells, vectors, codes),
            _ => search(self.d, &self.rows, vectors, codes),
        }
    }

    /// [`Nearest::assign`] among each vector's candidates: the same scores in the same order, and so the same codes.
    fn look_up<const D: usize>(&self, cells: &Cells, vectors: &[f32], codes: &mut [u16]) {
        for (x, code) in vectors.as_chunks::<D>().0.iter().zip(codes) {
            let Some(candidates) = cells.around(x) else {
                search(D, &self.rows, x, std::slice::from_mut(code));
                continue;
            };
            let mut best = (f32::NEG_INFINITY, 0);
            for &i in candidates {
                let row = &self.rows[usize::from(i) * (D + 1)..][..D + 1];
                let score = x.iter().zip(row).fold(row[D], |score, (x, c)| score + x * c);
                if score > best.0 {
                    best = (score, i);
                }
            }
            *code = best.1;
        }
    }

    /// The nearest centroid of a vector `x` of at most d elements, by those elements alone.
    pub fn assign_ragged(&self, x: &[f32]) -> u16 {
        let mut best = (f32::NEG_INFINITY, 0);
        for (i, row) in self.rows.chunks_exact(self.d + 1).enumerate() {
            let score = x.iter().zip(row).map(|(x, c)| c * (x - 0.5 * c)).sum();
            if score > best.0 {
                best = (score, i as u16);
            }
        }
        best.1
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn search(d: usize, rows: &[f32], vectors: &[f32], codes: &mut [u16]) {
    match d {
        1 => search_lanes::<1>(rows, vectors, codes),
        2 => search_lanes::<2>(rows, vectors, codes),
        3 => search_lanes::<3>(rows, vectors, codes),
        4 => search_lanes::<4>(rows, vectors, codes),
        5 => search_lanes::<5>(rows, vectors, codes),
        6 => search_lanes::<6>(rows, vectors, codes),
        7 => search_lanes::<7>(rows, vectors, codes),
        _ => search_lanes::<8>(rows, vectors, codes),
    }
}

#[inline(always)]
fn search_lanes<const D: usize>(rows: &[f32], vectors: &[f32], codes: &mut [u16]) {
    for (vectors, codes) in vectors.chunks(LANES * D).zip(codes.chunks_mut(LANES)) {
        let mut x = [[0f32; LANES]; D];
        for (lane, vector) in vectors.chunks_exact(D).enumerate() {
            for (plane, &v) in x.iter_mut().zip(vector) {
                plane[lane] = v;
            }
        }
        let mut best = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
        for (i, row) in rows.chunks_exact(D + 1).enumerate() {
            let score: [f32; LANES] = std::array::from_fn(|lane| {
                x.iter().zip(row).fold(row[D], |score, (plane, c)| score + plane[lane] * c)
            });
            let index =
                std::array::from_fn(|lane| if score[lane] > best.0[lane] { i as u32 } else { best.1[lane] });
            let score =
                std::array::from_fn(
                    |lane| if score[lane] > best.0[lane] { score[lane] } else { best.0[lane] },
                );
            best = (score, index);
        }
        let index = best.1;
        for (code, i) in codes.iter_mut().zip(index) {
            *code = i as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32)
            .map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    #[test]
    fn finds_the_nearest_for_every_d() {
        for d in 1..=8 {
            for count in [1, 31, 33, 77] {
                let (centroids, x) = (numbers(64 * d, 1), numbers(count * d, 7));
                let nearest = Nearest::new(&centroids, d);
                let mut codes = vec![0; count];
                nearest.assign(&x, &mut codes);
                let distance = |x: &[f32], code: usize| -> f64 {
                    x.iter().zip(&centroids[code * d..]).map(|(a, b)| f64::from(a - b).powi(2)).sum()
                };
                for (x, &code) in x.chunks_exact(d).zip(&codes) {
                    let least = (0..64).map(|c| distance(x, c)).fold(f64::INFINITY, f64::min);
                    assert!(distance(x, code.into()) <= least + 1e-6, "d {d}, {count} vectors");
                    let ragged = nearest.assign_ragged(x);
                    assert!(distance(x, ragged.into()) <= least + 1e-6, "d {d}, ragged");
                }
            }
        }
    }

    /// With cells and without: codes of every vector, those beyond the grid, on its edges and not finite included.
    #[test]
    fn cells_change_nothing() {
        for (d, k, count) in
            [(1, 256, 9000), (2, 256, 40_000), (2, 1000, 40_000), (3, 512, 270_000), (4, 100, 530_000)]
        {
            for scale in [1e-3, 1.0, 300.0] {
                let mut centroids: Vec<f32> = numbers(k * d, 3).iter().map(|v| v * v * v * scale).collect();
                // Equals, of which the first has to win.
                centroids.copy_within(..4 * d, 20 * d);
                let mut x: Vec<f32> = numbers(count * d, 9).iter().map(|v| v * 1.4 * scale).collect();
                x[..centroids.len()].copy_from_slice(&centroids);
                for (i, odd) in [f32::NAN, f32::INFINITY, -1e30, 0.0, -0.0].into_iter().enumerate() {
                    x[(2 * i + 1) * d] = odd;
                }
                let (plain, many) = (Nearest::new(&centroids, d), Nearest::for_many(&centroids, d, count));
                let cells = many.cells.as_ref().expect("cells");
                assert!(cells.mean() < k as f64 / 3.0, "{} candidates of {k}, d {d}", cells.mean());
                let (mut expected, mut found) = (vec![0; count], vec![0; count]);
                plain.assign(&x, &mut expected);
                many.assign(&x, &mut found);
                let differ = expected.iter().zip(&found).filter(|(a, b)| a != b).count();
                assert_eq!(differ, 0, "of {count}, d {d}, k {k}, scale {scale}");
            }
        }
        let flat = [1.0, 2.0].repeat(200);
        assert!(Nearest::for_many(&flat, 2, 1 << 20).cells.is_none(), "no extent");
        assert!(Nearest::for_many(&numbers(512, 1), 2, 100).cells.is_none(), "few vectors");
    }

    #[test]
    fn padding_does_not_choose() {
        // On both elements of [1, 0] centroid 1 is nearer, on the first alone centroid 0.
        let nearest = Nearest::new(&[1.0, 9.0, 0.5, 0.0], 2);
        assert_eq!(nearest.assign_ragged(&[1.0, 0.0]), 1);
        assert_eq!(nearest.assign_ragged(&[1.0]), 0);
    }
}
