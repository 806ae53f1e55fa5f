// y = W x for dense W [out, in] and one row of x, in f32: a launch of its own, or a phase of the persistent decode kernel.
//
// One block a multiprocessor, rows divided evenly, one warp a row. Every lane has DEPTH loads of 16 bytes in flight and
// issues the next one as it uses one, across the ends of rows: 64 KiB a multiprocessor, also while it waits for its inputs.
// x is staged in shared memory and, where `norm` is given, normalised: the weights are applied there, the scale, being
// linear, to the sums.
// Bound: memory alone. H200, f16, [28672 x 4096] cold: 53.8 us, 91 % of peak; llama3-8b in the persistent kernel 245 tok/s.
// Versions: docs/log/cuda-decode.md.
// Constants: DENSE_DTYPE.

constexpr u32 DEPTH = 8, WIDE = DENSE_DTYPE == F32 ? 4 : 8; // elements in 16 bytes
constexpr u32 CHUNK = 32 * DEPTH;                           // loads of a row that a warp has in flight

// Index of element i of the staged x: the two halves of a lane's eight elements lie apart, which avoids bank conflicts.
__device__ __forceinline__ u32 staged(u32 i) {
    return WIDE == 8 ? (i & ~255u) | (i & 4) << 5 | (i >> 3 & 31) << 2 | (i & 3) : i;
}

using Call = DenseRowCall;

// Prefetches to L2 the beginning of what this block will read of the next matrix, so that memory is busy during the grid
// barrier.
__device__ __forceinline__ void prefetch_next(const Call& call) {
    const u32 tiles = call.next_row_tiles;
    const u32 first = tiles * real_block() / real_grid(), last = tiles * (real_block() + 1) / real_grid();
    const u32 bytes = min((last - first) * call.next_tile_bytes, PREFETCH_BYTES);
    const char* from = call.next + (u64)first * call.next_tile_bytes;
    for (u32 i = threadIdx.x * 128; i < bytes; i += blockDim.x * 128) prefetch_l2(from + i);
}

// Stages x, multiplied by the norm's weights, in `row`, with zeros up to whole chunks, and returns the norm's scale. Each
// block stores its part of the normalised row in `prepared`.
__device__ __forceinline__ f32 stage(f32* row, const Call& call) {
    const u32 in = call.cols, end = (in + CHUNK * WIDE - 1) / (CHUNK * WIDE) * (CHUNK * WIDE);
    f32 sum = 0.f;
    for (u32 i = threadIdx.x * 4; i < end; i += blockDim.x * 4) {
        float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
        if (i < in) {
            v = *reinterpret_cast<const float4*>(call.x + i);
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            if (call.norm) {
                const float4 w = *reinterpret_cast<const float4*>(call.norm + i);
                const f32 offset = call.weight_offset;
                v.x *= w.x + offset, v.y *= w.y + offset, v.z *= w.z + offset, v.w *= w.w + offset;
            }
        }
        *reinterpret_cast<float4*>(row + staged(i)) = v;
    }
    if (!call.norm) {
        __syncthreads();
        return 1.f;
    }
    const f32 scale = rsqrtf(block_sum(sum) / in + call.eps);
    for (u32 i = real_block() * blockDim.x + threadIdx.x; i < in; i += real_grid() * blockDim.x) {
        call.prepared[i] = row[staged(i)] * scale;
    }
    return scale;
}

__device__ __forceinline__ void multiply(const Call& call) {
    f32* row = reinterpret_cast<f32*>(phase_shared());
    const u32 lane = threadIdx.x & 31, warps = blockDim.x >> 5, wide = call.cols / WIDE, out = call.out;
    const u32 chunks = (wide + CHUNK - 1) / CHUNK;
    const u32 first = (u64)out * real_block() / real_grid() + (threadIdx.x >> 5);
    const u32 last = (u64)out * (real_block() + 1) / real_grid();
    release_next();
    uint4 loads[DEPTH];
    // The row and chunk being loaded. Past the last row the last one is loaded again, past a row's end its last 16 bytes,
    // for which the staged x is zero.
    u32 n = first, chunk = 0;
    const uint4* at = call.weight + (u64)min(n, max(last, 1u) - 1) * wide;
    auto load = [&](u32 d) { loads[d] = load_stream(at + min(chunk * CHUNK + d * 32 + lane, wide - 1)); };
    auto next_chunk = [&]() {
        if (++chunk < chunks) return;
        chunk = 0, n += warps;
        at = call.weight + (u64)min(n, max(last, 1u) - 1) * wide;
    };
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++) load(d);
    next_chunk();
    if (call.norm && threadIdx.x * 32 < call.cols) prefetch_l2(call.norm + threadIdx.x * 32);
    wait_inputs();
    const f32 scale = stage(row, call);
    for (u32 now = first; now < last; now += warps) {
        f32* y = call.y + call.params.y_offset + now;
        f32 before = lane == 0 && call.params.accumulate ? *y : 0.f;
        if (lane == 0 && call.bias) before += call.bias[now];
        f32 sum = 0.f;
#pragma unroll 1
        for (u32 c = 0; c < chunks; c++) {
#pragma unroll
            for (u32 d = 0; d < DEPTH; d++) {
                const f32* x = row + (c * CHUNK + d * 32) * WIDE + lane * 4;
                f32 w[WIDE];
                unpack<DENSE_DTYPE>(w, loads[d]);
                load(d);
#pragma unroll
                for (u32 k = 0; k < WIDE; k += 4) {
                    const float4 v = *reinterpret_cast<const float4*>(x + k * 32);
                    sum += w[k] * v.x + w[k + 1] * v.y + w[k + 2] * v.z + w[k + 3] * v.w;
                }
            }
            next_chunk();
        }
        sum = warp_sum(sum);
        if (lane == 0) *y = before + sum * scale;
    }
    if (call.next) prefetch_next(call);
}

#ifndef PERSISTENT
KERNEL BOUNDS(512, 1) dense_row(const uint4* weight, const f32* bias, const f32* x, f32* y, u32 out, u32 in, LinearParams params) {
    Call call = {};
    call.weight = weight, call.bias = bias, call.x = x, call.y = y;
    call.out = out, call.cols = in, call.params = params;
    multiply(call);
}
#else
KERNEL dense_row(const Call& call) { multiply(call); }
#endif
