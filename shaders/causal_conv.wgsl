// y = silu(depthwise causal convolution). Invocation: one channel (x) of segment y, row after row. Bound by the latency
// of a channel's rows, one after the other.

@group(0) @binding(0) var<uniform> params: CausalConvParams;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, stride]
@group(0) @binding(2) var<storage, read> weight: array<f32>; // [channels, kernel]
@group(0) @binding(3) var<storage, read> segments: array<vec4<u32>>; // [segments]: slot, first row, rows, position
@group(0) @binding(4) var<storage, read_write> state: array<f32>; // [slots, channels, kernel - 1]
@group(0) @binding(5) var<storage, read_write> y: array<f32>; // [rows, channels]

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let channel = group.x * WORKGROUP + ids.local;
    if (channel >= params.channels) {
        return;
    }
    let segment = segments[group.y];
    let past = params.kernel - 1u;
    let kept = (segment.x * params.channels + channel) * past;
    // window[0..kernel - 1] are the last inputs, oldest first.
    var window: array<f32, MAX_TAPS>;
    if (segment.w != 0u) {
        for (var i = 0u; i < past; i++) {
            window[i] = state[kept + i];
        }
    }
    for (var r = segment.y; r < segment.y + segment.z; r++) {
        window[past] = x[r * params.stride + channel];
        var sum = 0.0;
        for (var i = 0u; i <= past; i++) {
            sum += weight[channel * params.kernel + i] * window[i];
        }
        for (var i = 0u; i < past; i++) {
            window[i] = window[i + 1u];
        }
        y[r * params.channels + channel] = silu(sum);
    }
    for (var i = 0u; i < past; i++) {
        state[kept + i] = window[i];
    }
}
