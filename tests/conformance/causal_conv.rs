use fasq::backend::Backend;
use fasq::ops::{CausalConv, CausalConvParams};

use crate::harness::{Checks, Device, ELEMENTWISE, EXACT, Random, f64s};

/// Two slots, each fed in two batches: the state must carry over, and a new sequence must begin with zeros.
pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(6);
    for (channels, kernel, extra, lens) in
        [(1, 4, 0, [1, 1]), (7, 2, 3, [5, 1]), (257, 4, 31, [2, 33]), (96, 5, 1, [1, 7])]
    {
        let (past, stride) = (kernel - 1, channels + extra);
        let weight = random.values(channels * kernel);
        let w_buffer = device.floats(&weight);
        // Left-overs of an earlier sequence.
        let state = device.floats(&random.values(2 * channels * past));
        let mut history = [Vec::new(), Vec::new()];
        for position in [0, lens[0]] {
            let len = if position == 0 { lens[0] } else { lens[1] };
            let rows = 2 * len;
            let x = random.values(rows * stride);
            let segments = [1, 0, len, position, 0, len, len, position].map(|n| n as u32);
            let params = CausalConvParams {
                rows: rows as u32,
                segments: 2,
                channels: channels as u32,
                kernel: kernel as u32,
                stride: stride as u32,
            };
            let (x_buffer, s_buffer, y) =
                (device.floats(&x), device.words(&segments), device.poison(rows * channels));
            device.run(CausalConv {
                x: &x_buffer,
                weight: &w_buffer,
                segments: &s_buffer,
                state: &state,
                y: &y,
                params,
            });
            let mut expected = Vec::new();
            for (slot, start) in [(1, 0), (0, len)] {
                for r in start..start + len {
                    history[slot].push(f64s(&x[r * stride..][..channels]));
                    let at = history[slot].len();
                    expected.extend((0..channels).map(|c| {
                        let tap = |j: usize| {
                            at.checked_sub(kernel - j).map_or(0.0, |t: usize| history[slot][t][c])
                                * f64::from(weight[c * kernel + j])
                        };
                        let sum: f64 = (0..kernel).map(tap).sum();
                        sum / (1.0 + (-sum).exp())
                    }));
                }
            }
            checks.close(
                &format!("{params:?} at {position}"),
                &[rows, channels],
                &expected,
                &device.read(&y, rows * channels),
                ELEMENTWISE,
            );
        }
        let last = |slot: usize, c: usize, i: usize| {
            (history[slot].len() + i).checked_sub(past).map_or(0.0, |t| history[slot][t][c])
        };
        let expected: Vec<f64> = (0..2 * channels * past)
            .map(|i| last(i / (channels * past), i / past % channels, i % past))
            .collect();
        checks.close(
            "state of a convolution",
            &[2, channels, past],
            &expected,
            &device.read(&state, expected.len()),
            EXACT,
        );
    }
}
