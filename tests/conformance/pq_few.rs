//! Few and many rows of a few specs of each kind, for a second run of an adapter that compiles slowly.

use fasq::backend::Backend;

use crate::harness::{Checks, Device};

const SPECS: &[(&str, usize, usize)] = &[
    ("2-256@universal", 300, 512),
    ("2-256@subspace", 530, 402),
    ("3-512@matrix", 33, 32),
    ("4-256@group:3", 260, 52),
    ("1-4@matrix", 5, 7),
    ("5-32@matrix+noscale", 17, 33),
    ("8-65536@matrix", 3, 257),
];

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    crate::pq_matvec::run_specs(device, checks, SPECS, &[3, 7, 65]);
}
