use fasq::backend::Backend;
use fasq::ops::{DeltaRule, DeltaRuleParams};

use crate::harness::{Checks, Device, Random, SUMS, compare, f64s};

/// Two sequences with so many rows in a first batch, and in a second one behind it.
type Lens = [[usize; 2]; 2];

/// Sizes that fill no tile, and batches of less than a chunk, of several, and of parts of one.
const CASES: [([usize; 4], Lens); 6] = [
    ([1, 1, 1, 1], [[1, 1], [1, 1]]),
    ([2, 6, 16, 24], [[67, 40], [1, 1]]),
    ([1, 2, 31, 33], [[3, 2], [150, 1]]),
    ([2, 6, 80, 24], [[33, 64], [40, 95]]),
    ([2, 2, 128, 128], [[130, 37], [2, 3]]),
    ([1, 5, 128, 70], [[20, 76], [31, 300]]),
];

/// A case's sizes and inputs.
struct Inputs {
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
}

/// A batch: rows of q, k, v; rows of a and b; slot, first row, rows and position of each sequence.
struct Rows {
    qkv: Vec<f32>,
    proj: Vec<f32>,
    segments: Vec<[usize; 4]>,
}

impl Inputs {
    fn new([key_heads, value_heads, key_dim, value_dim]: [usize; 4], random: &mut Random) -> Self {
        let (a_log, mut dt_bias) = (random.values(value_heads), random.values(value_heads));
        // Every other head forgets so slowly that what it keeps of hundreds of rows is seen.
        dt_bias.iter_mut().step_by(2).for_each(|bias| *bias -= 6.0);
        Self { key_heads, value_heads, key_dim, value_dim, a_log, dt_bias }
    }

    /// Of a row of q, k, v.
    fn width(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Of a row of a and b.
    fn stride(&self) -> usize {
        2 * self.value_heads + 5
    }

    /// Of one sequence's state.
    fn state_len(&self) -> usize {
        self.value_heads * self.key_dim * self.value_dim
    }

    fn rows(&self, lens: [usize; 2], positions: [usize; 2], random: &mut Random) -> Rows {
        let rows = lens.iter().sum::<usize>();
        Rows {
            qkv: random.values(rows * self.width()),
            proj: random.values(rows * self.stride()).iter().map(|v| 4.0 * v).collect(),
            segments: vec![[1, 0, lens[0], positions[0]], [0, lens[0], lens[1], positions[1]]],
        }
    }

    fn params(&self, rows: &Rows) -> DeltaRuleParams {
        let words = |n: usize| n as u32;
        DeltaRuleParams {
            rows: words(rows.qkv.len() / self.width()),
            segments: words(rows.segments.len()),
            key_heads: words(self.key_heads),
            value_heads: words(self.value_heads),
            key_dim: words(self.key_dim),
            value_dim: words(self.value_dim),
            stride: words(self.stride()),
            a_offset: 3,
            b_offset: words(3 + self.value_heads),
        }
    }

    /// The recurrence, row by row: the outputs; `state` moves on, and is lost every `forget` rows.
    fn recurrence(&self, rows: &Rows, state: &mut [f64], forget: usize) -> Vec<f64> {
        let Self { key_heads, value_heads, key_dim, value_dim, .. } = *self;
        let mut y = vec![0f64; rows.qkv.len() / self.width() * value_heads * value_dim];
        for &[slot, first, len, position] in &rows.segments {
            let state = &mut state[slot * self.state_len()..][..self.state_len()];
            for r in first..first + len {
                if position == 0 && r == first || r > first && (r - first).is_multiple_of(forget) {
                    state.fill(0.0);
                }
                let row = f64s(&rows.qkv[r * self.width()..][..self.width()]);
                let proj = f64s(&rows.proj[r * self.stride()..][..self.stride()]);
                for h in 0..value_heads {
                    let kh = h / (value_heads / key_heads);
                    let unit = |x: &[f64]| {
                        let n = (x.iter().map(|v| v * v).sum::<f64>() + 1e-6).sqrt();
                        x.iter().map(|v| v / n).collect::<Vec<f64>>()
                    };
                    let q: Vec<f64> = unit(&row[kh * key_dim..][..key_dim])
                        .iter()
                        .map(|v| v / (key_dim as f64).sqrt())
                        .collect();
                    let k = unit(&row[(key_heads + kh) * key_dim..][..key_dim]);
                    let v = &row[2 * key_heads * key_dim + h * value_dim..][..value_dim];
                    let softplus = (1.0 + (proj[3 + h] + f64::from(self.dt_bias[h])).exp()).ln();
                    let decay = (-f64::from(self.a_log[h]).exp() * softplus).exp();
                    let beta = 1.0 / (1.0 + (-proj[3 + value_heads + h]).exp());
                    let s = &mut state[h * key_dim * value_dim..][..key_dim * value_dim];
                    s.iter_mut().for_each(|s| *s *= decay);
                    for j in 0..value_dim {
                        let read: f64 = (0..key_dim).map(|i| s[i * value_dim + j] * k[i]).sum();
                        let e = beta * (v[j] - read);
                        (0..key_dim).for_each(|i| s[i * value_dim + j] += k[i] * e);
                        y[(r * value_heads + h) * value_dim + j] =
                            (0..key_dim).map(|i| s[i * value_dim + j] * q[i]).sum();
                    }
                }
            }
        }
        y
    }
}

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(7);
    for (sizes, lens) in CASES {
        let inputs = Inputs::new(sizes, &mut random);
        let (a_log, dt_bias) = (device.floats(&inputs.a_log), device.floats(&inputs.dt_bias));
        let state = device.floats(&random.values(2 * inputs.state_len()));
        let mut oracle = vec![0f64; 2 * inputs.state_len()];
        for (lens, positions) in [(lens[0], [0, 0]), (lens[1], lens[0])] {
            let rows = inputs.rows(lens, positions, &mut random);
            let segments: Vec<u32> = rows.segments.iter().flatten().map(|n| *n as u32).collect();
            let params = inputs.params(&rows);
            let shape = [params.rows as usize, inputs.value_heads, inputs.value_dim];
            let (qkv, proj) = (device.floats(&rows.qkv), device.floats(&rows.proj));
            let (segments, y) = (device.words(&segments), device.poison(shape.iter().product()));
            device.run(DeltaRule {
                qkv: &qkv,
                proj: &proj,
                a_log: &a_log,
                dt_bias: &dt_bias,
                segments: &segments,
                state: &state,
                y: &y,
                params,
            });
            let expected = inputs.recurrence(&rows, &mut oracle, usize::MAX);
            let what = format!("{params:?}, {lens:?} rows behind {positions:?}");
            checks.close(&what, &shape, &expected, &device.read(&y, expected.len()), SUMS);
            checks.close(
                &format!("state after {what}"),
                &[2, inputs.value_heads, inputs.key_dim, inputs.value_dim],
                &oracle,
                &device.read(&state, oracle.len()),
                SUMS,
            );
        }
    }
}

/// The long cases would notice a state that is not handed on from one chunk of 32 or 64 rows to the next.
#[test]
fn delta_rule_cases_feel_what_is_carried() {
    let mut random = Random::new(7);
    for (sizes, [lens, _]) in CASES.into_iter().filter(|(_, [lens, _])| lens[0].max(lens[1]) > 64) {
        let inputs = Inputs::new(sizes, &mut random);
        let rows = inputs.rows(lens, [0, 0], &mut random);
        let outputs =
            |forget: usize| inputs.recurrence(&rows, &mut vec![0f64; 2 * inputs.state_len()], forget);
        let expected = outputs(usize::MAX);
        for forget in [32, 64] {
            let got: Vec<f32> = outputs(forget).iter().map(|v| *v as f32).collect();
            assert!(
                compare("y", &[got.len()], &expected, &got, SUMS).is_err(),
                "{sizes:?}, {lens:?}, {forget}"
            );
        }
    }
}
