use fasq::backend::Backend;
use fasq::ops::{GatherRows, GatherRowsParams};

use crate::harness::{Checks, Device, EXACT, Random, f64s};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(3);
    for (from, index, dim) in [(1, vec![0], 1), (5, vec![4, 0, 4], 7), (33, vec![1, 32], 257)] {
        let x = random.values(from * dim);
        let rows = index.len();
        let params = GatherRowsParams { rows: rows as u32, dim: dim as u32 };
        let (x_buffer, i_buffer, y) = (device.floats(&x), device.words(&index), device.poison(rows * dim));
        device.run(GatherRows { x: &x_buffer, index: &i_buffer, y: &y, params });
        let expected: Vec<f64> = index.iter().flat_map(|i| f64s(&x[*i as usize * dim..][..dim])).collect();
        checks.close(&format!("{params:?}"), &[rows, dim], &expected, &device.read(&y, rows * dim), EXACT);
    }
}
