//! Several rows by one way of multiplying at a time, up to sizes that share work out between blocks.

use fasq::backend::Backend;

use crate::harness::{Checks, Device, Random};
use crate::linear::{check, pq, table};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    crate::pq_matvec::run(device, checks, &[2, 16, 20, 40, 130]);
    let cases = [
        ("2-256@universal", 9000, 4096, 3),
        ("2-64@universal", 1000, 2100, 16),
        ("2-256@subspace", 700, 1024, 33),
        ("2-256@universal", 1000, 2048, 300),
        ("3-4096@matrix", 500, 1500, 70),
    ];
    run(device, checks, &cases);
}

/// Each kind of table once.
pub fn few<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let cases = [
        ("2-256@universal", 70, 520, 3),
        ("2-64@universal", 70, 260, 20),
        ("2-16@subspace", 40, 130, 33),
        ("3-4096@matrix", 40, 150, 70),
    ];
    run(device, checks, &cases);
}

/// Specs, outputs and inputs of a matrix, and rows.
fn run<B: Backend>(device: &Device<B>, checks: &mut Checks, cases: &[(&str, usize, usize, usize)]) {
    let mut random = Random::new(12);
    for &(text, outs, cols, rows) in cases {
        let spec = text.parse().expect("a spec");
        let codebooks = table(&mut random, &spec, cols);
        let weight = pq(&mut random, spec, outs, cols, codebooks);
        check(device, checks, &mut random, &format!("{text} [{outs}, {cols}]"), &[weight], rows);
    }
}
