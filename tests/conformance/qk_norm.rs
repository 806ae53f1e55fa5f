use fasq::backend::Backend;
use fasq::ops::{QkNorm, QkNormParams};

use crate::harness::{Checks, Device, ELEMENTWISE, Random, f64s};
use crate::rms_norm::norm;

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(31);
    for (rows, q_dim, gap, k_dim, values) in
        [(1, 1, 0, 1, 0), (3, 33, 2, 7, 5), (1, 4096, 0, 1024, 1024), (150, 600, 0, 600, 600)]
    {
        let stride = q_dim + gap + k_dim + values;
        let qkv = random.values(rows * stride);
        let (q_norm, k_norm) = (random.values(q_dim), random.values(k_dim));
        let params = QkNormParams {
            rows: rows as u32,
            stride: stride as u32,
            q_dim: q_dim as u32,
            k_offset: (q_dim + gap) as u32,
            k_dim: k_dim as u32,
            eps: 1e-5,
            weight_offset: 0.5,
        };
        let buffer = device.floats(&qkv);
        device.run(QkNorm {
            qkv: &buffer,
            q_norm: &device.floats(&q_norm),
            k_norm: &device.floats(&k_norm),
            params,
        });
        let mut expected = f64s(&qkv);
        for row in expected.chunks_exact_mut(stride) {
            let (q, keys) = (norm(&row[..q_dim], &q_norm, 0.5, 1e-5), q_dim + gap);
            row[..q_dim].copy_from_slice(&q);
            let k = norm(&row[keys..][..k_dim], &k_norm, 0.5, 1e-5);
            row[keys..][..k_dim].copy_from_slice(&k);
        }
        let got = device.read(&buffer, rows * stride);
        checks.close(&format!("{params:?}"), &[rows, stride], &expected, &got, ELEMENTWISE);
    }
}
