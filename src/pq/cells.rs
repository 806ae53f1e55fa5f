//! [`Cells`]: a grid over the space of short vectors; each cell lists the centroids that can be nearest to a point in
//! it. Most cells list a handful of hundreds or thousands of centroids.

use rayon::prelude::*;

/// Largest d: in more dimensions there would be too many cells, or too large ones.
const MAX_D: usize = 4;
/// Cells along each dimension, by the number of dimensions: powers of 2.
const SIDES: [usize; MAX_D] = [1024, 64, 32, 16];
/// With fewer centroids, a search through all is as fast.
const MIN_CENTROIDS: usize = 96;
/// Vectors per cell from which on building the grid pays off.
const VECTORS: usize = 2;
/// Margin around a cell when its candidates are chosen, in cell widths: more than rounding can move a point.
const SLACK: f64 = 1e-3;
/// Bound on the rounding error of a difference of squared distances, relative to the squared norm of the grid's
/// farthest point: scores have up to 5 roundings of 2^-24 each.
const ROUNDING: f64 = 1e-5;

/// A grid of cells with the candidates of each.
#[derive(Clone, Debug)]
pub struct Cells {
    /// The first cell's corner, and cells per unit of length, in each dimension.
    low: [f32; MAX_D],
    per_unit: [f32; MAX_D],
    side: usize,
    /// Start of each cell's candidates in `candidates`; at the end, the end of the last cell's.
    starts: Vec<u32>,
    /// In rising order within a cell.
    candidates: Vec<u16>,
}

impl Cells {
    /// The grid for `centroids` `[k, d]`; none if it does not pay off for `count` vectors or a dimension has no extent.
    pub fn new(centroids: &[f32], d: usize, count: usize) -> Option<Self> {
        let side = *SIDES.get(d.wrapping_sub(1))?;
        let cells = side.pow(d as u32);
        if centroids.len() / d < MIN_CENTROIDS || count < VECTORS * cells {
            return None;
        }
        let (mut low, mut per_unit, mut extent) = ([0f32; MAX_D], [0f32; MAX_D], [0f64; MAX_D]);
        for i in 0..d {
            let values = || centroids.iter().skip(i).step_by(d).copied();
            let (least, most) = (values().fold(f32::MAX, f32::min), values().fold(f32::MIN, f32::max));
            // A margin beyond the outermost centroids, because vectors lie there too.
            let margin = (most - least) / 8.0;
            low[i] = least - margin;
            extent[i] = f64::from(most + margin - low[i]);
            per_unit[i] = (side as f64 / extent[i]) as f32;
            if !(low[i].is_finite() && extent[i] > 0.0 && per_unit[i].is_normal()) {
                return None;
            }
        }
        let farthest: f64 =
            low.iter().zip(extent).map(|(low, extent)| (f64::from(low.abs()) + extent).powi(2)).sum();
        let lists = Space { centroids, d, low, extent, rounding: ROUNDING * farthest }.lists(side);
        let mut starts = vec![0u32];
        for list in &lists {
            starts.push(u32::try_from(starts[starts.len() - 1] as usize + list.len()).ok()?);
        }
        Some(Self { low, per_unit, side, starts, candidates: lists.concat() })
    }

    /// Candidates of a cell, on average.
    #[cfg(test)]
    pub fn mean(&self) -> f64 {
        self.candidates.len() as f64 / (self.starts.len() - 1) as f64
    }

    /// The centroids that can be nearest to `x`, or score as high by rounding, in rising order; none if `x` is outside
    /// the grid.
    #[inline]
    pub fn around<const D: usize>(&self, x: &[f32; D]) -> Option<&[u16]> {
        let mut cell = 0;
        for ((x, low), per_unit) in x.iter().zip(&self.low).zip(&self.per_unit) {
            let position = (x - low) * per_unit;
            // Written so that NaN is outside.
            if !(position >= 0.0 && position < self.side as f32) {
                return None;
            }
            cell = cell * self.side + position as usize;
        }
        Some(&self.candidates[self.starts[cell] as usize..self.starts[cell + 1] as usize])
    }
}

/// The space that the grid divides.
struct Space<'a> {
    centroids: &'a [f32],
    d: usize,
    low: [f32; MAX_D],
    extent: [f64; MAX_D],
    /// Bound on the rounding error of a difference of squared distances.
    rounding: f64,
}

impl Space<'_> {
    /// The candidates of every cell of a grid of `side` cells along each dimension, chosen from those of the grid with
    /// half as many.
    fn lists(&self, side: usize) -> Vec<Vec<u16>> {
        if side == 1 {
            return vec![(0..self.centroids.len() / self.d).map(|i| i as u16).collect()];
        }
        let coarse = self.lists(side / 2);
        let list = |scratch: &mut Vec<_>, cell: usize| {
            let (mut index, mut left, mut parent) = ([0; MAX_D], cell, 0);
            for i in (0..self.d).rev() {
                index[i] = left % side;
                left /= side;
            }
            for i in &index[..self.d] {
                parent = parent * (side / 2) + i / 2;
            }
            self.candidates(index, side, &coarse[parent], scratch)
        };
        (0..side.pow(self.d as u32)).into_par_iter().map_init(Vec::new, list).collect()
    }

    /// Those of `centroids` that are nearest to some point of the cell `index`.
    fn candidates(
        &self,
        index: [usize; MAX_D],
        side: usize,
        centroids: &[u16],
        distances: &mut Vec<f64>,
    ) -> Vec<u16> {
        let d = self.d;
        let (mut middle, mut half) = ([0f64; MAX_D], [0f64; MAX_D]);
        for i in 0..d {
            let (low, width) = (f64::from(self.low[i]), self.extent[i] / side as f64);
            middle[i] = low + (index[i] as f64 + 0.5) * width;
            half[i] = (0.5 + SLACK) * width;
        }
        let centroid = |i: u16| &self.centroids[usize::from(i) * d..][..d];
        let squared = |i: &u16| -> f64 {
            centroid(*i).iter().zip(&middle).map(|(c, m)| (f64::from(*c) - m) * (f64::from(*c) - m)).sum()
        };
        distances.clear();
        distances.extend(centroids.iter().map(squared));
        let all = || centroids.iter().copied().zip(distances.iter().copied());
        let (nearest, least) = all().fold((0, f64::MAX), |best, new| if new.1 < best.1 { new } else { best });
        let nearest = centroid(nearest);
        // |x - c|^2 - |x - nearest|^2 is linear in x, so its minimum is at a corner of the cell.
        let can_win = |&(i, distance): &(u16, f64)| {
            let apart = centroid(i).iter().zip(nearest).zip(&half);
            let most: f64 = apart.map(|((c, n), half)| 2.0 * f64::from(c - n).abs() * half).sum();
            distance - least <= most + self.rounding
        };
        all().filter(can_win).map(|(i, _)| i).collect()
    }
}
