// Depthwise causal convolution over the rows of a segment, then SiLU; the state carries the last inputs to the next batch.
// Grid: (channels / block, segments, pieces of a segment). A thread takes a channel of PIECE rows and reads the taps before
// its first row from x, or from the state where they belong to an earlier batch. If a segment is one piece the kernel
// updates the state; otherwise causal_conv_state does in a launch of its own, since pieces would race with it.
// Bound: latency for one row, 1.7 us on an H200 (qwen3.5-9b); memory for 512, 37 us.

constexpr int TAPS = CONV_KERNEL, PIECE = CONV_PIECE;

// One channel's input `at` rows after the segment's first; negative: before it, from the state.
__device__ __forceinline__ f32 input_at(const f32* x, const f32* state, u64 stride, int at, bool fresh) {
    if (at >= 0) return x[(u64)at * stride];
    return fresh ? 0.f : state[TAPS - 1 + at];
}

KERNEL causal_conv(const f32* x, const f32* weight, const u32* segments, f32* state, f32* y,
                   CausalConvParams params) {
    release_next();
    wait_inputs();
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    const u32* segment = segments + blockIdx.y * 4;
    const u32 slot = segment[0], first = segment[1], rows = segment[2];
    const bool fresh = segment[3] == 0;
    if (c >= params.channels) return;
    const f32* in = x + (u64)first * params.stride + c;
    f32* past = state + ((u64)slot * params.channels + c) * (TAPS - 1);
    f32 taps[TAPS], window[TAPS];
#pragma unroll
    for (int i = 0; i < TAPS; i++) taps[i] = weight[c * TAPS + i];
    for (u32 begin = blockIdx.z * PIECE; begin < rows; begin += gridDim.z * PIECE) {
#pragma unroll
        for (int i = 1; i < TAPS; i++) window[i] = input_at(in, past, params.stride, (int)begin - TAPS + i, fresh);
        const u32 end = min(begin + PIECE, rows);
#pragma unroll 4
        for (u32 r = begin; r < end; r++) {
#pragma unroll
            for (int i = 1; i < TAPS; i++) window[i - 1] = window[i];
            window[TAPS - 1] = in[(u64)r * params.stride];
            f32 sum = 0.f;
#pragma unroll
            for (int i = 0; i < TAPS; i++) sum += taps[i] * window[i];
            y[(u64)(first + r) * params.channels + c] = silu(sum);
        }
    }
    if (gridDim.z > 1) return;
#pragma unroll
    for (int i = 1; i < TAPS; i++) past[i - 1] = window[i];
}

KERNEL causal_conv_state(const f32* x, const u32* segments, f32* state, CausalConvParams params) {
    release_next();
    wait_inputs();
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    const u32* segment = segments + blockIdx.y * 4;
    const u32 slot = segment[0], first = segment[1], rows = segment[2];
    const bool fresh = segment[3] == 0;
    if (c >= params.channels) return;
    const f32* in = x + (u64)first * params.stride + c;
    f32* past = state + ((u64)slot * params.channels + c) * (TAPS - 1);
    f32 next[TAPS];
#pragma unroll
    for (int i = 0; i < TAPS - 1; i++) next[i] = input_at(in, past, params.stride, (int)rows - (TAPS - 1) + i, fresh);
#pragma unroll
    for (int i = 0; i < TAPS - 1; i++) past[i] = next[i];
}
