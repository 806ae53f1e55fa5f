use fasq::backend::Backend;
use fasq::ops::{SwiGlu, SwiGluParams};

use crate::harness::{Checks, Device, ELEMENTWISE, Random, f64s, rotated};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(4);
    for (rows, dim, rotate) in
        [(1, 1, 0), (3, 31, 0), (2, 257, 0), (5, 96, 32), (1, 1536, 512), (150, 1301, 0), (70, 2560, 512)]
    {
        let x: Vec<f32> = random.values(rows * 2 * dim).iter().map(|v| v * 8.0).collect();
        let params = SwiGluParams { rows: rows as u32, dim: dim as u32, rotate };
        let (x_buffer, y) = (device.floats(&x), device.poison(rows * dim));
        device.run(SwiGlu { x: &x_buffer, y: &y, params });
        let gated =
            |x: &[f64]| (0..dim).map(|i| x[i] / (1.0 + (-x[i]).exp()) * x[dim + i]).collect::<Vec<f64>>();
        let expected: Vec<f64> =
            f64s(&x).chunks_exact(2 * dim).flat_map(|x| rotated(rotate, &gated(x))).collect();
        checks.close(
            &format!("{params:?}"),
            &[rows, dim],
            &expected,
            &device.read(&y, rows * dim),
            ELEMENTWISE,
        );
    }
}
