use fasq::backend::{Backend, Dtype};
use fasq::ops::{Embed, EmbedParams};
use fasq::pq::PqSpec;

use crate::harness::{Checks, Device, ELEMENTWISE, Random};
use crate::linear::{Case, SPECS, dense, lookup, pq, table};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(12);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let case = dense(&mut random, dtype, 33, 31);
        check(device, checks, &mut random, &format!("{dtype:?}"), &case, 1.0);
        check(device, checks, &mut random, &format!("{dtype:?}, scaled"), &case, 50.6);
    }
    for (text, rows, cols) in SPECS {
        let spec: PqSpec = text.parse().expect("a spec");
        let codebooks = table(&mut random, &spec, *cols);
        let case = pq(&mut random, spec, *rows, *cols, codebooks);
        check(device, checks, &mut random, text, &case, 2.5);
    }
}

fn check<B: Backend>(
    device: &Device<B>,
    checks: &mut Checks,
    random: &mut Random,
    what: &str,
    case: &Case,
    scale: f32,
) {
    let (vocab, dim) = case.data.shape();
    let table = device.0.weight(std::slice::from_ref(&case.data)).expect("a table");
    let tokens: Vec<u32> =
        [0, vocab - 1, random.below(vocab), random.below(vocab)].map(|t| t as u32).to_vec();
    let params = EmbedParams { rows: 4, dim: dim as u32, scale };
    let (t_buffer, y) = (device.words(&tokens), device.poison(4 * dim));
    device.run(Embed { tokens: &t_buffer, table: &table, y: &y, params });
    let expected: Vec<f64> = tokens
        .iter()
        .flat_map(|t| lookup(case, *t as usize))
        .map(|element| f64::from(scale) * element)
        .collect();
    checks.close(
        &format!("{what} [{vocab}, {dim}]"),
        &[4, dim],
        &expected,
        &device.read(&y, 4 * dim),
        ELEMENTWISE,
    );
}
