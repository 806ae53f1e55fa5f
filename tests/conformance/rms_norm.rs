use fasq::backend::Backend;
use fasq::ops::{RmsNorm, RmsNormParams};

use crate::harness::{Checks, Device, ELEMENTWISE, Random, f64s, rotated};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(1);
    for (rows, dim, weight_offset, rotate) in [
        (1, 1, 0.0, 0),
        (3, 7, 1.0, 0),
        (2, 31, 0.0, 0),
        (5, 33, 1.0, 0),
        (1, 257, 0.0, 0),
        (3, 96, 1.0, 32),
        (2, 1024, 0.0, 512),
        (2, 1300, 1.0, 0),
        (4, 4096, 0.0, 512),
        (40, 2560, 1.0, 512),
        (140, 1024, 0.0, 256),
        (70, 1301, 1.0, 0),
        (67, 8704, 0.0, 512),
    ] {
        let (x, weight) = (random.values(rows * dim), random.values(dim));
        let params = RmsNormParams { rows: rows as u32, dim: dim as u32, eps: 1e-5, weight_offset, rotate };
        let (x_buffer, w_buffer, y) = (device.floats(&x), device.floats(&weight), device.poison(rows * dim));
        let residual = random.values(rows * dim);
        let r_buffer = device.floats(&residual);
        device.run(RmsNorm { x: &x_buffer, weight: &w_buffer, residual: None, y: &y, params });
        let expected: Vec<f64> = f64s(&x)
            .chunks_exact(dim)
            .flat_map(|x| rotated(rotate, &norm(x, &weight, weight_offset, 1e-5f32)))
            .collect();
        checks.close(
            &format!("{params:?}"),
            &[rows, dim],
            &expected,
            &device.read(&y, rows * dim),
            ELEMENTWISE,
        );
        if rotate > 0 {
            continue;
        }
        let y = device.poison(rows * dim);
        device.run(RmsNorm { x: &x_buffer, weight: &w_buffer, residual: Some(&r_buffer), y: &y, params });
        let expected: Vec<f64> = expected.iter().zip(f64s(&residual)).map(|(x, r)| x + r).collect();
        checks.close(
            &format!("{params:?}, added"),
            &[rows, dim],
            &expected,
            &device.read(&y, rows * dim),
            ELEMENTWISE,
        );
    }
}

pub fn norm(x: &[f64], weight: &[f32], offset: f32, eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * f64::from(w + offset)).collect()
}
