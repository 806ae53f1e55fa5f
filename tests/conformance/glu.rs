use fasq::backend::Backend;
use fasq::ops::{Glu, GluParams};

use crate::harness::{Checks, Device, ELEMENTWISE, Random, f64s, rotated};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(4);
    for (rows, dim, rotate, gelu) in [
        (1, 1, 0, 0),
        (3, 31, 0, 1),
        (2, 257, 0, 0),
        (5, 96, 32, 0),
        (1, 1536, 512, 0),
        (1, 1536, 512, 1),
        (150, 1301, 0, 0),
        (70, 2560, 512, 1),
        (70, 2560, 512, 0),
    ] {
        let x: Vec<f32> = random.values(rows * 2 * dim).iter().map(|v| v * 8.0).collect();
        let params = GluParams { rows: rows as u32, dim: dim as u32, rotate, gelu };
        let (x_buffer, y) = (device.floats(&x), device.poison(rows * dim));
        device.run(Glu { x: &x_buffer, y: &y, params });
        let activation = |x: f64| match gelu {
            1 => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / 2.0 * (1.0 + u.tanh())
            }
            _ => x / (1.0 + (-x).exp()),
        };
        let gated = |x: &[f64]| (0..dim).map(|i| activation(x[i]) * x[dim + i]).collect::<Vec<f64>>();
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
