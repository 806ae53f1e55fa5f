//! The smallest cases of what the other tests run in many and large ones, for tools that make kernels a hundred times
//! slower (tests/gpu/run.sh).

use fasq::backend::cuda::{Cuda, MatmulAlgorithm, Precision};

use crate::harness::{Checks, Device, EXACT, HALF, INPUTS_F16, Tolerance};
use crate::{by, cuda, decode, pq_ways, quantize};

fn run(device: Option<Cuda>, floor: Tolerance, cases: impl FnOnce(&Device<Cuda>, &mut Checks)) {
    let Some(device) = device else { return };
    let mut checks = Checks::with_floor(floor);
    cases(&Device(device), &mut checks);
    checks.finish();
}

#[test]
fn matvec() {
    run(by(MatmulAlgorithm::Matvec, Precision::Single), EXACT, pq_ways::few);
}

#[test]
fn tiles() {
    run(by(MatmulAlgorithm::Tiles, Precision::Single), EXACT, pq_ways::few);
}

#[test]
fn tables() {
    run(by(MatmulAlgorithm::Tables, Precision::Single), EXACT, pq_ways::few);
}

#[test]
fn decoded() {
    run(by(MatmulAlgorithm::Decoded, Precision::Half), INPUTS_F16, pq_ways::few);
}

// As users run it: a prompt of f32 goes four rows at a time, which takes minutes.
#[test]
fn steps() {
    run(cuda(Precision::Half), HALF, decode::few);
}

#[test]
fn quantizing() {
    run(cuda(Precision::Half), EXACT, quantize::few);
}
