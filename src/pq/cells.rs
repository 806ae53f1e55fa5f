//! Which centroids can be nearest to a point, by where it lies: a grid over the space of short vectors, whose cells list
//! their candidates. Most cells have a handful, of hundreds or thousands of centroids.

use rayon::prelude::*;

/// Elements of a vector at most: in more dimensions cells are too many or too wide.
const MAX_D: usize = 4;
/// Cells along each dimension, by the number of dimensions: powers of 2.
const SIDES: [usize; MAX_D] = [1024, 64, 32, 16];
/// Fewer centroids are searched one by one as fast.
const MIN_CENTROIDS: usize = 96;
/// Vectors for each cell from which on making the cells pays.
const VECTORS: usize = 2;
/// How much wider a cell is taken than it is, in widths: more than rounding can move a point.
const SLACK: f64 = 1e-3;
/// Differences of squared distances that rounding can hide, in squared lengths of the grid's farthest point: scores
/// have up to 5 roundings of 2^-24 each.
const ROUNDING: f64 = 1e-5;

/// The candidates of each cell.
#[derive(Clone, Debug)]
pub struct Cells {
    /// The first cell's corner, and cells per unit of length, in each dimension.
    low: [f32; MAX_D],
    per_unit: [f32; MAX_D],
    side: usize,
    /// Where each cell's candidates begin in `candidates`, and where the last's end.
    starts: Vec<u32>,
    /// In rising order.
    candidates: Vec<u16>,
}

impl Cells {
    /// The cells of `centroids` `[k, d]`, where they pay for `count` vectors and there are any.
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
            // Some room beside the outermost centroids, for the vectors beyond.
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

    /// The centroids that can be nearest to `x`, in rising order, those that score as high by rounding included; None
    /// beyond the grid.
    #[inline]
    pub fn around<const D: usize>(&self, x: &[f32; D]) -> Option<&[u16]> {
        let mut cell = 0;
        for ((x, low), per_unit) in x.iter().zip(&self.low).zip(&self.per_unit) {
            let place = (x - low) * per_unit;
            // Not for NaN.
            if !(place >= 0.0 && place < self.side as f32) {
                return None;
            }
            cell = cell * self.side + place as usize;
        }
        Some(&self.candidates[self.starts[cell] as usize..self.starts[cell + 1] as usize])
    }
}

/// What is cut into cells.
struct Space<'a> {
    centroids: &'a [f32],
    d: usize,
    low: [f32; MAX_D],
    extent: [f64; MAX_D],
    /// What rounding can hide in a difference of squared distances.
    rounding: f64,
}

impl Space<'_> {
    /// The candidates of every cell of a grid of `side` cells along each dimension: of those of a grid of half as many.
    fn lists(&self, side: usize) -> Vec<Vec<u16>> {
        if side == 1 {
            return vec![(0..self.centroids.len() / self.d).map(|i| i as u16).collect()];
        }
        let wider = self.lists(side / 2);
        let list = |room: &mut Vec<_>, cell: usize| {
            let (mut place, mut left, mut around) = ([0; MAX_D], cell, 0);
            for i in (0..self.d).rev() {
                place[i] = left % side;
                left /= side;
            }
            for at in &place[..self.d] {
                around = around * (side / 2) + at / 2;
            }
            self.candidates(place, side, &wider[around], room)
        };
        (0..side.pow(self.d as u32)).into_par_iter().map_init(Vec::new, list).collect()
    }

    /// Those of `centroids` that are nearest to some point of the cell at `place`.
    fn candidates(
        &self,
        place: [usize; MAX_D],
        side: usize,
        centroids: &[u16],
        distances: &mut Vec<f64>,
    ) -> Vec<u16> {
        let d = self.d;
        let (mut middle, mut half) = ([0f64; MAX_D], [0f64; MAX_D]);
        for i in 0..d {
            let (low, width) = (f64::from(self.low[i]), self.extent[i] / side as f64);
            middle[i] = low + (place[i] as f64 + 0.5) * width;
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
        // |x - c|^2 - |x - nearest|^2 is linear in x, and so least in a corner of the cell.
        let can_win = |&(i, distance): &(u16, f64)| {
            let apart = centroid(i).iter().zip(nearest).zip(&half);
            let most: f64 = apart.map(|((c, n), half)| 2.0 * f64::from(c - n).abs() * half).sum();
            distance - least <= most + self.rounding
        };
        all().filter(can_win).map(|(i, _)| i).collect()
    }
}
