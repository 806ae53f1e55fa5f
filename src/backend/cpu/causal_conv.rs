//! The delta net's depthwise causal convolution.

use super::{Buffer, lanes, segments};
use crate::ops::CausalConv;

pub fn run(op: CausalConv<'_, Buffer>) {
    let p = op.params;
    let [channels, kernel, stride] = [p.channels, p.kernel, p.stride].map(|v| v as usize);
    let (x, weight, past) = (op.x.f32(), op.weight.f32(), kernel - 1);
    let (mut state, mut y) = (op.state.f32_mut(), op.y.f32_mut());
    for segment in segments(op.segments, p.segments) {
        let state = &mut state[segment.slot * channels * past..][..channels * past];
        if segment.position == 0 {
            state.fill(0.0);
        }
        for c in 0..channels {
            let (taps, state) = (&weight[c * kernel..][..kernel], &mut state[c * past..][..past]);
            for r in segment.start..segment.start + segment.rows {
                let now = x[r * stride + c];
                let sum: f32 = taps.iter().zip(&*state).map(|(w, u)| w * u).sum();
                y[r * channels + c] = lanes::silu(sum + taps[past] * now);
                state.copy_within(1.., 0);
                state[past - 1] = now;
            }
        }
    }
}
