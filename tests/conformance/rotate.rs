use fasq::backend::Backend;
use fasq::ops::{Rotate, RotateParams};

use crate::harness::{Checks, Device, ELEMENTWISE, Random, f64s, rotated};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(2);
    for (rows, dim, rotate) in [
        (1, 16, 16),
        (3, 96, 32),
        (2, 192, 64),
        (1, 384, 128),
        (5, 1280, 256),
        (2, 1024, 512),
        (70, 2560, 512),
    ] {
        let x = random.values(rows * dim);
        let params = RotateParams { rows: rows as u32, dim: dim as u32, rotate };
        let (x_buffer, y) = (device.floats(&x), device.poison(rows * dim));
        device.run(Rotate { x: &x_buffer, y: &y, params });
        let expected: Vec<f64> = f64s(&x).chunks_exact(dim).flat_map(|x| rotated(rotate, x)).collect();
        checks.close(
            &format!("{params:?}"),
            &[rows, dim],
            &expected,
            &device.read(&y, rows * dim),
            ELEMENTWISE,
        );
    }
}
