//! The order in which values are largest.

/// The `k` largest values with their positions: in falling order, the lower position first among equals, NaN before everything.
pub fn top_k(values: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
    let k = k.min(all.len());
    let larger = |a: &(u32, f32), b: &(u32, f32)| {
        let by_value = b.1.partial_cmp(&a.1).unwrap_or_else(|| b.1.is_nan().cmp(&a.1.is_nan()));
        by_value.then(a.0.cmp(&b.0))
    };
    if 0 < k && k < all.len() {
        all.select_nth_unstable_by(k - 1, larger);
    }
    all.truncate(k);
    all.sort_unstable_by(larger);
    all
}
