//! What every case uses: random data, named tolerances, comparison, and the backends to run on.

use fasq::backend::Backend;
use fasq::ops::Op;
use pollster::block_on;

/// How far a value may be from its reference: `abs + rel * |expected|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
}

/// Copies and selections: no arithmetic at all.
pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0 };
/// A few f32 roundings per element, and the device's exp, sin and rsqrt.
pub const ELEMENTWISE: Tolerance = Tolerance { abs: 2e-5, rel: 2e-5 };
/// Sums of up to some thousand products of order 1 in f32, in any order.
pub const SUMS: Tolerance = Tolerance { abs: 2e-4, rel: 1e-4 };

/// Sums of up to some thousand products of order 1 whose one factor is rounded to f16 (2^-11, so 3e-4 of each), the other
/// a decoded weight that may be.
pub const INPUTS_F16: Tolerance = Tolerance { abs: 2e-2, rel: 1e-3 };

/// Mean values of order 1 whose weights and values are rounded to f16; 4e-4 was seen, and a position more or less moves
/// some value by 0.1.
#[cfg(feature = "cuda")]
pub const ATTENTION_F16: Tolerance = Tolerance { abs: 2e-3, rel: 1e-3 };

/// Inputs and the cache rounded to f16 (2^-12), through all layers of a small random model, which amplifies it: the
/// worst of 67,600 logits of such a model is off by 0.287; one wrong formula moves some logit by 0.85 or more.
pub const HALF: Tolerance = Tolerance { abs: 0.3, rel: 0.02 };

/// Compares `got` with `expected`, both of `shape`; the error lists the worst element by its multi-index. NaN never
/// passes.
pub fn compare(
    what: &str,
    shape: &[usize],
    expected: &[f64],
    got: &[f32],
    tolerance: Tolerance,
) -> Result<(), String> {
    assert_eq!(expected.len(), shape.iter().product::<usize>(), "{what}: the case itself is wrong");
    if got.len() != expected.len() {
        return Err(format!("{what}: expected {} values, found {}", expected.len(), got.len()));
    }
    let excess = |(e, g): (&f64, &f32)| {
        let error = (e - f64::from(*g)).abs();
        if error.is_nan() { f64::INFINITY } else { error - tolerance.abs - tolerance.rel * e.abs() }
    };
    let excesses: Vec<f64> = expected.iter().zip(got).map(excess).collect();
    let bad = excesses.iter().filter(|e| **e > 0.0).count();
    if bad == 0 {
        return Ok(());
    }
    let (worst, _) =
        excesses.iter().enumerate().fold((0, f64::MIN), |max, (i, e)| if *e > max.1 { (i, *e) } else { max });
    let index = multi_index(worst, shape);
    Err(format!(
        "{what}: {bad} of {} values differ, worst at {index:?}: expected {}, found {}",
        got.len(),
        expected[worst],
        got[worst]
    ))
}

/// The multi-index of a flat one.
fn multi_index(flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    let mut left = flat;
    for (at, size) in index.iter_mut().zip(shape).rev() {
        *at = left % size;
        left /= size;
    }
    index
}

/// Values just above and just below what `tolerance` allows of `expected`.
fn beyond(expected: f64, tolerance: Tolerance) -> [f32; 2] {
    let allowed = tolerance.abs + tolerance.rel * expected.abs();
    // The next f32 might be off by less than f64 can tell.
    let above = ((expected + allowed) as f32).next_up().next_up();
    let below = ((expected - allowed) as f32).next_down().next_down();
    [above, below]
}

/// Negative controls: that [`compare`] refuses `got`, which passes, with one value just beyond the tolerance, and names
/// its place: the first, the last, the middle one and two that depend on the case.
fn control(what: &str, shape: &[usize], expected: &[f64], got: &[f32], tolerance: Tolerance) {
    let n = got.len();
    let mut random = Random::new(n as u64);
    let mut changed = got.to_vec();
    for place in [0, n - 1, n / 2, random.below(n), random.below(n)] {
        for wrong in beyond(expected[place], tolerance).into_iter().chain([f32::NAN]) {
            changed[place] = wrong;
            let refusal = compare(what, shape, expected, &changed, tolerance).err().unwrap_or_default();
            let names = format!("1 of {n} values differ, worst at {:?}:", multi_index(place, shape));
            assert!(refusal.contains(&names), "{what}: {wrong} passed at {place}, {refusal:?}");
        }
        changed[place] = got[place];
    }
}

/// Collects what failed, so that one run names every failing case.
pub struct Checks {
    failed: Vec<String>,
    /// What the backend is allowed at least.
    floor: Tolerance,
}

impl Checks {
    /// Checks that allow no less than `floor`.
    pub fn with_floor(floor: Tolerance) -> Self {
        Self { failed: Vec::new(), floor }
    }

    /// Compares, and makes sure that the comparison would notice one value just beyond the tolerance.
    pub fn close(
        &mut self,
        what: &str,
        shape: &[usize],
        expected: &[f64],
        got: &[f32],
        tolerance: Tolerance,
    ) {
        let tolerance =
            Tolerance { abs: tolerance.abs.max(self.floor.abs), rel: tolerance.rel.max(self.floor.rel) };
        match compare(what, shape, expected, got, tolerance) {
            Err(difference) => self.failed.push(difference),
            Ok(()) if got.is_empty() => {}
            Ok(()) => control(what, shape, expected, got, tolerance),
        }
    }

    pub fn finish(self) {
        assert!(self.failed.is_empty(), "{} cases fail:\n{}", self.failed.len(), self.failed.join("\n"));
    }
}

/// Random numbers that are the same everywhere (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    /// Numbers from -1 to 1.
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.word() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// A backend with what cases need most.
pub struct Device<B: Backend>(pub B);

impl<B: Backend> Device<B> {
    /// Whether a CPU plays a GPU, which takes minutes for long texts.
    pub fn is_played(&self) -> bool {
        self.0.describe().contains("on the CPU")
    }

    pub fn floats(&self, values: &[f32]) -> B::Buffer {
        self.0.upload(bytemuck::cast_slice(values)).expect("upload")
    }

    pub fn words(&self, words: &[u32]) -> B::Buffer {
        self.0.upload(words).expect("upload")
    }

    /// A buffer of NaN, so that what an operation does not write is seen.
    pub fn poison(&self, n: usize) -> B::Buffer {
        self.floats(&vec![f32::NAN; n])
    }

    pub fn read(&self, buffer: &B::Buffer, n: usize) -> Vec<f32> {
        bytemuck::cast_vec(block_on(self.0.read(buffer, 0, n)).expect("read"))
    }

    /// Runs one operation.
    pub fn run<'a>(&self, op: impl Into<Op<'a, B::Buffer, B::Weight>>)
    where
        B: 'a,
    {
        self.0.submit(&[op.into()]).expect("an operation");
    }
}

pub fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// The block Hadamard rotation, from its definition: signs, then the matrix with entries (-1)^popcount(i & j).
pub fn rotated(block: u32, row: &[f64]) -> Vec<f64> {
    if block == 0 {
        return row.to_vec();
    }
    let block = block as usize;
    let signed: Vec<f64> =
        row.iter().enumerate().map(|(i, v)| v * f64::from(fasq::pq::rotate::sign(i as u32))).collect();
    let entry = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let sum = |x: &[f64], i: usize| {
        x.iter().enumerate().map(|(j, v)| entry(i, j) * v).sum::<f64>() / (block as f64).sqrt()
    };
    signed.chunks_exact(block).flat_map(|x| (0..block).map(move |i| sum(x, i))).collect()
}

/// Runs every case of the listed operations on one backend, each as a test of its own.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $open:expr) => {
        $crate::conformance!(
            $name,
            $open,
            [
                attention, causal_conv, delta_rule, dense_matmul, embed, forward, gated_norm, gather_rows, pq_matmul,
                pq_matvec, qk_norm, rms_norm, rope_cache, rotate, glu, top_k
            ],
            $crate::harness::EXACT
        );
    };
    ($name:ident, $open:expr, [$($op:ident),* $(,)?], $floor:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "the expression may name a function beside the module")]
            use super::*;

            $(
                #[test]
                fn $op() {
                    let Some(device) = $open else { return };
                    let mut checks = $crate::harness::Checks::with_floor($floor);
                    $crate::$op::cases(&$crate::harness::Device(device), &mut checks);
                    checks.finish();
                }
            )*
        }
    };
}

#[test]
fn comparison_notices_wrong_values() {
    let expected = [1.0, 2.0, 3.0, 4.0];
    let fails = |got: &[f32]| compare("x", &[2, 2], &expected, got, ELEMENTWISE).err();
    assert_eq!(fails(&[1.0, 2.0, 3.0, 4.0]), None);
    assert!(fails(&[1.0, 2.0, 3.1, 4.0]).is_some_and(|text| text.contains("[1, 0]")));
    assert!(fails(&[1.0, f32::NAN, 3.0, 4.0]).is_some_and(|text| text.contains("[0, 1]")));
    assert!(fails(&[1.0, 2.0, 3.0]).is_some());
    assert!(fails(&[1.0, 2.0, 3.0, f32::INFINITY]).is_some());
    // What is just within the tolerance passes, what is just beyond it does not.
    let [above, below] = beyond(4.0, ELEMENTWISE);
    let within = [above.next_down().next_down().next_down(), below.next_up().next_up().next_up()];
    for (beyond, within) in [above, below].into_iter().zip(within) {
        assert_eq!(fails(&[1.0, 2.0, 3.0, within]), None);
        assert!(fails(&[1.0, 2.0, 3.0, beyond]).is_some_and(|text| text.contains("1 of 4")));
    }
}
