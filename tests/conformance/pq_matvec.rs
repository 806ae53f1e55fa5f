use fasq::backend::Backend;
use fasq::pq::PqSpec;

use crate::harness::{Checks, Device, Random};
use crate::linear::{SPECS, check, pq, table};

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    run(device, checks, &[1, 3]);
}

/// Every spec with this many rows.
pub fn run<B: Backend>(device: &Device<B>, checks: &mut Checks, rows: &[usize]) {
    run_specs(device, checks, SPECS, rows);
}

/// Specs with their shapes, with this many rows; matrices of a stack share a universal table, or have their own.
pub fn run_specs<B: Backend>(
    device: &Device<B>,
    checks: &mut Checks,
    specs: &[(&str, usize, usize)],
    rows: &[usize],
) {
    let mut random = Random::new(11);
    for (text, outs, cols) in specs {
        let spec: PqSpec = text.parse().expect("a spec");
        let codebooks = table(&mut random, &spec, *cols);
        let own = table(&mut random, &spec, *cols);
        let stack = [
            pq(&mut random, spec, *outs, *cols, codebooks.clone()),
            pq(&mut random, spec, 5, *cols, codebooks),
            pq(&mut random, spec, 2, *cols, own),
        ];
        for &rows in rows {
            check(device, checks, &mut random, &format!("{text} [{outs}, {cols}]"), &stack, rows);
        }
    }
}
