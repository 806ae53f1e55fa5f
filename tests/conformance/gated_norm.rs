use fasq::backend::Backend;
use fasq::ops::{GatedNorm, GatedNormParams};

use crate::harness::{Checks, Device, ELEMENTWISE, Random, f64s, rotated};
use crate::rms_norm::norm;

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(5);
    for (rows, heads, dim, offset, rotate) in
        [(1, 1, 1, 0, 0), (3, 6, 24, 5, 16), (2, 3, 31, 1, 0), (5, 4, 128, 64, 512)]
    {
        let (width, stride) = (heads * dim, offset + heads * dim + 3);
        let (x, weight, gate) =
            (random.values(rows * width), random.values(dim), random.values(rows * stride));
        let params = GatedNormParams {
            rows: rows as u32,
            heads: heads as u32,
            dim: dim as u32,
            stride: stride as u32,
            offset: offset as u32,
            eps: 1e-6,
            rotate,
        };
        let (x_buffer, w_buffer, g_buffer, y) =
            (device.floats(&x), device.floats(&weight), device.floats(&gate), device.poison(rows * width));
        device.run(GatedNorm { x: &x_buffer, gate: &g_buffer, weight: &w_buffer, y: &y, params });
        let (x, gate) = (f64s(&x), f64s(&gate));
        let row = |r: usize| {
            let normed =
                x[r * width..][..width].chunks_exact(dim).flat_map(|head| norm(head, &weight, 0.0, 1e-6));
            let gates = &gate[r * stride + offset..][..width];
            rotated(rotate, &normed.zip(gates).map(|(y, g)| y * g / (1.0 + (-g).exp())).collect::<Vec<f64>>())
        };
        let expected: Vec<f64> = (0..rows).flat_map(row).collect();
        checks.close(
            &format!("{params:?}"),
            &[rows, width],
            &expected,
            &device.read(&y, rows * width),
            ELEMENTWISE,
        );
    }
}
